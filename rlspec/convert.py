"""Convert DROID-format recordings: `python -m rlspec.convert source=droid_raw path=DIR out=DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlspec.contract.actions import DELTA_EEF, DROID_HYBRID, DROID_HZ, DROID_SPACES, JOINT_VELOCITY
from rlspec.contract.features import CAMERAS
from rlspec.contract.pictures import DROID_SIZE
from rlspec.entry import run_command

USAGE = f"""\
usage: python -m rlspec.convert source=droid_raw|droid_rlds|lerobot path=DIR out=DIR [key=value ...]

  Recordings in DROID's formats become a LeRobotDataset v3 with typed actions and exact statistics. What cannot be used
  is refused with the reason, in out/meta/refused.jsonl, and stops nothing else. The same command goes on with what was
  stopped, and finds what is complete.

  source=droid_raw      folders with trajectory.h5, metadata_*.json and recordings/MP4, found below path
  source=droid_rlds     TFRecord files of DROID in RLDS (TensorFlow is not needed)
  source=lerobot        a LeRobot data set, v2.1 or v3, in openpi's or LeRobot's DROID naming
  action_space=NAME     {", ".join(DROID_SPACES)},
                        {DELTA_EEF} (from the measured poses); default: {JOINT_VELOCITY}
  cameras=A,B           of {", ".join(CAMERAS)} (default: all three)
  image_size=HxW        default {DROID_SIZE[0]}x{DROID_SIZE[1]}; proportions are kept by black bars
  bgr=true              the recorded images are BGR; they become RGB
  video=false           PNG images instead of MP4 (H.264)
  instruction=CHOICE    first (default), random, all (the episode once with each), or an index from 0
  annotations=FILE      instructions by uuid (droid_raw); default: path/aggregated-annotations-*.json
  success=all           failures as well; default: only, which keeps what does not say
  idle=drop             cut stretches without new commands (openpi's rule, but a moving gripper is not idle): what
                        remains of a recording becomes an episode for each stretch; default: keep
  fps=N                 resample to this rate; default: that of the recordings
  source_fps=X          rate of the recordings, where it is not {DROID_HZ:g} Hz or not what the data set says
  source_action=NAME    what `action` or `actions` holds (lerobot), where the data set does not say
  execution_law=NAME    what executed the actions, default: what the recordings say, else {DROID_HYBRID}
  limit=N               stop after so many recordings that can be used
  seed=N                of instruction=random (default 0)
  workers=N             processes (default 2)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user or no usable episode, 130 after Ctrl-C."""
    return run_command(argv, lambda: USAGE, _convert)


def _convert(arguments: Sequence[str]) -> int:
    from rlspec.vla.droid.settings import parse_settings

    settings = parse_settings(arguments)
    from rlspec.display import Display
    from rlspec.vla.droid.conversion import convert

    convert(settings, Display())
    return 0


if __name__ == "__main__":
    sys.exit(main())
