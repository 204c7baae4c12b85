"""Steps the arm of a MuJoCo world under an execution law: torques at 1 kHz, or the world's own position servo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import DROID_HYBRID, JOINT_IMPEDANCE, STIFF_POSITION
from rlspec.deploy.arm.laws import LAWS, Impedance, hybrid_torque

if TYPE_CHECKING:
    import mujoco
    from rlspec_envs.franka.world import World

Array = NDArray[np.float64]

SERVO = STIFF_POSITION
LAWS_HERE = (DROID_HYBRID, JOINT_IMPEDANCE, SERVO)
_PERIOD: dict[str, float] = {
    SERVO: 0.002
}  # physics step in seconds, near which one is found that divides the control period
_TORQUE_PERIOD = 0.001


class JointReference(NamedTuple):
    """A moment of a motion: (7,) rad, (7,) rad/s and (7,) rad/s^2."""

    joints: Array
    velocities: Array
    accelerations: Array


@dataclass(frozen=True)
class Brake:
    """A stop: every joint slows down evenly from the velocity that it had.

    Attributes:
        since: When it began, seconds.
        joints: (7,) rad at that time.
        velocities: (7,) rad/s at that time.
        deceleration: (7,) rad/s^2.
    """

    since: float
    joints: Array
    velocities: Array
    deceleration: Array

    def reference(self, time: float) -> JointReference:
        """Where the joints shall be."""
        until = np.abs(self.velocities) / self.deceleration
        going = np.minimum(time - self.since, until)
        slowing = np.sign(self.velocities) * self.deceleration
        return JointReference(
            self.joints + self.velocities * going - slowing * going**2 / 2,
            self.velocities - slowing * going,
            np.where(going < until, -slowing, 0.0),
        )


@dataclass
class Drive:
    """What the arm is told at present.

    Attributes:
        target: (7,) rad.
        closure: Of the hand, 0 open to 1 closed.
        brake: Goes before the target while it is there.
        torque: Last one sent, (7,) Nm: torques change by a limited amount per millisecond.
    """

    target: Array
    closure: float = 0.0
    brake: Brake | None = None
    torque: Array = field(default_factory=lambda: np.zeros(7))

    def copy(self) -> Drive:
        """A drive of its own, for a look ahead."""
        return Drive(self.target.copy(), self.closure, self.brake, self.torque.copy())


def physics_period(law: str, control_hz: float) -> float:
    """Seconds of one physics step: a whole number of them makes one control step."""
    period = 1.0 / control_hz
    return period / max(1, round(period / _PERIOD.get(law, _TORQUE_PERIOD)))


class Physics:
    """The arm under one law. Keeps no state of its own: data and drive are given to every step.

    Args:
        world: A Franka world; its arm's actuators become sources of torque where the law gives torques, and its step
            becomes `physics_period(law, control_hz)`.
        law: One of `LAWS_HERE`.
        control_hz: Control steps per second.
    """

    def __init__(self, world: World, law: str, control_hz: float) -> None:
        import mujoco

        self._mujoco = mujoco
        self._world = world
        self._site = world.model.site("tcp").id
        self._jacobian = np.zeros((6, world.model.nv))
        self._inertia = np.zeros((world.model.nv, world.model.nv))
        self.period = world.model.opt.timestep = physics_period(law, control_hz)
        gains = LAWS.get(law)
        self._gains = gains if isinstance(gains, Impedance) else None
        stop = LAWS[JOINT_IMPEDANCE]
        assert isinstance(stop, Impedance)
        self._stop_gains = stop
        model = world.model
        self._lead = float(model.actuator_biasprm[0, 2] / model.actuator_biasprm[0, 1])  # damping / stiffness, s
        if self._gains is not None:
            model.actuator_gainprm[:7, 0] = 1.0
            model.actuator_biasprm[:7] = 0.0
            model.actuator_biastype[:7] = mujoco.mjtBias.mjBIAS_NONE

    def step(self, data: mujoco.MjData, drive: Drive) -> None:
        """Advance by one physics step."""
        from rlspec_envs.franka.robots import FINGER_STROKE

        data.ctrl[7] = FINGER_STROKE * (1.0 - drive.closure)
        if self._gains is None:
            robot = self._world.robot
            goal = self._reference(drive, data.time)
            joints = goal.joints + self._lead * goal.velocities
            data.ctrl[:7] = np.clip(joints, robot.low, robot.high)
            self._mujoco.mj_step(self._world.model, data)
            return
        self._mujoco.mj_step1(self._world.model, data)
        data.ctrl[:7] = self._torque(data, drive, self._gains)
        self._mujoco.mj_step2(self._world.model, data)

    def settle(self, data: mujoco.MjData) -> None:
        """Bring poses up to the state after the last step."""
        self._mujoco.mj_kinematics(self._world.model, data)

    @staticmethod
    def _reference(drive: Drive, time: float) -> JointReference:
        if drive.brake is not None:
            return drive.brake.reference(time)
        return JointReference(drive.target, np.zeros(7), np.zeros(7))

    def _torque(self, data: mujoco.MjData, drive: Drive, gains: Impedance) -> Array:
        """The law's torque, limited in rate, and the Coriolis torques; gravity is compensated in the model."""
        mujoco, model, jacobian = self._mujoco, self._world.model, self._jacobian
        goal = self._reference(drive, data.time)
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
        if drive.brake is None:
            wanted = hybrid_torque(goal.joints, data.qpos[:7], data.qvel[:7], jacobian[:, :7], gains)
        else:  # the robot's own braking, whatever the law
            moving = data.qvel[:7] - goal.velocities
            wanted = hybrid_torque(goal.joints, data.qpos[:7], moving, None, self._stop_gains)
            mujoco.mj_fullM(model, self._inertia, data.qM)
            wanted = wanted + self._inertia[:7, :7] @ goal.accelerations
        most = gains.max_delta_tau * self.period / 0.001
        drive.torque = drive.torque + np.clip(wanted - drive.torque, -most, most)
        return drive.torque + data.qfrc_bias[:7] - data.qfrc_gravcomp[:7]


class Imagination:
    """Moves an imagined world as the robot would."""

    def __init__(self, physics: Physics, data: mujoco.MjData, drive: Drive) -> None:
        self._physics, self._data, self._drive = physics, data, drive

    def move(self, joints: Array, closure: float, seconds: float) -> None:
        """Go for a target for some time."""
        self._drive.target, self._drive.closure, self._drive.brake = joints, closure, None
        for _ in range(max(1, round(seconds / self._physics.period))):
            self._physics.step(self._data, self._drive)
        self._physics.settle(self._data)
