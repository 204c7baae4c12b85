"""Hostile requests: whatever comes, no limit is ever exceeded. The default run takes 15,000, `-m slow` a million."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from filter_oracle import HIGH, LOW, Trial
from hostile_requests import TICKS, episode, joint_requests

from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.safety import brake_plan as braking
from rlspec.deploy.safety.filter import SafetyFilter, SafetySettings


def run(episodes: int, first: int = 0) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in range(first, first + episodes):
        found, reasons, drawn = episode(seed)
        assert not found, (seed, found, drawn)
        total += reasons
    return total


def test_no_limit_is_ever_exceeded() -> None:
    reasons = run(15_000 // TICKS)
    for reason in (
        *("unchanged", "joint_position", "slew", "joint_velocity", "joint_acceleration", "braking", "workspace"),
        *("action_missing", "action_malformed", "action_stale", "tracking_error", "state_malformed", "robot_not_ready"),
    ):
        assert reasons[reason] >= 25, (reason, reasons)


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
