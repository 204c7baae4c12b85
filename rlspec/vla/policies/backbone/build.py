"""Build the backbone that a config names."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel

from rlspec.vla.policies.backbone.backbone import Backbone, TinyBackbone
from rlspec.vla.policies.backbone.prismatic import PrismaticBackbone
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.text import VOCABULARY
from rlspec.vla.policies.backbone.towers import TowerBackbone
from rlspec.vla.policies.backbone.vision import ConvTower, WordResampler
from rlspec.vla.policies.backbone.vlm import VisionLanguageBackbone


def build_backbone(config: BackbonePolicyConfig) -> Backbone:
    """The backbone, with the parts frozen that are not trained; what comes from the hub is noted in the config."""
    if config.size == "tiny":
        backbone: Any = _tiny(config)
    else:
        backbone = _kind(config)(config)
    if config.image_size is None:
        config.image_size = int(getattr(backbone.vision_tower.config, "image_size", 224))
    freeze(backbone.vision_tower, config.train_vision)
    freeze(backbone.decoder, config.train_language)
    assert isinstance(backbone, Backbone)
    return backbone


def freeze(module: nn.Module, train: bool) -> None:
    """Stop gradients of a part that is not trained."""
    if not train:
        module.requires_grad_(False)


def _kind(config: BackbonePolicyConfig) -> Any:
    if config.vlm_name or config.vlm_config:
        return VisionLanguageBackbone
    return PrismaticBackbone if config.fused_vision_name or config.fused_vision_config else TowerBackbone


def _tiny(config: BackbonePolicyConfig) -> Backbone:
    width, cameras = config.width, len(config.image_features)
    assert config.image_size is not None
    first, cells = config.vision_channels
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": width**-0.5,  # 0.02 is for thousands of channels: here nothing would pass the layers
    }
    decoder = AutoModel.from_config(AutoConfig.for_model("qwen3", **text), attn_implementation="sdpa")
    nn.init.normal_(decoder.embed_tokens.weight, std=0.5)
    return TinyBackbone(
        ConvTower(config.image_size, (first, cells), config.vision_norm),
        decoder,
        WordResampler(cells, width, width // 24, config.vision_slots, cameras),
        positions=(cameras * config.vision_slots,),
        width=width,
        bidirectional=config.bidirectional is not False,
    )
