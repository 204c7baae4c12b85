"""Names of DROID's formats, and what a converted data set says about itself in meta/rlspec.json.

Raw episodes (droid-dataset/droid): a folder with trajectory.h5, metadata_<uuid>.json and recordings/MP4/<serial>.mp4.
"""

from __future__ import annotations

CONTROL_HZ = 15.0
IMAGE_SHAPE = (180, 320, 3)  # of the RLDS release and of generated recordings; the raw release has 720 x 1280

CAMERAS = ("exterior_1_left", "exterior_2_left", "wrist_left")
"""Of a converted data set: `observation.images.<name>`. Raw metadata calls them ext1, ext2 and wrist."""

RAW_CAMERAS = {"exterior_1_left": "ext1", "exterior_2_left": "ext2", "wrist_left": "wrist"}
OPENPI_KEYS = {
    "exterior_1_left": "observation/exterior_image_1_left",
    "exterior_2_left": "observation/exterior_image_2_left",
    "wrist_left": "observation/wrist_image_left",
}
"""Keys of openpi's DROID client; the state comes as `observation/joint_position` and `observation/gripper_position`."""

STATE_NAMES = (*(f"joint{i}" for i in range(1, 8)), "gripper")
"""observation.state, float32 (8,): joint angles in radians and the gripper's closure, 0 open to 1 closed."""

RECORD_KEYS = ("suite", "action_space", "units", "control_hz", "execution_law", "robot", "source", "episodes")
"""Of meta/rlspec.json, at least; `episodes` lists for each: source (path or id), task, success, frames."""
