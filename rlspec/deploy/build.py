"""From settings to the parts of a loop: robot, policy, and the checks that they belong together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from rlspec.contract.actions import ACTION_SPACES, CARTESIAN_POSITION, JOINT_POSITION
from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.clocks import Clock
from rlspec.deploy.policy.observe import match_cameras
from rlspec.deploy.policy.reach import START_PATIENCE
from rlspec.deploy.policy.schedule import SCHEDULERS, Scheduler, Timing
from rlspec.deploy.policy.sources import (
    Contract,
    HoldPolicy,
    RobotPolicy,
    read_contract,
)
from rlspec.deploy.robots.drivers import find_driver, load
from rlspec.deploy.settings import Settings
from rlspec.deploy.workers import LockstepWorker, ThreadWorker, Worker
from rlspec.errors import ConfigError, RobotError


def make_robot(settings: Settings) -> Robot:
    """The robot that the settings name, not connected. Imports its driver.

    Raises:
        ConfigError: An option that it does not have.
        RobotError: Its driver is not installed.
    """
    if settings.effective_mode == "dry_run":
        return make_dry_run(settings)
    return settings.robot.found.make(settings.robot)


def make_dry_run(settings: Settings, clock: Clock | None = None) -> Robot:
    """A robot without a connection, that stands for the one of the settings."""
    from rlspec.deploy.robots.dry_run import make

    return make(settings.robot, clock)


@contextmanager
def open_policy(settings: Settings, robot: Robot, law: str) -> Iterator[RobotPolicy]:
    """The policy that the settings name, ready to be asked; what was started for it ends with the context.

    Raises:
        ServerError: There is no server, or it does not start.
    """
    with ExitStack() as stack:
        policy = _make_policy(settings, robot, law, stack)
        stack.callback(policy.close)
        yield policy


def _make_policy(settings: Settings, robot: Robot, law: str, stack: ExitStack) -> RobotPolicy:
    url, token = settings.server, settings.token or os.environ.get("RLSPEC_TOKEN")
    if settings.checkpoint is not None:
        from rlspec.deploy.policy.local_server import LocalServer

        server = stack.enter_context(LocalServer(settings.checkpoint))
        url, token = server.url, server.token
    if url is not None:
        from rlspec.deploy.policy.remote import RemotePolicy, WatchedClient

        client = WatchedClient(url, token=token, timeout_s=START_PATIENCE)
        heartbeat = None if in_lockstep(robot) else settings.watchdog.heartbeat
        return RemotePolicy(client, heartbeat, settings.inference.deadline)
    if settings.policy == "expert":
        acting = "dry_run" if settings.effective_mode == "dry_run" else settings.robot.driver
        make = load(find_driver(acting).expert)
        told = {"action_space": settings.action_space, "horizon": settings.schedule.n_action_steps}
        expert: RobotPolicy = make(robot, **told, rate=settings.rate, law=law)
        return expert
    space = settings.action_space or JOINT_POSITION
    return HoldPolicy(space, settings.rate or ACTION_SPACES[space].control_hz, law=law)


def camera_names(settings: Settings, robot: Robot) -> list[str]:
    """Cameras of a robot, known before it is connected."""
    return list(robot.camera_shapes or settings.robot.cameras)


@dataclass(frozen=True)
class Agreement:
    """What policy, robot and user agree on, and what they should be warned of."""

    contract: Contract
    law: str
    cameras: dict[str, str]
    warnings: tuple[str, ...] = ()


def agree(settings: Settings, policy: RobotPolicy, robot: Robot) -> Agreement:
    """Check that policy, robot and settings belong together.

    Raises:
        ConfigError: They do not.
    """
    where = settings.server or settings.checkpoint or f"policy={settings.policy}"
    contract = read_contract(policy.metadata, where, action_space=settings.action_space, rate=settings.rate)
    law = choose_law(settings)
    if law not in robot.laws:
        raise ConfigError(f"law={law}: robot={robot.name} runs {', '.join(robot.laws)}")
    if contract.prompt_required and not settings.prompt:
        raise ConfigError(f'prompt: {where} wants an instruction; add prompt="..."')
    steps = settings.schedule.n_action_steps or contract.n_action_steps
    if contract.horizon and steps > contract.horizon:
        raise ConfigError(f"n_action_steps={steps}: {where} predicts {contract.horizon} actions; take at most that")
    cameras = match_cameras(contract.cameras, camera_names(settings, robot), settings.robot.camera_keys)
    warnings = []
    if contract.law and contract.law != law:
        text = (
            f"law={law}, but {where} was trained on motion by {contract.law}: the same action moves the arm otherwise"
        )
        warnings.append(text)
    if settings.schedule.name == "ensemble" and contract.horizon == 1:
        warnings.append("scheduler=ensemble: the policy predicts one action at a time; there is nothing to average")
    return Agreement(contract, law, cameras, tuple(warnings))


def choose_law(settings: Settings) -> str:
    """What the user says, or else the robot's recipe."""
    return settings.law or settings.robot.law


def connect(settings: Settings, robot: Robot, law: str, control_hz: float) -> RobotLimits:
    """Connect and return the limits that hold.

    Raises:
        RobotError: It refuses, or obeys other limits than the settings' model.
    """
    limits = robot.connect(law, control_hz, read_only=settings.effective_mode == "shadow")
    if limits.model.partition("_")[0] != settings.robot.model.partition("_")[0]:
        said = f"robot.model={settings.robot.model}, but the robot obeys the limits of {limits.model}"
        raise RobotError(f"{said}: set robot.model={limits.model} if that is the arm that you mean")
    return limits


def make_scheduler(settings: Settings, contract: Contract, *, lockstep: bool) -> Scheduler:
    """The chunk scheduler."""
    schedule = settings.schedule
    timing = Timing(
        period=1.0 / contract.control_hz,
        n_action_steps=schedule.n_action_steps or contract.n_action_steps,
        stale=schedule.stale,
        overlap=schedule.overlap,
        margin=0 if lockstep else schedule.margin,
        decay=schedule.decay,
        blend=schedule.blend,
    )
    angles = (3, 4, 5) if contract.action_space == CARTESIAN_POSITION else ()
    return SCHEDULERS[schedule.name](timing, ACTION_SPACES[contract.action_space].size, angles=angles)


def make_worker(robot: Robot, name: str, latency: float = 0.0) -> Worker:
    """A thread, or for a robot whose clock stands still between ticks lockstep with it."""
    if in_lockstep(robot):
        return LockstepWorker(robot.clock, latency if name == "inference" else 0.0)
    return ThreadWorker(name)


def in_lockstep(robot: Robot) -> bool:
    """Whether time advances only while the loop sleeps."""
    return not robot.real_time


def versions() -> dict[str, Any]:
    """For the log's header."""
    from rlspec.versions import library_versions

    return library_versions()
