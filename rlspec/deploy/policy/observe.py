"""From the robot's state and pictures to a policy's observation, under the policy's own keys."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.config.paths import nearest
from rlspec.deploy.arm.interfaces import Frame, RobotState
from rlspec.errors import ConfigError

Image = NDArray[np.uint8]
JOINTS, GRIPPER, PROMPT = "observation/joint_position", "observation/gripper_position", "prompt"


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
    from_zero = any("exterior_image_0" in key for key in keys)
    found = {}
    for key in keys:
        name = given.get(key, key if key in cameras else camera_name(key, from_zero=from_zero))
        if name not in cameras:
            remedy = f"say which it is with robot.camera_keys.{key}=NAME"
            raise ConfigError(f"the policy needs camera {name} ({key}); {remedy}; {nearest(name, cameras)}")
        found[key] = name
    return found


def camera_name(key: str, *, from_zero: bool = False) -> str:
    """DROID's name of the camera behind a policy's key."""
    name = key.removeprefix("observation.images.").removeprefix("observation/")
    name = name.replace("exterior_image_", "exterior_").replace("wrist_image_", "wrist_")
    if from_zero:
        name = re.sub(r"exterior_(\d)", lambda match: f"exterior_{int(match[1]) + 1}", name)
    return name


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
        seen[key] = image if size is None else fit(image, *size)
    return seen


def fit(image: Image, height: int, width: int) -> Image:
    """Scale a picture (H, W, 3) into (height, width, 3), aspect kept, with black bars: openpi's resize_with_pad."""
    old_height, old_width = image.shape[:2]
    if (old_height, old_width) == (height, width):
        return image
    ratio = max(old_height / height, old_width / width)
    rows, columns = max(int(old_height / ratio), 1), max(int(old_width / ratio), 1)
    scaled = np.einsum("ij,jkc->ikc", _weights(old_height, rows), image.astype(np.float32), optimize=True)
    scaled = np.einsum("ij,kjc->kic", _weights(old_width, columns), scaled, optimize=True)
    canvas = np.zeros((height, width, image.shape[2]), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[top : top + rows, left : left + columns] = np.clip(np.rint(scaled), 0, 255)
    return canvas


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old) weights of bilinear interpolation, widened when shrinking so that no pixel is skipped."""
    scale = old / new
    support = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.clip(1 - np.abs(np.arange(old)[None] - centres[:, None]) / support, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
