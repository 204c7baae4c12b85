"""Averaged weights: an exponential moving average over optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlspec.errors import CheckpointError
from rlspec.optim.sharding.shards import local
from rlspec.optim.sharding.state import fill, whole


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
        # Averages in float32: a step of (1 - d) would be rounded away in bfloat16. Of parameters that several
        # processes share each has the average of its part.
        self.averages = {name: value.detach().float().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        weights = [local(parameter.detach()).float() for parameter in self._parameters.values()]
        torch._foreach_lerp_([local(average) for average in self.averages.values()], weights, 1 - decay)

    def state_dict(self, *, kept: bool = True) -> dict[str, Any]:
        """What `load_state_dict` needs, whole, for who keeps it. All processes that share weights must call it."""
        averages = {name: whole(average, kept=kept) for name, average in self.averages.items()}
        return {"steps": self.steps, "averages": averages}

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
            fill(average, stored[name])


@contextmanager
def replaced(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Put values in the place of whole weights while the body runs."""
    raw = {name: weights[name].data for name in values}
    try:
        for name, value in values.items():
            weights[name].data = value.to(raw[name])
        yield
    finally:
        for name, value in raw.items():
            weights[name].data = value
