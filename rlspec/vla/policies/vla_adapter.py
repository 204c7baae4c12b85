"""VLA-Adapter's checkpoints as one of our policies: merged weights in timm's names, and two files of heads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspec.contract.features import ACTION, STATE, image_key
from rlspec.errors import CheckpointError

HEADS = {"vit_large_patch14_reg4_dinov2.lvd142m": 16, "vit_so400m_patch14_siglip_224": 16}
"""Attention heads of the towers, in their order; no other fused ones are published."""

PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat action should the robot take to {task}?<|im_end|>\n<|im_start|>assistant\n"
)
TOKENIZER = "Qwen/Qwen2.5-0.5B"
CROP = 0.9
_TOWER = "model.backbone.vision_tower"
_PARTS = {
    "language_model.model.": "model.backbone.language_model.",
    "projector.": "model.backbone.multi_modal_projector.",
    "action_queries.": "model.action_queries.",
    "proprio_projector.": "model.proprio_projector.",
    "action_head.model.": "model.action_head.",
}
_UNUSED = re.compile(r"language_model\.lm_head\.|.*\.film_gen\.|vision_backbone\.fused_featurizer\.attn_pool\.")
_OF_BLOCKS = {  # timm's names within a block: those of transformers' DINOv2 and SigLIP
    "norm1": ("norm1", "layer_norm1"), "norm2": ("norm2", "layer_norm2"), "mlp.fc1": ("mlp.fc1", "mlp.fc1"),
    "mlp.fc2": ("mlp.fc2", "mlp.fc2"), "attn.proj": ("attention.output.dense", "self_attn.out_proj"),
}  # fmt: skip
_QKV = (
    tuple(f"attention.attention.{name}" for name in ("query", "key", "value")),
    tuple(f"self_attn.{name}_proj" for name in "qkv"),
)


@dataclass(frozen=True)
class VlaAdapterCheckpoint:
    """What its folder says, weights included."""

    folder: Path
    config: dict[str, Any]  # theirs
    colours: list[list[float]]  # means of both towers, then deviations
    tensors: dict[str, Any]  # by our names
    stats: dict[str, dict[str, list[float]]]
    dataset: str

    @classmethod
    def read(cls, folder: Path, dataset: str | None) -> VlaAdapterCheckpoint:
        """All of it.

        Args:
            folder: with the merged weights, as its merge_lora_weights_and_save.py leaves it.
            dataset: whose statistics are taken; None: there is one.

        Raises:
            CheckpointError: It is something else, or parts of it are missing.
        """
        config = _json(folder / "config.json")
        _check_kind(folder, config)
        given = dict(_weights(folder))
        for part in ("action_head", "proprio_projector"):
            given |= {f"{part}.{name}": value for name, value in _component(folder, part).items()}
        stats = _json(folder / "dataset_statistics.json")
        if dataset is None and len(stats) == 1:
            dataset = next(iter(stats))
        if dataset not in stats:
            raise CheckpointError(f"{folder}: statistics of {', '.join(stats)}; choose with dataset=NAME")
        try:
            colours = [
                each[kind]
                for kind in ("mean", "std")
                for each in _json(folder / "preprocessor_config.json")["tvf_normalize_params"]
            ]
            return cls(folder, config, colours, renamed(given), _statistics(stats[dataset], dataset), dataset)
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"{folder}: no checkpoint of VLA-Adapter: it lacks {error}") from None


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    text = (config.get("text_config") or {}).get("model_type")
    if config.get("model_type") != "openvla" or config.get("timm_model_ids") != list(HEADS) or text != "qwen2":
        raise CheckpointError(
            f"{folder}: model_type={config.get('model_type')}, towers {config.get('timm_model_ids')}, text model "
            f"{text}; adopted are VLA-Adapter's: openvla, {' and '.join(HEADS)}, qwen2"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    return content


def _weights(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        found = "; name the folder of its merged weights"
        if (folder / "lora_adapter").is_dir():
            found = ", but adapters in lora_adapter; merge them first by its vla-scripts/merge_lora_weights_and_save.py"
        raise CheckpointError(f"{folder}: no *.safetensors{found}")
    for file in files:
        try:
            yield from load_file(file).items()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None


def _component(folder: Path, part: str) -> dict[str, Any]:
    import pickle

    import torch

    files = sorted(folder.glob(f"{part}--*.pt"))
    if len(files) != 1:
        raise CheckpointError(f"{folder}: {part}--*.pt: {len(files)} files, and one is wanted")
    try:
        content = torch.load(files[0], map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"{files[0]}: cannot be read: {str(error).splitlines()[0]}") from None
    return {name.removeprefix("module."): value for name, value in content.items()}


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Their tensors by our names; what no action depends on is left out.

    Raises:
        KeyError: A tensor has a name that is none of theirs.
    """
    ours: dict[str, Any] = {}
    for name, value in given.items():
        if _UNUSED.match(name):
            continue
        part = next((part for part in _PARTS if name.startswith(part)), None)
        if part is not None:
            ours[_PARTS[part] + name.removeprefix(part)] = value
        elif name.startswith("vision_backbone.featurizer."):
            ours |= _dino(name.removeprefix("vision_backbone.featurizer."), value)
        else:
            ours |= _siglip(name.removeprefix("vision_backbone.fused_featurizer."), value)
    first = f"{_TOWER}.first.embeddings."
    # timm's table has no place for the class token, which bears its own.
    places = ours[f"{first}position_embeddings"]
    ours[f"{first}position_embeddings"] = _torch().cat([places.new_zeros(1, 1, places.shape[-1]), places], 1)
    ours[f"{first}mask_token"] = places.new_zeros(1, places.shape[-1])
    return _without_last_blocks(ours)


