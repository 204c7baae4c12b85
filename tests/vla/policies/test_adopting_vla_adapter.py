"""VLA-Adapter's checkpoint becomes one of our policies: tiny, in the layout and with the names of its own folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_published_head import plain_block
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlspec.adopt import main
from rlspec.errors import CheckpointError
from rlspec.vla.data.comparison import compare_statistics
from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy
from rlspec.vla.policies.adapter.published_head import ProBlock, SharedBlock
from rlspec.vla.policies.vla_adapter import VlaAdapterCheckpoint, adopt

WIDTH, SIZE, HEADS = 32, 28, 16  # as wide as the head's plain formulas; the towers' heads are in no file
DEPTH = {"featurizer": 3, "fused_featurizer": 2}
ACTIONS, STATE, CHUNK, QUERIES = 7, 8, 8, 5
TEXT = {
    "model_type": "qwen2", "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
COLOURS = [
    {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]},
    {"mean": [0.5] * 3, "std": [0.5] * 3},
]
IDS = [5, 9, 2, 7]


def tower(name: str, width: int, draw: Any) -> dict[str, Tensor]:
    """Names of timm's vision transformer, DINOv2's with class token, registers and scales."""
    dino = name == "featurizer"
    sizes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 4, width), "patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    sizes |= {"cls_token": (1, 1, width), "reg_token": (1, 4, width)} if dino else {"attn_pool.latent": (1, 1, width)}
    for index in range(DEPTH[name]):
        layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        layers |= {"norm1": (width,), "norm2": (width,)}  # type: ignore[dict-item]
        for part, shape in layers.items():
            sizes |= {f"blocks.{index}.{part}.weight": shape, f"blocks.{index}.{part}.bias": shape[:1]}
        if dino:
            sizes |= {f"blocks.{index}.ls{each}.scale_factor": (width,) for each in (1, 2)}
    return {f"vision_backbone.{name}.{key}": draw(*shape) for key, shape in sizes.items()}


def tensors(pro: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Of the model, the action head and the projector of the state."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    def linear(name: str, out: int, given: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(out, given), f"{name}.bias": draw(out)}

    model = tower("featurizer", 32, draw) | tower("fused_featurizer", 48, draw)
    model |= linear("projector.fc1", 320, 80) | linear("projector.fc2", WIDTH, 320)
    model |= linear("projector.fc3", WIDTH, WIDTH) | {"action_queries.weight": draw(QUERIES, WIDTH)}
    torch.manual_seed(1)
    language = Qwen2ForCausalLM(Qwen2Config(**{**TEXT, "initializer_range": 0.3})).state_dict()
    model |= {f"language_model.{name}": value.clone() for name, value in language.items() if "lm_head" not in name}
    head = linear("fc1", WIDTH, ACTIONS * WIDTH) | linear("fc2", ACTIONS, WIDTH)
    head |= {f"layer_norm1.{kind}": draw(ACTIONS * WIDTH) for kind in ("weight", "bias")}
    head |= {f"layer_norm2.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    for index in range(2):
        block = f"mlp_resnet_blocks.{index}."
        names = [f"{kind}_{of}" for kind in "kv" for of in ("self", "adapter", "task")] if pro else ["k_proj", "v_proj"]
        for name in ["q_proj", "o_proj", *names, *(["film_gen.0"] if pro else [])]:
            head |= linear(block + name, WIDTH * (2 if "film" in name else 1), WIDTH)
        head |= linear(f"{block}ffn.1", WIDTH, WIDTH) | {f"{block}gating_factor": draw(1)}
        head |= {f"{block}ffn.0.{kind}": draw(WIDTH) for kind in ("weight", "bias")}
    proprio = linear("fc1", WIDTH, STATE) | linear("fc2", WIDTH, WIDTH)
    return model, {f"module.model.{name}": value for name, value in head.items()}, proprio


def write(folder: Path, pro: bool = True, dataset: str = "libero_object_no_noops") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model, head, proprio = tensors(pro)
    names = sorted(model)
    for part in range(2):  # as large ones are kept
        save_file({name: model[name] for name in names[part::2]}, folder / f"model-{part + 1}-of-2.safetensors")
    torch.save(head, folder / "action_head--150000_checkpoint.pt")
    torch.save(
        {f"module.{name}": value for name, value in proprio.items()}, folder / "proprio_projector--1_checkpoint.pt"
    )
    config = {"model_type": "openvla", "image_sizes": [SIZE, SIZE], "text_config": TEXT}
    config["timm_model_ids"] = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({"tvf_normalize_params": COLOURS}))
    action = {"q01": [-0.5] * 6 + [0.0], "q99": [1.5] * 6 + [1.0], "mask": [True] * 6 + [False]}
    action |= {"mean": [0.5] * 6 + [0.6], "std": [0.4] * 6 + [0.49]}
    proprio = {"q01": [-2.0] * STATE, "q99": [2.0] * STATE, "mean": [0.0] * STATE, "std": [0.8] * STATE}
    stats = {dataset: {"action": action, "proprio": proprio}}
    (folder / "dataset_statistics.json").write_text(json.dumps(stats))
    return folder


def plain_tower(given: dict[str, Tensor], name: str, images: Tensor) -> Tensor:
    """timm's `get_intermediate_layers` of the last block but one, without prefix tokens; compared with 0.9.16."""
    own = {key.removeprefix(f"vision_backbone.{name}."): value for key, value in given.items() if f".{name}." in key}
    x = F.conv2d(images, own["patch_embed.proj.weight"], own["patch_embed.proj.bias"], stride=14)
    x = x.flatten(2).transpose(1, 2) + own["pos_embed"]
    prefix = [own[key].expand(len(x), -1, -1) for key in ("cls_token", "reg_token") if key in own]
    x = torch.cat([*prefix, x], 1)
    for index in range(DEPTH[name] - 1):
        part = {key.removeprefix(f"blocks.{index}."): value for key, value in own.items() if f"blocks.{index}." in key}

        def layer(key: str, y: Tensor, part: dict[str, Tensor] = part) -> Tensor:
            return F.linear(y, part[f"{key}.weight"], part[f"{key}.bias"])

        def norm(key: str, y: Tensor, part: dict[str, Tensor] = part) -> Tensor:
            return F.layer_norm(y, y.shape[-1:], part[f"{key}.weight"], part[f"{key}.bias"], 1e-6)

        heads = [
            each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in layer("attn.qkv", norm("norm1", x)).chunk(3, -1)
        ]
        weights = (heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(heads[0].shape[-1])).softmax(-1)
        x = x + part.get("ls1.scale_factor", 1) * layer("attn.proj", (weights @ heads[2]).transpose(1, 2).flatten(2))
        x = x + part.get("ls2.scale_factor", 1) * layer("mlp.fc2", F.gelu(layer("mlp.fc1", norm("norm2", x))))
    return x[:, -4:]


