"""Tick logs as a LeRobotDataset v3: what the robot saw, what it was sent, and what the policy had asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, JOINT_POSITION
from rlspec.contract.features import ACTION, IMAGE_AXES, INTERVENTION, JOINT_STATE, STATE, TASK, image_key
from rlspec.contract.records import DATA_RECORD
from rlspec.deploy.log.reader import RunLog, read_log
from rlspec.deploy.log.steps import pictures_of, read_picture, recorded_steps
from rlspec.errors import DataError

ACTION_SPACE = JOINT_POSITION  # what is sent are joint targets, whatever the policy's action space

Array = NDArray[np.float64]
Frame = dict[str, Any]


@dataclass(frozen=True)
class Export:
    """What came of it.

    Attributes:
        episodes: One per log.
        frames: In all.
        problems: What was left out, one line each.
    """

    episodes: int
    frames: int
    problems: tuple[str, ...]


def export_logs(
    runs: Sequence[Path],
    out: Path,
    *,
    repo_id: str = "local/deployment",
    video: bool = False,
    successes: Sequence[bool] | None = None,
) -> Export:
    """Write logs as episodes of one data set.

    `action` is what was sent: seven joint targets in radians and the gripper's closure. `requested` is the policy's
    action in its own space, zeros where `has_request` is false (the loop held the last target, or a human drove).
    `intervention`, which LeRobot's rollout writes as well, marks what a human did in the policy's place. Frames from
    before anything was sent are left out.

    Args:
        runs: Folders of deployments; all of one rate, action space and set of cameras.
        out: Folder of the data set; must not exist.
        repo_id: Its name.
        video: MP4 instead of images.
        successes: Of each run, where somebody has judged; else as the run ended.

    Raises:
        DataError: A log is unusable, nothing was ever sent, or the logs do not fit together.
    """
    if out.exists():
        raise DataError(f"{out} exists; choose another folder")
    logs = [read_log(run) for run in runs]
    if not logs:
        raise DataError("no logs to export; give the folder of a deployment")
    cameras = [pictures_of(log) for log in logs]
    _check_alike(logs, cameras)
    problems: list[str] = []
    try:
        dataset = _create(logs[0], cameras[0], out, repo_id, video=video)
        counts = [_add_episode(dataset, log, sorted(cameras[0]), problems) for log in logs]
        dataset.finalize()
    except DataError:
        shutil.rmtree(out, ignore_errors=True)  # half a data set would be taken for a whole one
        raise
    judged = successes or [log.footer.get("outcome") == "success" for log in logs]
    record = describe(logs, counts, judged)
    (out / DATA_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return Export(len(logs), sum(counts), tuple(problems))


def describe(logs: Sequence[RunLog], frames: Sequence[int], successes: Sequence[bool]) -> dict[str, Any]:
    """What the data set says about itself in meta/rlspec.json."""
    first = logs[0]
    return {
        "suite": "deployment",
        "action_space": ACTION_SPACE,
        "units": list(ACTION_SPACES[ACTION_SPACE].units),
        "requested_action_space": first.header.get("action_space"),
        "control_hz": first.control_hz,
        "execution_law": first.header.get("law"),
        "robot": first.robot,
        "source": "tick logs of rlspec.deploy",
        "episodes": [
            {
                "source": log.folder.name,
                "task": _task(log),
                "success": success,
                "frames": count,
            }
            for log, count, success in zip(logs, frames, successes, strict=True)
        ],
    }


def _task(log: RunLog) -> str:
    return str(log.header.get("prompt") or "no instruction")


def _check_alike(logs: Sequence[RunLog], cameras: Sequence[dict[str, dict[int, Path]]]) -> None:
    first = logs[0]
    for log in logs:
        if not any(tick.get("sent") for tick in log.ticks):
            mode = log.header.get("mode")
            raise DataError(f"{log.path}: nothing was sent to the robot (mode={mode}); no data set of it")
    for log, pictures in zip(logs, cameras, strict=True):
        if (log.control_hz, log.header.get("action_space")) != (first.control_hz, first.header.get("action_space")):
            raise DataError(f"{log.path}: another rate or action space than {first.path}; export them apart")
        if set(pictures) != set(cameras[0]):
            raise DataError(f"{log.path}: other cameras than {first.path}; export them apart")
    if first.control_hz != round(first.control_hz):
        raise DataError(f"{first.path}: {first.control_hz} Hz; a LeRobotDataset wants a whole number")


def _create(log: RunLog, cameras: dict[str, dict[int, Path]], out: Path, repo_id: str, *, video: bool) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    space = ACTION_SPACES[ACTION_SPACE]
    features: dict[str, dict[str, Any]] = {
        STATE: {"dtype": "float32", "shape": (len(JOINT_STATE),), "names": list(JOINT_STATE)},
        ACTION: {"dtype": "float32", "shape": (space.size,), "names": list(space.names)},
        "requested": {"dtype": "float32", "shape": (len(log.action_names),), "names": log.action_names},
        "has_request": {"dtype": "bool", "shape": (1,), "names": None},
        INTERVENTION: {"dtype": "bool", "shape": (1,), "names": None},
    }
    for camera, pictures in sorted(cameras.items()):
        if not pictures:
            raise DataError(f"{log.folder / 'frames' / camera}: no pictures; remove the folder or run again")
        shape = read_picture(next(iter(pictures.values()))).shape
        kind = "video" if video else "image"
        features[image_key(camera)] = {
            "dtype": kind,
            "shape": shape,
            "names": list(IMAGE_AXES),
        }
    return LeRobotDataset.create(
        repo_id,
        round(log.control_hz),
        features,
        root=out,
        robot_type=log.robot,
        use_videos=video,
        video_backend="pyav",
    )


def _add_episode(dataset: Any, log: RunLog, cameras: Sequence[str], problems: list[str]) -> int:
    """Add one log; returns its number of frames."""
    count = 0
    for frame in _frames(log, cameras):
        dataset.add_frame({**frame, TASK: _task(log)})
        count += 1
    problems += [f"{log.path}: {problem}" for problem in log.problems]
    if not count:
        raise DataError(f"{log.path}: no tick has a command, a state and all pictures; no data set of it")
    dataset.save_episode()
    if left := len(log.ticks) - count:
        problems.append(f"{log.path}: {left} ticks left out, before the first command or without state or picture")
    numbers = [int(tick["tick"]) for tick in log.ticks]
    if missing := numbers[-1] - numbers[0] + 1 - len(numbers):
        problems.append(f"{log.path}: {missing} ticks are missing in the log; their neighbours follow one another")
    return count


def _frames(log: RunLog, cameras: Sequence[str]) -> Iterator[Frame]:
    """Frames as LeRobot takes them."""
    for step in recorded_steps(log, cameras):
        asked = np.zeros(len(log.action_names)) if step.requested is None else step.requested
        yield {
            STATE: np.array([*step.joints, step.closure], np.float32),
            ACTION: np.array([*step.sent, step.sent_closure], np.float32),
            "requested": asked.astype(np.float32),
            "has_request": np.array([step.requested is not None]),
            INTERVENTION: np.array([step.intervention]),
            **{image_key(camera): read_picture(step.pictures[camera]) for camera in cameras},
        }