def _torch() -> Any:
    import torch

    return torch


def _dino(name: str, value: Any) -> dict[str, Any]:
    known = {
        "cls_token": "cls_token", "reg_token": "register_tokens", "pos_embed": "position_embeddings",
        "patch_embed.proj.weight": "patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "patch_embeddings.projection.bias",
    }  # fmt: skip
    if name in known:
        return {f"{_TOWER}.first.embeddings.{known[name]}": value}
    if scale := re.fullmatch(r"blocks\.(\d+)\.ls([12])\.(?:scale_factor|gamma)", name):
        return {f"{_TOWER}.first.encoder.layer.{scale[1]}.layer_scale{scale[2]}.lambda1": value}
    return _block(name, value, f"{_TOWER}.first.encoder.layer", 0)


def _siglip(name: str, value: Any) -> dict[str, Any]:
    inner = f"{_TOWER}.second.vision_model."
    if name == "pos_embed":
        return {f"{inner}embeddings.position_embedding.weight": value[0]}
    if name.startswith("patch_embed.proj."):
        return {f"{inner}embeddings.patch_embedding.{name.rpartition('.')[2]}": value}
    return _block(name, value, f"{inner}encoder.layers", 1)


def _block(name: str, value: Any, layers: str, tower: int) -> dict[str, Any]:
    if name in ("norm.weight", "norm.bias"):
        return {}
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        raise KeyError(name)
    index, part, kind = found.groups()
    if part == "attn.qkv":
        parts = value.chunk(3)
        return {f"{layers}.{index}.{ours}.{kind}": each for ours, each in zip(_QKV[tower], parts, strict=True)}
    return {f"{layers}.{index}.{_OF_BLOCKS[part][tower]}.{kind}": value}


def _without_last_blocks(ours: dict[str, Any]) -> dict[str, Any]:
    for tower in ("first", "second"):
        last = _blocks(ours, tower) - 1
        ours = {name: value for name, value in ours.items() if _index(name, tower) != last}
    return ours


def _index(name: str, tower: str) -> int | None:
    found = re.match(rf"{re.escape(_TOWER)}\.{tower}\..*layers?\.(\d+)\.", name)
    return int(found[1]) if found else None


def _blocks(ours: Mapping[str, Any], tower: str) -> int:
    return 1 + max(-1, *(index for name in ours if (index := _index(name, tower)) is not None))


def _statistics(given: dict[str, Any], dataset: str) -> dict[str, dict[str, list[float]]]:
    """Quantiles of state and action; numbers of an action that were not normalised stay as they are.

    LIBERO's gripper is 1 where it is open in their data, and -1 in the simulator and in LeRobot's: it is turned.
    """
    action, state = given["action"], given["proprio"]
    mask = action.get("mask") or [True] * len(action["q01"])
    turned = dataset.startswith("libero")
    plain = (3.0, -1.0) if turned else (-1.0, 1.0)
    bounds = zip(action["q01"], action["q99"], mask, strict=True)
    low, high = zip(*((q01, q99) if kept else plain for q01, q99, kept in bounds), strict=True)
    stats = {
        STATE: {"q01": list(state["q01"]), "q99": list(state["q99"])},
        ACTION: {"q01": list(low), "q99": list(high)},
    }
    if {"mean", "std"} <= action.keys() & state.keys():  # by which data are compared with it
        pairs = zip(action["mean"], action["std"], mask, strict=True)
        moved = [(1 - 2 * mean, 2 * std) if turned and not kept else (mean, std) for mean, std, kept in pairs]
        stats[ACTION] |= {"mean": [mean for mean, _ in moved], "std": [std for _, std in moved]}
        stats[STATE] |= {"mean": list(state["mean"]), "std": list(state["std"])}
    return stats


