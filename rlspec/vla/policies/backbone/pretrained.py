"""Backbones of the hub: a vision-language model, or a vision tower before a text model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.backbone import Backbone, Embedded
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.vision import Mlp

DECODERS = ("language_model", "text_model")
TOWERS = ("vision_tower", "vision_model", "visual")
TILED = ("smolvlm", "idefics3", "idefics2")


def load_part(config: BackbonePolicyConfig, part: str, auto: Any) -> Any:
    """Build one part from its dictionary, or with weights by its name, whose dictionary the config then keeps.

    Args:
        config: of the policy; changed.
        part: "vlm", "vision" or "text".
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
            model = auto.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        source = f"{part}_config" if settings is not None else f"{part}_name={name!r}"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{config.type}: {source}: {reason}; give a hub id, a folder or a config") from error
    model.set_attn_implementation("sdpa")
    setattr(config, f"{part}_config", model.config.to_dict())
    return model


class VisionLanguageBackbone(Backbone):
    """A vision-language model of transformers, without its output layer."""

    vlm: Any

    def __init__(self, config: BackbonePolicyConfig) -> None:
        model = load_part(config, "vlm", AutoModelForImageTextToText).model
        super().__init__((len(config.image_features), 1), model.config.get_text_config().hidden_size,
                         config.bidirectional is True)  # fmt: skip
        self.vlm = model

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model inside."""
        return find_part(self.vlm, DECODERS)

    @property
    def vision_tower(self) -> nn.Module:
        """The vision tower inside."""
        return find_part(self.vlm, TOWERS)

    def embed(self, images: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """As the parent, with the features that the model itself makes of images."""
        flat = images.flatten(0, 1).to(self.vlm.dtype)
        found = self.vlm.get_image_features(**pixel_arguments(flat, self.vlm.config))
        pooled = found.pooler_output
        pooled = torch.cat(list(pooled)) if isinstance(pooled, list | tuple) else pooled
        seen = pooled.reshape(*images.shape[:2], -1, pooled.shape[-1]) + self.pos_embed.to(pooled.dtype)
        text = self.decoder.get_input_embeddings()(ids)  # type: ignore[operator]
        tokens = torch.cat([seen.flatten(1, 2), text], 1)
        return Embedded(tokens, torch.cat([mask.new_ones(len(ids), seen.shape[1] * seen.shape[2]), mask], 1), {})


class TowerBackbone(Backbone):
    """A vision tower, a projector and a text model, each by itself."""

    vision_tower: Any
    language_model: Any

    def __init__(self, config: BackbonePolicyConfig) -> None:
        tower = load_part(config, "vision", AutoModel)
        decoder = load_part(config, "text", AutoModel)
        width = int(decoder.config.hidden_size)
        super().__init__((len(config.image_features), 1), width, config.bidirectional is True)
        self.vision_tower = tower
        self.multi_modal_projector = Mlp(int(tower.config.hidden_size), width, width)
        self.language_model = decoder

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model."""
        return self.language_model

    def embed(self, images: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """As the parent."""
        flat = images.flatten(0, 1).to(next(self.vision_tower.parameters()).dtype)
        seen = self.vision_tower(pixel_values=flat).last_hidden_state
        seen = self.multi_modal_projector(seen.to(self.pos_embed.dtype))
        seen = (seen.unflatten(0, images.shape[:2]) + self.pos_embed).flatten(1, 2)
        text = self.language_model.get_input_embeddings()(ids)
        tokens = torch.cat([seen.to(text.dtype), text], 1)
        return Embedded(tokens, torch.cat([mask.new_ones(seen.shape[:2]), mask], 1), {})


def find_part(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The first child of one of the names.

    Raises:
        ConfigError: if there is none.
    """
    for name in names:
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    raise ConfigError(f"{type(model).__name__} has none of {', '.join(names)}; this architecture is not supported")


def pixel_arguments(images: Tensor, config: Any) -> dict[str, Tensor]:
    """Images (N, 3, H, W) as `get_image_features` of the architecture takes them."""
    if config.model_type in TILED:
        return {"pixel_values": images[:, None]}
    if "qwen" in config.model_type:
        return patches(images, config.vision_config)
    return {"pixel_values": images}


def patches(images: Tensor, config: Any) -> dict[str, Tensor]:
    """Qwen-VL's flat patches, in windows of `spatial_merge_size`, and the grid of each image.

    Raises:
        ConfigError: if the size is not a multiple of a window.
    """
    size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    count, channels, height, width = images.shape
    if height % (size * merge) or width % (size * merge):
        raise ConfigError(f"image_size={height} must be a multiple of {size * merge} for this vision tower")
    rows, columns = height // size, width // size
    cut = images.reshape(count, channels, rows // merge, merge, size, columns // merge, merge, size)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(count, -1)
    return {"pixel_values": cut.reshape(count * rows * columns, -1), "image_grid_thw": grid}
