"""Names under which data sets, policies and environments carry what a robot sees, is told and does.

Features are named as LeRobot names them, cameras as DROID does, parts of an environment's observation as gymnasium's
robot environments do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlspec.contract.actions import JOINT_NAMES

STATE = "observation.state"
ACTION = "action"
EXECUTED = "executed_action"
"""What was done where a demonstration's step was disturbed; `action` is what should have been done."""
INTERVENTION = "intervention"
"""Whether a human moved the arm in the policy's place, bool (1,); LeRobot's rollout calls it so."""
TASK = "task"
"""The instruction, in words."""

_IMAGE, _IMAGES = "observation.image", "observation.images."
_EMPTY = "empty_camera_"

PIXELS, AGENT_POS = "pixels", "agent_pos"
"""Of an environment's observation: {camera: uint8 (H, W, 3)}, and the robot's state float32 (n,)."""

EXTERIOR_1, EXTERIOR_2, WRIST = "exterior_1_left", "exterior_2_left", "wrist_left"
CAMERAS = (EXTERIOR_1, EXTERIOR_2, WRIST)

IMAGE_AXES = ("height", "width", "channels")
"""Of a picture in a data set."""

JOINT_STATE = (*JOINT_NAMES, "gripper")
"""Numbers of the state with DROID's robots: joint angles in radians and the gripper's closure, 0 open to 1 closed."""

EEF_STATE = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right")
"""Numbers of the state with LIBERO's: pose of the hand in metres and radians, and the fingers in metres."""


def image_key(camera: str) -> str:
    """The feature of a camera's pictures."""
    return f"{_IMAGES}{camera}"


def is_image(key: str) -> bool:
    """Whether a feature holds a camera's pictures; data sets with one camera may call it `observation.image`."""
    return key.startswith(_IMAGE)


def picture_shape(feature: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width and channels of a data set's pictures; their names say where some data sets put channels first."""
    first, second, third = (int(side) for side in feature["shape"])
    names = feature.get("names")
    if isinstance(names, list | tuple) and names:
        channels_first = str(names[0]).startswith("c")
    else:
        channels_first = first in (1, 3, 4) and third not in (1, 3, 4)
    return (second, third, first) if channels_first else (first, second, third)


def camera_of(key: str) -> str:
    """The camera of a feature of pictures; any other text as it is."""
    return key.removeprefix(_IMAGES)


def is_empty_camera(key: str) -> bool:
    """Whether a policy makes a camera's pictures up itself (LeRobot's `empty_cameras`): nobody has to deliver them."""
    return camera_of(key).startswith(_EMPTY)
