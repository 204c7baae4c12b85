"""One recording into finished episodes on the disk: numbers, and images encoded as they are read.

Runs in worker processes; imports neither torch nor LeRobot. Images are decoded, resized and encoded one by one, so an
episode takes the memory of its compressed pictures and of a few images, however long it is.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlspec.contract.actions import DROID_HYBRID, JOINT_VELOCITY
from rlspec.contract.features import ACTION, INTERVENTION, STATE
from rlspec.contract.pictures import resize_with_pad
from rlspec.vla.data.files import first_line
from rlspec.vla.data.recording import FilmEncoder, Floats, Pixels, count_values, encode_png
from rlspec.vla.data.staging import read_archive, write_archive, write_whole
from rlspec.vla.droid.episodes import Frame, Item, Recording, RecordingSource, Refused, check_recording
from rlspec.vla.droid.filters import check_success, choose_instructions, chosen_ranges
from rlspec.vla.droid.pose_frames import with_poses_of_flange
from rlspec.vla.droid.resample import Segment, cut_segment
from rlspec.vla.droid.settings import ConvertSettings

_Histogram = NDArray[np.int64]


@dataclass
class ConvertedEpisode:
    """An episode that only has to be written; `rlspec.vla.data.assembly.Recorded`.

    Attributes:
        instructions: It is written once with each.
        state: (T, 8).
        action: (T, a).
        interventions: (T,) whether a human moved the arm in a policy's place; None: the recording does not say.
        pictures: Camera -> T PNG files, or one MP4 file.
        histograms: Camera -> (3, 256) how often each channel has each value.
        about: What the data set's record says of it.
    """

    instructions: list[str]
    state: Floats
    action: Floats
    interventions: NDArray[np.bool_] | None = None
    pictures: dict[str, list[bytes]] = field(default_factory=dict)
    histograms: dict[str, _Histogram] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def instruction(self) -> str:
        """The first one, which is what a data set with one text per episode shows."""
        return self.instructions[0]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Feature -> (T, d) numbers."""
        taken = np.zeros(len(self), bool) if self.interventions is None else self.interventions
        return {STATE: self.state, ACTION: self.action, INTERVENTION: taken}


@dataclass(frozen=True)
class ConversionOutcome:
    """What became of a recording.

    Attributes:
        parts: Episodes that it became.
        kind: Of the refusal (`rlspec.vla.droid.episodes.KINDS`); empty where it was not refused.
        reason: Of the refusal.
    """

    parts: int
    kind: str = ""
    reason: str = ""


@dataclass(frozen=True)
class StagedEpisodes:
    """A folder of finished episodes; a recording counts as done when its mark is there, which is written last."""

    folder: Path

    def _path(self, item: Item, ending: str) -> Path:
        return self.folder / f"{hashlib.sha256(item.identity.encode()).hexdigest()[:24]}{ending}"

    def outcome(self, item: Item) -> ConversionOutcome | None:
        """What is known of a recording. Refusals are not kept: what caused them may be mended."""
        try:
            parts = json.loads(self._path(item, ".json").read_text(encoding="utf-8"))["parts"]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        return ConversionOutcome(parts)

    def save(self, item: Item, episodes: Sequence[ConvertedEpisode]) -> ConversionOutcome:
        """Keep what a recording became."""
        for part, episode in enumerate(episodes):
            about = {"instructions": episode.instructions, "about": episode.about}
            arrays: dict[str, NDArray[Any]] = {"state": episode.state, "action": episode.action}
            if episode.interventions is not None:
                arrays[INTERVENTION] = episode.interventions
            write_archive(self._path(item, f"-{part}.npz"), about, arrays, episode.pictures, episode.histograms)
        write_whole(self._path(item, ".json"), json.dumps({"parts": len(episodes)}).encode())
        return ConversionOutcome(len(episodes))

    def load(self, item: Item, part: int) -> ConvertedEpisode:
        """Read one of a recording's episodes."""
        about, arrays, pictures, histograms = read_archive(self._path(item, f"-{part}.npz"))
        return ConvertedEpisode(
            about["instructions"],
            arrays["state"],
            arrays["action"],
            arrays.get(INTERVENTION),
            pictures,
            histograms,
            about["about"],
        )


@dataclass(frozen=True)
class ConvertJob:
    """What all workers are told."""

    settings: ConvertSettings
    rate: int
    staging: Path


class _Opened(threading.local):
    """The source that this worker has opened; annotations and indices are read once."""

    settings: ConvertSettings | None = None
    source: RecordingSource | None = None


_opened = _Opened()


def convert_item(job: ConvertJob, item: Item) -> ConversionOutcome:
    """Convert one recording and keep the result."""
    if _opened.source is None or _opened.settings != job.settings:
        _opened.settings, _opened.source = job.settings, open_source(job.settings)
    try:
        episodes = convert_recording(_read(_opened.source, item), job.settings, job.rate)
    except Refused as refused:
        return ConversionOutcome(0, refused.kind, refused.reason)
    return StagedEpisodes(job.staging).save(item, episodes)


