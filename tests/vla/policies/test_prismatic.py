"""Two towers before a text model, against transformers' own forwards, tiny and from folders."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_backbone_pretrained import SIGLIP, SOURCES, TEXT, TOWER, batch, build
from transformers import AutoConfig, AutoModel

from rlspec.config.load import load_vla_recipe
from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.prismatic import PrismaticBackbone
from rlspec.vla.policies.recompute import enable_checkpointing

COLOURS = {"image_mean": [0.48, 0.45, 0.4], "image_std": [0.23, 0.22, 0.225], "fused_image_std": [0.5, 0.4, 0.5]}
DINO = {"model_type": "dinov2_with_registers", **TOWER, "num_register_tokens": 3}


def model(settings: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    given = dict(settings)
    built = AutoModel.from_config(AutoConfig.for_model(given.pop("model_type"), **given)).eval()
    with torch.no_grad():
        for parameter in built.parameters():  # fresh ones are mostly zeros, and DINOv2's layers scaled by one
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Whole models of transformers, and the folders that name them."""
    settings = {
        "vision": {**DINO, "num_hidden_layers": 3}, "fused_vision": {**SIGLIP, "hidden_size": 48},
        "text": {"model_type": "qwen2", **TEXT},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("parts")
    models = {name: model(each, seed) for seed, (name, each) in enumerate(settings.items())}
    for name, each in models.items():
        each.save_pretrained(folder / name)
    return {**models, "names": {f"{name}_name": str(folder / name) for name in models}}


@pytest.fixture
def backbone(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> PrismaticBackbone:
    monkeypatch.setitem(SOURCES, "named", parts["names"])
    built = build("named", **COLOURS).eval().model.backbone
    assert isinstance(built, PrismaticBackbone)
    return built


@torch.no_grad()
def test_patches_are_those_of_both_towers_own_forwards(backbone: PrismaticBackbone, parts: dict[str, Any]) -> None:
    """In the last layer but one, without a norm, each with its own colours; tokens that are no patch are left out."""
    pixels = torch.rand(2, 3, 32, 32)

    def coloured(mean: list[float], std: list[float]) -> torch.Tensor:
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    first = coloured(COLOURS["image_mean"], COLOURS["image_std"])
    second = coloured([0.5] * 3, COLOURS["fused_image_std"])
    dino = parts["vision"](pixel_values=first, output_hidden_states=True).hidden_states
    siglip = parts["fused_vision"](pixel_values=second, output_hidden_states=True).hidden_states
    assert (len(dino), len(siglip)) == (4, 3)
    expected = torch.cat([dino[-2][:, 1 + 3 :], siglip[-2]], -1)
    torch.testing.assert_close(backbone.vision_tower(first), expected, rtol=1e-5, atol=2e-6)
    names = [name for name, _ in backbone.vision_tower.named_parameters()]
    assert {name.split(".layer")[1][:3] for name in names if ".layers." in name} == {"s.0"}
    assert not [name for name in names if "post_layernorm" in name or name == "first.layernorm.weight"]


@torch.no_grad()
def test_states_are_those_of_the_text_models_own_forward(backbone: PrismaticBackbone, parts: dict[str, Any]) -> None:
    """The first token, the patches of both cameras, the rest, the queries; beside rows with padding on either side."""
    images = torch.rand(3, 2, 3, 32, 32)
    ids = torch.randint(1, 60, (3, 6))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    mask[2, :3] = False
    queries = torch.randn(4, 32)
    hidden = backbone(images, ids, mask, queries)
    assert hidden.mask.all() and hidden.mask.shape == (3, 32)
    project = backbone.multi_modal_projector
    for row in range(3):
        said = parts["text"].get_input_embeddings()(ids[row][mask[row]])
        seen = backbone.vision_tower(images[row]).flatten(0, 1)
        for layer in (project.fc1, project.fc2):
            seen = torch.nn.functional.gelu(layer(seen))
        sequence = torch.cat([said[:1], project.fc3(seen), said[1:], queries])[None]
        expected = parts["text"](inputs_embeds=sequence, output_hidden_states=True, use_cache=False).hidden_states
        assert len(expected) == len(hidden.task) == len(hidden.queries) == 3
        for task, asked, own in zip(hidden.task, hidden.queries, expected, strict=True):
            torch.testing.assert_close(task[row], own[0, :32], rtol=1e-5, atol=2e-6)
            torch.testing.assert_close(asked[row], own[0, -5:-1], rtol=1e-5, atol=2e-6)


def test_layers_of_both_towers_are_computed_again_and_gradients_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, given = build("dinov2+siglip+qwen2", gate_init=0.5).train(), batch()
    policy(given)[0].backward()
    before = {name: value.grad.clone() for name, value in policy.named_parameters() if value.grad is not None}
    policy.zero_grad()
    enable_checkpointing(policy)
    again: list[str] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    for name, module in policy.named_modules():
        if hasattr(module, "_gradient_checkpointing_func") and module.gradient_checkpointing:
            monkeypatch.setattr(
                module,
                "_gradient_checkpointing_func",
                lambda *args, name=name: again.append(name) or checkpoint(*args, use_reentrant=False),
            )
    policy(given)[0].backward()
    assert {part for part in ("first.", "second.", "language_model.") if any(part in name for name in again)} == {
        "first.", "second.", "language_model.",
    }  # fmt: skip
    for name, value in policy.named_parameters():
        if name in before:
            torch.testing.assert_close(value.grad, before[name])


def test_the_published_adapters_take_every_linear_layer(backbone: PrismaticBackbone) -> None:
    """Of both towers and the text model; the connector is trained whole."""
    lora = load_vla_recipe(["recipe=vla_libero", "policy=vla_adapter", "optim=adamw"]).policy.lora
    assert lora is not None
    linear = {name for name, part in backbone.named_modules() if isinstance(part, torch.nn.Linear)}
    assert len(linear) == 2 * 6 + 6 + 2 * 7 + 3
    assert {name.rpartition(".")[2] for name in linear if "multi_modal" not in name} == set(lora.target_modules)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fused_vision_config": {"model_type": "vit", **TOWER}}, "a tower of type vit side by side .*known: dinov2, "),
        ({"fused_vision_config": {**SIGLIP, "patch_size": 16}}, "16 and 4 patches of image_size=32"),
        ({"bidirectional": True}, "bidirectional=true: Prismatic's text model is causal"),
        ({"text_config": None}, "backbone parts given: vision, fused_vision; give vlm_name"),
        ({"prompt": "do it"}, "prompt='do it' must have {task} in it"),
    ],
)
def test_what_cannot_stand_side_by_side_is_one_line(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build("dinov2+siglip+qwen2", **changed)
