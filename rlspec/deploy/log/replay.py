"""Sends what a log says was sent to the simulated robot once more, and compares what moves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.log.reader import RunLog, read_log
from rlspec.deploy.robots.drivers import RobotSettings
from rlspec.deploy.robots.mujoco import MujocoRobot
from rlspec.errors import DataError

Array = NDArray[np.float64]

_EXPIRES = 0.3  # seconds after which a command that nothing follows ends, where the log does not say


@dataclass(frozen=True)
class Replay:
    """A replayed log.

    Attributes:
        law: Under which the simulation moved.
        ticks: Compared.
        measured: (T, 7) rad, from the log; NaN where the robot had not answered.
        replayed: (T, 7) rad, at the same times.
        success: Whether the simulated task is done at the end.
        reflex: The simulated robot's words where it stopped by itself.
    """

    law: str
    ticks: int
    measured: Array
    replayed: Array
    success: bool
    reflex: str = ""

    @property
    def rms(self) -> Array:
        """Root mean square of the deviation of each joint, (7,) rad."""
        return np.asarray(np.sqrt(np.nanmean((self.replayed - self.measured) ** 2, axis=0)))

    @property
    def largest(self) -> Array:
        """Largest deviation of each joint, (7,) rad."""
        return np.asarray(np.nanmax(np.abs(self.replayed - self.measured), axis=0))

    def lines(self) -> list[str]:
        """For the terminal."""
        joints = [f"joint{i}  deviation rms {rms:.4f}" for i, rms in enumerate(self.rms, 1)]
        return [
            f"{self.ticks} ticks replayed in MuJoCo under {self.law}, task {'done' if self.success else 'not done'}",
            *([f"stopped by the simulated robot: {self.reflex}"] if self.reflex else []),
            *(f"{joint} rad, largest {most:.4f} rad" for joint, most in zip(joints, self.largest, strict=True)),
        ]


def replay_log(path: Path, *, law: str | None = None, robot: MujocoRobot | None = None) -> Replay:
    """Replay a log from its start pose.

    Of a log of the simulated robot the scene is laid out again; of another one there is only the arm to compare.

    Args:
        path: Folder of the run, or its ticks.jsonl.
        law: Another one than the log's; logs of laws that the simulation does not have need one.
        robot: To replay on; made from the log's header by default. It is connected, and closed afterwards.

    Raises:
        DataError: There is no usable log, nothing was sent, or the law is missing.
    """
    log = read_log(path)
    law = law or str(log.header.get("law"))
    if law not in MujocoRobot.laws:
        raise DataError(f"{log.path}: law={law} is not there in MuJoCo; choose law={'|'.join(MujocoRobot.laws)}")
    start = next((i for i, tick in enumerate(log.ticks) if tick.get("state")), None)
    if start is None or not any(tick.get("sent") for tick in log.ticks):
        raise DataError(f"{log.path}: nothing was sent to the robot; there is nothing to replay")
    robot = robot or _robot_of(log)
    try:
        robot.connect(law, log.control_hz)
        first = log.ticks[start]["state"]
        robot.start_from(np.array(first["joints"]), float(first["closure"]))
        replayed = np.full((len(log.ticks), 7), np.nan)
        reflex = _run(log, robot, start, replayed)
        success = robot.success
    finally:
        robot.close()
    measured = log.column("state", "joints", size=7)
    return Replay(law, int(np.isfinite(replayed[:, 0]).sum()), measured, replayed, success, reflex)


def _robot_of(log: RunLog) -> MujocoRobot:
    """A simulated robot with the log's arm and, where that was simulated as well, its scene."""
    settings = log.header.get("settings") or {}
    told = settings.get("robot") or {}
    options: dict[str, Any] = dict(told.get("options") or {}) if log.robot == "mujoco" else {}
    options |= {"images": False, "real_time": False}
    described = RobotSettings(name="mujoco", driver="mujoco", model=told.get("model", "fr3"), options=options)
    robot: MujocoRobot = described.found.make(described)  # type: ignore[assignment] # the table says so
    return robot


def _run(log: RunLog, robot: MujocoRobot, start: int, replayed: Array) -> str:
    """Send at the log's times and fill `replayed`; returns why the robot stopped, or nothing."""
    robot.faults.velocity_reflex = robot.faults.torque_reflex = None  # the log's own reflexes are in its states
    begin = float(log.ticks[start]["time"])
    told = (log.header.get("settings") or {}).get("safety") or {}
    expires = float(told.get("expires", _EXPIRES))
    for i, tick in enumerate(log.ticks[start:], start):
        robot.clock.sleep_until(float(tick["time"]) - begin)
        state = robot.read()
        replayed[i] = state.joints
        if state.mode == "reflex":
            return state.error
        if (sent := tick.get("sent")) is not None:
            robot.command(Command(np.array(sent), np.zeros(7), expires))
        elif tick.get("phase") in ("stop", "fault"):
            robot.stop()
        if (closure := tick.get("closure_sent")) is not None:
            robot.grip(float(closure))
    return ""
