"""Averaged weights: an exponential moving average over optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlspec.errors import CheckpointError


class Ema:
    """average <- d average + (1 - d) weights after every step, with d = min(decay, (1 + n) / (10 + n)) in step n.

    The small d of the first steps lets the average forget the initial weights.

    Args:
        parameters: those that are trained at some time, by name; others are not averaged.
        decay: of the average, in (0, 1).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._parameters = dict(parameters)
        # Averages in float32: a step of (1 - d) would be rounded away in bfloat16.
        self.averages = {name: value.detach().float().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the place of the weights while the body runs."""
        raw = {name: parameter.data for name, parameter in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self.averages[name].to(parameter.dtype)
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = raw[name]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs."""
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state.

        Raises:
            CheckpointError: It belongs to other parameters.
        """
        stored: Mapping[str, Tensor] = state["averages"]
        if stored.keys() != self.averages.keys():
            name = sorted(stored.keys() ^ self.averages.keys())[0]
            raise CheckpointError(f"{name}: averaged in either the checkpoint or this run, and not in the other")
        self.steps = int(state["steps"])
        for name, average in self.averages.items():
            average.copy_(stored[name])
