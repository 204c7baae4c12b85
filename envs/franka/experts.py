"""The scripted demonstrator: privileged, and a function of the state, so that it recovers from disturbances."""

from __future__ import annotations

from rlspec_envs.franka.control import Action
from rlspec_envs.franka.environment import FrankaEnv


class FrankaExpert:
    """Acts for the environment's task in the environment's action space."""

    def __init__(self, env: FrankaEnv) -> None:
        self._env = env

    def reset(self) -> None:
        """Nothing to forget: the expert looks at the state alone."""

    def act(self) -> Action:
        """Return the next action, clipped to the action space."""
        motion = self._env.plan()
        return self._env.controller.towards(motion.position, motion.rotation, motion.close)
