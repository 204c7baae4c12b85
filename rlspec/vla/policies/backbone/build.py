"""Build the backbone that a config names."""

from __future__ import annotations

from torch import nn
from transformers import AutoConfig, AutoModel

from rlspec.vla.policies.backbone.backbone import Backbone, TinyBackbone
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.text import VOCABULARY
from rlspec.vla.policies.backbone.vision import ConvTower, WordResampler


def build_backbone(config: BackbonePolicyConfig) -> Backbone:
    """The tiny backbone, with random weights."""
    backbone = _tiny(config)
    freeze(backbone.vision_tower, config.train_vision)
    freeze(backbone.language_model, config.train_language)
    return backbone


def freeze(module: nn.Module, train: bool) -> None:
    """Stop gradients of a part that is not trained."""
    if not train:
        module.requires_grad_(False)


def _tiny(config: BackbonePolicyConfig) -> Backbone:
    width, cameras = config.width, len(config.image_features)
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
    }
    decoder = AutoModel.from_config(AutoConfig.for_model("qwen3", **text), attn_implementation="sdpa")
    nn.init.normal_(decoder.embed_tokens.weight, std=0.5)
    return TinyBackbone(
        ConvTower(config.image_size, (first, cells)),
        decoder,
        WordResampler(cells, width, width // 24, config.vision_slots, cameras),
        positions=(cameras * config.vision_slots,),
        bidirectional=config.bidirectional is not False,
    )
