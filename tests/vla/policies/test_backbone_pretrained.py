"""Backbones of transformers, tiny and from dictionaries: no network, no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from grounding import ACTIONS, CHUNK, features
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, Qwen2VLImageProcessor

from rlspec.errors import ConfigError
from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.adapter.modeling_adapter import RlspecAdapterPolicy
from rlspec.vla.policies.backbone.vlm import KNOWN, VisionLanguageBackbone, pixel_arguments

VOCAB = 64
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
IMAGE, START, END = 63, 62, 61  # ids that no text has
QWEN_TOWER = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8, "out_hidden_size": 32,
}  # fmt: skip
QWEN_IDS = {
    "image_token_id": IMAGE, "video_token_id": 60, "vision_start_token_id": START, "vision_end_token_id": END,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER}
IDEFICS = {"vision_config": TOWER, "scale_factor": 2, "image_token_id": IMAGE}
VLMS: dict[str, dict[str, Any]] = {
    "smolvlm": {"text_config": {"model_type": "llama", **TEXT}, **IDEFICS},
    "idefics3": {"text_config": {"model_type": "llama", **TEXT}, **IDEFICS},
    "llava": {
        "text_config": {"model_type": "qwen3", **TEXT}, "vision_config": SIGLIP, "image_token_id": IMAGE,
        "vision_feature_select_strategy": "full", "vision_feature_layer": -1,
    },
    "paligemma": {
        "text_config": {"model_type": "gemma", **TEXT}, "vision_config": SIGLIP, "image_token_id": IMAGE,
        "projection_dim": 32, "hidden_size": 32,
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **TEXT}, "vision_config": SIGLIP, "image_token_id": IMAGE,
        "mm_tokens_per_image": 4,
    },
    "qwen2_vl": {
        "text_config": {**TEXT, "model_type": "qwen2_vl_text", "rope_parameters": ROPE},
        "vision_config": {
            "depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2,
        },
        **QWEN_IDS,
    },
    "qwen2_5_vl": {
        "text_config": {**TEXT, "model_type": "qwen2_5_vl_text", "rope_parameters": ROPE},
        "vision_config": {**QWEN_TOWER, "window_size": 32, "fullatt_block_indexes": [1]}, **QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": {
            **TEXT, "model_type": "qwen3_vl_text", "rope_parameters": {**ROPE, "mrope_interleaved": True},
        },
        "vision_config": {**QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}, **QWEN_IDS,
    },
}  # fmt: skip
SOURCES: dict[str, dict[str, Any]] = {
    **{name: {"vlm_config": {"model_type": name, **settings}} for name, settings in VLMS.items()},
    **{
        f"{tower}+qwen3": {
            "vision_config": {"model_type": tower, **TOWER}, "text_config": {"model_type": "qwen3", **TEXT},
        }
        for tower in ("siglip_vision_model", "dinov2")
    },
    "dinov2+siglip+qwen2": {
        "vision_config": {"model_type": "dinov2_with_registers", **TOWER, "num_register_tokens": 3},
        "fused_vision_config": {**SIGLIP, "hidden_size": 48, "vision_use_head": False},
        "text_config": {"model_type": "qwen2", **TEXT},
    },
}  # fmt: skip
UNUSED = r"mask_token|vision_model\.(?:post_layernorm|head)|vision_tower\.(?:vision_model\.)?head"


def build(source: str, **settings: Any) -> RlspecAdapterPolicy:
    torch.manual_seed(0)
    inputs, outputs = features(40)
    policy = RlspecAdapterPolicy(
        RlspecAdapterConfig(
            **{**SOURCES[source], "image_size": 32, **settings}, size="pretrained", input_features=inputs,
            output_features=outputs, device="cpu", push_to_hub=False, head_width=32, head_heads=2,
        )
    )  # fmt: skip
    if source == "gemma3":  # zero before any training: it would see nothing
        torch.nn.init.normal_(policy.model.backbone.vlm.multi_modal_projector.mm_input_projection_weight, std=0.2)  # type: ignore[union-attr, arg-type]
    return policy


def batch(rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[0, 4:] = False
    return {
        "observation.images.external": torch.rand(rows, 3, 40, 40, generator=generator),
        "observation.images.wrist": torch.rand(rows, 3, 40, 40, generator=generator),
        "observation.state": torch.randn(rows, 3, generator=generator),
        "observation.language.tokens": torch.randint(1, 60, (rows, 6), generator=generator),
        "observation.language.attention_mask": mask,
        "action": torch.randn(rows, CHUNK, ACTIONS, generator=generator),
    }


@pytest.mark.parametrize("source", SOURCES)
def test_it_learns_sees_and_ignores_padding(source: str) -> None:
    policy = build(source, gate_init=0.5)
    given = batch()
    policy(given)[0].backward()
    silent = [name for name, param in policy.named_parameters() if param.grad is None or not param.grad.any()]
    assert not [name for name in silent if not re.search(UNUSED, name)]
    first = policy.predict_action_chunk(given)
    padded = {**given, "observation.language.tokens": given["observation.language.tokens"].clone()}
    padded["observation.language.tokens"][0, 4:] = 7
    torch.testing.assert_close(policy.predict_action_chunk(padded), first)
    for key in ("observation.images.wrist", "observation.language.tokens"):
        other = {**given, key: given[key].roll(1, 0)}
        assert not torch.allclose(policy.predict_action_chunk(other), first, atol=1e-5), key


def own_forward(model: Any, images: torch.Tensor, text: torch.Tensor, tokens: int, before: Sequence[int] = ()) -> Any:
    """Of one row without padding, as a user of transformers writes it, with its processor's patches."""
    kind, grids = model.config.model_type, {}
    ids = list(before)
    for _ in images:
        ids += [IMAGE] * tokens if "qwen" not in kind else [START, *[IMAGE] * tokens, END]
    every = torch.tensor([[*ids, *text.tolist()]])
    pixels = {"pixel_values": images[None] if kind in ("smolvlm", "idefics3") else images}
    if "qwen" in kind:
        processor = Qwen2VLImageProcessor(
            patch_size=8, do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False
        )
        pixels = dict(
            processor([image.numpy() for image in images], return_tensors="pt", input_data_format="channels_first")
        )
        grids = {"mm_token_type_ids": (every == IMAGE).int()}
    if kind == "paligemma":
        grids = {"token_type_ids": torch.zeros_like(every)}
    if kind == "gemma3":
        grids = {"token_type_ids": (every == IMAGE).long()}
    return model(input_ids=every, output_hidden_states=True, use_cache=False, **pixels, **grids)


