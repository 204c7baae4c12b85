"""What a run's change of the weights is worth without its tail: W_0 + the largest directions of W_T - W_0.

"The Malignant Tail" cuts the small singular directions of a change after training and asks what is lost. Cut with
`truncate_checkpoint`, then evaluate the folder that it writes like any checkpoint; `part="tail"` is the control, which
keeps what the other cuts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlspec.checkpoint import MANIFEST, find_weights, staged_folder
from rlspec.config.adapters import ADAPTERS
from rlspec.errors import CheckpointError, ConfigError

Part = Literal["top", "tail"]
STATE_OF_TRAINING = (".pt", ".pth", ".bin", ".safetensors")
"""Endings of files that are not copied: a cut checkpoint is to be evaluated, not trained on."""


@dataclass(frozen=True)
class Cut:
    """What was kept of one matrix's change.

    Attributes:
        name: of the parameter.
        shape: of the matrix.
        rank: directions kept.
        energy: share of the change's squared Frobenius norm that they hold; 1.0 where nothing changed.
        change: Frobenius norm of the whole change.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    energy: float
    change: float


def truncate_change(before: Tensor, after: Tensor, keep: float, part: Part = "top") -> tuple[Tensor, int, float]:
    """`before` and a part of the singular directions of `after - before`.

    Args:
        before: matrix, or a stack of them, which are cut one by one.
        after: of the same shape.
        keep: a whole number of directions (int), or the least number that holds this share of the squared norm (float
            in (0, 1]).
        part: `top` keeps them, `tail` keeps the others.

    Returns:
        the matrix in the dtype of `after`; directions kept, and their share of the squared norm (of stacks: the sum
        over its matrices, and their common share).

    Raises:
        ConfigError: on another `keep` or shapes that differ.
    """
    whole = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    if not whole and not (isinstance(keep, float) and 0 < keep <= 1):
        raise ConfigError(f"keep={keep!r}: must be a whole number of directions, or a share above 0 and up to 1.0")
    if before.shape != after.shape:
        raise ConfigError(f"shapes {tuple(before.shape)} and {tuple(after.shape)}: not the same model")
    change = (after.double() - before.double()).reshape(-1, *after.shape[-2:])
    tall = change if change.shape[1] >= change.shape[2] else change.mT
    energy, vectors = torch.linalg.eigh(tall.mT @ tall)  # of the short side: a vocabulary of rows costs one product
    energy, vectors = energy.flip(1).clamp(min=0), vectors.flip(2)
    total = energy.sum(1, keepdim=True)
    order = torch.arange(energy.shape[1])
    short_of = energy.cumsum(1) - energy < (keep - 1e-12) * total  # the directions before hold too little
    chosen = order < keep if whole else short_of & (energy > 0)
    chosen = chosen.expand_as(energy) if part == "top" else ~chosen.expand_as(energy)
    kept = tall @ (vectors * chosen[:, None, :]) @ vectors.mT
    kept = kept if change.shape == tall.shape else kept.mT
    share = float((energy * chosen).sum() / total.sum()) if float(total.sum()) else 1.0
    result = (before.double() + kept.reshape(before.shape)).to(after.dtype)
    return result, int(chosen.sum()), share


def truncate_checkpoint(before: str, after: str, target: Path, keep: float, part: Part = "top") -> list[Cut]:
    """Write the checkpoint `after` with every matrix's change since `before` cut; vectors stay as they are in `after`.

    Args:
        before: folder with the weights that training began with.
        after: folder of a checkpoint or run, of the same model, no adapter.
        target: new folder, complete or not there; without the state of training.
        keep: see `truncate_change`.
        part: likewise.

    Raises:
        CheckpointError: naming the folder or parameter that does not fit.
        ConfigError: see `truncate_change`.
    """
    start, end = Path(find_weights(before)), Path(find_weights(after))
    for folder in (start, end):
        if (folder / ADAPTERS).is_file():
            raise CheckpointError(f"{folder}: holds an adapter, whose factors are no weights; merge it into its model")
    if target.exists():
        raise CheckpointError(f"{target}: is there already; give another folder")
    known = {name: file for file in _weight_files(start) for name in _names(file)}
    cuts = []
    with staged_folder(
        target, metadata={"before": str(start), "after": str(end), "keep": keep, "part": part}
    ) as staging:
        for file in _weight_files(end):
            weights = {}
            for name, tensor in _tensors(file):
                if name not in known:
                    raise CheckpointError(f"{end}: {name} is not in {start}: not the same model")
                weights[name] = tensor
                if tensor.ndim > 1 and tensor.is_floating_point():
                    with safe_open(known[name], "pt") as stored:
                        old = stored.get_tensor(name)
                    weights[name], rank, share = truncate_change(old, tensor, keep, part)
                    change = float((tensor.double() - old.double()).norm())
                    cuts.append(Cut(name, tuple(tensor.shape), rank, share, change))
            save_file(
                {name: tensor.contiguous() for name, tensor in weights.items()}, staging / file.name, _about(file)
            )
        for file in end.iterdir():
            if file.is_file() and file.name != MANIFEST and file.suffix not in STATE_OF_TRAINING:
                shutil.copy2(file, staging / file.name)
    return cuts


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise CheckpointError(f"{folder}: has no model.safetensors")
    return found


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as stored:
        return list(stored.keys())


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - no mapping
            yield name, stored.get_tensor(name)


def _about(file: Path) -> dict[str, str] | None:
    with safe_open(file, "pt") as stored:
        return stored.metadata()
