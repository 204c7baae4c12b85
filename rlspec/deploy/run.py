"""One deployment from settings to outcome: checks, confirmation, warm-up, the loop, the summary."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.config.extras import install
from rlspec.contract.actions import ACTION_SPACES, VELOCITY_LAW
from rlspec.deploy.arm.gripper import GripperDrive, GripperLane
from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.arm.targets import Targets
from rlspec.deploy.build import (
    Agreement,
    agree,
    choose_law,
    connect,
    in_lockstep,
    make_robot,
    make_scheduler,
    make_worker,
    open_policy,
    versions,
)
from rlspec.deploy.log.frames import FrameKeeper, FrameSink
from rlspec.deploy.log.review import summarise
from rlspec.deploy.log.ticklog import TickLog
from rlspec.deploy.loop import Log, Loop, Parts
from rlspec.deploy.outcome import DeploymentOutcome
from rlspec.deploy.policy.asker import Asker
from rlspec.deploy.policy.observe import observation
from rlspec.deploy.policy.sources import Contract, RobotPolicy, check_width
from rlspec.deploy.priority import real_time_priority
from rlspec.deploy.safety.estop import EStop
from rlspec.deploy.safety.filter import SafetyFilter
from rlspec.deploy.safety.gate import Gate
from rlspec.deploy.safety.watchdog import Supervisor
from rlspec.deploy.settings import Settings
from rlspec.deploy.status import StatusLine
from rlspec.deploy.teleop.takeover import HandDevice, Operator
from rlspec.deploy.view.tees import Watched, WatchedFrames, WatchedLog
from rlspec.deploy.workers import Worker
from rlspec.display import Display
from rlspec.errors import ConfigError, RobotError

_CAMERA_PATIENCE = 5.0  # seconds until every camera must have delivered


def deploy(settings: Settings, display: Display, *, summary: bool = True) -> DeploymentOutcome:
    """Run one deployment.

    Args:
        settings: Of the run.
        display: Shows lines.
        summary: Draw the run afterwards.

    Raises:
        UserError: It cannot begin; nothing has moved.
    """
    with ExitStack() as stack:
        robot = make_robot(settings)
        stack.callback(robot.close)
        law = choose_law(settings)
        policy = stack.enter_context(open_policy(settings, robot, law))
        agreement = agree(settings, policy, robot)
        for warning in agreement.warnings:
            display.warn(warning)
        limits = connect(settings, robot, law, agreement.contract.control_hz)
        if settings.effective_mode == "real":
            confirm(settings, robot, limits, agreement, display)
        outcome, folder = _run(settings, robot, policy, agreement, limits, display, stack)
    if summary:
        summarise(folder, display)
    return outcome


def _run(
    settings: Settings,
    robot: Robot,
    policy: RobotPolicy,
    agreement: Agreement,
    limits: RobotLimits,
    display: Display,
    stack: ExitStack,
) -> tuple[DeploymentOutcome, Path]:
    """Everything is connected: warm up and run; returns what became of it and the log's folder."""
    folder = output_folder(settings)
    gate = Gate(robot, muted=settings.effective_mode == "shadow")
    estop = EStop(gate, Path(settings.estop_file or folder / "ESTOP"), keyboard=True, signals=True)
    stack.callback(estop.close)
    view = _open_view(settings, robot, agreement, limits, estop, display, stack)
    device = _open_device(settings, robot, stack)
    keeper = FrameKeeper(folder / "frames") if settings.frames else None
    log = TickLog(folder / "ticks.jsonl", header(settings, robot, policy, agreement, limits))
    outcome = DeploymentOutcome("fault", "it did not begin")
    try:
        told: Log = log if view is None else WatchedLog(log, view)
        frames = keeper if view is None else WatchedFrames(keeper, view)
        loop = assemble(settings, robot, policy, agreement, limits, gate, told, frames=frames, device=device)
        outcome = loop.outcome
        _warm_up(loop, settings, agreement, policy, display)
        for line in loop.parts.safety.bounds.stands_outside(np.asarray(robot.read().joints)):
            display.warn(line)
        estop.start()  # until here Ctrl-C just ends the process: nothing has moved
        supervisor = loop.parts.supervisor
        if supervisor is not None:
            supervisor.start()
            stack.callback(supervisor.close)
        display.line(
            f"{robot.name} runs at {agreement.contract.control_hz:g} Hz; stop: space, q, Ctrl-C; log: {folder}"
        )
        status = StatusLine(loop, display)
        status.start()
        try:
            with real_time_priority(False if in_lockstep(robot) else settings.realtime, display):
                loop.run()
        finally:
            status.close()
    except BaseException as error:
        outcome.end, outcome.reason = "fault", f"{type(error).__name__}: {error}"
        raise
    finally:
        outcome.rescued = log.close(outcome.footer())
        if keeper is not None:
            keeper.close()
            if keeper.error or keeper.dropped:
                display.warn(f"pictures of {keeper.dropped} ticks are missing; {keeper.error}".rstrip("; "))
            if keeper.rescued:
                display.warn(f"the last pictures are in {keeper.rescued}: move them into {folder / 'frames'}")
    for line in outcome.lines():
        display.line(line)
    return outcome, folder


