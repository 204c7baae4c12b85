"""`rlspec_adapter`: one pass of the backbone, one pass of the head, the whole chunk."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.adapter.published_head import PublishedHead
from rlspec.vla.policies.backbone.backbone import Hidden
from rlspec.vla.policies.backbone.policy import BridgedHead, BridgedModel, ChunkPolicy, masked_mean
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig


class RegressionHead(BridgedHead):
    """Learnt tokens of a chunk's steps become actions."""

    def __init__(self, config: BackbonePolicyConfig, layers: list[int], context_width: int, actions: int) -> None:
        super().__init__(config, layers, context_width, modulated=False)
        self.fc2 = nn.Linear(config.head_width, actions)

    def forward(self, hidden: Hidden, proprio: Tensor | None) -> Tensor:
        """Actions (B, chunk, A)."""
        tokens = self.action_tokens.expand(len(hidden.mask), -1, -1)
        return self.fc2(self.run(tokens, self.read(hidden, proprio)))


class AdapterModel(BridgedModel):
    """Backbone and regression head."""

    def __init__(self, config: RlspecAdapterConfig, actions: int) -> None:
        super().__init__(config)
        given = (config, self.layers, self.backbone.width, actions)
        self.action_head = (
            RegressionHead(*given)
            if config.head == "bridge"
            else PublishedHead(*given, pro=config.head == "vla_adapter_pro")
        )
        if config.action_std is not None:
            scale = torch.full((actions,), math.log(config.action_std))
            self.action_head.register_parameter("log_scale", nn.Parameter(scale))


class RlspecAdapterPolicy(ChunkPolicy):
    """L1 regression of action chunks (the VLA-Adapter idea, arXiv 2509.09372)."""

    config_class = RlspecAdapterConfig
    name = "rlspec_adapter"
    model: AdapterModel

    def build_model(self, config: BackbonePolicyConfig) -> AdapterModel:
        """The network."""
        assert isinstance(config, RlspecAdapterConfig)
        return AdapterModel(config, self.action_dim)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Mean absolute error of normalised actions over steps that are not padding."""
        actions, real = self.read_actions(batch)
        loss = masked_mean((self.predict_mean(batch) - actions).abs(), real)
        return loss, {"l1_loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Normalised actions (B, chunk, A)."""
        self.eval()
        return self.predict_mean(batch)

    def predict_mean(self, batch: dict[str, Tensor]) -> Tensor:
        """Normalised actions (B, chunk, A), with gradients."""
        return self.model.action_head(*self.encode(batch)).float()

    @property
    def log_scale(self) -> Tensor | None:
        """(A,): the logarithm of the learnt `action_std`."""
        return getattr(self.model.action_head, "log_scale", None)
