"""What a conversion is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlspec.config.command import CommandLine, one_of
from rlspec.config.schema import Key
from rlspec.contract.actions import ACTION_SPACES, DELTA_EEF, DROID_HYBRID, DROID_HZ, EXECUTION_LAWS, JOINT_VELOCITY
from rlspec.contract.features import CAMERAS
from rlspec.contract.pictures import DROID_SIZE
from rlspec.errors import nearest


def _size(value: Any) -> Any:
    """`180x320` as (height, width)."""
    found = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    if isinstance(value, str | int) and found is None:
        raise ValueError("height and width in pixels are wanted, for example 180x320")
    return (int(found[1]), int(found[2])) if found else value


def _known_cameras(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in CAMERAS:
            raise ValueError(f"no camera {name}; {nearest(name, CAMERAS)}")
    if len(set(names)) < len(names):
        raise ValueError("a camera is named twice")
    return names


def _instruction(value: str) -> str:
    choices = ("first", "random", "all")
    if value not in choices and not re.fullmatch(r"\d", value):
        raise ValueError(f"{nearest(value, choices)}, or an index from 0")
    return value


def _file(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().is_file():
        raise ValueError("no such file; correct the path")
    return path if path is None else path.expanduser()


class ConvertSettings(CommandLine):
    """Recordings in DROID's formats become a LeRobotDataset v3 with typed actions and exact statistics.

    What cannot be used is refused with the reason, in out/meta/refused.jsonl, and stops nothing else. The same command
    goes on with what was stopped, and finds what is complete.
    """

    command = "convert"
    extra = "vla"
    synopsis = ("source=droid_raw|droid_rlds|lerobot path=DIR out=DIR [key=value ...]",)
    example = "source=droid_raw"

    source: Annotated[
        Literal["droid_raw", "droid_rlds", "lerobot"],
        Key(
            "droid_raw: folders with trajectory.h5, metadata_*.json and recordings/MP4, found below path; droid_rlds: "
            "TFRecord files of DROID in RLDS (TensorFlow is not needed); lerobot: a LeRobot data set, v2.1 or v3, in "
            "openpi's or LeRobot's DROID naming",
            "droid_raw|droid_rlds|lerobot",
        ),
    ]
    path: Annotated[Path, AfterValidator(Path.expanduser), Key("of the recordings", "DIR")]
    out: Annotated[Path, AfterValidator(Path.expanduser), Key("of the data set", "DIR")]
    action_space: Annotated[
        str,
        one_of(lambda: ACTION_SPACES),
        Key(f"{', '.join(ACTION_SPACES)} ({DELTA_EEF}: from the measured poses)", "NAME"),
    ] = JOINT_VELOCITY
    cameras: Annotated[tuple[str, ...], AfterValidator(_known_cameras), Key("which become pictures", "A,B")] = CAMERAS
    instruction: Annotated[
        str,
        AfterValidator(_instruction),
        Key("first, random, all (the episode once with each), or an index from 0", "CHOICE"),
    ] = "first"
    success: Annotated[Literal["only", "all"], Key("all: failures as well; only: keeps what does not say")] = "only"
    idle: Annotated[
        Literal["keep", "drop"],
        Key(
            "drop: cut stretches without new commands (openpi's rule, but a moving gripper is not idle): what remains "
            "of a recording becomes an episode for each stretch"
        ),
    ] = "keep"
    bgr: Annotated[bool, Key("the recorded images are BGR; they become RGB", "true")] = False
    image_size: Annotated[
        tuple[Annotated[int, Field(ge=8, le=4096)], Annotated[int, Field(ge=8, le=4096)]],
        BeforeValidator(_size),
        Key(f"proportions are kept by black bars (default {DROID_SIZE[0]}x{DROID_SIZE[1]})", "HxW"),
    ] = DROID_SIZE
    fps: Annotated[int | None, Key("resample to this rate (default: that of the recordings)")] = Field(None, ge=1)
    source_fps: Annotated[
        float | None, Key(f"rate of the recordings, where it is not {DROID_HZ:g} Hz or not what the data set says")
    ] = Field(None, gt=0, lt=1e4)
    source_action: Annotated[
        str | None,
        one_of(lambda: ACTION_SPACES),
        Key("what `action` or `actions` holds (lerobot), where the data set does not say", "NAME"),
    ] = None
    execution_law: Annotated[
        str | None,
        one_of(lambda: EXECUTION_LAWS),
        Key(f"what executed the actions (default: what the recordings say, else {DROID_HYBRID})", "NAME"),
    ] = None
    annotations: Annotated[
        Path | None,
        AfterValidator(_file),
        Key("instructions by uuid (droid_raw, droid_rlds; default: path/aggregated-annotations-*.json)", "FILE"),
    ] = None
    ranges: Annotated[
        Path | None,
        AfterValidator(_file),
        Key("frames to keep, by openpi's droid_sample_ranges_*.json (droid_rlds); others are left out", "FILE"),
    ] = None
    stereo: Annotated[
        Literal["refuse", "left"],
        Key("cameras that have only a film of both lenses (droid_raw): left takes its left half"),
    ] = "refuse"
    video: Annotated[bool, Key("false: PNG images instead of MP4 (H.264)")] = True
    limit: Annotated[int | None, Key("stop after so many recordings that can be used")] = Field(None, ge=1)
    seed: Annotated[int, Key("of instruction=random")] = Field(0, ge=0)
    workers: Annotated[int, Key("processes")] = Field(2, ge=1)

    @model_validator(mode="after")
    def _together(self) -> ConvertSettings:
        if not self.path.is_dir():
            raise ValueError(f"path={self.path}: no such folder; give the folder of the recordings")
        if self.path.resolve() == self.out.resolve():
            raise ValueError(f"out={self.out}: that is path=; choose another folder")
        if self.annotations is not None and self.source == "lerobot":
            raise ValueError("annotations: a LeRobot data set has its instructions inside; leave it out")
        if self.ranges is not None and self.source != "droid_rlds":
            raise ValueError("ranges: openpi's file names the episodes of source=droid_rlds alone; leave it out")
        if self.ranges is not None and self.idle == "drop":
            raise ValueError("ranges and idle=drop: both say what is kept; give one of them")
        if self.source_action is not None and self.source != "lerobot":
            raise ValueError("source_action: only source=lerobot has actions without a name; leave it out")
        if self.video and (self.image_size[0] % 2 or self.image_size[1] % 2):
            size = "x".join(map(str, self.image_size))
            raise ValueError(f"image_size={size}: H.264 wants even numbers; choose others, or video=false")
        return self

    def what_matters(self) -> dict[str, Any]:
        """All that decides what is in the data set, as JSON holds it; workers and the target do not."""
        values = self.model_dump(exclude={"workers", "out"})
        return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.expanduser().resolve())
    return list(value) if isinstance(value, tuple) else value
