"""Microseconds that targets and safety filter take per action: `python tests/benchmarks/safety_filter.py [ticks]`.

Every action space at its own rate, an FR3, the default workspace box and one that is hit all the time. Actions are
either small (most pass unchanged) or wild (every limit binds). Prints wall time, and the filter's own processor time,
which other work on the machine disturbs less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import time

import numpy as np

from rlspec.contract.actions import ACTION_SPACES
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.arm.targets import Targets
from rlspec.deploy.safety.filter import SafetyFilter, SafetySettings

TIGHT = SafetySettings(workspace_low=[-0.3, -0.3, 0.3], workspace_high=[0.5, 0.3, 0.8], first_jump=10.0)


def actions(space: str, wild: bool, ticks: int) -> np.ndarray:
    """Random actions that change every ten ticks, (ticks, A)."""
    random, size = np.random.default_rng(0), ACTION_SPACES[space].size
    drawn = np.repeat(random.uniform(-1, 1, (ticks // 10 + 1, size)), 10, axis=0)[:ticks]
    drawn *= 1.0 if wild else 0.02
    if space == "joint_position":
        drawn[:, :7] = HOME + (2.0 if wild else 1.0) * drawn[:, :7]
    if space == "cartesian_position":
        drawn[:, :3] = forward(HOME)[0] + 0.5 * drawn[:, :3]
        drawn[:, 3:6] = [np.pi, 0.0, np.pi / 4]
    drawn[:, -1] = np.abs(drawn[:, -1])
    return drawn


def measure(space: str, wild: bool, settings: SafetySettings, hz: float, ticks: int) -> tuple[list[float], float]:
    """Quantiles in microseconds, and the share of unchanged requests."""
    convert, safety = Targets(space, LIMITS["fr3"]), SafetyFilter(LIMITS["fr3"], settings, hz)
    joints = HOME
    safety.reset(RobotState(0.0, joints, np.zeros(7), 0.0))
    rows, unchanged = [], 0
    for action in actions(space, wild, ticks):
        state = RobotState(0.0, joints, np.zeros(7), 0.0)
        begin = time.perf_counter()
        target = convert(action, state)
        middle, used = time.perf_counter(), time.thread_time()
        verdict = safety.filter(target.joints, state)
        used, end = time.thread_time() - used, time.perf_counter()
        rows.append((middle - begin, end - middle, used))
        unchanged += not verdict.reasons
        joints = 0.5 * joints + 0.5 * verdict.joints
    wall, cpu = 1e6 * np.array(rows), 1e6 * np.array(rows)[:, 2]
    figures = [np.median(wall[:, 0]), np.median(wall[:, 1]), np.quantile(wall[:, 1], 0.99)]
    return [*figures, np.median(cpu), np.quantile(cpu, 0.99)], unchanged / ticks


def main() -> None:
    ticks = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{'':<36}{'targets':>9}{'filter':>9}{'p99':>9}{'cpu':>9}{'cpu p99':>9}{'unchanged':>11}")
    for space, kind in ACTION_SPACES.items():
        for wild, settings, name in ((False, SafetySettings(), "small"), (True, TIGHT, "wild, tight box")):
            figures, unchanged = measure(space, wild, settings, kind.control_hz, ticks)
            label = f"{space} {name}"
            print(f"{label:<36}" + "".join(f"{figure:9.0f}" for figure in figures) + f"{unchanged:11.0%}")


if __name__ == "__main__":
    main()
