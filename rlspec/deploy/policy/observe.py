"""From the robot's state and pictures to a policy's observation, under the policy's own keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from rlspec.contract.messages import GRIPPER, JOINTS, PROMPT, camera_by_key, counts_from_zero
from rlspec.contract.pictures import resize_with_pad
from rlspec.deploy.arm.interfaces import Frame, RobotState
from rlspec.errors import ConfigError, nearest


def match_cameras(keys: Collection[str], cameras: Collection[str], given: Mapping[str, str]) -> dict[str, str]:
    """Find the robot's camera for each key of a policy.

    Args:
        keys: Of the policy: `observation/exterior_image_1_left` (openpi), `observation/exterior_image_0_left`
            (RoboArena, which counts from 0) or `observation.images.exterior_1_left`.
        cameras: Of the robot: those keys, or `exterior_1_left`, `wrist_left` and so on.
        given: What the user said: key -> camera.

    Raises:
        ConfigError: A key has no camera.
    """
    from_zero = counts_from_zero(keys)
    found = {}
    for key in keys:
        name = given.get(key, key if key in cameras else camera_by_key(key, from_zero=from_zero))
        if name not in cameras:
            remedy = f"say which it is with robot.camera_keys.{key}=NAME"
            raise ConfigError(f"the policy needs camera {name} ({key}); {remedy}; {nearest(name, cameras)}")
        found[key] = name
    return found


def observation(
    state: RobotState,
    frames: Mapping[str, Frame],
    needed: Mapping[str, str],
    sizes: Mapping[str, tuple[int, int] | None],
    prompt: str,
) -> dict[str, Any]:
    """What a policy is asked with.

    Args:
        state: Measured.
        frames: Newest pictures.
        needed: Key of the policy -> camera.
        sizes: Key -> (height, width), or None: as the camera delivers.
        prompt: The instruction.
    """
    seen: dict[str, Any] = {JOINTS: state.joints, GRIPPER: np.array([state.closure]), PROMPT: prompt}
    for key, camera in needed.items():
        size = sizes.get(key)
        image = frames[camera].image
        # Scaled here and not by the server: a 720p picture is 2.8 MB, what the policy sees of it 0.17 MB.
        seen[key] = image if size is None else resize_with_pad(image, *size)
    return seen
