"""Names of DROID's formats, and what a converted data set says about itself in meta/rlspec.json.

Raw episodes (droid-dataset/droid): a folder with trajectory.h5, metadata_<uuid>.json and recordings/MP4/<serial>.mp4.
"""

from __future__ import annotations

from rlspec.contract.features import EXTERIOR_1, EXTERIOR_2, WRIST

GRIPPER_POSITION = "gripper_position"
"""Of states and actions: closure, 0 open to 1 closed. The arm's are called as the action spaces are."""

RAW_CAMERAS = {EXTERIOR_1: "ext1", EXTERIOR_2: "ext2", WRIST: "wrist"}
"""In raw metadata."""

RLDS_CAMERAS = {EXTERIOR_1: "exterior_image_1_left", EXTERIOR_2: "exterior_image_2_left", WRIST: "wrist_image_left"}
"""In the RLDS release, and in LeRobot data sets made of it."""

OURS = "rlspec"
"""Of metadata_*.json of generated recordings: law, pose frame and what the generator knows."""

RECORD_KEYS = ("suite", "action_space", "units", "control_hz", "execution_law", "robot", "source", "episodes")
"""Of meta/rlspec.json, at least; `episodes` lists for each: source (path or id), task, success, frames."""
