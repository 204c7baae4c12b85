"""Judges what the safety filter sent: re-typed published tables, finite differences, MuJoCo's kinematics."""

from __future__ import annotations

from collections import Counter
from functools import cache

import mujoco
import numpy as np
from rlspec_envs.franka.robots import ROBOTS
from rlspec_envs.franka.scene import build_model

from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.safety.filter import FilterVerdict, SafetyFilter, SafetySettings

MODELS = ("fr3", "fr3_pre_5_9", "fer")
# Franka Control Interface documentation, "Limits for Franka Research 3" and "Limits for Panda"; franka_description.
LOW = {
    "fr3": [-2.9007, -1.8361, -2.9007, -3.0770, -2.8763, 0.4398, -3.0508],
    "fr3_pre_5_9": [-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159],
    "fer": [-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973],
}
HIGH = {
    "fr3": [2.9007, 1.8361, 2.9007, -0.1169, 2.8763, 4.6216, 3.0508],
    "fr3_pre_5_9": [2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159],
    "fer": [2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973],
}
VELOCITY = {model: [2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26] for model in ("fr3", "fr3_pre_5_9")}
VELOCITY["fer"] = [2.175, 2.175, 2.175, 2.175, 2.61, 2.61, 2.61]
ACCELERATION = {"fr3": [10.0] * 7, "fr3_pre_5_9": [10.0] * 7, "fer": [15, 7.5, 10, 12.5, 15, 20, 20]}
JERK = {"fr3": [5000.0] * 7, "fr3_pre_5_9": [5000.0] * 7, "fer": [7500, 3750, 5000, 6250, 7500, 10000, 10000]}


def highest(q: np.ndarray) -> np.ndarray:
    """The FR3's highest velocities at (n, 7) joint angles, as the documentation writes them."""
    offsets = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])
    inside = np.stack(
        [
            12.0 * (2.75010 - q[:, 0]),
            5.17 * (1.79180 - q[:, 1]),
            7.00 * (2.90650 - q[:, 2]),
            8.00 * (-0.1458 - q[:, 3]),
            34.0 * (2.81010 - q[:, 4]),
            11.0 * (4.52050 - q[:, 5]),
            34.0 * (3.01960 - q[:, 6]),
        ],
        axis=1,
    )
    return np.minimum(VELOCITY["fr3"], np.maximum(0.0, np.sqrt(np.maximum(0.0, inside)) - offsets))


def lowest(q: np.ndarray) -> np.ndarray:
    offsets = np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35])
    inside = np.stack(
        [
            12.0 * (2.75010 + q[:, 0]),
            5.17 * (1.79180 + q[:, 1]),
            7.00 * (2.90650 + q[:, 2]),
            8.00 * (3.04810 + q[:, 3]),
            34.0 * (2.81010 + q[:, 4]),
            11.0 * (-0.54092 + q[:, 5]),
            34.0 * (3.01960 + q[:, 6]),
        ],
        axis=1,
    )
    return -np.minimum(VELOCITY["fr3"], np.maximum(0.0, np.sqrt(np.maximum(0.0, inside)) - offsets))


@cache
def _arm() -> tuple[mujoco.MjModel, mujoco.MjData]:
    model = build_model(ROBOTS["fr3"], "primitive", 0.002, lambda spec: None)
    return model, mujoco.MjData(model)


def places(q: np.ndarray, length: float = 0.1034) -> np.ndarray:
    """Elbow, wrist, flange, hand corners and tool centre point by MuJoCo, (n, 8, 3); the hand's `length` in m."""
    model, data = _arm()
    link4, link5, link7, hand = (model.body(name).id for name in ("link4", "link5", "link7", "hand"))
    tcp = model.site("tcp").id
    found = np.empty((len(q), 8, 3))
    for row, joints in zip(found, q, strict=True):
        data.qpos[:7] = joints
        mujoco.mj_kinematics(model, data)
        turn = data.xmat[hand].reshape(3, 3)
        row[0], row[1] = data.xpos[link4], data.xpos[link4] - 0.0825 * data.xmat[link4].reshape(3, 3)[:, 0]
        row[2], row[3], row[4], row[7] = data.xpos[link5], data.xpos[link7], data.xpos[hand], data.site_xpos[tcp]
        row[7] = row[7] + (length - 0.1034) * turn[:, 2]
        row[5] = data.xpos[hand] + turn @ [0.0, 0.1, 0.066]
        row[6] = data.xpos[hand] + turn @ [0.0, -0.1, 0.066]
    return found


