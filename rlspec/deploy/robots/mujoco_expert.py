"""A privileged policy for the simulated robot: the scripted expert of its task, in chunks of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import ACTION_SPACES, JOINT_POSITION, JOINT_VELOCITY, SIMULATED_SPACES
from rlspec.contract.messages import OPEN_LOOP_STEPS, blind_metadata
from rlspec.deploy.policy.sources import ExpertPolicy, RobotPolicy
from rlspec.deploy.robots.mujoco import MujocoRobot
from rlspec.errors import ConfigError


class MujocoExpert:
    """Looks at the simulation's state instead of pictures, and imagines the rest of a chunk in a copy of the world.

    The first action of a chunk is what the expert does now; the later ones are what it would do if the world went on
    as its physics under the connected law predicts, which it does while nothing disturbs it.

    Args:
        robot: Connected before the first `infer`.
        action_space: One of `contract.actions.SIMULATED_SPACES`.
        horizon: Actions in a chunk.
        control_hz: Rate at which the actions will be executed.
        haste: Share of the expert's steps that is taken. At full speed it overruns its goals behind a safety filter,
            whose limits on acceleration it does not know.
    """

    def __init__(
        self,
        robot: MujocoRobot,
        action_space: str = JOINT_VELOCITY,
        horizon: int = OPEN_LOOP_STEPS,
        control_hz: float = ACTION_SPACES[JOINT_VELOCITY].control_hz,
        haste: float = 0.5,
    ) -> None:
        if action_space not in SIMULATED_SPACES:
            raise ConfigError(f"action_space={action_space}: the expert acts in {', '.join(SIMULATED_SPACES)}")
        if horizon < 1:
            raise ConfigError(f"horizon={horizon}: give a whole number from 1")
        if not 0.0 < haste <= 1.0:
            raise ConfigError(f"haste={haste}: give a share above 0 and up to 1")
        self.robot, self.action_space, self.horizon, self.control_hz = robot, action_space, horizon, control_hz
        self.haste = haste

    @property
    def metadata(self) -> dict[str, Any]:
        """What a server would say of it."""
        steps, law = self.horizon, self.robot.law  # it is at home under any law
        return blind_metadata(
            "scripted expert", self.action_space, self.control_hz, horizon=steps, n_action_steps=steps, law=law
        )

    def reset(self) -> None:
        """Nothing to forget: the expert looks at the state alone."""

    def infer(self, observation: dict[str, Any] | None = None) -> NDArray[np.float64]:
        """Return (horizon, actions) for the world as it is now; the observation is not looked at."""
        from rlspec_envs.franka.control import CONTROLLERS

        actions = []
        with self.robot.imagined() as (world, imagination):
            controller = CONTROLLERS[self.action_space](world)
            controller.reset()
            for step in range(self.horizon):
                motion = self.robot.plan()
                action = np.asarray(controller.towards(motion.position, motion.rotation, motion.close), np.float64)
                rest = world.joints if self.action_space == JOINT_POSITION else 0.0
                action[:-1] = rest + self.haste * (action[:-1] - rest)
                actions.append(action)
                if step + 1 < self.horizon:
                    joints, closure = controller.command(action)
                    imagination.move(joints, closure, 1.0 / self.control_hz)
        return np.stack(actions)

    def close(self) -> None:
        """Nothing to free."""


def make(
    robot: MujocoRobot, *, action_space: str | None, horizon: int | None, rate: float | None, **_: Any
) -> RobotPolicy:
    """The expert as the loop's policy."""
    space = action_space or JOINT_VELOCITY
    hz = rate or ACTION_SPACES[space].control_hz
    return ExpertPolicy(MujocoExpert(robot, space, horizon or OPEN_LOOP_STEPS, hz))
