"""Hostile requests: whatever comes, no limit is ever exceeded. The default run takes 30,000, `-m slow` a million."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from filter_oracle import HIGH, LOW, MODELS, Trial

from rlspec.contract.actions import ACTION_SPACES
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.arm.targets import Targets
from rlspec.deploy.safety import brake_plan as braking
from rlspec.deploy.safety.filter import SafetyFilter, SafetySettings

RATES = (1.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 200.0)
TICKS = 250
Random = np.random.Generator


def settings_of(random: Random) -> SafetySettings:
    """Defaults, or a small box, other margins, shares and slews."""
    if random.random() < 0.4:
        return SafetySettings()
    middle = forward(HOME)[0]
    return SafetySettings(
        joint_margin=float(random.uniform(0.0, 0.2)),
        hand_length=float(random.choice([0.1034, 0.177])),  # of the Franka hand, of a Robotiq
        workspace_low=(np.minimum(middle, [0, 0, 0.2]) - random.uniform(0.15, 0.4, 3)).tolist(),
        workspace_high=(np.maximum(middle, [0, 0, 0.5]) + random.uniform(0.15, 0.5, 3)).tolist(),
        velocity_share=float(random.uniform(0.1, 1.0)),
        acceleration_share=float(random.uniform(0.1, 1.0)),
        max_step=float(random.choice([0.02, 0.2, 1.0])),
        first_jump=10.0,
    )


def joint_requests(model: str, settings: SafetySettings, random: Random) -> Iterator[object]:
    """Joint targets of one kind, endlessly."""
    low, high = np.array(LOW[model]), np.array(HIGH[model])
    kind = random.integers(8)
    walk, period = HOME.copy(), int(random.integers(1, 30))
    corner, goal = np.where(random.random(7) < 0.5, low, high), HOME
    tick = 0
    while True:
        tick += 1
        turn = tick % period == 0
        if kind == 0:  # anywhere, also outside
            yield random.uniform(low - 1.0, high + 1.0)
        elif kind == 1:  # bang-bang between opposite corners of the joint range
            yield corner if (tick // period) % 2 else low + high - corner
        elif kind == 2:  # random walk
            walk = walk + random.normal(0, 0.1, 7)
            yield walk
        elif kind == 3:  # corners of the box
            if turn or tick == 1:
                box = np.where(random.random(3) < 0.5, settings.workspace_low, settings.workspace_high)
                goal = solve(goal, box + random.normal(0, 0.1, 3), forward(HOME)[1], iterations=4)
            yield goal
        elif kind == 4:  # held for a while, then elsewhere
            if turn or tick == 1:
                goal = random.uniform(low, high)
            yield goal
        elif kind == 5:  # tiny and huge
            yield HOME + random.normal(size=7) * 10.0 ** random.integers(-300, 300)
        elif kind == 6:  # one joint at a time against its limit
            goal = goal.copy()
            if turn:
                goal[random.integers(7)] += random.choice([-9.0, 9.0])
            yield goal
        else:  # trembling
            yield HOME + (-1) ** tick * random.uniform(0, 0.05, 7)


def policy_requests(model: str, trial_state: list[RobotState], random: Random) -> Iterator[object]:
    """Joint targets of raw actions in one of the action spaces."""
    space = str(random.choice(list(ACTION_SPACES)))
    convert, size = Targets(space, LIMITS[model]), ACTION_SPACES[space].size
    scale = 10.0 ** random.uniform(-2, 0.5)
    action = np.zeros(size)
    while True:
        action = action if random.random() < 0.7 else scale * random.normal(size=size)
        if space == "joint_position":
            action[:7] = HOME + scale * random.normal(size=7)
        if space == "cartesian_position":
            action[:3] = forward(HOME)[0] + scale * random.normal(size=3)
        yield convert(action, trial_state[0]).joints


BAD = (None, [np.nan] * 7, [np.inf] * 7, [0.0] * 6, [0.0] * 8, [], 3.0, "stop", [[0.0] * 7], [None] * 7, [True] * 7)


def spoilt(request: object, random: Random) -> tuple[object, float]:
    """Every now and then the request is missing, malformed or late."""
    draw = random.random()
    if draw < 0.03:
        return BAD[random.integers(len(BAD))], 0.0
    if draw < 0.05 and isinstance(request, np.ndarray):
        request = request.copy()
        request[random.integers(7)] = random.choice([np.nan, np.inf, -np.inf])
        return request, 0.0
    return request, float(random.choice([0.3, 5.0, np.nan, np.inf])) if draw < 0.07 else 0.0


def disturbed(state: RobotState, random: Random) -> RobotState:
    """Every now and then the robot is not where it should be, or says nonsense."""
    draw = random.random()
    if draw < 0.004:
        return replace(state, joints=np.full(7, np.nan))
    if draw < 0.008:
        return replace(state, joints=state.joints + random.normal(0, 1.0, 7))
    if draw < 0.012:
        return replace(state, velocities=np.full(7, 50.0))
    return replace(state, mode="reflex") if draw < 0.015 else state


def episode(seed: int, ticks: int = TICKS) -> tuple[Counter[str], Counter[str], object]:
    """Violations, reasons, and what was drawn."""
    random = np.random.default_rng(seed)
    model, hz = str(random.choice(MODELS)), float(random.choice(RATES))
    settings = settings_of(random)
    low, high = np.array(LOW[model]) + 0.02, np.array(HIGH[model]) - 0.02
    joints = np.clip(HOME + random.normal(0, 0.2, 7), low, high) if random.random() < 0.8 else random.uniform(low, high)
    trial = Trial(SafetyFilter(LIMITS[model], settings, hz), joints, lag=float(random.choice([0.0, 0.3, 0.8])))
    states = [trial.state()]
    requests = (
        policy_requests(model, states, random) if random.random() < 0.25 else joint_requests(model, settings, random)
    )
    for _ in range(ticks):
        states[0] = trial.state()
        requested, age = spoilt(next(requests), random)
        trial.tick(requested, age, disturbed(states[0], random))
    reasons = Counter(reason for verdict in trial.verdicts for reason in verdict.reasons or ("unchanged",))
    return trial.violations(model), reasons, (model, hz, settings)


def run(episodes: int, first: int = 0) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in range(first, first + episodes):
        found, reasons, drawn = episode(seed)
        assert not found, (seed, found, drawn)
        total += reasons
    return total


def test_no_limit_is_ever_exceeded() -> None:
    reasons = run(30_000 // TICKS)
    for reason in (
        *("unchanged", "joint_position", "slew", "joint_velocity", "joint_acceleration", "braking", "workspace"),
        *("action_missing", "action_malformed", "action_stale", "tracking_error", "state_malformed", "robot_not_ready"),
    ):
        assert reasons[reason] >= 50, (reason, reasons)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_limit_is_ever_exceeded_in_a_million() -> None:
    run(1_000_000 // TICKS, first=10_000)


@pytest.mark.parametrize(("model", "hz", "jerk"), [("fr3", 1000.0, 5000.0), ("fer", 50.0, 150.0), ("fr3", 15.0, 40.0)])
def test_jerk_is_kept_where_it_binds(model: str, hz: float, jerk: float) -> None:
    """At 1 kHz the model's own; at lower rates one that a robot might report."""
    limits, binding = replace(LIMITS[model], jerk=np.full(7, jerk)), 0
    for seed in range(2):
        random = np.random.default_rng(seed)
        trial = Trial(SafetyFilter(limits, SafetySettings(first_jump=10.0), hz), HOME)
        requests = joint_requests(model, trial.safety.settings, np.random.default_rng([1, 3][seed]))
        for _ in range(60 if hz > 500 else 250):
            binding += "joint_jerk" in trial.tick(next(requests) if random.random() < 0.95 else None).reasons
        assert not trial.violations(model, limits.jerk), trial.violations(model, limits.jerk)
    assert binding > 20


