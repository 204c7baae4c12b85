"""DROID-format recordings into a LeRobotDataset v3.

As with demonstrations, a folder beside the data set (`.NAME.work`) holds finished episodes while workers convert, so
that a run that is stopped or killed goes on; the data set is assembled in the order of the source and put in place by
one rename. It is the same for any number of workers and interruptions.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from rlspec.checkpoint import write_json_atomically
from rlspec.contract.actions import ACTION_SPACES, CARTESIAN_POSITION, CARTESIAN_VELOCITY, DELTA_EEF, DROID_HZ
from rlspec.contract.droid import TCP
from rlspec.contract.features import ACTION, IMAGE_AXES, INTERVENTION, JOINT_STATE, STATE, image_key
from rlspec.contract.records import DATA_RECORD
from rlspec.display import Display
from rlspec.errors import DataError
from rlspec.versions import library_versions
from rlspec.vla.data.files import INFO, read_json
from rlspec.vla.data.output import first_difference, locked, read_settings, writing
from rlspec.vla.data.staging import write_whole
from rlspec.vla.data.workers import Pool, process_pool
from rlspec.vla.droid.annotations import annotations_file
from rlspec.vla.droid.episodes import Item
from rlspec.vla.droid.settings import ConvertSettings
from rlspec.vla.droid.writing import (
    ConversionOutcome,
    ConvertedEpisode,
    ConvertJob,
    StagedEpisodes,
    convert_item,
    open_source,
)
from rlspec.vla.pace import Pace

REFUSED = "meta/refused.jsonl"
_FORMAT = 3  # of what decides what is in a data set; 1 scaled pictures by another filter, 2 took poses as they were
_SECONDS = 5.0  # between two lines of progress
_AHEAD = 2  # recordings under way per worker

Refusal = dict[str, str]


def convert(settings: ConvertSettings, display: Display, *, pool: Pool | None = None) -> Path:
    """Convert recordings, go on with it, or find it done.

    Args:
        settings: What to convert and how.
        display: Shows progress and the summary.
        pool: Makes the executor; None: processes.

    Returns:
        The data set's folder.

    Raises:
        DataError: No episode can be used, or the folder holds something else or cannot be written.
    """
    out = settings.out
    matters = {"format": _FORMAT, **settings.what_matters()}
    work = out.with_name(f".{out.name}.work")
    with writing(out, "what was converted"), locked(work, display, "convert"):
        if _is_done(out, matters, display):
            display.line(f"convert: {out} is complete")
        else:
            items = _list_items(settings)  # before anything is written that another command would find
            _prepare(work, matters | {"instructions": _digest(annotations_file(settings))})
            _Conversion(settings, matters, work, display).run(items, pool)
        shutil.rmtree(work, ignore_errors=True)
    return out


def _list_items(settings: ConvertSettings) -> list[Item]:
    try:
        return open_source(settings).items()
    except OSError as error:
        raise DataError(f"path={settings.path}: cannot be read ({error.strerror}); mend that") from None


def _is_done(out: Path, matters: Mapping[str, Any], display: Display) -> bool:
    """Whether the data set is complete; one of an earlier format is, and stays as it is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = read_settings(out / DATA_RECORD)
    if record is None or "settings" not in record:
        raise DataError(f"{out} exists and holds no converted data set; choose another folder, or remove it")
    stored = record["settings"]
    if different := first_difference({**stored, "format": _FORMAT}, matters):
        raise DataError(f"{out} was converted with another {different}; choose another folder, or remove it")
    for stale in _stale(record):
        display.warn(f"{out}: {stale} are not quite a robot's; to have those, remove it and convert again")
    return True


def _digest(path: Path | None) -> str | None:
    """Of a file's content; None: there is no file to read, which its reader says better."""
    return None if path is None or not path.is_file() else hashlib.sha256(path.read_bytes()).hexdigest()


def _stale(record: Mapping[str, Any]) -> Iterator[str]:
    """What a conversion would give otherwise now."""
    format_, space = record["settings"].get("format", 1), record["settings"]["action_space"]
    if format_ < 2:
        yield "pictures that were scaled"
    wrong = (CARTESIAN_POSITION, CARTESIAN_VELOCITY) if record.get("pose_frame") == TCP else (DELTA_EEF,)
    if format_ < 3 and space in wrong:
        yield f"{space} actions"


def _prepare(work: Path, matters: Mapping[str, Any]) -> None:
    stored = read_settings(work / "settings.json") if any(work.glob("episodes/*.json")) else None
    if stored is not None:
        stored = {"instructions": matters["instructions"], **stored}  # not stored before
    if stored is not None and (different := first_difference(stored, matters)):
        raise DataError(
            f"{work} holds an unfinished conversion with another {different}; finish it with those settings, "
            "remove the folder, or choose another"
        )
    (work / "episodes").mkdir(parents=True, exist_ok=True)
    write_json_atomically(work / "settings.json", dict(matters))