@torch.no_grad()
def test_of_a_model_with_a_text_tower_the_vision_tower_is_taken(tmp_path: Path) -> None:
    """As google/siglip-so400m-patch14-224 is stored."""
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": 64}
    whole = AutoModel.from_config(AutoConfig.for_model("siglip", vision_config=TOWER, text_config=text))
    whole.save_pretrained(tmp_path / "siglip")
    AutoModel.from_config(AutoConfig.for_model("qwen3", **TEXT)).save_pretrained(tmp_path / "qwen")
    SOURCES["named"] = {"vision_name": str(tmp_path / "siglip"), "text_name": str(tmp_path / "qwen")}
    tower = build("named").model.backbone.vision_tower  # type: ignore[union-attr]
    del SOURCES["named"]
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        tower(pixel_values=images).last_hidden_state, whole.vision_model(pixel_values=images).last_hidden_state
    )
    assert not [name for name, _ in tower.named_parameters() if "head" in name], "what it pools is not used"


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("kind", KNOWN)
def test_hidden_states_are_those_of_the_models_own_forward(kind: str, train: bool) -> None:
    """Of images and text, in every layer, beside a row with padding on either side; queries change nothing."""
    policy = build(kind).train(train)
    backbone = policy.model.backbone
    assert isinstance(backbone, VisionLanguageBackbone)
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(3, 2, 3, 32, 32, generator=generator) * 2 - 1
    ids = torch.randint(1, 60, (3, 6), generator=generator)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    mask[2, :3] = False
    queries = torch.randn(4, 32, generator=generator)
    with torch.no_grad():
        hidden = backbone(images, ids, mask, queries)
        other = backbone(images, ids, mask, 2 * queries + 1)
        for row in range(3):
            seen = hidden.mask[row]
            tokens = (int(seen.sum()) - int(mask[row].sum())) // 2 - (2 if "qwen" in kind else 0)
            expected = own_forward(backbone.vlm, images[row], ids[row][mask[row]], tokens).hidden_states
            assert len(expected) == len(hidden.task) == 3
            for ours, theirs, changed in zip(hidden.task, expected, other.task, strict=True):
                torch.testing.assert_close(ours[row][seen], theirs[0], rtol=1e-5, atol=2e-6)
                assert torch.equal(ours[row][seen], changed[row][seen])
    assert not torch.allclose(hidden.queries[-1], other.queries[-1], atol=1e-2)