def _open_view(
    settings: Settings,
    robot: Robot,
    agreement: Agreement,
    limits: RobotLimits,
    estop: EStop,
    display: Display,
    stack: ExitStack,
) -> Watched | None:
    """view=true: the page, which ends with the run."""
    if not settings.view:
        return None
    from rlspec.deploy.view.server import View, ViewFacts

    margin, contract = settings.safety.joint_margin, agreement.contract
    facts = ViewFacts(
        robot=robot.name,
        law=agreement.law,
        prompt=settings.prompt or robot.instruction,
        low=tuple(float(angle) for angle in limits.low + margin),
        high=tuple(float(angle) for angle in limits.high - margin),
        control_hz=contract.control_hz,
        n_action_steps=settings.schedule.n_action_steps or contract.n_action_steps,
    )
    view = View(facts, estop.trigger, settings.view_address)
    stack.callback(view.close)
    display.line(f"watch it at {view.url}")
    return view


def assemble(
    settings: Settings,
    robot: Robot,
    policy: RobotPolicy,
    agreement: Agreement,
    limits: RobotLimits,
    gate: Gate,
    log: Log,
    *,
    frames: FrameSink | None = None,
    device: HandDevice | None = None,
    new_worker: Callable[[str], Worker] | None = None,
) -> Loop:
    """A loop from what is connected; `new_worker` makes the threads."""
    contract, lockstep = agreement.contract, in_lockstep(robot)
    new_worker = new_worker or (lambda name: make_worker(robot, name, settings.inference.latency))
    prompt = settings.prompt or robot.instruction
    patience = max(settings.watchdog.late, 3.0 / contract.control_hz)
    scheduler = make_scheduler(settings, contract, lockstep=lockstep)
    hand = GripperDrive(GripperLane(settings.gripper), gate.grip, new_worker("gripper"), lambda: robot.grip_problem)
    parts = Parts(
        robot=robot,
        gate=gate,
        scheduler=scheduler,
        asker=Asker(policy, contract, scheduler, new_worker("inference"), agreement.cameras, prompt),
        targets=Targets(contract.action_space, limits),
        safety=SafetyFilter(limits, settings.safety, contract.control_hz, by_velocity=agreement.law == VELOCITY_LAW),
        gripper=hand,
        recovery=new_worker("recovery"),
        log=log,
        watchdog=settings.watchdog,
        control_hz=contract.control_hz,
        seconds=settings.seconds,
        cameras=agreement.cameras,
        muted=settings.effective_mode == "shadow",
        share=slow_start(settings),
        done=lambda: robot.success,
        frames=frames,
        operator=None if device is None else _operator(settings, device, limits, contract, new_worker("teleop")),
        supervisor=None if lockstep else Supervisor(robot.clock, patience, gate.halt),
    )
    return Loop(parts)


def _operator(
    settings: Settings, device: HandDevice, limits: RobotLimits, contract: Contract, worker: Worker
) -> Operator:
    alone = settings.driven_by_hand
    return Operator(device, worker, limits, contract.control_hz, settings.takeover, alone=alone)


def _open_device(settings: Settings, robot: Robot, stack: ExitStack) -> HandDevice | None:
    """teleop=NAME: the device, connected; it is let go of when the run ends."""
    if settings.teleop is None:
        return None
    try:
        from rlspec.deploy.lerobot.devices import open_device
    except ImportError as error:
        raise RobotError(f"teleop={settings.teleop}: {error.name} is missing; {install('vla')}") from None
    device = open_device(settings.teleop, settings.teleop_options, robot)
    stack.callback(device.close)
    return device


