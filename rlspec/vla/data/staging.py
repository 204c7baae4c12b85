"""Finished attempts on the disk, one file each, so that collecting can be interrupted at any moment.

A file is written beside its place and renamed; the name tells task and attempt, and a failure is a file as well.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.vla.data.recording import AttemptPlan, Episode


@dataclass(frozen=True)
class Staging:
    """A folder of finished attempts."""

    folder: Path

    def success(self, task: int, attempt: int) -> Path:
        """Where a successful episode is kept."""
        return self.folder / f"{task:03d}-{attempt:06d}.npz"

    def failure(self, task: int, attempt: int) -> Path:
        """Where the kind of a failure is kept."""
        return self.folder / f"{task:03d}-{attempt:06d}.failed"

    def outcome(self, task: int, attempt: int) -> str | None:
        """Kind of failure, empty for a success; None where the attempt is not known. Broken files are removed."""
        if (path := self.failure(task, attempt)).is_file():
            return path.read_text(encoding="utf-8")
        path = self.success(task, attempt)
        if not path.is_file():
            return None
        if zipfile.is_zipfile(path):
            return ""
        path.unlink()
        return None

    def save_failure(self, task: int, attempt: int, kind: str) -> None:
        """Keep the kind of a failure."""
        write_whole(self.failure(task, attempt), kind.encode())

    def save(self, task: int, attempt: int, episode: Episode) -> None:
        """Keep a successful episode."""
        plan = episode.plan
        about = {
            "instruction": plan.instruction,
            "seed": plan.seed,
            "initial_state": plan.initial_state,
            "shapes": episode.shapes,
            "environment": episode.environment,
        }
        arrays = {"states": plan.states, "labels": plan.labels, "executed": plan.executed}
        write_archive(self.success(task, attempt), about, arrays, episode.pictures, episode.histograms)

    def load(self, task: int, attempt: int) -> Episode:
        """Read a successful episode."""
        about, arrays, pictures, histograms = read_archive(self.success(task, attempt))
        shapes = {camera: tuple(shape) for camera, shape in about.pop("shapes").items()}
        environment = about.pop("environment")
        plan = AttemptPlan(
            **about, states=arrays["states"], labels=arrays["labels"], executed=arrays["executed"], failure=""
        )
        return Episode(plan, shapes, pictures, histograms, environment)


Arrays = dict[str, NDArray[Any]]


def write_archive(
    path: Path,
    about: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    pictures: Mapping[str, list[bytes]],
    histograms: Mapping[str, NDArray[np.int64]],
) -> None:
    """Keep an episode in one file, whole or not at all.

    Args:
        path: of the file.
        about: plain values.
        arrays: numbers; names without a slash.
        pictures: camera -> files in memory.
        histograms: camera -> counts of values.
    """
    content: Arrays = {"about": _bytes(json.dumps(about).encode()), **arrays}
    for camera, files in pictures.items():
        content[f"sizes/{camera}"] = np.array([len(file) for file in files])
        content[f"pictures/{camera}"] = _bytes(b"".join(files))
        content[f"histogram/{camera}"] = histograms[camera]
    buffer = io.BytesIO()
    np.savez(buffer, **content)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def read_archive(path: Path) -> tuple[dict[str, Any], Arrays, dict[str, list[bytes]], Arrays]:
    """What `write_archive` was given."""
    with np.load(path) as stored:
        content = dict(stored)
    about = json.loads(content.pop("about").tobytes())
    cameras = [name.removeprefix("sizes/") for name in content if name.startswith("sizes/")]
    pictures = {camera: _cut(content[f"pictures/{camera}"], content[f"sizes/{camera}"]) for camera in cameras}
    histograms = {camera: content[f"histogram/{camera}"] for camera in cameras}
    return about, {name: values for name, values in content.items() if "/" not in name}, pictures, histograms


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def _cut(content: np.ndarray, sizes: np.ndarray) -> list[bytes]:
    ends = np.cumsum(sizes)
    return [content[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    os.replace(staging, path)