LOW_JERK = np.full(7, 150.0)
MUTATIONS = {
    "position": ("fer", 15.0, 0.2, lambda b: replace(b, high=b.high + 0.01)),
    "velocity": ("fer", 50.0, 0.2, lambda b: replace(b, velocity=1.01 * b.velocity)),
    "slew": ("fr3", 15.0, 0.05, lambda b: replace(b, velocity=1.01 * b.velocity)),
    "envelope": ("fr3", 50.0, 0.2, lambda b: replace(b, share=1.05)),
    "acceleration": ("fr3", 15.0, 0.2, lambda b: replace(b, acceleration=1.01 * b.acceleration)),
    "jerk": ("fr3", 50.0, 0.2, lambda b: replace(b, change=1.01 * b.change)),
    "box": ("fr3", 15.0, 0.2, lambda b: replace(b, box_low=b.box_low - 0.01)),
}


@pytest.mark.parametrize("limit", MUTATIONS)
def test_the_oracle_sees_every_loosened_limit(limit: str) -> None:
    model, hz, step, loosen = MUTATIONS[limit]
    limits = replace(LIMITS[model], jerk=LOW_JERK) if limit == "jerk" else LIMITS[model]
    settings = SafetySettings(workspace_low=[-1, -1, 0.1], first_jump=10.0, max_step=step)
    there, back = np.array(HIGH[model]) + 0.5, np.array(LOW[model]) - 0.5
    if limit == "box":
        there = back = solve(HOME, np.array([0.5, 0.0, -0.3]), forward(HOME)[1], iterations=10)
    for mutated in (False, True):
        safety = SafetyFilter(limits, settings, hz)
        if mutated:
            safety.bounds = loosen(safety.bounds)
        trial = Trial(safety, HOME)
        for tick in range(240):
            trial.tick(there if tick < 120 else back)
        found = trial.violations(model, limits.jerk)
        assert (limit in found) == mutated, found


def test_the_oracle_sees_a_filter_that_forgets_to_brake(monkeypatch: pytest.MonkeyPatch) -> None:
    def stand(x: np.ndarray, *_: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return x[None], np.zeros_like(x[None]), np.ones(x.shape, dtype=bool)

    monkeypatch.setattr(braking, "brake", stand)
    trial = Trial(SafetyFilter(LIMITS["fer"], SafetySettings(first_jump=10.0), 15.0), HOME)
    for _ in range(100):
        trial.tick(np.array(HIGH["fer"]))
    assert trial.violations("fer")["acceleration"] > 0
