"""The Franka table-top of `rlspec_envs` as a robot: a simulated clock, execution laws, cameras, faults, a task."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlspec.config.extras import install
from rlspec.contract.actions import JOINT_VELOCITY
from rlspec.contract.features import EXTERIOR_1, EXTERIOR_2, WRIST
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.arm.interfaces import Command, Frame, Mode, Robot, RobotState
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.clocks import Clock
from rlspec.deploy.robots.mujoco_cameras import Cameras
from rlspec.deploy.robots.mujoco_faults import Faults, Reflexes
from rlspec.deploy.robots.mujoco_physics import LAWS_HERE, Brake, Drive, Imagination, Physics
from rlspec.deploy.robots.options import FIRST_SCENE, RobotDescription
from rlspec.errors import ConfigError, RobotError

if TYPE_CHECKING:
    from rlspec_envs.franka.environment import FrankaEnv
    from rlspec_envs.franka.tasks.base import Motion
    from rlspec_envs.franka.world import World


Array = NDArray[np.float64]

CAMERAS = {EXTERIOR_1: "external", EXTERIOR_2: "external_2", WRIST: "wrist"}
"""Names of the cameras as DROID has them -> the simulation's."""

DEFAULT_CAMERAS = (EXTERIOR_1, WRIST)

_ARMS = {"fr3": "fr3", "fr3_pre_5_9": "fr3", "fer": "panda"}  # model of a limits table -> the simulation's arm
_SOON = 1e-6  # seconds: the physics ends a step this close to a moment that is asked for
_PAUSE = 2.0  # seconds
_SLICE = 0.005  # seconds of physics at a time while waiting in real time


class SimulatedClock:
    """Time of a simulation, which advances while one sleeps."""

    def __init__(self, robot: MujocoRobot) -> None:
        self._robot = robot
        self._latest = 0.0

    def now(self) -> float:
        """Seconds since the robot was connected."""
        self._latest = max(self._latest, self._robot.time())
        return self._latest

    def sleep_until(self, when: float) -> None:
        """Simulate up to `when`."""
        self._robot.simulate(when)
        self._latest = max(self._latest, when)


