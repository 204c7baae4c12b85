"""Which samples a step sees, and its random numbers: pure functions of the seed and the step.

Nothing has to be stored to go on at any step, and the order is the same however a batch is cut into forward passes and
processes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from rlspec.errors import ConfigError

SHUFFLE, SHIFT, TRANSFORM, FORWARD, INITIAL = range(5)
HELD_OUT = 6  # 5 is of rlspec.vla.reinforcement.rollouts
"""Streams of random numbers that must not meet."""


def derive_seed(seed: int, *path: int) -> int:
    """A seed in [0, 2^63) that belongs to a seed and a path of numbers below it."""
    # The length, because trailing zeros make no difference to a SeedSequence.
    return int(np.random.SeedSequence((len(path), seed, *path)).generate_state(1, np.uint64)[0]) >> 1


def seed_all(seed: int) -> None:
    """Start all generators that a policy or a transform may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class BatchShape:
    """How a step's batch is cut."""

    size: int  # samples in one forward pass
    passes: int = 1  # forward passes per step and process
    processes: int = 1
    process: int = 0  # index of this one

    @property
    def samples(self) -> int:
        """Samples of all processes in a step."""
        return self.size * self.passes * self.processes

    def place(self, number: int) -> int:
        """Of this process's pass `number` among all passes of a step: the same however they are dealt to processes."""
        return number * self.processes + self.process

    def part(self, number: int) -> slice:
        """Which of a step's samples this process sees in its pass `number`."""
        start = self.place(number) * self.size
        return slice(start, start + self.size)

    def with_samples(self, samples: int) -> BatchShape:
        """As many samples in a step, by more or fewer passes.

        Raises:
            ConfigError: Passes of this size do not add up to them.
        """
        passes, rest = divmod(samples, self.size * self.processes)
        if rest or not passes:
            raise ConfigError(
                f"the checkpoint's steps have {samples} samples, which {self.processes} processes with "
                f"training.batch_size={self.size} cannot make; resume on a number of processes that divides "
                f"{samples // self.size}"
            )
        return replace(self, passes=passes)


@dataclass(frozen=True)
class SampleOrder:
    """Passes over all samples, each in an order of its own; a batch may end one pass and begin the next."""

    length: int  # number of samples
    batch: int  # samples per step, of all processes
    seed: int  # of the run

    def step(self, step: int) -> NDArray[np.int64]:
        """Indices of the samples of a step, counted from 0."""
        found: list[NDArray[np.int64]] = []
        position, missing = step * self.batch, self.batch
        while missing:
            epoch, start = divmod(position, self.length)
            found.append(_permutation(self.length, self.seed, epoch)[start : start + missing])
            position, missing = position + len(found[-1]), missing - len(found[-1])
        return np.concatenate(found)

    def epochs(self, steps: int) -> float:
        """Passes over the data that so many steps make."""
        return steps * self.batch / self.length


@lru_cache(maxsize=2)
def _permutation(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive_seed(seed, SHUFFLE, epoch)).permutation(length)
