"""A deployment in simulated time: clock, ideal robot, scripted policy and faults, so that every run is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.build import agree, connect, make_dry_run
from rlspec.deploy.loop import Loop
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.policy.client import Reply
from rlspec.deploy.robots.dry_run import DryRunRobot
from rlspec.deploy.run import assemble
from rlspec.deploy.safety.gate import Gate
from rlspec.deploy.settings import Settings
from rlspec.deploy.workers import Job
from rlspec.errors import ServerError

PERIOD = 1 / 15
WRIST = "observation/wrist_image_left"


class SimClock:
    """Time that passes only in `sleep_until`; on the way, what is planned happens and the robot is looked at."""

    def __init__(self) -> None:
        self.time = 100.0
        self.wall_offset = 1e9
        self.robot: DryRunRobot | None = None
        self.trace: list[tuple[float, float]] = []  # time, fastest joint
        self._plans: list[tuple[float, Callable[[], Any]]] = []

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time + self.wall_offset

    def at(self, when: float, what: Callable[[], Any]) -> None:
        self._plans.append((when, what))

    def sleep_until(self, when: float) -> None:
        while self.time < when - 1e-12:
            self.time = min(self.time + 0.004, when)
            for plan in [plan for plan in self._plans if plan[0] <= self.time]:
                self._plans.remove(plan)
                plan[1]()
            if self.robot is not None:
                self.trace.append((self.time, float(np.abs(self.robot.read().velocities).max())))


class SimWorker:
    """Work takes as long as the script says; infinity: it hangs."""

    def __init__(self, clock: SimClock, seconds: Callable[[], float]) -> None:
        self._clock, self._seconds = clock, seconds

    def submit(self, work: Callable[[], Any]) -> Job:
        future: Future[Any] = Future()
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return _SimJob(self._clock, self._clock.now() + self._seconds(), future)

    def close(self) -> None:
        pass


@dataclass
class _SimJob:
    clock: SimClock
    due: float
    future: Future[Any]

    def done(self) -> bool:
        return self.clock.now() >= self.due

    def result(self) -> Any:
        return self.future.result()


class Sweep:
    """Joint positions at an even speed from where the arm was first seen, as a function of time alone."""

    def __init__(self, clock: SimClock, speed: float = 0.4, horizon: int = 16, *, camera: bool = False) -> None:
        self.clock, self.speed, self.horizon = clock, speed, horizon
        self.killed = False
        self.latency = 0.05
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.asked: list[Mapping[str, Any]] = []
        self._start: np.ndarray | None = None
        ours = {"action_space": "joint_position", "control_hz": 15.0, "horizon": horizon, "n_action_steps": 8}
        self.metadata: dict[str, Any] = {
            "rlspec": {**ours, "execution_law": "droid_hybrid", "cameras": {WRIST: [90, 160]} if camera else {}}
        }

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        if self.killed:
            raise ServerError("ws://robot: the session was lost")
        self.asked.append(observation)
        joints = np.array(observation["observation/joint_position"])
        ahead = np.arange(1, self.horizon + 1)[:, None] * PERIOD * self.speed
        direction = np.array([1.0, 0, 0, 0, -1.0, 0, 0])
        actions = np.concatenate([joints + ahead * direction, np.zeros((self.horizon, 1))], 1)
        return Reply(self.spoil(actions), 1.0, 1.0)

    def trouble(self, *, waiting: bool) -> str:
        return "ws://robot: the session is lost" if self.killed else ""

    def hurry(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class ListLog:
    lines: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""

    def put(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


@dataclass
class Simulation:
    """A deployment that is about to run."""

    clock: SimClock
    robot: Any
    policy: Sweep
    gate: Gate
    loop: Loop
    log: ListLog
    grip_seconds: list[float]
    recover_seconds: list[float]

    def run(self) -> DeploymentOutcome:
        self.clock.robot = self.robot
        return self.loop.run()

    def events(self) -> str:
        return "\n".join(line["event"] for line in self.log.lines if line["event"])

    def standstill_after(self, fault: float, until: float = float("inf")) -> float:
        """Seconds from a fault until the arm stands and goes on standing."""
        moving = [time for time, speed in self.clock.trace if fault <= time < until and speed > 0.005]
        assert self.clock.trace[-1][0] > (moving[-1] if moving else fault), "it never stood"
        return (moving[-1] if moving else fault) - fault


class TroubledRobot(DryRunRobot):
    """A robot whose cameras can stall."""

    stalled_at: float | None = None

    def frames(self) -> dict[str, Frame]:
        frames = super().frames()
        if self.stalled_at is None:
            return frames
        stalled = self.stalled_at
        return {name: Frame(min(frame.time, stalled), frame.image) for name, frame in frames.items()}


def simulation(
    *arguments: str, camera: bool = False, speed: float = 0.4, horizon: int = 16, device: Any = None
) -> Simulation:
    """Build a deployment of robot=dry_run in simulated time; `arguments` as on the command line."""
    settings = Settings.read(["robot=dry_run", "server=ws://robot", *arguments])
    clock = SimClock()
    plain: Any = make_dry_run(settings, clock)
    robot = TroubledRobot(plain.limits, {name: (18, 32, 30.0) for name in plain.camera_shapes}, clock)
    policy = Sweep(clock, speed, horizon, camera=camera)
    agreement = agree(settings, policy, robot)
    limits = connect(settings, robot, agreement.law, 15.0)
    muted = settings.effective_mode == "shadow"
    gate, log = Gate(robot, muted=muted), ListLog()
    grip, recover = [0.01], [0.01]
    seconds = {"inference": lambda: policy.latency, "gripper": lambda: grip[0], "recovery": lambda: recover[0]}
    if device is not None:
        device.clock = clock

    def worker(name: str) -> SimWorker:
        return SimWorker(clock, seconds.get(name, lambda: 0.0))

    loop = assemble(settings, robot, policy, agreement, limits, gate, log, device=device, new_worker=worker)
    object.__setattr__(loop.parts, "wall", clock.wall)
    object.__setattr__(loop.parts, "supervisor", None)
    return Simulation(clock, robot, policy, gate, loop, log, grip, recover)


def fresh_ticks(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["sent"] is not None and line["phase"] in ("run", "start")]