@torch.no_grad()
def plain_actions(pro: bool, images: Tensor, state: Tensor) -> Tensor:
    """One row as `predict_action` of VLA-Adapter computes it: images (2, 3, S, S) in [0, 1], state normalised."""
    model, head, proprio = tensors(pro)
    seen = []
    for name, colours in zip(DEPTH, COLOURS, strict=True):
        mean, std = (torch.tensor(colours[kind])[:, None, None] for kind in ("mean", "std"))
        seen.append(plain_tower(model, name, (images - mean) / std))
    patches = torch.cat(seen, -1).flatten(0, 1)
    for index in (1, 2, 3):
        patches = F.linear(patches, model[f"projector.fc{index}.weight"], model[f"projector.fc{index}.bias"])
        patches = F.gelu(patches) if index < 3 else patches
    language = Qwen2ForCausalLM(Qwen2Config(**TEXT)).eval()
    language.load_state_dict(
        {name.removeprefix("language_model."): value for name, value in model.items() if "language" in name},
        strict=False,
    )
    words = language.get_input_embeddings()(torch.tensor([*IDS, 2]))  # they end with a stop token
    sequence = torch.cat([words[:1], patches, words[1:-1], model["action_queries.weight"], words[-1:]])[None]
    states = language(inputs_embeds=sequence, output_hidden_states=True).hidden_states
    count, prompt = len(patches), len(IDS) - 1
    token = F.linear(
        F.gelu(F.linear(state, proprio["fc1.weight"], proprio["fc1.bias"])),
        *(proprio[f"fc2.{k}"] for k in ("weight", "bias")),
    )
    own = {name.removeprefix("module.model."): value for name, value in head.items()}
    x = torch.zeros(CHUNK, ACTIONS * WIDTH)
    x = F.linear(
        F.layer_norm(x, x.shape[-1:], own["layer_norm1.weight"], own["layer_norm1.bias"]),
        own["fc1.weight"],
        own["fc1.bias"],
    ).relu()
    for index in range(2):
        block = (ProBlock if pro else SharedBlock)(WIDTH)
        prefix = f"mlp_resnet_blocks.{index}."
        block.load_state_dict(
            {n.removeprefix(prefix): v for n, v in own.items() if n.startswith(prefix) and "film" not in n}
        )
        layer = states[index + 1][0]
        adapter = torch.cat([layer[count + prompt : count + prompt + QUERIES], token[None]])
        x = plain_block(block, x, layer[:count], adapter)
    return F.linear(
        F.layer_norm(x, x.shape[-1:], own["layer_norm2.weight"], own["layer_norm2.bias"]),
        own["fc2.weight"],
        own["fc2.bias"],
    )


class Words:
    """A tokenizer that keeps what it is told."""

    said: list[str] = []

    def __call__(self, texts: list[str], **_: Any) -> dict[str, Tensor]:
        Words.said = texts
        ids = torch.tensor([IDS] * len(texts))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.processor import tokenizer_processor

    monkeypatch.setattr(tokenizer_processor.AutoTokenizer, "from_pretrained", lambda *_, **__: Words())