def settings(given: VlaAdapterCheckpoint) -> dict[str, Any]:
    """Fields of our config."""
    tensors = given.tensors
    first, second = f"{_TOWER}.first.embeddings", f"{_TOWER}.second.vision_model.embeddings"
    dino = tensors[f"{first}.patch_embeddings.projection.weight"]
    siglip = tensors[f"{second}.patch_embedding.weight"]
    size = int(given.config["image_sizes"][0])
    towers = [
        {
            "hidden_size": int(patch.shape[0]), "patch_size": int(patch.shape[-1]), "image_size": size,
            "num_attention_heads": heads, "num_hidden_layers": _blocks(tensors, name) + 1, "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
        }
        for name, patch, heads in zip(("first", "second"), (dino, siglip), HEADS.values(), strict=True)
    ]  # fmt: skip
    ratio = tensors[f"{_TOWER}.first.encoder.layer.0.mlp.fc1.weight"].shape[0] // dino.shape[0]
    wide = tensors[f"{_TOWER}.second.vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    registers = tensors[f"{first}.register_tokens"].shape[1]
    means_and_deviations = dict(
        zip(("image_mean", "fused_image_mean", "image_std", "fused_image_std"), given.colours, strict=True)
    )
    return {
        "size": "pretrained", "text_name": TOKENIZER, "prompt": PROMPT, "center_crop": CROP, "clip_normalised": True,
        "image_size": size, **means_and_deviations,
        "vision_config": {
            "model_type": "dinov2_with_registers", **towers[0], "mlp_ratio": ratio, "num_register_tokens": registers,
        },
        "fused_vision_config": {
            "model_type": "siglip_vision_model", **towers[1], "intermediate_size": wide, "vision_use_head": False,
        },
        "text_config": given.config["text_config"],
        "num_queries": len(tensors["model.action_queries.weight"]),
        "head": f"vla_adapter{'_pro' if 'model.action_head.mlp_resnet_blocks.0.k_task.weight' in tensors else ''}",
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"},
    }  # fmt: skip


def adopt(given: VlaAdapterCheckpoint, out: Path, *, cameras: Sequence[str]) -> None:
    """Write a policy of type rlspec_adapter with its processors.

    Args:
        given: what is adopted.
        out: folder, put in place whole.
        cameras: names after `observation.images.`, in the order in which the model sees them: the scene's, the wrist's.

    Raises:
        CheckpointError: The weights do not fit.
    """
    import torch
    from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature

    from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
    from rlspec.vla.policies.adapter.modeling_adapter import RlspecAdapterPolicy
    from rlspec.vla.policies.adapter.processor_adapter import make_rlspec_adapter_pre_post_processors
    from rlspec.vla.policies.adopted import write_policy

    fields = settings(given)
    modes = {kind: NormalizationMode(mode) for kind, mode in fields.pop("normalization_mapping").items()}
    shape = (3, fields["image_size"], fields["image_size"])
    pictures = {image_key(name): PolicyFeature(FeatureType.VISUAL, shape) for name in cameras}
    config = RlspecAdapterConfig(
        **fields, normalization_mapping=modes, device="cpu", push_to_hub=False,
        input_features={STATE: PolicyFeature(FeatureType.STATE, (len(given.stats[STATE]["q01"]),)), **pictures},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (len(given.stats[ACTION]["q01"]),))},
    )  # fmt: skip
    policy = RlspecAdapterPolicy(config)
    try:
        policy.load_state_dict({name: value.float() for name, value in given.tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{given.folder}: {' '.join(str(error).split())[:300]}") from None
    stats = {name: {kind: torch.tensor(value) for kind, value in each.items()} for name, each in given.stats.items()}
    write_policy(out, policy, make_rlspec_adapter_pre_post_processors(config, stats))
