"""Settings that `rlspec_adapter` and `rlspec_flow` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig

from rlspec.contract.features import ACTION, STATE, image_key
from rlspec.errors import ConfigError
from rlspec.vla.policies.preset import SpectralPreset

SIZES = ("tiny", "pretrained")
SOURCES = ("vlm", "vision", "fused_vision", "text")
WHOLE = (["vlm"], ["vision", "text"], ["vision", "fused_vision", "text"])


@dataclass
class BackbonePolicyConfig(SpectralPreset, PreTrainedConfig):
    """A policy on a vision-language backbone.

    `size="tiny"` is built in code and reads text as bytes. `size="pretrained"` takes a vision-language model
    (`vlm_name`), or a vision tower (`vision_name`) and a causal text model (`text_name`), by hub id or folder; with a
    second tower beside the first (`fused_vision_name`) they are put together as Prismatic's. Their
    `*_config` as a dictionary, with its `model_type`, builds them without network and without weights. A policy that
    was loaded or saved holds these dictionaries, so its folder is enough to load it again.

    Attributes:
        chunk_size: actions that one observation gives.
        n_action_steps: of these, how many are executed before the next observation.
        use_proprio: whether the head sees observation.state.
        image_size: pixels per side that images are resized to; for "tiny" a multiple of 32, by default 96, otherwise
            what the vision tower's config says.
        image_mean: per colour, subtracted from images in [0, 1]; SigLIP, SmolVLM, PaliGemma and Qwen3-VL have 0.5,
            CLIP and DINOv2 their own.
        image_std: per colour, divides.
        fused_image_mean: as `image_mean`, for the second tower.
        fused_image_std: as `image_std`, for the second tower.
        center_crop: share of a picture's area around its middle that is seen outside of training, where pictures were
            cropped by augmentation in training; 1: all of it.
        clip_normalised: whether the state and the actions that are learnt are kept within [-1, 1] once normalised.
        width: of the tiny language model.
        text_layers: of the tiny language model.
        vision_channels: of the tiny vision tower's first stage and of its cells.
        vision_norm: of the tiny vision tower, over each image: "layer" of all channels together, "instance" of each by
            itself, which lifts small things out of an even background.
        vision_slots: image tokens per camera that the tiny language model sees, besides what its words found.
        bidirectional: whether images and text see each other freely; None: for "tiny", and as a vision-language model
            was pretrained, which no other value changes. Pretrained text models expect causal masks.
        num_queries: action queries in the language model.
        bridge_layers: layers whose hidden states the head reads, one block each; 0 is what goes into the first; None:
            all behind the first.
        head_width: of the head's tokens.
        head_heads: attention heads of the head.
        gate_init: initial gating factor of what the head reads from images and text; None: 1 for "tiny", which has to
            learn to see through it, 0 for a backbone that already can.
        prompt: what is said to a pretrained model, with {task} for the instruction in lower case; None: the
            instruction alone.
        max_text_length: bytes or tokens of the instruction.
        tokenizer_padding_side: "right" or "left".
        train_vision: whether the vision tower is trained.
        train_language: whether the language model is trained.
        dtype: of the backbone's weights, "float32" or "bfloat16".
    """

    chunk_size: int = 8
    n_action_steps: int = 8
    use_proprio: bool = True

    size: str = "tiny"
    vlm_name: str | None = None
    vision_name: str | None = None
    fused_vision_name: str | None = None
    text_name: str | None = None
    vlm_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    fused_vision_config: dict[str, Any] | None = None
    text_config: dict[str, Any] | None = None

    image_size: int | None = None
    image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    fused_image_mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    fused_image_std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    center_crop: float = 1.0
    clip_normalised: bool = False
    width: int = 96
    text_layers: int = 2
    vision_slots: int = 16
    vision_norm: str = "layer"
    vision_channels: list[int] = field(default_factory=lambda: [24, 48])
    bidirectional: bool | None = None
    num_queries: int = 8
    bridge_layers: list[int] | None = None
    head_width: int = 128
    head_heads: int = 4
    gate_init: float | None = None
    prompt: str | None = None
    max_text_length: int = 96
    tokenizer_padding_side: str = "right"

    train_vision: bool = True
    train_language: bool = True
    dtype: str = "float32"

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    optimizer_lr: float = 2e-3
    optimizer_weight_decay: float = 1e-4
    optimizer_grad_clip_norm: float = 10.0
    scheduler_warmup_steps: int = 100
    scheduler_decay_steps: int = 30_000
    scheduler_decay_lr: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: naming the setting and the remedy.
        """
        super().__post_init__()
        if self.size == "tiny":
            self.image_size = self.image_size or 96
        if self.gate_init is None:
            self.gate_init = 1.0 if self.size == "tiny" else 0.0
        checks = {
            f"n_action_steps={self.n_action_steps} must be between 1 and chunk_size={self.chunk_size}": (
                1 <= self.n_action_steps <= self.chunk_size
            ),
            f"n_obs_steps={self.n_obs_steps} must be 1: the policy sees the newest observation only": (
                self.n_obs_steps == 1
            ),
            f"size={self.size!r}; allowed: {', '.join(SIZES)}": self.size in SIZES,
            f"image_size={self.image_size} must be a multiple of 32 for size tiny": (
                self.image_size is None or self.size != "tiny" or self.image_size % 32 == 0
            ),
            f"head_width={self.head_width} must be a multiple of head_heads={self.head_heads}": (
                self.head_width % self.head_heads == 0
            ),
            f"dtype={self.dtype!r}; allowed: float32, bfloat16": self.dtype in ("float32", "bfloat16"),
            f"center_crop={self.center_crop} must be above 0 and at most 1": 0 < self.center_crop <= 1,
            f"vision_norm={self.vision_norm!r}; allowed: layer, instance": self.vision_norm in ("layer", "instance"),
            f"prompt={self.prompt!r} must have {{task}} in it, once, and needs size=pretrained": (
                self.prompt is None or (self.size != "tiny" and self.prompt.count("{task}") == 1)
            ),
            f"tokenizer_padding_side={self.tokenizer_padding_side!r}; allowed: right, left": (
                self.tokenizer_padding_side in ("right", "left")
            ),
        }
        for problem, holds in checks.items():
            if not holds:
                raise ConfigError(f"{self.type}: {problem}")
        self._check_sources()

    def _check_sources(self) -> None:
        given = [part for part in SOURCES if getattr(self, f"{part}_name") or getattr(self, f"{part}_config")]
        wanted: tuple[list[str], ...] = ([],) if self.size == "tiny" else WHOLE
        if given not in wanted:
            remedy = (
                "size tiny has its own backbone; for another one use size=pretrained"
                if self.size == "tiny"
                else "give vlm_name or vlm_config, or both of vision_name and text_name (or their *_config), and "
                "fused_vision_name for a second tower"
            )
            raise ConfigError(f"{self.type}: backbone parts given: {', '.join(given) or 'none'}; {remedy}")

    def validate_features(self) -> None:
        """Check cameras, state and action.

        Raises:
            ConfigError: naming what is missing and what was given.
        """
        given = ", ".join(sorted(self.input_features or {})) or "none"
        if not self.image_features:
            raise ConfigError(f"{self.type}: needs a camera, {image_key('<name>')}; input features given: {given}")
        if self.action_feature is None:
            outputs = ", ".join(sorted(self.output_features or {})) or "none"
            raise ConfigError(f"{self.type}: needs the output feature {ACTION}; given: {outputs}")
        if self.use_proprio and self.robot_state_feature is None:
            raise ConfigError(
                f"{self.type}: use_proprio=true needs {STATE}; input features given: {given}; "
                "set use_proprio=false to go by images and text alone"
            )
        for name, feature in [(ACTION, self.action_feature), (STATE, self.robot_state_feature)]:
            if feature is not None and len(feature.shape) != 1:
                raise ConfigError(f"{self.type}: {name} must have one axis, and has shape {tuple(feature.shape)}")

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        """Warm-up and cosine, which LeRobot shortens to the number of steps."""
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> list[int]:
        """The newest observation only."""
        return [0]

    @property
    def action_delta_indices(self) -> list[int]:
        """The actions of a chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None
