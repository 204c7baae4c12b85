"""A Franka arm as a LeRobot robot: every action passes the safety filter, every command expires."""

from __future__ import annotations

import logging
import weakref
from functools import cached_property
from typing import Any

import numpy as np
from lerobot.cameras import make_cameras_from_configs
from lerobot.robots import Robot
from lerobot.utils.decorators import check_if_already_connected, check_if_not_connected

from rlspec.contract.actions import ACTION_SPACES, JOINT_POSITION, VELOCITY_LAW
from rlspec.contract.features import EXTERIOR_1, WRIST
from rlspec.deploy.arm.gripper import GripperDrive, GripperLane, GripperSettings
from rlspec.deploy.arm.interfaces import Robot as Backend
from rlspec.deploy.arm.interfaces import RobotState
from rlspec.deploy.arm.targets import Target, Targets
from rlspec.deploy.lerobot.config_franka_rlspec import FrankaRlspecConfig
from rlspec.deploy.lerobot.features import ACTION_KEYS, POSITIONS, describe, understand
from rlspec.deploy.safety.filter import SafetyFilter
from rlspec.deploy.teleop.readings import PUSH, DeviceReading
from rlspec.deploy.teleop.readings import understand as understand_device
from rlspec.deploy.teleop.takeover import Operator, TakeoverSettings
from rlspec.deploy.workers import LockstepWorker, ThreadWorker
from rlspec.errors import RobotError

_PATIENCE = 5.0  # seconds until every camera must have delivered
_WATCHFUL = 50  # sends after which a rate that is too high is worth a warning

logger = logging.getLogger(__name__)

connected: weakref.WeakSet[Backend] = weakref.WeakSet()
"""Arms of this process that are connected: where the scripted teleoperator finds the world it knows."""


