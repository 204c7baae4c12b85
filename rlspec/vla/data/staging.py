"""Finished attempts on the disk, one file each, so that collecting can be interrupted at any moment.

A file is written beside its place and renamed; the name tells task and attempt, and a failure is a file as well.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlspec.vla.data.recording import Episode, Plan


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
        _write(self.failure(task, attempt), kind.encode())

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
        arrays: dict[str, np.ndarray] = {
            "about": _bytes(json.dumps(about).encode()),
            "states": plan.states,
            "labels": plan.labels,
            "executed": plan.executed,
        }
        for camera, pictures in episode.pictures.items():
            arrays[f"sizes/{camera}"] = np.array([len(picture) for picture in pictures])
            arrays[f"pictures/{camera}"] = _bytes(b"".join(pictures))
            arrays[f"histogram/{camera}"] = episode.histograms[camera]
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        _write(self.success(task, attempt), buffer.getvalue())

    def load(self, task: int, attempt: int) -> Episode:
        """Read a successful episode."""
        with np.load(self.success(task, attempt)) as stored:
            arrays = dict(stored)
        about = json.loads(arrays["about"].tobytes())
        shapes = {camera: tuple(shape) for camera, shape in about.pop("shapes").items()}
        environment = about.pop("environment")
        plan = Plan(**about, states=arrays["states"], labels=arrays["labels"], executed=arrays["executed"], failure="")
        return Episode(
            plan,
            shapes,
            {camera: _cut(arrays[f"pictures/{camera}"], arrays[f"sizes/{camera}"]) for camera in shapes},
            {camera: arrays[f"histogram/{camera}"] for camera in shapes},
            environment,
        )


def _bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def _cut(content: np.ndarray, sizes: np.ndarray) -> list[bytes]:
    ends = np.cumsum(sizes)
    return [content[end - size : end].tobytes() for end, size in zip(ends, sizes, strict=True)]


def _write(path: Path, content: bytes) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    os.replace(staging, path)
