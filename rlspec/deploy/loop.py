"""The loop: at a fixed rate observe, ask, schedule, filter, send, log. It waits for nothing but the clock."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np

from rlspec.deploy.arm.gripper import GripperDrive
from rlspec.deploy.arm.interfaces import Array, Command, Robot, RobotState
from rlspec.deploy.arm.targets import Target, Targets
from rlspec.deploy.log.frames import FrameSink
from rlspec.deploy.outcome import DeploymentOutcome, End
from rlspec.deploy.policy.asker import Asker
from rlspec.deploy.policy.schedule import ScheduledStep, Scheduler
from rlspec.deploy.safety.filter import FilterVerdict, SafetyFilter
from rlspec.deploy.safety.gate import Gate
from rlspec.deploy.safety.watchdog import (
    PaceWatch,
    Recoveries,
    Supervisor,
    WallWatch,
    Watchdog,
    WatchdogSettings,
    stalled_camera,
)
from rlspec.deploy.teleop.readings import AGAIN, FAILURE, SUCCESS
from rlspec.deploy.teleop.takeover import Operator
from rlspec.deploy.workers import Job, Worker
from rlspec.errors import RobotError

_STANDING = 0.005  # rad/s below which a joint stands
_LAST_LOOKS = 1.0  # seconds that the log goes on after the end, until the robot stands
_COLLECT_EVERY = 64  # ticks between two collections of garbage, which happen right after a tick


class Log(Protocol):
    """Where ticks go; `put` never waits."""

    error: str

    def put(self, line: dict[str, Any]) -> None:
        """Take a line."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a loop is made of; all of it is connected and started.

    Attributes:
        muted: Shadow mode: nothing is sent, and each tick is filtered as if the robot began there.
        share: Of the velocity limits that may be used, by seconds since the first action.
        cameras: Key of the policy -> camera.
        done: Whether the task is done (simulations know).
        wall: The wall clock, which only dates the log.
        supervisor: Told of each tick.
        frames: Given the pictures of each tick.
        operator: A human who may take over.
    """

    robot: Robot
    gate: Gate
    scheduler: Scheduler
    asker: Asker
    targets: Targets
    safety: SafetyFilter
    gripper: GripperDrive
    recovery: Worker
    log: Log
    watchdog: WatchdogSettings
    control_hz: float
    seconds: float
    cameras: dict[str, str] = field(default_factory=dict)
    muted: bool = False
    share: Callable[[float], float] = lambda _: 1.0
    done: Callable[[], bool] = lambda: False
    wall: Callable[[], float] = time.time
    supervisor: Supervisor | None = None
    frames: FrameSink | None = None
    operator: Operator | None = None


class Loop:
    """One run; `run` once."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.outcome = DeploymentOutcome(inference_ms=parts.asker.all_inference_ms)
        self.phase = "start"
        self.would_send: Array | None = None  # in shadow mode
        self.trouble = ""  # why the robot does not follow the policy
        self.last_event = ""
        self._clock = parts.robot.clock
        self._period = 1.0 / parts.control_hz
        self._watchdog = Watchdog(parts.watchdog, self._clock.now(), self._period)
        self._recoveries = Recoveries(parts.watchdog)
        self._wall, self._pace = WallWatch(), PaceWatch()
        self._moving = False  # the robot follows our commands
        self._held: Array | None = None  # target that was sent last
        self._first_action: float | None = None
        self._recovery: Job | None = None
        self._ended_at: float | None = None
        self._events: list[str] = []
        self._number = 0
        self._taken = False  # a human moves the arm
        self._state: RobotState | None = None

    def run(self) -> DeploymentOutcome:
        """Run until the time is over, the task is done, or something ends it; in any case the robot is stopped."""
        # A full collection can outlast a tick: what is there already is never looked at again, and `_run` collects the
        # young between two ticks.
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            self._run()
        except BaseException as error:
            self.outcome.end, self.outcome.reason = "fault", f"{type(error).__name__}: {error}"
            self.parts.gate.trip(self.outcome.reason)
            raise
        finally:
            gc.enable()
            gc.unfreeze()
            self.parts.gate.halt()
        return self.outcome

    def _run(self) -> None:
        start, tick, hung = self._clock.now(), 0, 0
        self._watchdog.rested(start)  # what came before, the warm-up above all, takes as long as it takes
        while True:
            due = start + tick * self._period  # from the start, not from the last tick: lateness must not add up
            self._clock.sleep_until(due)
            now = self._clock.now()
            if self.parts.supervisor is not None:
                self.parts.supervisor.beat()
            self._tick(tick, now, now - due + hung * self._period, now - start)
            if self._finished(now):
                return
            if tick % _COLLECT_EVERY == 0:
                gc.collect(1)
            following = self._next_tick(tick, self._clock.now() - start)
            hung = following - self._next_tick(tick, now - start)  # ticks that passed inside of this one
            self.outcome.missed += following - tick - 1
            tick = following

    def _next_tick(self, tick: int, elapsed: float) -> int:
        """The first tick after `tick` that is still to come."""
        return max(tick + 1, math.ceil(elapsed / self._period - 1e-6))

    # -- one tick -----------------------------------------------------------------------------------------------------

    def _tick(self, tick: int, now: float, late: float, elapsed: float) -> None:
        self._events, self._number = [], tick
        self.outcome.ticks += 1
        self.outcome.late.append(late)
        line: dict[str, Any] = {"tick": tick, "time": now, "wall": datetime.now(UTC).isoformat(), "late_ms": 1e3 * late}
        state = self._read()
        if state is not None:
            line["state"] = _described(state)
            if self._ended_at is None:
                self._judge_surroundings(now, late, elapsed)
            if self._ended_at is None:
                line |= self._act_or_end(state, late, now)
        if self.parts.gate.problem:
            self._events.append(f"the robot did not take a stop: {self.parts.gate.problem}")
        self.last_event = self._events[-1] if self._events else self.last_event
        self.parts.log.put({**_EMPTY, **line, "phase": self.phase, "event": "; ".join(self._events)})

    def _read(self) -> RobotState | None:
        try:
            self._state = self.parts.robot.read()
        except RobotError as error:
            self._end("fault", str(error))
            return None
        return self._state

    def _judge_surroundings(self, now: float, late: float, elapsed: float) -> None:
        """What may end the run or throw plans away, before anything is planned."""
        parts, state = self.parts, self._state
        assert state is not None
        # The order decides what is told as the reason: a person's stop before the faults that follow from it.
        if jump := self._wall.look(now, parts.wall()):
            self._events.append(jump)
        if (clock := getattr(parts.robot, "robot_time", None)) is not None:
            self._events += self._pace.look(now, clock)
            self.outcome.pace = self._pace.overall
        if parts.gate.tripped:
            self._end("user" if parts.gate.tripped.startswith("e-stop") else "fault", parts.gate.tripped)
        elif parts.log.error:
            self._end("fault", parts.log.error)
        elif state.mode == "user_stopped":
            self._end("user", f"the robot's user stop: {state.error}")
        elif state.mode == "disconnected":
            self._end("fault", f"the robot disconnected: {state.error}")
        elif (problem := parts.gripper.problem(now)) or (problem := self._said_by_the_operator(now)):
            self._end("fault", problem)
        elif parts.done():
            self._end("success", "the task is done")
        elif elapsed >= parts.seconds - 1e-6:
            self._end("time", f"{parts.seconds:g} s are over")
        elif late > parts.watchdog.late or (state.mode == "stopped" and self._moving and late > self._period):
            self._interrupt(f"a tick came {1e3 * late:.0f} ms late")
        elif state.mode == "stopped" and self._moving:
            self._end("fault", f"somebody stopped the robot {state.error}".rstrip())

    def _said_by_the_operator(self, now: float) -> str:
        """Hear them; returns why nobody drives, and ends the run where they say so."""
        operator = self.parts.operator
        if operator is None:
            return ""
        operator.listen(now)
        keeper = self.parts.frames
        if operator.verdict in _VERDICTS:
            self._end(*_VERDICTS[operator.verdict])
        return operator.problem(now) or ("" if keeper is None else keeper.error)

    def _act_or_end(self, state: RobotState, late: float, now: float) -> dict[str, Any]:
        try:
            return self._act(state, late, now)
        except RobotError as error:
            self._end("fault", str(error))
            return {}

    def _act(self, state: RobotState, late: float, now: float) -> dict[str, Any]:
        if state.mode == "reflex" or self._recovery is not None:
            self._recover(state, now)
            return {}
        keeper = self.parts.frames
        frames = self.parts.robot.frames() if self.parts.cameras or keeper else {}
        if keeper is not None:
            keeper.put(self._number, frames)
        stalled = stalled_camera(frames, self.parts.cameras, now, self.parts.watchdog.camera)
        if stalled and self._moving:
            self._interrupt(stalled)
        able = not stalled and (self._moving or self._stands(state))
        human = self._human(state, now) if able else None
        waiting = self.parts.asker.waiting
        trouble = "" if human else self.parts.asker.policy.trouble(waiting=waiting)
        if trouble and self._moving:
            self._interrupt(trouble, forget=not waiting)
        self._events += self.parts.asker.exchange(state, None if stalled or human else frames, now)
        ready = able and not trouble and human is None
        step = self.parts.scheduler.next(now) if ready else None
        line = self._move(state, step, human, late, now)
        line["intervention"] = self._taken
        times = [state.time, *(frames[camera].time for camera in self.parts.cameras.values() if camera in frames)]
        line["observation_age_ms"] = 1e3 * (now - min(times))
        line["inference_ms"] = self.parts.asker.inference_ms
        return line

    def _human(self, state: RobotState, now: float) -> Target | None:
        """What a human wants of this tick; None: nobody has taken over."""
        operator = self.parts.operator
        if operator is None:
            return None
        if not operator.in_charge(now):
            operator.let_go()
            if self._taken:
                self._taken = False
                self._events.append("the human hands back")
            return None
        if not operator.holds:
            self.parts.scheduler.clear()  # what the policy had planned begins where the arm will no longer be
        if not operator.alone and not self._taken:
            self._taken = True
            self.outcome.takeovers += 1
            self._events.append("a human takes over")
        self.outcome.taken += self._taken
        if not self._moving:
            operator.let_go()
        held = state.joints if self._held is None or not self._moving else self._held
        commanded = self.parts.gripper.lane.closure
        return operator.target(state, held, state.closure if commanded is None else commanded)

    def _move(
        self, state: RobotState, step: ScheduledStep | None, human: Target | None, late: float, now: float
    ) -> dict[str, Any]:
        """Carry out a step or what a human wants, or hold, or stop; returns what to log."""
        target, verdict = self._filtered(state, step, human, late, now)
        fresh = verdict is not None and verdict.phase == "run"
        judgement = self._watchdog.judge(now, fresh=fresh, stopped=not self._moving)
        line = _asked(step, target)
        if verdict is not None and target is not None:
            self.outcome.asked += 1
            line["reasons"] = list(dict.fromkeys([*target.reasons, *verdict.reasons]))
            self.outcome.changed.update(line["reasons"])
            self.trouble = "" if fresh else ", ".join(line["reasons"])
        if judgement == "run" and verdict is not None and target is not None:
            line |= self._carry_out(verdict, target, now)
        elif judgement == "end":
            self._end("fault", self._why_nothing())
        elif judgement == "hold" and verdict is not None and verdict.command is not None:
            self.phase = "hold"
            self.outcome.holds += 1
            line |= self._send(verdict.command)
        elif self._moving:
            self._interrupt(f"no fresh action: {self.parts.asker.error or self.trouble}".rstrip(": "), forget=False)
        return line

    def _filtered(
        self, state: RobotState, step: ScheduledStep | None, human: Target | None, late: float, now: float
    ) -> tuple[Target | None, FilterVerdict | None]:
        """What is asked for, and what the safety filter makes of it; where nothing is, it brakes."""
        if not self._moving or self.parts.muted:
            if step is None and human is None:
                return None, None
            # The arm stands, or is moved by others: limits of velocity and acceleration count from where it is, not
            # from where it was sent last.
            self.parts.safety.reset(state)
            self.parts.targets.reset()
            self._held = state.joints
        target = human if step is None else self.parts.targets(step.action, state)
        meant = wanted = None if target is None else target.joints
        if wanted is not None and self._held is not None:
            wanted = self._slowed(wanted, self._held, self._share(now))
        return target, self.parts.safety.filter(wanted, state, max(late, 0.0), meant=meant)

    def _slowed(self, wanted: Array, held: Array, share: float) -> Array:
        """The target, or as far towards it as a share of the velocity limits allows in one tick."""
        if share >= 1:
            return wanted
        excess = float(np.max(np.abs(wanted - held) / (share * self._period * self.parts.safety.limits.velocity)))
        return wanted if excess <= 1 else held + (wanted - held) / excess

    def _share(self, now: float) -> float:
        return self.parts.share(0.0 if self._first_action is None else now - self._first_action)

    def _carry_out(self, verdict: FilterVerdict, target: Target, now: float) -> dict[str, Any]:
        assert verdict.command is not None
        assert target.closure is not None
        if self._first_action is None:
            self._first_action = now
        elif not self._moving and not self.parts.muted:
            self._events.append("moves again")
            self.outcome.resumed += 1
            self.parts.gripper.lane.restart()
        self.phase = "start" if self._share(now) < 1 else "run"
        self._watchdog.fed(now)
        self.outcome.fresh += 1
        sent = self._send(verdict.command)
        closure = self.parts.gripper.drive(target.closure, now) if "sent" in sent else None
        return {**sent, "closure_sent": closure}

    def _send(self, command: Command) -> dict[str, Any]:
        """Command the robot; returns what to log."""
        self._held = command.joints
        if self.parts.muted:
            self.would_send = command.joints
            return {"would_send": command.joints}
        self._moving = True
        try:
            passed = self.parts.gate.send(command)
        except RobotError as error:
            self._interrupt(f"the robot refused a command: {error}")
            if not self._recoveries.another(self._clock.now()):
                self._end("fault", f"the robot refuses commands: {error}")
            return {}
        return {"sent": command.joints} if passed else {}

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def _interrupt(self, why: str, *, forget: bool = True) -> None:
        """Stop; the next fresh action makes the robot move again."""
        self.parts.gate.halt()
        if forget:
            self.parts.scheduler.clear()
        self.outcome.stops += 1
        self._moving = False
        self.phase = "stop"
        self.trouble = why
        self._events.append(why)

    def _recover(self, state: RobotState, now: float) -> None:
        """Acknowledge a reflex in the background, a bounded number of times."""
        self.phase = "fault"
        if self._recovery is None:
            self._moving = False
            self.parts.scheduler.clear()
            self._events.append(f"reflex: {state.error}")
            if self.parts.muted or not self._recoveries.another(now):
                self._end("fault", f"reflex: {state.error}")
                return
            self.outcome.recoveries += 1
            self._recovery = self.parts.recovery.submit(self.parts.robot.recover)
        if self._recovery.done():
            job, self._recovery = self._recovery, None
            self._watchdog.rested(now)
            try:
                self._events.append("recovered" if job.result() else "the robot did not recover")
            except RobotError as error:
                self._events.append(f"the robot did not recover: {error}")

    def _stands(self, state: RobotState) -> bool:
        """Whether a start is allowed: not in the middle of a stop."""
        return self.parts.muted or float(np.abs(state.velocities).max()) <= self.parts.safety.settings.start_velocity

    def _why_nothing(self) -> str:
        seconds = f"nothing to do for {self.parts.watchdog.give_up:g} s"
        why = self.parts.asker.error or self.trouble
        return f"{seconds}: {why}" if why else seconds

    def _end(self, end: End, reason: str) -> None:
        if self._ended_at is not None:
            return
        self.parts.gate.halt()
        self._ended_at = self._clock.now()
        self._moving = False
        self.phase = "fault" if end == "fault" else "stop"
        self.outcome.end, self.outcome.reason = end, reason
        self._events.append(reason)

    def _finished(self, now: float) -> bool:
        """After the end: whether the robot stands, or has been looked at for long enough."""
        if self._ended_at is None:
            return False
        if self._state is None or self.parts.muted or now - self._ended_at > _LAST_LOOKS:
            return True
        if float(np.abs(self._state.velocities).max()) > _STANDING:
            return False
        self.outcome.standstill = self._state.time - self._ended_at
        return self._state.time > self._ended_at


_EMPTY: Mapping[str, Any] = {
    **dict.fromkeys(("tick", "time", "wall", "state", "observation_age_ms", "inference_ms", "action_age_ms")),
    **dict.fromkeys(("chunk", "index", "requested", "target", "sent", "closure_sent")),
    **{"reasons": [], "phase": "", "event": "", "late_ms": 0.0, "intervention": False},
}
_VERDICTS: Mapping[str, tuple[End, str]] = {
    SUCCESS: ("success", "whoever drives says that it is done"),
    FAILURE: ("failure", "whoever drives gives it up"),
    AGAIN: ("rerecord", "whoever drives wants it again"),
}


def _described(state: RobotState) -> dict[str, Any]:
    return {
        **{"time": state.time, "joints": state.joints, "velocities": state.velocities},
        **{"closure": state.closure, "mode": state.mode},
    }


def _asked(step: ScheduledStep | None, target: Target | None) -> dict[str, Any]:
    line: dict[str, Any] = {}
    if step is not None:
        line = {"chunk": step.chunk, "index": step.index, "requested": step.action, "action_age_ms": 1e3 * step.age}
    if target is not None:
        line["target"] = target.joints
        line["reasons"] = list(target.reasons)
    return line