def violations(
    model: str, hz: float, settings: SafetySettings, sent: np.ndarray, jerk: np.ndarray | None = None
) -> Counter[str]:
    """Count the limits that a sequence of targets exceeds.

    Args:
        model: Of the arm.
        hz: Control rate.
        settings: Margin, slew and box.
        sent: (n, 7), from where the robot stood on.
        jerk: Instead of the model's.
    """
    x = np.concatenate([np.repeat(sent[:1], 3, axis=0), sent[1:]])
    v = np.diff(x, axis=0) * hz
    a = np.diff(v, axis=0) * hz
    j = np.diff(a, axis=0) * hz
    v, a, start, end = v[2:], a[1:], x[2:-1], x[3:]
    low, high = np.array(LOW[model]) + settings.joint_margin, np.array(HIGH[model]) - settings.joint_margin
    found: Counter[str] = Counter()
    # Further out than the margin only where it stood already, and never still further.
    found["position"] += int(((end > high) & (end > start)).sum() + ((end < low) & (end < start)).sum())
    found["hard_position"] += int(((end > HIGH[model]) | (end < LOW[model])).sum())
    found["velocity"] += int((np.abs(v) > np.array(VELOCITY[model]) * settings.velocity_share).sum())
    found["slew"] += int((np.abs(end - start) > settings.max_step).sum())
    if model != "fer":
        for q in (start, end):
            found["envelope"] += int(((v > highest(q)) | (v < lowest(q))).sum())
    found["acceleration"] += int((np.abs(a) > np.array(ACCELERATION[model]) * settings.acceleration_share).sum())
    most = np.array(JERK[model]) * settings.jerk_share if jerk is None else jerk
    found["jerk"] += int((np.abs(j) > most).sum())
    where = places(x[2:], settings.hand_length)
    depth = np.maximum(settings.workspace_low - where, where - settings.workspace_high)
    found["box"] += int(((depth[1:] > 1e-9) & (depth[1:] > depth[:-1] + 1e-9)).sum())
    return +found


class Trial:
    """Runs a filter with a robot that follows it, and keeps what was sent since each standstill."""

    def __init__(self, safety: SafetyFilter, joints: np.ndarray, lag: float = 0.0) -> None:
        self.safety, self.lag = safety, lag
        self.measured, self.velocities = np.array(joints), np.zeros(7)
        self.segments: list[list[np.ndarray]] = [[self.measured]]
        self.verdicts: list[FilterVerdict] = []
        safety.reset(self.state())

    def state(self) -> RobotState:
        return RobotState(0.0, self.measured, self.velocities, 0.0)

    def tick(self, requested: object, age: float = 0.0, state: RobotState | None = None) -> FilterVerdict:
        state = state or self.state()
        stopped = bool(self.verdicts) and self.verdicts[-1].command is None
        verdict = self.safety.filter(requested, state, age)
        self.verdicts.append(verdict)
        if verdict.command is None:
            return verdict
        if stopped:
            self.segments.append([np.array(state.joints)])
        assert verdict.joints is verdict.command.joints
        self.segments[-1].append(verdict.joints)
        self.measured = self.lag * self.measured + (1.0 - self.lag) * verdict.joints
        return verdict

    def violations(self, model: str, jerk: np.ndarray | None = None) -> Counter[str]:
        found: Counter[str] = Counter()
        for segment in self.segments:
            found += violations(model, self.safety.control_hz, self.safety.settings, np.array(segment), jerk)
        return found
