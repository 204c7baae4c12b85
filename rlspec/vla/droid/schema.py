"""Names of DROID's formats, as others write them.

Raw episodes (droid-dataset/droid): a folder with trajectory.h5, metadata_<uuid>.json and recordings/MP4/<serial>.mp4.
"""

from __future__ import annotations

from rlspec.contract.features import EXTERIOR_1, EXTERIOR_2, WRIST

GRIPPER_POSITION = "gripper_position"
"""Of states and actions: closure, 0 open to 1 closed. The arm's are called as the action spaces are."""

RAW_CAMERAS = {EXTERIOR_1: "ext1", EXTERIOR_2: "ext2", WRIST: "wrist"}
"""What raw metadata calls them."""

RLDS_CAMERAS = {EXTERIOR_1: "exterior_image_1_left", EXTERIOR_2: "exterior_image_2_left", WRIST: "wrist_image_left"}
"""In the RLDS release, and in LeRobot data sets made of it."""

OURS = "rlspec"
"""Of metadata_*.json of generated recordings: law, pose frame and what the generator knows."""