class MujocoRobot(Robot):
    """A Franka arm at a table, in MuJoCo.

    Args:
        task: One of `rlspec_envs.FRANKA_TASKS`.
        seed: Of the scene.
        model: "fr3", "fr3_pre_5_9" or "fer": whose limits are reported.
        cameras: Names of `CAMERAS`; or names of one's own -> the simulation's.
        image_size: (height, width) pixels.
        camera_hz: Pictures per second of each camera.
        images: False: there are no cameras (and no GL library is needed).
        real_time: The simulation keeps up with the wall clock instead of waiting for `sleep_until`.
        options: Further keywords of `rlspec_envs.make_env`, such as `arm` and `distractors`.
    """

    name = "mujoco"
    simulated = True
    laws: tuple[str, ...] = LAWS_HERE

    def __init__(
        self,
        task: str = "pick_place",
        seed: int = FIRST_SCENE,
        model: str = "fr3",
        *,
        cameras: Mapping[str, str] | Sequence[str] = DEFAULT_CAMERAS,
        image_size: tuple[int, int] = DROID_SIZE,
        camera_hz: float = 30.0,
        images: bool = True,
        real_time: bool = False,
        **options: Any,
    ) -> None:
        if model not in _ARMS:
            raise ConfigError(f"model={model}: robot=mujoco has {', '.join(_ARMS)}")
        self.task, self.seed, self.model, self.options = task, seed, model, options
        self.faults = Faults()
        self.clock: Clock = SimulatedClock(self)
        self.real_time, self.law = real_time, ""
        self._camera_settings = (_named(cameras) if images else {}, image_size, camera_hz)
        self._lock = threading.RLock()
        self._mode: Mode = "disconnected"
        self._error = ""
        self._connected = False
        self._read_only = False

    @property
    def camera_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(height, width, 3) of each camera; known before `connect`."""
        names, size, _ = self._camera_settings
        return {name: (*size, 3) for name in names}

    # Connection

    def connect(self, law: str, control_hz: float, *, read_only: bool = False) -> RobotLimits:
        """Build the world and lay out the scene; see `Robot`."""
        if law not in self.laws:
            raise RobotError(f"law={law}: robot=mujoco runs {', '.join(self.laws)}")
        with self._lock:
            self.close()
            self._env = self._make_env(control_hz)
            self._world: World = self._env.world
            self._physics = Physics(self._world, law, control_hz)
            names, size, rate = self._camera_settings
            self._cameras = Cameras(self._world.model, names, size, rate)
            self.limits = self._obeyed_limits()
            self._reflexes = Reflexes(self.faults, self.limits.velocity)
            self.law, self._read_only, self._connected = law, read_only, True
            self._offset = 0.0
            self._expires = np.inf
            self._wall = time.monotonic()
            self._arrange(self.seed)
            return self.limits

    def _make_env(self, control_hz: float) -> FrankaEnv:
        try:
            import rlspec_envs
            from rlspec_envs.errors import EnvironmentUnavailable
        except ImportError as error:
            raise RobotError(f"robot=mujoco: {error.name} is missing; {install('vla')}") from None
        try:
            env = rlspec_envs.make_env(
                "franka",
                self.task,
                robot=_ARMS[self.model],
                action_space=JOINT_VELOCITY,
                control_hz=control_hz,
                **({"cameras": list(names.values())} if (names := self._camera_settings[0]) else {}),
                **self.options,
            )
        except (ValueError, EnvironmentUnavailable) as error:
            raise RobotError(f"robot=mujoco: {error}") from None
        unwrapped: FrankaEnv = env.unwrapped
        unwrapped.render_observations = False
        return unwrapped

    def _obeyed_limits(self) -> RobotLimits:
        """The model's table, narrowed to the joint ranges of the simulated arm."""
        from rlspec.deploy.arm.robot_limits import LIMITS

        table, arm = LIMITS[self.model], self._world.robot
        return replace(
            table,
            low=np.maximum(table.low, arm.low),
            high=np.minimum(table.high, arm.high),
            source=f"{table.source}; joint ranges of the MuJoCo model",
        )

    def close(self) -> None:
        """Free the world and its cameras."""
        with self._lock:
            if self._connected:
                self._connected, self._mode = False, "disconnected"
                self._cameras.close()
                self._env.close()

    def reset(self, seed: int | None = None) -> None:
        """Lay out a new scene with the arm at rest near home; time goes on."""
        with self._lock:
            self._require()
            self._offset += self._world.data.time
            self._arrange(self.seed if seed is None else seed)

    def start_from(self, joints: NDArray[Any], closure: float = 0.0) -> None:
        """Put the arm somewhere, at rest: for replays."""
        from rlspec_envs.franka.robots import FINGER_STROKE

        with self._lock:
            self._require()
            data = self._world.data
            data.qpos[:7], data.qvel[:9] = joints, 0.0
            data.qpos[7:9] = FINGER_STROKE * (1.0 - closure)
            self._begin(closure)

    def _arrange(self, seed: int) -> None:
        self.seed = seed
        self._env.reset(seed=seed)
        self._begin(0.0)

    def _begin(self, closure: float) -> None:
        import mujoco

        data = self._world.data
        mujoco.mj_forward(self._world.model, data)
        self._drive = Drive(data.qpos[:7].copy(), closure)
        self._closure = closure
        self._stuck: float | None = None
        self._expires, self._mode, self._error = np.inf, "idle", ""
        self._reflexes.clear()
        self._cameras.restart(self.time())
        self._cameras.watch(self.time(), data, self.faults)

    @property
    def instruction(self) -> str:
        """What to do in this scene, in words."""
        self._require()
        return self._env.instruction

    @property
    def success(self) -> bool:
        """Whether the task is done in the present state."""
        with self._lock:
            self._require()
            return bool(self._env._task.judge(self._world).success)  # the environment shows it in `step` only

    def plan(self) -> Motion:
        """What the task's scripted expert would do next in the present, or imagined, world."""
        self._require()
        return self._env.plan()

    # Time

    def time(self) -> float:
        """Seconds of the robot's clock since it was connected."""
        if not self._connected:
            return 0.0
        return time.monotonic() - self._wall if self.real_time else self._now()

    def _now(self) -> float:
        """How far the physics has come, seconds."""
        return self._offset + float(self._world.data.time)

    def simulate(self, until: float) -> None:
        """Let the physics run up to a time of the clock; in real time, not before the wall clock gets there."""
        while self.real_time and (ahead := until - self.time()) > _SLICE:
            self._advance(until - ahead + _SLICE)
            time.sleep(max(0.0, until - ahead + _SLICE - self.time()))
        self._advance(until)
        if self.real_time:
            time.sleep(max(0.0, until - self.time()))

    def _advance(self, until: float) -> None:
        with self._lock:
            self._require()
            while self._now() < until - _SOON:
                self._step()
            self._physics.settle(self._world.data)
            if self._world.diverged:
                self._error, self._mode = "the physics diverged", "disconnected"
                raise RobotError("robot=mujoco: the physics diverged; take another law or slower targets")

    def _step(self) -> None:
        data, physics = self._world.data, self._physics
        now = self._now()
        if now >= self._expires - _SOON:
            self._brake("stopped")
        self._drive.closure = self._moved_closure(now)
        physics.step(data, self._drive)
        now += physics.period
        reason = self._reflexes.check(now, physics.period, data.qvel[:7], data.qfrc_constraint[:7])
        if reason and self._mode != "reflex":
            self._error = reason
            self._brake("reflex")
        self._cameras.watch(now, data, self.faults)

    def _moved_closure(self, now: float) -> float:
        """The closure that the fingers go for: where they are, while they are blocked."""
        if not self.faults.blocks_gripper(now):
            self._stuck = None
            return self._closure
        if self._stuck is None:
            self._stuck = self._measured_closure()
        return self._stuck

    def _brake(self, mode: Mode) -> None:
        """Slow down to a stand and stay there."""
        self._expires, self._mode = np.inf, mode
        if self._drive.brake is None:
            data = self._world.data
            joints, velocities = data.qpos[:7].copy(), data.qvel[:7].copy()
            self._drive.brake = Brake(float(data.time), joints, velocities, self.limits.acceleration)

    def _require(self) -> None:
        if not self._connected:
            raise RobotError("robot=mujoco: not connected; call connect first")

    def _catch_up(self) -> None:
        """In real time: simulate what has passed; of a long pause its beginning, in which the arm comes to rest."""
        if not self.real_time:
            return
        if (behind := self.time() - self._now()) > 2 * _PAUSE:
            self._advance(self._now() + _PAUSE)
            self._offset += behind - _PAUSE
        self._advance(self.time())

    def read(self) -> RobotState:
        """Return the state after the last step; see `Robot`."""
        with self._lock:
            if not self._connected:
                return RobotState(0.0, np.zeros(7), np.zeros(7), 0.0, "disconnected", "not connected")
            self._catch_up()
            data = self._world.data
            return RobotState(
                time=self._now(),
                joints=data.qpos[:7].copy(),
                velocities=data.qvel[:7].copy(),
                closure=self._measured_closure(),
                mode=self._mode,
                error=self._error,
            )

    def _measured_closure(self) -> float:
        from rlspec_envs.franka.robots import FINGER_STROKE

        return float(np.clip(1.0 - self._world.fingers.mean() / FINGER_STROKE, 0.0, 1.0))

    def frames(self) -> dict[str, Frame]:
        """Return the newest picture of each camera; drawing takes some milliseconds for each new one."""
        with self._lock:
            self._require()
            self._catch_up()
            shots = self._cameras.shots()
        return self._cameras.draw(shots)

    def command(self, command: Command) -> None:
        """Move towards a target until it expires; refused in a reflex, and when connected to read only."""
        with self._lock:
            self._require()
            if self._read_only:
                raise RobotError("robot=mujoco: connected to read only; nothing moves")
            self._catch_up()
            if self._mode == "reflex":
                raise RobotError(f"robot=mujoco: {self._error}; recover first")
            self._drive.target, self._drive.brake = np.array(command.joints, dtype=np.float64), None
            self._expires = self._now() + command.expires
            self._mode = "moving"

    def grip(self, closure: float) -> None:
        """Open (0) to close (1) the hand."""
        with self._lock:
            self._require()
            if self._read_only:
                raise RobotError("robot=mujoco: connected to read only; nothing moves")
            self._catch_up()
            self._closure = float(np.clip(closure, 0.0, 1.0))

    def stop(self) -> None:
        """Brake at the model's largest acceleration and stand; a later command moves again."""
        with self._lock:
            if self._connected:
                self._catch_up()
                if self._mode != "reflex":
                    self._brake("stopped")

    def recover(self) -> bool:
        """Acknowledge a reflex: the arm stands until the next command."""
        with self._lock:
            self._require()
            self._catch_up()
            if self._mode == "reflex":
                if self.faults.recoveries <= 0:
                    return False
                self.faults.recoveries -= 1
                self._mode, self._error = "stopped", ""
                self._reflexes.clear()
            return True

    @contextmanager
    def imagined(self) -> Iterator[tuple[World, Imagination]]:
        """The world in a copy of its state, which runs ahead of the real one and is then forgotten."""
        import mujoco

        with self._lock:
            self._require()
            real = self._world.data
            copy = mujoco.MjData(self._world.model)
            mujoco.mj_copyData(copy, self._world.model, real)
            self._world.data = copy
            try:
                yield self._world, Imagination(self._physics, copy, self._drive.copy())
            finally:
                self._world.data = real


def make(settings: RobotDescription, **options: Any) -> MujocoRobot:
    """The simulated arm of the settings' model."""
    return MujocoRobot(model=settings.model, **options)


def _named(cameras: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    if isinstance(cameras, Mapping):
        return dict(cameras)
    for name in cameras:
        if name not in CAMERAS:
            raise ConfigError(f"cameras: {name!r}; robot=mujoco has {', '.join(CAMERAS)}")
    return {name: CAMERAS[name] for name in cameras}