class FrankaRlspec(Robot):
    """See `FrankaRlspecConfig`. A reflex or a lost connection ends the session with a RobotError."""

    config_class = FrankaRlspecConfig
    name = "franka_rlspec"

    def __init__(self, config: FrankaRlspecConfig) -> None:
        super().__init__(config)
        self.config = config
        self.control_hz = config.control_hz or ACTION_SPACES[config.action_space].control_hz
        self._cameras = make_cameras_from_configs(config.cameras)
        self.backend: Backend | None = None

    # What LeRobot asks before it connects

    @cached_property
    def _simulated_cameras(self) -> dict[str, tuple[int, int, int]]:
        config = self.config
        if config.cameras or not config.images or not config.has_simulated_cameras:
            return {}
        shape = (config.image_height, config.image_width, 3)
        return {EXTERIOR_1: shape, WRIST: shape}

    @property
    def cameras(self) -> dict[str, Any]:
        """By name; LeRobot counts them."""
        return self._cameras or dict.fromkeys(self._simulated_cameras)

    @property
    def observation_features(self) -> dict[str, Any]:
        """Joint angles in radians, the gripper's closure, and pictures."""
        shapes = {name: (camera.height, camera.width, 3) for name, camera in self._cameras.items()}
        return {**dict.fromkeys(POSITIONS, float), **(shapes or self._simulated_cameras)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Of the action space."""
        return dict.fromkeys(ACTION_KEYS[self.config.action_space], float)

    @property
    def is_connected(self) -> bool:
        """Whether a backend is open."""
        return self.backend is not None

    @property
    def is_calibrated(self) -> bool:
        """Always: the arm knows its own angles."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    # Connection

    @check_if_already_connected
    def connect(self, calibrate: bool = True) -> None:
        """Connect the arm and its cameras, and begin where it stands.

        Raises:
            RobotError: It is absent, of another model, or outside of its limits.
        """
        backend = self._make_backend()
        try:
            limits = backend.connect(self.config.law, self.control_hz)
            law = self.config.law
            safety = self.config.safety.for_law(law)
            self._filter = SafetyFilter(limits, safety, self.control_hz, by_velocity=law == VELOCITY_LAW)
            self._targets = {space: Targets(space, limits) for space in (self.config.action_space, JOINT_POSITION)}
            state = backend.read()
            self._filter.reset(state)
            for camera in self._cameras.values():
                camera.connect()
            self._await_cameras(backend)
        except BaseException:
            backend.close()
            raise
        self.backend = backend
        self._lockstep = not backend.real_time
        worker = LockstepWorker(backend.clock) if self._lockstep else ThreadWorker("gripper")
        self._hand = GripperDrive(GripperLane(GripperSettings()), backend.grip, worker, lambda: backend.grip_problem)
        device = LockstepWorker(backend.clock)  # LeRobot reads the teleoperator
        self._operator = Operator(None, device, limits, self.control_hz, TakeoverSettings(), alone=True)
        self._last: float | None = None
        self._held = state.joints
        self._sends, self._waited, self._told = 0, 0.0, set[str]()
        connected.add(backend)

    def _make_backend(self) -> Backend:
        return self.config.driver.make(self.config.described(self._simulated_cameras))

    def _await_cameras(self, backend: Backend) -> None:
        clock = backend.clock
        end = clock.now() + _PATIENCE
        while missing := set(self._simulated_cameras) - set(backend.frames() if self._simulated_cameras else ()):
            if clock.now() > end:
                raise RobotError(f"camera {min(missing)} delivers nothing within {_PATIENCE:g} s; check its cable")
            clock.sleep_until(clock.now() + 0.05)

    @check_if_not_connected
    def disconnect(self) -> None:
        """Stop the arm and let go of it."""
        backend, self.backend = self.backend, None
        assert backend is not None
        connected.discard(backend)
        try:
            backend.stop()
        finally:
            backend.close()
            for camera in self._cameras.values():
                camera.disconnect()

    # Every tick

    @check_if_not_connected
    def get_observation(self) -> dict[str, Any]:
        """Joint angles, closure and the newest pictures.

        Raises:
            RobotError: The robot or a camera has stopped.
        """
        assert self.backend is not None
        state = self._read(self.backend)
        observation: dict[str, Any] = dict(zip(POSITIONS, [*map(float, state.joints), state.closure], strict=True))
        if self._simulated_cameras:
            now = self.backend.clock.now()
            for name, frame in self.backend.frames().items():
                if now - frame.time > self.config.camera_timeout_s:
                    raise RobotError(
                        f"camera {name} has delivered nothing for {now - frame.time:.1f} s; check its cable"
                    )
                observation[name] = frame.image
        for name, camera in self._cameras.items():
            observation[name] = camera.read_latest(max_age_ms=int(1000 * self.config.camera_timeout_s))
        return observation

    @staticmethod
    def _read(backend: Backend) -> RobotState:
        state = backend.read()
        if state.mode in ("reflex", "disconnected"):
            raise RobotError(f"the robot stopped by itself ({state.error or state.mode}); see to it and start again")
        return state

    @check_if_not_connected
    def send_action(self, action: dict[str, Any]) -> dict[str, float]:
        """Send an action through the safety filter; returns what was sent, in the action's own keys.

        What LeRobot's keyboard_ee and gamepad say (delta_x, delta_y, delta_z, gripper) is understood as well.

        Raises:
            RobotError: Keys are wrong, or the robot has stopped.
        """
        assert self.backend is not None
        pushed = understand_device(action) if set(PUSH) <= set(action) else None
        space, values = (JOINT_POSITION, None) if pushed else understand(self.config.action_space, action)
        backend, clock = self.backend, self.backend.clock
        self._pace(backend)
        state, now = self._read(backend), clock.now()
        if self._last is None or now - self._last > self._filter.settings.expires + 1.0 / self.control_hz:
            self._filter.reset(state)  # the last command has expired: the arm stands
            self._targets[space].reset()
            self._hand.lane.restart()
            self._operator.let_go()
            self._held = state.joints
        self._last = now
        target = self._targets[space](values, state) if pushed is None else self._pushed(pushed, state, now)
        verdict = self._filter.filter(target.joints, state)
        self._held = verdict.joints
        if verdict.command is None:
            backend.stop()
        else:
            backend.command(verdict.command)
        self._grip(target.closure if verdict.phase == "run" else None, now)  # a refused action moves nothing
        self._tell((*target.reasons, *verdict.reasons))
        if self._lockstep:
            clock.sleep_until(now + 1.0 / self.control_hz)
        closure = self._hand.lane.closure
        return describe(space, state, verdict.joints, state.closure if closure is None else closure)

    def _pushed(self, reading: DeviceReading, state: RobotState, now: float) -> Target:
        """What the keys or sticks of LeRobot's teleoperators mean."""
        self._operator.hear(reading, now)
        closure = self._hand.lane.closure
        return self._operator.target(state, self._held, state.closure if closure is None else closure)

    def _pace(self, backend: Backend) -> None:
        """Keep a control period between two commands: the filter's limits hold for that rate."""
        now = backend.clock.now()
        due = now if self._last is None else self._last + 1.0 / self.control_hz
        backend.clock.sleep_until(due)
        self._sends, self._waited = self._sends + 1, self._waited + max(0.0, due - now)
        if self._sends == _WATCHFUL and self._waited > 0.2 * _WATCHFUL / self.control_hz:
            logger.warning("actions come faster than control_hz=%g: each has to wait; set --fps to it", self.control_hz)

    def _grip(self, closure: float | None, now: float) -> None:
        if problem := self._hand.problem(now):
            raise RobotError(problem)
        if closure is not None:
            self._hand.drive(closure, now)

    def _tell(self, reasons: tuple[str, ...]) -> None:
        """Say once why actions are not sent as they are."""
        for reason in set(reasons) - self._told:
            self._told.add(reason)
            logger.warning("the safety filter changes or refuses actions: %s (told once)", reason)


def only_simulated() -> Any:
    """The connected MuJoCo robot of this process.

    Raises:
        RobotError: There is none.
    """
    for robot in connected:
        if hasattr(robot, "imagined") and robot.read().mode != "disconnected":
            return robot
    raise RobotError("no robot with backend=mujoco is connected in this process; the expert needs its world")


def measured() -> tuple[float, np.ndarray]:
    """Time and joint angles of the connected robot of this process.

    Raises:
        RobotError: There is none.
    """
    for robot in connected:
        state = robot.read()
        if state.mode != "disconnected":
            return robot.clock.now(), state.joints
    raise RobotError("no franka_rlspec robot is connected in this process")