def _read(source: RecordingSource, item: Item) -> Recording:
    """A recording; files that hold something quite else than they should refuse that one and stop nothing."""
    try:
        return source.read(item)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise Refused(
            "corrupt_file", f"it cannot be understood ({type(error).__name__}: {first_line(error)})"
        ) from None


def open_source(settings: ConvertSettings) -> RecordingSource:
    """The reader of a format.

    Raises:
        DataError: The data cannot be read, or do not hold what is wanted.
    """
    if settings.source == "droid_raw":
        from rlspec.vla.droid.raw import RawSource

        return RawSource(settings)
    if settings.source == "droid_rlds":
        from rlspec.vla.droid.rlds import RldsSource

        return RldsSource(settings)
    from rlspec.vla.droid.lerobot_format import LeRobotSource

    return LeRobotSource(settings)


def convert_recording(recording: Recording, settings: ConvertSettings, rate: int) -> list[ConvertedEpisode]:
    """The episodes that a recording becomes: one, or one per stretch without idle frames.

    Raises:
        Refused: It cannot be used, or is not wanted.
    """
    check_success(recording, settings.success)
    check_recording(recording, settings.action_space)
    recording = with_poses_of_flange(recording)
    instructions = choose_instructions(recording, settings.instruction, settings.seed)
    whole = cut_segment(recording, (0, len(recording)), settings.action_space, recording.rate)
    command = recording.actions.get(JOINT_VELOCITY, whole.action[:, :-1].astype(np.float64))
    ranges = chosen_ranges(recording, command, drop_idle=settings.idle == "drop")
    segments = [cut_segment(recording, each, settings.action_space, rate) for each in ranges]
    law = settings.execution_law or recording.law or DROID_HYBRID
    episodes = [
        ConvertedEpisode(
            instructions,
            segment.state,
            segment.action,
            segment.interventions,
            about={
                "source": recording.identity,
                "place": recording.place,
                "success": recording.success,
                "range": list(segment.range),
                "rescaled": segment.rescaled,
                "robot": recording.robot,
                "execution_law": law,
                "pose_frame": recording.pose_frame,
                **({"notes": list(recording.notes)} if recording.notes else {}),
            },
        )
        for segment in segments
    ]
    for camera in settings.cameras:
        _add_pictures(episodes, segments, camera, recording, settings, rate)
    return episodes


def _add_pictures(
    episodes: Sequence[ConvertedEpisode],
    segments: Sequence[Segment],
    camera: str,
    recording: Recording,
    settings: ConvertSettings,
    rate: int,
) -> None:
    """Read a camera's frames once and encode them where they belong."""
    owner = np.full(len(recording), -1)
    repeats = np.zeros(len(recording), dtype=np.int64)
    for number, segment in enumerate(segments):
        owner[segment.images] = number  # ranges do not overlap
        np.add.at(repeats, segment.images, 1)
    # One pass over all segments: a film can only be decoded forwards, and its frames are too many to keep.
    writers = [_PictureWriter(rate if settings.video else None) for _ in segments]
    for index, frame in enumerate(_exactly(recording.frames(camera), len(recording), camera)):
        if repeats[index]:
            writers[owner[index]].add(prepare(frame(), settings), int(repeats[index]))
    for episode, writer in zip(episodes, writers, strict=True):
        episode.pictures[camera], episode.histograms[camera] = writer.finish(), writer.histogram


def _exactly(frames: Iterator[Frame], length: int, camera: str) -> Iterator[Frame]:
    count = 0
    for frame in frames:
        count += 1
        if count <= length:
            yield frame
    if count != length:
        raise Refused("length_mismatch", f"camera {camera} has {count} frames, the numbers have {length}")


class _PictureWriter:
    def __init__(self, film_rate: int | None) -> None:
        self._film = None if film_rate is None else FilmEncoder(film_rate)
        self._files: list[bytes] = []
        self.histogram: _Histogram = np.zeros((3, 256), dtype=np.int64)

    def add(self, image: Pixels, repeats: int) -> None:
        self.histogram += repeats * count_values(image)
        if self._film is None:
            self._files += [encode_png(image)] * repeats
        else:
            for _ in range(repeats):
                self._film.add(image)

    def finish(self) -> list[bytes]:
        return self._files if self._film is None else [self._film.finish()]


def prepare(image: Pixels, settings: ConvertSettings) -> Pixels:
    """An image as RGB in the wanted size; black bars keep its proportions."""
    return resize_with_pad(np.ascontiguousarray(image[..., ::-1] if settings.bgr else image), *settings.image_size)