def slow_start(settings: Settings) -> Any:
    """Share of the velocity limits by seconds since the first action."""
    real = settings.effective_mode == "real"
    seconds = settings.slow_start.seconds if settings.slow_start.seconds is not None else (3.0 if real else 0.0)
    least = settings.slow_start.share
    return lambda elapsed: 1.0 if elapsed >= seconds else least + (1 - least) * elapsed / seconds


def _warm_up(loop: Loop, settings: Settings, agreement: Agreement, policy: RobotPolicy, display: Display) -> None:
    """Wait for the cameras and ask the policy a few times: the first answers are late (compilation, caches)."""
    parts, contract = loop.parts, agreement.contract
    clock = parts.robot.clock
    end = clock.now() + _CAMERA_PATIENCE
    while missing := set(agreement.cameras.values()) - set(parts.robot.frames()):
        if clock.now() > end:
            raise RobotError(f"camera {min(missing)} delivers nothing; check its cable and `robot.cameras`")
        clock.sleep_until(clock.now() + 0.05)
    for number in range(settings.inference.warmup if settings.server or settings.checkpoint else 0):
        state, frames = parts.robot.read(), parts.robot.frames()
        seen = observation(state, frames, agreement.cameras, contract.cameras, str(loop.parts.asker.prompt))
        reply = policy.infer(seen)
        check_width(reply, contract)
        if number == settings.inference.warmup - 1:
            display.line(
                f"the policy answers within {reply.round_trip_ms:.0f} ms, {len(reply.actions)} actions at a time"
            )
            if not in_lockstep(parts.robot):
                parts.scheduler.expect(reply.round_trip_ms / 1000)
    policy.hurry()


def confirm(settings: Settings, robot: Robot, limits: RobotLimits, agreement: Agreement, display: Display) -> None:
    """Show what will hold and have the user type the robot's name.

    Raises:
        ConfigError: They do not, or there is nobody to ask.
    """
    show = lambda values: " ".join(f"{value:+.2f}" for value in np.asarray(values))  # noqa: E731
    safety = settings.safety
    display.heading(f"{robot.name} at {settings.robot.host} will move")
    display.line(f"  limits     {limits.model}: {limits.source}")
    display.line(f"  joints     from {show(limits.low + safety.joint_margin)} rad")
    display.line(f"             to   {show(limits.high - safety.joint_margin)} rad")
    display.line(f"  velocity   {show(limits.velocity * safety.velocity_share)} rad/s")
    display.line(
        f"  workspace  from {show(safety.workspace_low)} to {show(safety.workspace_high)} m, "
        f"for a hand of {safety.hand_length:.3f} m"
    )
    for line in robot.treatment:
        display.line(f"  {line}")
    display.line(f"  law        {agreement.law}; actions: {agreement.contract.action_space}")
    display.line(f"  stop       space, q, Ctrl-C, or `touch {settings.estop_file or 'OUT/ESTOP'}`; hold the user stop")
    if settings.yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"robot={robot.name}: nobody can confirm here; run it on a terminal, or add yes=true")
    sys.stdout.write(f"type {robot.name} to start: ")
    sys.stdout.flush()
    if sys.stdin.readline().strip() != robot.name:
        raise ConfigError("not confirmed; nothing has moved")


def header(
    settings: Settings, robot: Robot, policy: RobotPolicy, agreement: Agreement, limits: RobotLimits
) -> dict[str, Any]:
    """The log's first line."""
    contract = agreement.contract
    told = settings.model_dump(exclude={"token"})
    return {
        "robot": robot.name,
        "mode": settings.effective_mode,
        "action_space": contract.action_space,
        "action_names": list(ACTION_SPACES[contract.action_space].names),
        "law": agreement.law,
        "control_hz": contract.control_hz,
        "horizon": contract.horizon,
        "prompt": settings.prompt or robot.instruction,
        "teleop": settings.teleop,
        "limits": vars(limits),
        "metadata": policy.metadata,
        "versions": versions(),
        "settings": told,
        "started": datetime.now().astimezone().isoformat(),
    }


def output_folder(settings: Settings) -> Path:
    """Where the log goes."""
    if settings.out is not None:
        return Path(settings.out).expanduser()
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("checkpoints/deploy") / f"{settings.robot.name}-{stamp}"
