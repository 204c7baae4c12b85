"""The ticks of a log that are worth keeping as data: what was seen, sent and asked for, one step after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.log.reader import RunLog
from rlspec.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RecordedStep:
    """One tick.

    Attributes:
        tick: As it was logged.
        joints, velocities: Measured, (7,) rad and rad/s.
        closure: Measured, 0 open to 1 closed.
        sent: Joint target, (7,) rad; of a hold what had been sent last.
        sent_closure: Likewise.
        requested: By the policy, in its own action space; None: it asked for nothing.
        pictures: Camera -> its newest picture.
        intervention: A human moved the arm in the policy's place.
    """

    tick: Mapping[str, Any]
    joints: Array
    velocities: Array
    closure: float
    sent: Array
    sent_closure: float
    requested: Array | None
    pictures: Mapping[str, Path]
    intervention: bool


def pictures_of(log: RunLog) -> dict[str, dict[int, Path]]:
    """Camera -> tick -> picture."""
    folder = log.folder / "frames"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {
        camera.name: {int(path.stem): path for path in camera.glob("*.jpg") if path.stem.isdecimal()}
        for camera in found
        if camera.is_dir()
    }


def recorded_steps(log: RunLog, cameras: Sequence[str]) -> Iterator[RecordedStep]:
    """From the first command on; a hold carries on what was sent last, a slow camera its last picture."""
    pictures = pictures_of(log)
    size = len(log.action_names)
    sent: list[float] | None = None
    closure: float | None = None
    seen: dict[str, Path] = {}
    for tick in log.ticks:
        seen |= {camera: pictures[camera][tick["tick"]] for camera in cameras if tick["tick"] in pictures[camera]}
        sent = tick.get("sent") or sent
        state = tick.get("state")
        if sent is None or not state or len(seen) < len(cameras):
            continue
        closure = tick["closure_sent"] if tick.get("closure_sent") is not None else closure
        requested = np.array(tick.get("requested") or [np.nan], dtype=np.float64)
        complete = requested.shape == (size,) and bool(np.isfinite(requested).all())
        yield RecordedStep(
            tick=tick,
            joints=np.array(state["joints"], np.float64),
            velocities=np.array(state["velocities"], np.float64),
            closure=float(state["closure"]),
            sent=np.array(sent, np.float64),
            sent_closure=float(state["closure"] if closure is None else closure),
            requested=requested if complete else None,
            pictures=dict(seen),
            intervention=bool(tick.get("intervention")),
        )


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB.

    Raises:
        DataError: It is none.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: unreadable picture ({error}); remove it, the one before stands in") from None