def test_a_model_that_was_not_compared_with_its_own_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlspec.vla.policies.backbone.vlm.KNOWN", ("paligemma",))
    with pytest.raises(ConfigError, match="type llava has not been compared with its own forward; known: paligemma"):
        build("llava")
    with pytest.raises(ConfigError, match="bidirectional=True: a pretrained model sees as it was pretrained"):
        build("paligemma", bidirectional=True)


@pytest.mark.parametrize("source", ["smolvlm", "dinov2+qwen3", "dinov2+siglip+qwen2"])
def test_a_saved_policy_needs_nothing_but_its_folder(source: str, tmp_path: Path) -> None:
    policy = build(source).eval()
    policy.save_pretrained(tmp_path)
    again = RlspecAdapterPolicy.from_pretrained(tmp_path)
    assert torch.equal(again.predict_action_chunk(batch()), policy.predict_action_chunk(batch()))


def test_a_folder_brings_its_weights_and_its_image_size(tmp_path: Path) -> None:
    torch.manual_seed(3)
    settings = dict(SOURCES["llava"]["vlm_config"])
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    model.save_pretrained(tmp_path)
    SOURCES["folder"] = {"vlm_name": str(tmp_path)}
    policy = build("folder", image_size=None)
    del SOURCES["folder"]
    backbone = policy.model.backbone
    assert isinstance(backbone, VisionLanguageBackbone) and policy.config.image_size == 32
    expected = model.model.language_model.layers[0].mlp.up_proj.weight
    assert torch.equal(backbone.decoder.get_parameter("layers.0.mlp.up_proj.weight"), expected)
    assert policy.config.vlm_config is not None and policy.config.vlm_config["model_type"] == "llava"


def test_frozen_parts_get_no_gradient() -> None:
    policy = build("smolvlm", train_vision=False)
    frozen = {name.split(".")[3] for name, param in policy.named_parameters() if not param.requires_grad}
    assert frozen == {"vision_model"}
    policy(batch())[0].backward()
    assert any(param.grad is not None for param in policy.model.backbone.decoder.parameters())


def test_qwen_patches_come_in_windows_of_the_merger() -> None:
    """Checked against the place that each pixel tells."""
    config = AutoConfig.for_model("qwen3_vl", **VLMS["qwen3_vl"])
    rows = torch.arange(32.0)[:, None].expand(32, 32)
    image = torch.stack([rows, rows.T, rows * 0])[None, None]
    given = pixel_arguments(image, config)
    first = given["pixel_values"].reshape(16, 3, 2, 8, 8)[:, :2, 0, 0, 0]  # upper left corner of each patch
    assert first[:6].tolist() == [[0, 0], [0, 8], [8, 0], [8, 8], [0, 16], [0, 24]]
    assert given["image_grid_thw"].tolist() == [[1, 4, 4]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vlm_name": "nowhere/nothing"}, "vlm_name='nowhere/nothing'"),
        ({"vlm_config": {"model_type": "none"}}, "vlm_config: "),
    ],
)
def test_a_model_that_does_not_exist_is_named(
    settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it asks the network for a minute
    SOURCES["wrong"] = settings
    with pytest.raises(ConfigError, match=f"rlspec_adapter: {words}"):
        build("wrong")
    del SOURCES["wrong"]
