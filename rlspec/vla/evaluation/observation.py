"""Observations of one environment in the form that LeRobot's preprocessors take.

The same as `lerobot.envs.utils.preprocess_observation`, which cannot be imported without the whole of LeRobot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspec.contract.features import AGENT_POS, PIXELS, STATE, TASK, image_key
from rlspec.vla.evaluation.simulator import Observation

if TYPE_CHECKING:
    from torch import Tensor


def to_batch(observation: Observation, instruction: str) -> dict[str, Any]:
    """A batch of one: images float32 (1, 3, H, W) in [0, 1], state float32 (1, n), the task as a list of one text."""
    batch: dict[str, Any] = {image_key(name): _image(pixels) for name, pixels in observation[PIXELS].items()}
    batch[STATE] = _state(observation[AGENT_POS])
    batch[TASK] = [instruction]
    return batch


def to_batches(observations: Sequence[Observation], instructions: Sequence[str]) -> dict[str, Any]:
    """The same of several observations, by `to_batch`."""
    import torch

    parts = [to_batch(each, text) for each, text in zip(observations, instructions, strict=True)]
    joined: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != TASK}
    return {**joined, TASK: list(instructions)}


def _image(pixels: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).contiguous().float().div_(255).unsqueeze(0)


def _state(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.asarray(values)).float().unsqueeze(0)
