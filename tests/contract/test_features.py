"""Names of features: LeRobot's own constants, and the simulator's."""

from __future__ import annotations

import pytest
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


def test_names_are_lerobots() -> None:
    assert (STATE, ACTION) == (constants.OBS_STATE, constants.ACTION)
    assert image_key("wrist") == f"{constants.OBS_IMAGES}.wrist"
    assert is_image(constants.OBS_IMAGE)


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


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_simulator_has_droids_cameras(camera: str) -> None:
    assert camera in scene.CAMERAS