def output_rate(settings: ConvertSettings) -> int:
    """Frames per second of the data set.

    Raises:
        DataError: It is no whole number, which LeRobot wants.
    """
    rate = settings.fps or settings.source_fps
    if rate is None:
        rate = read_json(settings.path / INFO)["fps"] if settings.source == "lerobot" else DROID_HZ
    if round(rate) != rate:
        raise DataError(f"path={settings.path}: {rate:g} frames per second, LeRobot wants a whole number; add fps=")
    return round(rate)


class _Conversion:
    def __init__(self, settings: ConvertSettings, matters: Mapping[str, Any], work: Path, display: Display) -> None:
        self.settings, self.matters, self.work, self.display = settings, matters, work, display
        self.staged = StagedEpisodes(work / "episodes")
        self.refused: list[Refusal] = []
        self.episodes: list[dict[str, Any]] = []
        self.recordings = 0  # that were used
        self._builder: Any = None
        self._first: dict[str, Any] = {}

    def run(self, items: Sequence[Item], pool: Pool | None) -> None:
        """Convert all and put the data set in place."""
        started, settings = time.monotonic(), self.settings
        job = ConvertJob(settings, output_rate(settings), self.staged.folder)
        self.display.line(
            f"convert: {len(items)} recordings of {settings.path} ({settings.source}), into {settings.out}"
        )
        finished = self.work / "dataset"
        shutil.rmtree(finished, ignore_errors=True)
        known = {item: outcome for item in items if (outcome := self.staged.outcome(item)) is not None}
        progress = ConversionProgress(len(items), len(known), self.display)
        outcomes = _outcomes(items, job, known, pool)
        for item, outcome in outcomes:
            self._take(item, outcome, finished, job.rate)
            progress.show(self.recordings, len(self.refused), staged=item in known)
            if self.recordings == settings.limit:
                break
        outcomes.close()
        self._finish(finished, job.rate)
        if settings.out.exists():
            settings.out.rmdir()
        os.replace(finished, settings.out)
        self._summarise(time.monotonic() - started)

    def _take(self, item: Item, outcome: ConversionOutcome, root: Path, rate: int) -> None:
        """Append what a recording became, or note why it did not."""
        if outcome.kind:
            self._refuse(item, outcome.kind, outcome.reason)
            return
        for part in range(outcome.parts):
            episode = self.staged.load(item, part)
            if not part and (other := self._other(episode)):
                self._refuse(item, *other)
                return
            if self._builder is None:
                self._builder, self._first = self._open(root, rate, episode), dict(episode.about)
                self._first[INTERVENTION] = episode.interventions is not None
            for instruction in episode.instructions:
                self._builder.add(episode, instruction)
                self.episodes.append({**episode.about, "task": instruction, "frames": len(episode)})
        self.recordings += 1

    def _refuse(self, item: Item, kind: str, reason: str) -> None:
        self.refused.append({"source": item.identity, "kind": kind, "reason": reason})

    def _other(self, episode: ConvertedEpisode) -> tuple[str, str] | None:
        """Actions mean something else where another law executed them, or another robot did."""
        for key, kind, name in (("execution_law", "other_law", "law"), ("robot", "other_robot", "robot")):
            first, given = self._first.get(key, episode.about[key]), episode.about[key]
            if first != given:
                return kind, f"its {name} is {given}, that of the recordings before is {first}; convert them apart"
        marks = episode.interventions
        if not self._first.get(INTERVENTION, True) and marks is not None and marks.any():
            return "other_marks", "it marks interventions, the recordings before do not; convert them apart"
        return None

    def _open(self, root: Path, rate: int, episode: ConvertedEpisode) -> Any:
        from rlspec.vla.data.assembly import DatasetBuilder

        return DatasetBuilder(
            root,
            fps=rate,
            features=features_of(self.settings, marked=episode.interventions is not None),
            robot_type=episode.about["robot"],
            video=self.settings.video,
        )

    def _finish(self, root: Path, rate: int) -> None:
        if self._builder is None:
            self._fail()
        self._builder.finish()
        space = ACTION_SPACES[self.settings.action_space]
        record = {
            "suite": "droid",
            "action_space": space.name,
            "units": list(space.units),
            "control_hz": float(rate),
            "execution_law": self._first["execution_law"],
            "robot": self._first["robot"],
            "pose_frame": self._first["pose_frame"],
            "source": {"format": self.settings.source, "path": str(self.settings.path)},
            "cameras": list(self.settings.cameras),
            "settings": dict(self.matters),
            "refused": dict(sorted(Counter(each["kind"] for each in self.refused).items())),
            "versions": library_versions(),
            "episodes": self.episodes,
        }
        self._write_refused(root / REFUSED)
        write_json_atomically(root / DATA_RECORD, record)

    def _write_refused(self, path: Path) -> None:
        write_whole(path, "".join(f"{json.dumps(each)}\n" for each in self.refused).encode())

    def _fail(self) -> None:
        path = self.work / Path(REFUSED).name
        self._write_refused(path)
        first = self.refused[0]
        raise DataError(
            f"path={self.settings.path}: none of {len(self.refused)} recordings can be used ({self._kinds()}); the "
            f"first, {first['source']}: {first['reason']}; all are in {path}"
        )

    def _kinds(self) -> str:
        counts = Counter(each["kind"] for each in self.refused)
        return ", ".join(f"{kind} {count}" for kind, count in counts.most_common())

    def _summarise(self, seconds: float) -> None:
        frames = sum(each["frames"] for each in self.episodes)
        size = sum(path.stat().st_size for path in self.settings.out.rglob("*") if path.is_file()) / 1e6
        self.display.line(
            f"convert: {len(self.episodes)} episodes of {self.recordings} recordings, {frames} frames, {size:.1f} MB "
            f"in {seconds:.0f} s"
        )
        if rescaled := sum(each["rescaled"] for each in self.episodes):
            share = rescaled / frames
            self.display.warn(f"{rescaled} actions ({share:.1%}) were beyond the largest step and were shortened")
        if noted := [each for each in self.episodes if each.get("notes")]:
            first = noted[0]
            self.display.warn(
                f"{len(noted)} episodes have a note in {DATA_RECORD}; first, {first['source']}: {first['notes'][0]}"
            )
        if self.refused:
            self.display.warn(f"{len(self.refused)} refused ({self._kinds()}):")
            for each in self.refused[:10]:
                self.display.line(f"  {each['source']}: {each['reason']}")
            self.display.line(f"  all are in {self.settings.out / REFUSED}")