@pytest.mark.parametrize("pro", [True, False])
def test_the_adopted_policy_acts_as_the_published_code(
    pro: bool, tmp_path: Path, tokenizer: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ours"
    assert main(["source=vla_adapter", f"path={write(tmp_path / 'theirs', pro)}", f"out={out}", "cameras=a,b"]) == 0
    assert f"policy={'vla_adapter_pro' if pro else 'vla_adapter'} policy.path=" in capsys.readouterr().out
    actor = load_policy(PolicySource(str(out), device="cpu"))
    policy: Any = actor.policy
    assert (policy.config.head, policy.config.center_crop) == ("vla_adapter_pro" if pro else "vla_adapter", 0.9)
    policy.config.center_crop = 1.0  # which is another test's
    images, state = torch.rand(2, 3, SIZE, SIZE), torch.tensor([[0.5, -1.0, 1.5, 0.0, 9.0, -9.0, 1.0, -0.5]])
    given = {"observation.images.a": images[:1], "observation.images.b": images[1:], "observation.state": state}
    chunk = policy.predict_action_chunk(actor.preprocessor({**given, "task": ["Pick up the Milk"]}))
    assert Words.said[0].endswith("take to pick up the milk?<|im_end|>\n<|im_start|>assistant\n")
    expected = plain_actions(pro, images, (state[0] / 2).clamp(-1, 1))
    torch.testing.assert_close(chunk[0], expected, rtol=1e-4, atol=1e-5)
    back = actor.postprocessor(chunk[0])
    torch.testing.assert_close(back[:, :6], chunk[0, :, :6] + 0.5)
    torch.testing.assert_close(back[:, 6], 1 - 2 * chunk[0, :, 6], msg="LIBERO's gripper: 1 is closed")


def test_pictures_are_cropped_outside_of_training_alone(tmp_path: Path, tokenizer: None) -> None:
    adopt(VlaAdapterCheckpoint.read(write(tmp_path / "theirs"), None), tmp_path / "ours", cameras=["a", "b"])
    policy: Any = load_policy(PolicySource(str(tmp_path / "ours"), device="cpu")).policy
    seen: list[Tensor] = []
    policy.model.backbone.vision_tower.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    plain = torch.zeros(1, 3, 100, 100)
    plain[..., :2] = 1.0  # a margin that the crop takes away
    ids = torch.tensor([IDS])
    batch = {"observation.images.a": plain, "observation.images.b": plain, "observation.state": torch.zeros(1, STATE)}
    batch |= {"observation.language.tokens": ids, "observation.language.attention_mask": torch.ones_like(ids)}
    policy.predict_action_chunk(batch)
    policy.train()(batch | {"action": torch.full((1, CHUNK, ACTIONS), 5.0)})
    assert seen[0].unique(dim=-1).shape[-1] == 1 and seen[1].unique(dim=-1).shape[-1] > 1
    learnt, _ = policy.read_actions({"action": torch.full((1, CHUNK, ACTIONS), 5.0)})
    assert learnt.max() == 1.0


def test_its_statistics_are_compared_with_data_as_the_simulator_has_them(tmp_path: Path) -> None:
    """LIBERO's gripper is -1 or 1 there."""
    found = VlaAdapterCheckpoint.read(write(tmp_path / "theirs"), None).stats
    assert (found["action"]["mean"][6], found["action"]["std"][6]) == pytest.approx((1 - 2 * 0.6, 2 * 0.49))
    generator = np.random.default_rng(0)
    actions = generator.normal(0.5, 0.4, (500, ACTIONS))
    actions[:, 6] = generator.choice([-1.0, 1.0], 500, p=[0.6, 0.4])
    columns = {"action": actions, "observation.state": generator.normal(0.0, 0.8, (500, STATE))}
    ours = {name: {"mean": values.mean(0), "std": values.std(0)} for name, values in columns.items()}
    assert not list(compare_statistics(ours, found, columns.__getitem__))


def test_what_is_no_checkpoint_of_vla_adapter_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "theirs", dataset="bridge")
    assert VlaAdapterCheckpoint.read(folder, None).stats["action"]["q99"][6] == 1.0, "another robot's gripper stays"

    def refused(said: str, dataset: str | None = None) -> None:
        with pytest.raises(CheckpointError, match=said):
            VlaAdapterCheckpoint.read(folder, dataset)

    refused("statistics of bridge; choose with dataset=NAME", "libero")
    (folder / "action_head--2_checkpoint.pt").write_bytes(b"")
    refused(r"action_head--\*.pt: 2 files, and one is wanted")
    for file in folder.glob("action_head--*"):
        file.write_bytes(b"no")
    (folder / "action_head--2_checkpoint.pt").unlink()
    refused(r"action_head--150000_checkpoint.pt: cannot be read")
    write(folder, dataset="bridge")
    part = folder / "model-1-of-2.safetensors"
    save_file({**load_file(part), "vision_backbone.featurizer.blocks.0.ls3": torch.zeros(1)}, part)
    refused("it lacks 'blocks.0.ls3'")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    refused("no \\*.safetensors; name the folder of its merged weights")
    (folder / "lora_adapter").mkdir()
    refused("but adapters in lora_adapter; merge them first by its vla-scripts/merge_lora_weights_and_save.py")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"text_config": {"model_type": "llama"}}))
    refused("text model llama; adopted are VLA-Adapter's: openvla, ")
