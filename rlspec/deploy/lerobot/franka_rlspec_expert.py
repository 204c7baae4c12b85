"""A scripted teleoperator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lerobot.teleoperators import Teleoperator

from rlspec.contract.actions import ACTION_SPACES
from rlspec.deploy.lerobot.config_franka_rlspec_expert import FrankaRlspecExpertConfig
from rlspec.deploy.lerobot.features import ACTION_KEYS
from rlspec.deploy.lerobot.franka_rlspec import measured, only_simulated
from rlspec.deploy.robots.mujoco_expert import MujocoExpert


class FrankaRlspecExpert(Teleoperator):
    """See `FrankaRlspecExpertConfig`. It acts on the connected `franka_rlspec` robot of the same process."""

    config_class = FrankaRlspecExpertConfig
    name = "franka_rlspec_expert"

    def __init__(self, config: FrankaRlspecExpertConfig) -> None:
        super().__init__(config)
        self.config = config
        self._open = False
        self._began: tuple[float, np.ndarray] | None = None

    @property
    def action_features(self) -> dict[str, Any]:
        """Those of the robot in the same action space."""
        return dict.fromkeys(ACTION_KEYS[self.config.action_space], float)

    @property
    def feedback_features(self) -> dict[str, Any]:
        """None."""
        return {}

    @property
    def is_connected(self) -> bool:
        """Whether `connect` was called."""
        return self._open

    @property
    def is_calibrated(self) -> bool:
        """Always."""
        return True

    def connect(self, calibrate: bool = True) -> None:
        """Be ready; the robot is looked for when the first action is asked for."""
        self._open, self._began = True, None

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Nothing to feel."""

    def disconnect(self) -> None:
        """Nothing to free."""
        self._open = False

    def get_action(self) -> dict[str, float]:
        """The next action.

        Raises:
            RobotError: The robot it knows is not there.
        """
        values = self._act() if self.config.motion == "expert" else self._wave()
        return {key: float(value) for key, value in zip(ACTION_KEYS[self.config.action_space], values, strict=True)}

    def _act(self) -> np.ndarray:
        """What the task's expert does; stands still once the task is done."""
        robot, space = only_simulated(), self.config.action_space
        if not robot.success:
            return np.asarray(MujocoExpert(robot, space, horizon=1).infer()[0])
        return np.array(ACTION_SPACES[space].hold(robot.read().joints, closure=0.0))

    def _wave(self) -> np.ndarray:
        """All joints swing from where they were first seen, beginning at rest."""
        now, joints = measured()
        if self._began is None:
            self._began = now, joints
        began, centre = self._began
        share = (1.0 - math.cos(2 * math.pi * (now - began) / self.config.period_s)) / 2
        return np.append(centre + self.config.amplitude * share, 0.0)
