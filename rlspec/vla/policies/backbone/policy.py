"""What both policies have in common as LeRobot policies: queue, checks and parameters."""

# No annotations from __future__: LeRobot reads the class of the config from the constructor.

from collections import deque
from typing import Any, ClassVar

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from rlspec.errors import ConfigError, DataError
from rlspec.vla.policies.backbone.backbone import Hidden, rename_on_load
from rlspec.vla.policies.backbone.bridge import BridgeBlock, Context
from rlspec.vla.policies.backbone.build import build_backbone
from rlspec.vla.policies.backbone.observation import read_images, read_text, read_vector
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig


class BridgedHead(nn.Module):
    """Blocks that read one layer of the backbone each; heads say what goes in and comes out."""

    def __init__(self, config: BackbonePolicyConfig, layers: list[int], context_width: int, modulated: bool) -> None:
        super().__init__()
        assert config.gate_init is not None
        self.layers = layers
        self.action_tokens = nn.Parameter(0.5 * torch.randn(config.chunk_size, config.head_width))
        self.blocks = nn.ModuleList(
            BridgeBlock(config.head_width, context_width, config.head_heads, modulated=modulated, gate=config.gate_init)
            for _ in layers
        )
        self.norm = nn.LayerNorm(config.head_width)

    def read(self, hidden: Hidden, proprio: Tensor | None) -> list[Context]:
        """Keys and values of every block; proprio (B, 1, D)."""
        contexts = []
        for block, layer in zip(self.blocks, self.layers, strict=True):
            queries = hidden.queries[layer]
            adapter = queries if proprio is None else torch.cat([queries, proprio.to(queries.dtype)], 1)
            contexts.append(block.read(hidden.task[layer], hidden.mask, adapter))  # type: ignore[operator]
        return contexts

    def run(self, tokens: Tensor, contexts: list[Context], condition: Tensor | None = None) -> Tensor:
        """Tokens (B, T, head_width) through all blocks and the final norm."""
        for block, context in zip(self.blocks, contexts, strict=True):
            tokens = block(tokens, context, condition)
        return self.norm(tokens)


class ProprioProjector(nn.Module):
    """The robot's state as one token of the backbone's width."""

    def __init__(self, state: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(state, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """(B, state) to (B, 1, width)."""
        return self.fc2(nn.functional.gelu(self.fc1(state)))[:, None]


class BridgedModel(nn.Module):
    """Backbone, action queries and proprioception."""

    def __init__(self, config: BackbonePolicyConfig) -> None:
        super().__init__()
        self.backbone = build_backbone(config)
        width = self.backbone.width
        drawn = 0.5 * torch.randn(config.num_queries, width)
        self.action_queries = nn.Embedding.from_pretrained(drawn, freeze=False)  # a module: adapters copy modules
        rename_on_load(self, "action_queries", "action_queries.weight")
        state = config.robot_state_feature
        self.proprio_projector = (
            ProprioProjector(state.shape[0], width) if config.use_proprio and state is not None else None
        )
        self.layers = config.bridge_layers or list(range(1, self.backbone.num_layers + 1))
        if min(self.layers) < 0 or max(self.layers) > self.backbone.num_layers:
            raise ConfigError(
                f"{config.type}: bridge_layers={self.layers} must lie between 0 and {self.backbone.num_layers}, the "
                "layers of the language model"
            )

    def encode(self, images: Tensor, ids: Tensor, mask: Tensor, state: Tensor | None) -> tuple[Hidden, Tensor | None]:
        """Hidden states of the backbone, and the token of proprioception."""
        hidden = self.backbone(images, ids, mask, self.action_queries.weight)
        if self.proprio_projector is None:
            return hidden, None
        return hidden, self.proprio_projector(state)


class ChunkPolicy(PreTrainedPolicy):
    """A policy that predicts chunks of normalised actions and executes the first of each."""

    config_class: ClassVar[Any] = BackbonePolicyConfig
    name: ClassVar[Any] = "rlspec_backbone"

    def __init__(self, config: BackbonePolicyConfig, **kwargs: Any) -> None:
        super().__init__(config)
        config.validate_features()
        self.config: BackbonePolicyConfig = config
        self.model = self.build_model(config)
        self.reset()

    def build_model(self, config: BackbonePolicyConfig) -> BridgedModel:
        """The network."""
        raise NotImplementedError

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        feature = self.config.action_feature
        assert feature is not None
        return int(feature.shape[0])

    def get_optim_params(self) -> Any:
        """Parameters that still know their modules, as `SpectralOptimizerConfig` needs them."""
        return self.named_parameters()

    def reset(self) -> None:
        """Forget the rest of the last chunk."""
        self._queue: deque[Tensor] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The next action (B, A); observes only when `n_action_steps` actions are used up."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    def encode(self, batch: dict[str, Tensor]) -> tuple[Hidden, Tensor | None]:
        """Hidden states and the token of proprioception."""
        state = None
        if self.model.proprio_projector is not None:
            state = read_vector(batch, OBS_STATE, self.model.proprio_projector.fc1.in_features, 2)
            state = self.clipped(state)
        ids, mask = read_text(batch)
        return self.model.encode(read_images(batch, self.config, self.training), ids, mask, state)

    def read_actions(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Actions (B, chunk, A) and which of them are real (B, chunk).

        Raises:
            DataError: if they have other shapes.
        """
        actions = self.clipped(read_vector(batch, ACTION, self.action_dim, 3))
        if actions.shape[1] != self.config.chunk_size:
            raise DataError(
                f"action has {actions.shape[1]} steps, and the policy's chunk_size={self.config.chunk_size}"
            )
        padded = batch.get("action_is_pad")
        real = actions.new_ones(actions.shape[:2], dtype=torch.bool) if padded is None else ~padded.bool()
        return actions, real

    def clipped(self, normalised: Tensor) -> Tensor:
        """Within [-1, 1], where the config says so."""
        return normalised.clamp(-1, 1) if self.config.clip_normalised else normalised


def masked_mean(errors: Tensor, real: Tensor) -> Tensor:
    """Mean of errors (B, T, A) over steps that are real (B, T)."""
    weights = real[..., None].to(errors.dtype)
    return (errors * weights).sum() / (weights.sum() * errors.shape[-1]).clamp(min=1)
