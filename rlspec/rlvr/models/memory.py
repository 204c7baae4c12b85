"""The memory that training a language model needs, before any weight is loaded.

Weights, gradients and optimizer state are exact; activations, logits and the rollouts' key-value cache are estimates
that show the order of magnitude and which knob moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from rlspec.rlvr.models.adapters import apply_lora, freeze
from rlspec.runtime.memory import MemoryAccount, Row

BYTES = {"float32": 4, "bfloat16": 2}
OptimizerBytes = Callable[[nn.Module], int]


@dataclass(frozen=True)
class LanguageModelMemory(MemoryAccount):
    """Of one replica, with the parameter counts behind it."""

    parameters: int
    trainable: int
    activations: int
    logits: int
    kv_cache: int
    reference: int = 0
    casts: int = 0

    lighter = "take a smaller model or model.weights_dtype=bfloat16 with model.lora"

    @property
    def static(self) -> int:
        """What is there all the time."""
        return self.weights + self.reference + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The peak: rollouts and the backward pass come one after the other."""
        return self.static + self.casts + max(self.activations + self.logits, self.kv_cache)

    def rows(self) -> list[Row]:
        """All items."""
        trained = "" if self.trainable == self.parameters else f", {self.trainable:,} of them trained"
        return [
            ("weights", self.weights, f"{self.parameters:,} parameters{trained}"),
            ("reference", self.reference, "weights of the reference model; trainer.beta"),
            ("casts", self.casts, "weights once more in bfloat16, in a forward pass; trainer.bf16"),
            ("gradients", self.gradients, "float32"),
            ("optimizer", self.optimizer, "state"),
            ("activations", self.activations, "estimate; trainer.gradient_checkpointing, batch.micro_batch"),
            ("logits", self.logits, "estimate; batch.micro_batch, trainer.max_completion_length"),
            ("rollouts", self.kv_cache, "key-value cache, estimate; not at the same time as the two above"),
        ]

    def remedy(self, available: int) -> str:
        """By what takes most."""
        if self.static > available:
            return "train LoRA adapters (model.lora) or fewer weights (model.freeze), or use more devices"
        if self.kv_cache > self.activations + self.logits:
            return "lower batch.prompts_per_step or trainer.max_completion_length, or use rollout.engine=vllm"
        return "lower batch.micro_batch or set trainer.gradient_checkpointing=true"


def estimate_memory(
    config: PretrainedConfig,
    *,
    micro_batch: int,
    sequence_length: int,
    completion_length: int,
    rollout_sequences: int,
    weights_dtype: str = "float32",
    autocast: bool = False,
    gradient_checkpointing: bool = False,
    eager: bool = False,
    lora_r: int | None = None,
    lora_targets: Sequence[str] = (),
    frozen: Sequence[str] = (),
    optimizer_bytes: OptimizerBytes | None = None,
    reference: bool = False,
) -> LanguageModelMemory:
    """Memory of training one replica of a model.

    Args:
        config: the model's configuration; its parameters are counted on the meta device.
        micro_batch: sequences in one forward and backward pass.
        sequence_length: tokens of a prompt and its completion.
        completion_length: tokens of a completion alone: the positions whose logits are computed.
        rollout_sequences: completions that are generated at once; 0 where another process generates.
        weights_dtype: ``float32`` or ``bfloat16``.
        autocast: whether activations are bfloat16, and float32 weights are there in it as well.
        gradient_checkpointing: whether activations inside a layer are computed again.
        eager: whether attention keeps its scores, the square of the sequence per head; fused implementations do not.
        lora_r: rank of LoRA adapters; None: all parameters are trained.
        lora_targets: names of the modules that get adapters.
        frozen: patterns of parameters that are not trained, where there are no adapters.
        optimizer_bytes: size of the optimizer's state for a model on the meta device; None: AdamW's, two float32
            numbers per trained parameter.
        reference: whether a KL penalty compares with a second model; with adapters that is the policy without them.

    Raises:
        ConfigError: a name in `lora_targets` matches no linear module, or a pattern in `frozen` nothing.
    """
    model = meta_model(config)
    parameters = count_parameters(model)
    trained = _trained(model, lora_r, lora_targets, frozen)
    trainable = sum(parameter.numel() for parameter in trained.parameters() if parameter.requires_grad)
    adapters, trained_bytes = (0, BYTES[weights_dtype]) if lora_r is None else (trainable, 4)
    number = 2 if autocast else BYTES[weights_dtype]
    per_token = number * _activations_per_token(config, gradient_checkpointing)
    if eager:
        layers = 1 if gradient_checkpointing else config.num_hidden_layers
        scores = 4 + (number if number < 4 else 0)  # bytes: the softmax in float32, and once more in a narrower type
        per_token += layers * config.num_attention_heads * sequence_length * scores
    return LanguageModelMemory(
        parameters=parameters + adapters,
        trainable=trainable,
        weights=BYTES[weights_dtype] * parameters + 4 * adapters,
        gradients=trained_bytes * trainable,
        optimizer=8 * trainable if optimizer_bytes is None else optimizer_bytes(trained),
        activations=micro_batch * sequence_length * per_token,
        # Logits and their gradient, in float32 as the loss takes them.
        logits=2 * 4 * micro_batch * completion_length * config.vocab_size,
        kv_cache=rollout_sequences * sequence_length * number * _kv_per_token(config),
        reference=BYTES[weights_dtype] * parameters if reference and lora_r is None else 0,
        casts=2 * parameters if autocast and weights_dtype == "float32" else 0,
    )


def meta_model(config: PretrainedConfig) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _trained(model: nn.Module, lora_r: int | None, lora_targets: Sequence[str], frozen: Sequence[str]) -> nn.Module:
    """The model as the optimizer sees it."""
    if lora_r is None:
        return freeze(model, frozen)
    with torch.device("meta"):
        return apply_lora(model, r=lora_r, alpha=1.0, target_modules=lora_targets)  # type: ignore[arg-type]


def _head_dim(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _kv_heads(config: PretrainedConfig) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _kv_per_token(config: PretrainedConfig) -> int:
    """Numbers in the key-value cache per token."""
    return 2 * config.num_hidden_layers * _kv_heads(config) * _head_dim(config)


def _activations_per_token(config: PretrainedConfig, gradient_checkpointing: bool) -> int:
    """Numbers kept for the backward pass per token, attention scores not among them."""
    # Residual and norms; q, k, v before and after norm and rotation; attention's output; gate, up, act and product.
    attention = (3 * config.num_attention_heads + 4 * _kv_heads(config)) * _head_dim(config)
    layer = 4 * config.hidden_size + attention + 4 * config.intermediate_size
    if gradient_checkpointing:
        return config.num_hidden_layers * config.hidden_size + layer
    return config.num_hidden_layers * layer
