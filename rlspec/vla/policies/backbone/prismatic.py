"""A backbone of the hub's parts as Prismatic has them: DINOv2 and SigLIP side by side, before a text model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.backbone import Backbone, Hidden
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.towers import load_part

TOWERS = {"dinov2": "layernorm", "dinov2_with_registers": "layernorm", "siglip_vision_model": "post_layernorm"}
"""Kinds of towers that may stand side by side, and the norm behind their last block."""


class FusedTower(nn.Module):
    """Two towers whose patches are joined by channel, each as its last block but one gives them, without a norm.

    Neither the last block nor the norm is kept, as nothing would read them.

    Args:
        towers: models of transformers, whose own forward is called.
        image_size: pixels per side.
        colours: mean and deviation of the images that each tower wants; given are those of the first.

    Raises:
        ConfigError: A tower is of no known kind, or they see patches of different sizes.
    """

    def __init__(self, towers: tuple[Any, Any], image_size: int, colours: tuple[_Colours, _Colours]) -> None:
        super().__init__()
        self.image_size, self.colours = image_size, colours
        patches = [(image_size // int(tower.config.patch_size)) ** 2 for tower in towers]
        if patches[0] != patches[1]:
            raise ConfigError(
                f"vision_name and fused_vision_name: {patches[0]} and {patches[1]} patches of image_size={image_size}; "
                "towers side by side need as many"
            )
        self.patches = patches[0]
        self.first, self.second = (_without_end(tower) for tower in towers)

    @property
    def config(self) -> Any:
        """What others ask for."""
        return SimpleNamespace(image_size=self.image_size, hidden_size=self.width)

    @property
    def width(self) -> int:
        """Of both together."""
        return int(self.first.config.hidden_size) + int(self.second.config.hidden_size)

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Both do."""
        return True

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        """As transformers' models."""
        self.first.gradient_checkpointing_enable(settings)
        self.second.gradient_checkpointing_enable(settings)

    def forward(self, images: Tensor) -> Tensor:
        """Patches (N, P, width) of images (N, 3, image_size, image_size) with the first tower's colours."""
        (mean, std), (other_mean, other_std) = (
            [images.new_tensor(values)[:, None, None] for values in each] for each in self.colours
        )
        both = (self.first, images), (self.second, (images * std + mean - other_mean) / other_std)
        seen = [
            tower(pixel_values=given.to(next(tower.parameters()).dtype)).last_hidden_state[:, -self.patches :]
            for tower, given in both
        ]
        return torch.cat(seen, -1)


_Colours = tuple[list[float], list[float]]


def _without_end(tower: Any) -> Any:
    if (kind := tower.config.model_type) not in TOWERS:
        raise ConfigError(f"a tower of type {kind} side by side with another; known: {', '.join(sorted(TOWERS))}")
    inner = getattr(tower, "vision_model", tower)
    name = "layer" if hasattr(inner.encoder, "layer") else "layers"
    setattr(inner.encoder, name, getattr(inner.encoder, name)[:-1])
    setattr(inner, TOWERS[kind], nn.Identity())
    return tower


class FusedProjector(nn.Module):
    """Prismatic's three layers from a fused tower's patches to tokens of the text model."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, 4 * features)
        self.fc2 = nn.Linear(4 * features, width)
        self.fc3 = nn.Linear(width, width)

    def forward(self, seen: Tensor) -> Tensor:
        """(..., features) to (..., width)."""
        gelu = nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(seen.to(self.fc1.weight.dtype))))))


class PrismaticBackbone(Backbone):
    """Prismatic with VLA-Adapter's queries: the text model runs its own forward, and nothing sees what comes after it.

    The order is the text's first token, all cameras' patches, the rest of the text, the queries. Heads get what
    VLA-Adapter's code takes: as the task the first token and all patches but the last, as queries the text's last
    token and all queries but the last; each is the state from which the next token would be told.
    """

    vision_tower: FusedTower

    def __init__(self, config: BackbonePolicyConfig) -> None:
        super().__init__()
        if config.bidirectional:
            raise ConfigError(f"{config.type}: bidirectional=true: Prismatic's text model is causal; leave it out")
        towers = load_part(config, "vision", AutoModel), load_part(config, "fused_vision", AutoModel)
        size = config.image_size or int(towers[1].config.image_size)
        colours = (config.image_mean, config.image_std), (config.fused_image_mean, config.fused_image_std)
        self.vision_tower = FusedTower(towers, size, colours)
        self.language_model = load_part(config, "text", AutoModel)
        self.multi_modal_projector = FusedProjector(self.vision_tower.width, self.width)

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model."""
        return self.language_model

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, queries: Tensor) -> Hidden:
        """As the parent; padding goes before everything, where no position counts it and no token sees it."""
        patches = self.multi_modal_projector(self.vision_tower(images.flatten(0, 1)))
        patches = patches.unflatten(0, images.shape[:2]).flatten(1, 2)
        text = self.language_model.get_input_embeddings()(ids)
        asked = queries.to(text.dtype).expand(len(ids), -1, -1)
        tokens = torch.cat([patches.to(text.dtype), text, asked], 1)
        order = _order(mask, patches.shape[1], len(queries))
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        padding = (~mask).sum(1, keepdim=True)
        counted = torch.arange(tokens.shape[1], device=ids.device) >= padding
        states = self.language_model(
            inputs_embeds=tokens,
            attention_mask=counted.long(),
            position_ids=(counted.long().cumsum(1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        places = padding + torch.arange(patches.shape[1], device=ids.device)
        task = tuple(each.gather(1, places[..., None].expand(-1, -1, each.shape[-1])) for each in states)
        return Hidden(task, tuple(each[:, -len(queries) - 1 : -1] for each in states), mask.new_ones(places.shape))


def _order(mask: Tensor, patches: int, queries: int) -> Tensor:
    """Where each token of (patches, text, queries) stands in the sequence, (B, P + L + Q): padding, the first, ..."""
    first = mask & (mask.cumsum(1) == 1)
    text = torch.where(first, 1, 3).masked_fill(~mask, 0)
    ranks = [text.new_full((len(mask), patches), 2), text, text.new_full((len(mask), queries), 4)]
    return torch.cat(ranks, 1).argsort(dim=1, stable=True)
