"""The memory of a recipe's run at full size, from its config alone: no weights, no data, no storage."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

from rlspec.config.schema import Optim
from rlspec.config.vla_schema import Policy, Training
from rlspec.errors import ConfigError
from rlspec.vla.meta_policy import build_meta_policy
from rlspec.vla.policies.adapters import BASE, add_adapters
from rlspec.vla.policies.recompute import enable_checkpointing
from rlspec.vla.training.memory import RobotPolicyMemory, estimate_memory
from rlspec.vla.training.policy import decoded, register_policies
from rlspec.vla.training.saved import Activations
from rlspec.vla.training.session import freeze_and_optimize

KNOWN = ("rlspec_smolvla", "rlspec_pi05")


def account(settings: Policy, training: Training, optim: Optim) -> RobotPolicyMemory:
    """Of one process, with two cameras, a state of 8 numbers and actions of 7, as LIBERO has them.

    Raises:
        ConfigError: Of this type of policy, how large the activations are is known only once it runs.
    """
    if settings.type not in KNOWN:
        raise ConfigError(
            f"policy.type={settings.type}: its memory is measured when a run starts; from the config alone that of "
            f"{', '.join(KNOWN)} is known"
        )
    register_policies()
    policy: Any = build_meta_policy(settings.type, decoded(settings))
    if settings.lora is not None:
        policy.config.pretrained_path = settings.path or BASE
        with torch.device("meta"):
            policy = add_adapters(policy, settings.lora)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fake(policy)
        if training.gradient_checkpointing:
            enable_checkpointing(policy)
        _, optimizer = freeze_and_optimize(settings.freeze, optim, policy, training.batch_size)
        policy.train()

        def forward(size: int) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
                return losses(policy, size).mean()

        activations = Activations.measure(policy, forward).of(training.batch_size)
        assert optimizer.symmetry is not None
        return estimate_memory(policy, optimizer.symmetry, ema=training.ema_decay > 0, activations=activations)


def _fake(policy: nn.Module) -> None:
    """Parameters and buffers on a device that autocast knows, still without storage."""
    made: dict[Tensor, Tensor] = {}

    def fake(value: Tensor) -> Tensor:
        if value not in made:
            empty = torch.empty(value.shape, dtype=value.dtype)
            made[value] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
        return made[value]

    for module in policy.modules():
        for own in (module._parameters, module._buffers):
            own.update({name: fake(value) for name, value in own.items() if value is not None})  # type: ignore[misc]
        if isinstance(module, SmolVLMVisionEmbeddings):
            module.forward = partial(_in_a_square, module)  # type: ignore[method-assign]


def _in_a_square(module: Any, pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
    """The embedding of square pictures without padding; the model's own reads the mask's numbers."""
    patches = module.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    places = torch.zeros(patches.shape[:2], dtype=torch.int64, device=patches.device)
    return patches + module.position_embedding(places)


def losses(policy: nn.Module, size: int) -> Tensor:
    """Of a made-up batch; the policy's own forward reads numbers back, which there are none of."""
    bare: Any = policy.get_base_model() if hasattr(policy, "get_base_model") else policy  # type: ignore[operator]
    config, batch = bare.config, _batch(bare.config, size)
    words = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    actions = torch.zeros(size, config.chunk_size, config.max_action_dim)
    if config.type == "rlspec_pi05":
        images, seen = bare._preprocess_images(batch)
        noise, time = bare.model.sample_noise(actions.shape, actions.device), torch.rand(size)
        return bare.model.forward(images, seen, *words, actions, noise, time)
    images, seen = bare.prepare_images(batch)
    return bare.model.forward(images, seen, *words, bare.prepare_state(batch), actions, None, torch.rand(size))


def _batch(config: Any, size: int) -> dict[str, Tensor]:
    length = config.tokenizer_max_length
    return {
        **{name: torch.rand(size, *feature.shape) for name, feature in config.image_features.items()},
        OBS_STATE: torch.zeros(size, *config.input_features[OBS_STATE].shape),
        OBS_LANGUAGE_TOKENS: torch.zeros(size, length, dtype=torch.int64),
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones(size, length, dtype=torch.bool),
    }