def features_of(settings: ConvertSettings, *, marked: bool = False) -> dict[str, dict[str, Any]]:
    """The features of the data set, as LeRobot declares them; `marked`: with a mark at what a human did."""
    names = ACTION_SPACES[settings.action_space].names
    features: dict[str, dict[str, Any]] = {
        image_key(camera): {
            "dtype": "video" if settings.video else "image",
            "shape": (*settings.image_size, 3),
            "names": list(IMAGE_AXES),
        }
        for camera in settings.cameras
    }
    features[STATE] = {"dtype": "float32", "shape": (len(JOINT_STATE),), "names": list(JOINT_STATE)}
    features[ACTION] = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
    if marked:
        features[INTERVENTION] = {"dtype": "bool", "shape": (1,), "names": None}
    return features


def _outcomes(
    items: Sequence[Item], job: ConvertJob, known: Mapping[Item, ConversionOutcome], pool: Pool | None
) -> Generator[tuple[Item, ConversionOutcome]]:
    """What becomes of every recording, in order; a few are under way ahead of the one that is waited for."""
    if len(known) == len(items):
        yield from known.items()
        return
    with (pool or process_pool)(job.settings.workers) as executor:
        yield from _converted(items, known, job, executor)


def _converted(
    items: Sequence[Item], known: Mapping[Item, ConversionOutcome], job: ConvertJob, executor: Executor
) -> Iterator[tuple[Item, ConversionOutcome]]:
    waiting: deque[tuple[Item, ConversionOutcome | Future[ConversionOutcome]]] = deque()
    left = iter(items)
    while True:
        while len(waiting) < _AHEAD * job.settings.workers and (item := next(left, None)) is not None:
            waiting.append((item, known.get(item) or executor.submit(convert_item, job, item)))
        if not waiting:
            return
        item, outcome = waiting.popleft()
        yield item, outcome if isinstance(outcome, ConversionOutcome) else _result(outcome, item)


def _result(future: Future[ConversionOutcome], item: Item) -> ConversionOutcome:
    try:
        return future.result()
    except BrokenProcessPool:
        raise DataError(
            f"a worker process died at or near {item.identity} (out of memory, or a damaged video?); use fewer "
            "workers; the same command goes on"
        ) from None


class ConversionProgress:
    """A line every few seconds.

    Args:
        total: Recordings, `staged` of them finished by an earlier run: those pass at once and say nothing of the speed.
    """

    def __init__(self, total: int, staged: int, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._fresh, self._display, self._clock = total, total - staged, display, clock
        self._shown = clock()
        self._pace = Pace(clock)  # of those that were not staged

    def show(self, used: int, refused: int, *, staged: bool) -> None:
        """One more is done."""
        now = self._clock()
        if not staged:
            self._pace.count()
        if now - self._shown < _SECONDS:
            return
        self._shown = now
        pace = ""
        if (speed := self._pace.speed) is not None:
            pace = f"  {speed:.2f} per second  about {self._pace.left(self._fresh):.0f} s left"
        self._display.line(f"convert: {used + refused}/{self._total}  refused {refused}{pace}")
