"""A million hostile actions at an arm with a Robotiq in a calibrated box: `python tests/benchmarks/hostile_actions.py`.

Every episode has a room of its own, whose box comes from poses that an arm was guided to (`calibrate=workspace`), and a
2F-85, whose lane gets a hostile closure with every action. Targets are judged by tests/deploy/filter_oracle.py, the
hand's messages here. The filter's time is measured on the way, in the process's own time and by the wall clock. Shards
are kept in `work=`, so that the same command goes on; the last one writes results/hostile_actions.json.

    python tests/benchmarks/hostile_actions.py [actions=1000000] [work=DIR] [out=FILE]
"""

from __future__ import annotations

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))

from hostile_requests import TICKS, Hostile, begin

from rlspec.deploy.arm.gripper import GripperLane, GripperSettings
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.calibration.workspace import enclosing_box
from rlspec.deploy.robots.robotiq import RobotiqGripperLane
from rlspec.deploy.safety.filter import FilterVerdict, SafetySettings
from rlspec.deploy.safety.tick_bounds import ROBOTIQ_LENGTH

SHARD = 100  # episodes
FIRST = 20_000  # seed; those of pytest's fuzz are below
SHOWN = 20  # seeds of episodes with a violation
HOSTILE = (np.nan, np.inf, -np.inf, -1e300, 1e300, -0.5, 1.5, 0.4, 0.6, 0.5)  # closures
Random = np.random.Generator


def calibrated(random: Random) -> SafetySettings:
    """The box of a room that somebody has guided the arm through, with the margins that a run has by default."""
    down = forward(HOME)[1]
    near, far, wide, high = (random.uniform(*ends) for ends in ((0.3, 0.4), (0.5, 0.65), (0.2, 0.35), (0.45, 0.65)))
    table = random.uniform(0.0, 0.15)
    tips = [[near, wide], [near, -wide], [far, -wide], [far, wide]]
    places = [[0.45, 0.0, table], *([*tip, table + 0.1] for tip in tips), [0.45, 0.0, high]]
    poses = [solve(HOME, np.array(place), down, iterations=40) for place in places]
    box = enclosing_box(poses, ROBOTIQ_LENGTH, 0.005)
    return SafetySettings(
        workspace_low=box.low,
        workspace_high=box.high,
        hand_length=ROBOTIQ_LENGTH,
        first_jump=float(random.choice([0.25, 10.0])),
    )


class Hand:
    """A lane to a 2F-85 without its thread, and a judge at the other end of the cable."""

    def __init__(self, random: Random, hz: float) -> None:
        settings = GripperSettings(binary=bool(random.random() < 0.7))
        self.lane, self.hz, self.random = GripperLane(settings), hz, random
        self.least = settings.dwell if settings.binary else settings.interval
        self.robotiq = RobotiqGripperLane.__new__(RobotiqGripperLane)
        self.robotiq._bus, self.robotiq.stroke, self.robotiq._sent = self, (13, 230), None
        self.robotiq._speed = self.robotiq._force = 0
        self.found: Counter[str] = Counter()
        self.sent: list[tuple[float, int]] = []
        self.now = 0.0

    def tick(self) -> None:
        self.now += 1.0 / self.hz
        closure = float(self.random.choice(HOSTILE) if self.random.random() < 0.2 else self.random.uniform(-0.2, 1.2))
        if self.random.random() < 0.01:
            self.lane.restart()
            self.sent.clear()  # what follows a stop may follow at once
        decided = self.lane.decide(closure, self.now)
        if decided is not None:
            self.robotiq.work((decided,))

    def write(self, action: int, position: int = 0, speed: int = 0, force: int = 0) -> None:
        """As `RobotiqBus`."""
        if type(position) is not int or not 0 <= position <= 255:
            self.found["hand_position"] += 1
        elif self.lane.settings.binary and position not in (0, 255):
            self.found["hand_half"] += 1
        if action != 0x09:
            self.found["hand_action"] += 1
        if self.sent and self.now - self.sent[-1][0] < self.least - 1e-9:
            self.found["hand_haste"] += 1
        self.sent.append((self.now, position))

    def read(self) -> Any:
        """As `RobotiqBus`."""
        from rlspec.deploy.robots.robotiq import RobotiqStatus

        return RobotiqStatus(True, True, False, False, 0, 100, 0.0)


def timed(hostile: Hostile, wall: list[float], own: list[float]) -> None:
    """Have the time of every call of the filter kept, in seconds."""
    plain = hostile.trial.safety.filter

    def filter_(requested: Any, state: RobotState, age: float = 0.0) -> FilterVerdict:
        began, used = time.perf_counter(), time.thread_time()
        verdict = plain(requested, state, age)
        own.append(time.thread_time() - used)
        wall.append(time.perf_counter() - began)
        return verdict

    hostile.trial.safety.filter = filter_  # type: ignore[method-assign]


def shard(number: int) -> dict[str, Any]:
    """`SHARD` episodes: violations with their seeds, counts, and the filter's times."""
    found, counts, seeds = Counter[str](), Counter[str](), list[int]()
    wall, own = list[float](), list[float]()
    for seed in range(FIRST + number * SHARD, FIRST + (number + 1) * SHARD):
        hostile = begin(seed, calibrated)
        hand = Hand(np.random.default_rng([1, seed]), hostile.trial.safety.control_hz)
        timed(hostile, wall, own)
        for _ in range(TICKS):
            hostile.tick()
            hand.tick()
        bad = hostile.violations() + hand.found
        found += bad
        counts += hostile.reasons() + Counter({"hand_orders": len(hand.sent)})
        seeds += [seed] if bad else []
    return {"violations": dict(found), "seeds": seeds, "counts": dict(counts), "wall": wall, "own": own}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """In milliseconds."""
    median, p99, p999 = 1e3 * np.quantile(seconds, [0.5, 0.99, 0.999])
    return {"median_ms": round(median, 3), "p99_ms": round(p99, 3), "p999_ms": round(p999, 3)}


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    shards = -(-int(given.get("actions", 1_000_000)) // (SHARD * TICKS))
    work = Path(given.get("work", "checkpoints/benchmarks/hostile_actions"))
    work.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        path = work / f"{number:04d}.json"
        if not path.exists():
            begun = path.with_suffix(".part")
            begun.write_text(json.dumps(shard(number)))
            begun.replace(path)
            print(f"{number + 1}/{shards}", flush=True)
    done = [json.loads((work / f"{number:04d}.json").read_text()) for number in range(shards)]
    total = lambda key: dict(sum((Counter(each[key]) for each in done), Counter[str]()))  # noqa: E731
    actions = shards * SHARD * TICKS
    result = {
        "command": f"python tests/benchmarks/hostile_actions.py actions={actions}",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "actions": actions,
        "violations": total("violations"),
        "seeds": [seed for each in done for seed in each["seeds"]][:SHOWN],
        "counts": dict(sorted(total("counts").items())),
        "filter": {
            "process time": quantiles([value for each in done for value in each["own"]]),
            "wall clock": quantiles([value for each in done for value in each["wall"]]),
        },
    }
    out = Path(given.get("out", Path(__file__).with_name("results") / "hostile_actions.json"))
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
