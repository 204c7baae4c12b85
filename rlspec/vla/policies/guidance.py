"""Real-time chunking: a flow that is guided towards actions which the robot is committed to (arXiv 2506.07339)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

GUIDED = ("rlspec_flow", "rlspec_smolvla", "rlspec_pi05", "smolvla", "pi05", "pi0")
"""Types of policies that continue a prefix, row by row."""

Field = Callable[[Tensor, Tensor], Tensor]


def published_settings() -> RTCConfig:
    """The paper's: weights that fall exponentially over what is left of the chunk in hand, guidance of at most 5."""
    return RTCConfig(prefix_attention_schedule=RTCAttentionSchedule.EXP, max_guidance_weight=5.0)


def enable_guidance(policy: Any) -> bool:
    """Make a policy in evaluation mode ready to be guided by what is left of the chunk in hand; False: it cannot be.

    Others of LeRobot's take a prefix too, but reinterpret it; relative actions count from the state at another time;
    what is compiled would be compiled again for each length of a prefix.
    """
    config = policy.config
    unfit = getattr(config, "use_relative_actions", False) or getattr(config, "compile_model", False)
    if config.type not in GUIDED or unfit:
        return False
    policy.requires_grad_(False)  # the only gradient is that of the noisy actions
    config.rtc_config = published_settings()
    if prepare := getattr(policy, "init_rtc_processor", None):
        prepare()
    return True


@dataclass(frozen=True)
class Guidance:
    """What a chunk is guided towards.

    Attributes:
        target: Normalised actions, (B, chunk, A).
        weights: How much each of them counts, (chunk,): 1 for what will be carried out before the chunk arrives, 0
            beyond what is known.
        most: Largest factor of the correction.
    """

    target: Tensor
    weights: Tensor
    most: float

    @classmethod
    def of(cls, prefix: Tensor, delay: int, known: int | None, settings: RTCConfig, shape: torch.Size) -> Guidance:
        """From what is left of the chunk in hand.

        Args:
            prefix: Normalised actions that come next, (n, A) or (B, n, A).
            delay: How many of them will be carried out before the chunk arrives.
            known: How many of them count; None: all.
            settings: Schedule of the weights, and the largest factor.
            shape: Of the chunks, (B, chunk, A).
        """
        rows = min(prefix.shape[-2], shape[1])
        target = prefix.new_zeros(shape)
        target[:, :rows] = prefix[..., :rows, :]
        end = rows if known is None else min(known, rows)
        weights = RTCProcessor(settings).get_prefix_weights(delay, end, shape[1]).to(target)
        return cls(target, weights, float(settings.max_guidance_weight))

    def around(self, velocity: Field) -> Field:
        """The guided field: velocity(x, time) for x (B, chunk, A) at times (B,), 1 is noise.

        With the estimate a = x - t v of the actions and W the weights, v is lessened by
        min(most, (t^2 + (1 - t)^2) / (t (1 - t))) (target - a)^T W da/dx: equations 2 to 4 of the paper, whose time
        runs the other way.
        """

        def field(x: Tensor, time: Tensor) -> Tensor:
            t = time[:, None, None]
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                v = velocity(x, time)
                actions = x - t * v
                error = self.weights[:, None] * (self.target - actions)
                (correction,) = torch.autograd.grad(actions, x, error.detach())
            factor = ((t**2 + (1 - t) ** 2) / (t * (1 - t))).clamp(max=self.most)
            return v.detach() - factor * correction

        return field
