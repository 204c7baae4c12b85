"""Hostile requests, episode by episode: what a filter is asked, in which rooms, at which rates, by which robots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from filter_oracle import HIGH, LOW, MODELS, Trial

from rlspec.contract.actions import ACTION_SPACES
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.kinematics import HOME, forward, solve
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.arm.targets import Targets
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


@dataclass
class Hostile:
    """One episode under way."""

    model: str
    trial: Trial
    states: list[RobotState]  # the one that requests are made at
    requests: Iterator[object]
    random: Random

    def tick(self) -> None:
        self.states[0] = self.trial.state()
        requested, age = spoilt(next(self.requests), self.random)
        self.trial.tick(requested, age, disturbed(self.states[0], self.random))

    def violations(self) -> Counter[str]:
        return self.trial.violations(self.model)

    def reasons(self) -> Counter[str]:
        return Counter(reason for verdict in self.trial.verdicts for reason in verdict.reasons or ("unchanged",))


def begin(seed: int, settings_of: Callable[[Random], SafetySettings] = settings_of) -> Hostile:
    """An arm, a rate, a room, a start and a kind of requests, all drawn by the seed."""
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
    return Hostile(model, trial, states, requests, random)


def episode(seed: int, ticks: int = TICKS) -> tuple[Counter[str], Counter[str], object]:
    """Violations, reasons, and what was drawn."""
    hostile = begin(seed)
    for _ in range(ticks):
        hostile.tick()
    return hostile.violations(), hostile.reasons(), (hostile.model, hostile.trial.safety.control_hz, seed)
