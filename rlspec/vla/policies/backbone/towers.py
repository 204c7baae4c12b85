"""A backbone of the hub's parts: a vision tower before a text model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.backbone import Embedded, TokenBackbone, image_positions, rename_on_load
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.vision import Mlp


def load_part(config: BackbonePolicyConfig, part: str, auto: Any) -> Any:
    """Build one part from its dictionary, or with weights by its name, whose dictionary the config then keeps.

    Args:
        config: of the policy; changed.
        part: "vlm", "vision", "fused_vision" or "text".
        auto: class of transformers that knows the architecture.

    Raises:
        ConfigError: if the hub or folder has no such model, or the dictionary is none of its configs.
    """
    name, settings = getattr(config, f"{part}_name"), getattr(config, f"{part}_config")
    dtype = getattr(torch, config.dtype)
    try:
        if settings is not None:
            given = dict(settings)
            model = auto.from_config(AutoConfig.for_model(given.pop("model_type"), **given), dtype=dtype)
        else:
            model = auto.from_pretrained(name, dtype=dtype, **({"config": _sees(name)} if "vision" in part else {}))
    except (OSError, ValueError, KeyError) as error:
        source = f"{part}_config" if settings is not None else f"{part}_name={name!r}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{config.type}: {source}: {reason}; give a hub id, a folder or a config") from error
    model.set_attn_implementation("sdpa")
    setattr(config, f"{part}_config", model.config.to_dict())
    return model


def _sees(name: str) -> Any:
    """The config of a vision tower, which some models have beside their text tower; what it pools is not needed."""
    whole = AutoConfig.from_pretrained(name)
    config = getattr(whole, "vision_config", whole)
    if config.model_type.startswith("siglip"):
        config.vision_use_head = False
    return config


class ImageProjector(Mlp):
    """A tower's features as tokens of the decoder, each with the learnt place of its camera."""

    def __init__(self, features: int, width: int, positions: nn.Parameter) -> None:
        super().__init__(features, width, width)
        self.pos_embed = positions

    def forward(self, seen: Tensor) -> Tensor:
        """(B, cameras, P, features) to (B, cameras * P, width)."""
        return (super().forward(seen.to(self.pos_embed.dtype)) + self.pos_embed).flatten(1, 2)


class TowerBackbone(TokenBackbone):
    """A vision tower, a projector and a text model, each by itself."""

    vision_tower: Any
    language_model: Any

    def __init__(self, config: BackbonePolicyConfig) -> None:
        tower = load_part(config, "vision", AutoModel)
        decoder = load_part(config, "text", AutoModel)
        super().__init__(config.bidirectional is True)
        cameras, width = len(config.image_features), int(decoder.config.hidden_size)
        # Their positions come first, as what is drawn for a seed should stay the same.
        positions = image_positions(cameras, 1, width)
        self.vision_tower = tower
        self.multi_modal_projector = ImageProjector(int(tower.config.hidden_size), width, positions)
        self.language_model = decoder
        rename_on_load(self, "pos_embed", "multi_modal_projector.pos_embed")

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model."""
        return self.language_model

    def embed(self, images: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """As the parent."""
        flat = images.flatten(0, 1).to(next(self.vision_tower.parameters()).dtype)
        seen = self.vision_tower(pixel_values=flat).last_hidden_state
        seen = self.multi_modal_projector(seen.unflatten(0, images.shape[:2]))
        text = self.language_model.get_input_embeddings()(ids)
        tokens = torch.cat([seen.to(text.dtype), text], 1)
        return Embedded(tokens, torch.cat([mask.new_ones(seen.shape[:2]), mask], 1))
