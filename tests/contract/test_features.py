"""Names of features: LeRobot's own constants, and the simulator's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from lerobot.utils import constants
from rlspec_envs.franka import environment, scene
from rlspec_envs.libero import environment as libero

from rlspec.contract.features import (
    ACTION,
    CAMERAS,
    EEF_STATE,
    JOINT_STATE,
    STATE,
    camera_of,
    image_key,
    is_empty_camera,
    is_image,
)
from rlspec.deploy.robots import mujoco
from rlspec.serving.lerobot_policy import LeRobotPolicy
from rlspec.serving.policy import Observation, PolicySpec
from rlspec.vla.evaluation.observation import to_batch


def test_names_are_lerobots() -> None:
    assert (STATE, ACTION) == (constants.OBS_STATE, constants.ACTION)
    assert image_key("wrist") == f"{constants.OBS_IMAGES}.wrist"
    assert is_image(constants.OBS_IMAGE)


def test_simulator_and_server_hand_a_policy_the_same_batch() -> None:
    import torch

    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (24, 32, 3), np.uint8) for name in ("front", "wrist_left")}
    state = rng.normal(size=8).astype(np.float32)
    batches: list[Any] = []
    policy = SimpleNamespace(predict_action_chunk=lambda batch: batches.append(batch) or torch.zeros(1, 1, 7))
    spec = PolicySpec("test", "delta_eef", 20.0, "stiff_position", 1, 1, dict.fromkeys(pictures, (24, 32)))
    asked = Observation(pictures, state.astype(np.float64), "push it", session=0)
    LeRobotPolicy(policy, lambda batch: batch, lambda actions: actions, spec).infer([asked])
    simulated = to_batch({"pixels": pictures, "agent_pos": state}, "push it")
    assert batches[0].keys() == simulated.keys() == {STATE, "task", *map(image_key, pictures)}
    assert batches[0]["task"] == simulated["task"] == ["push it"]
    for key in simulated.keys() - {"task"}:
        assert (batches[0][key].dtype, simulated[key].dtype) == (torch.float32, torch.float32)
        assert torch.equal(batches[0][key], simulated[key])


def test_pictures_are_told_from_other_features() -> None:
    assert [is_image(key) for key in (image_key("front"), STATE, ACTION, "task")] == [True, False, False, False]
    assert camera_of(image_key("exterior_1_left")) == "exterior_1_left"
    assert camera_of("observation/wrist_image_left") == "observation/wrist_image_left"


def test_cameras_that_a_policy_makes_up_are_known() -> None:
    assert is_empty_camera(image_key("empty_camera_0"))
    assert not is_empty_camera(image_key("wrist_left"))


def test_numbers_of_the_state_are_the_simulators() -> None:
    joints, hand = environment.STATE_NAMES
    assert joints[:-1] == JOINT_STATE[:-1]
    assert (joints[-1], JOINT_STATE[-1]) == ("closure", "gripper")  # the same number; data sets call it as DROID does
    assert hand == libero.STATE_NAMES == EEF_STATE


def test_the_simulators_cameras_have_droids_names() -> None:
    assert {name: scene.CAMERAS[name] for name in CAMERAS} == mujoco.CAMERAS
