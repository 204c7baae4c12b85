"""Stopped, killed, with a full disk, with little memory: a conversion gives what an uninterrupted one gives."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from droid_fixtures import (
    PLAIN,
    change,
    read_pictures,
    read_record,
    read_rows,
    refusals,
    run,
    threads,
    write_raw,
)
from process_groups import wait_until_gone

from rlspec import convert as command
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.vla.data import staging
from rlspec.vla.data.checking import check_dataset
from rlspec.vla.droid import raw, writing
from rlspec.vla.droid.conversion import ConversionProgress
from rlspec.vla.droid.episodes import Frame, Item, Recording, RecordingSource
from rlspec.vla.droid.settings import ConvertSettings
from rlspec.vla.droid.writing import ConversionOutcome

EPISODES = 6


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes, of which one is broken and one has idle frames in its middle; read only."""
    root = tmp_path_factory.mktemp("many") / "raw"
    for number in range(EPISODES):
        write_raw(root / f"e{number}", 24 + number, seed=number)
    (root / "e2/recordings/MP4/333.mp4").unlink()
    return root


@pytest.fixture(scope="module")
def whole(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted conversion gives; read only."""
    return run("droid_raw", recordings, tmp_path_factory.mktemp("whole") / "out", *PLAIN)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Stopped(Exception):
    """Stands for Ctrl-C and for a kill."""


def stop_after(attempts: int, seen: list[str]) -> Any:
    """A pool that ends the conversion after so many recordings; notes those that it was given."""

    class Counting:
        def __init__(self, inner: Executor) -> None:
            self.inner = inner

        def submit(self, function: Any, job: Any, item: Item) -> Any:
            if len(seen) == attempts:
                raise Stopped
            seen.append(item.identity)
            return self.inner.submit(function, job, item)

    @contextmanager
    def pool(workers: int) -> Iterator[Any]:
        with threads(workers) as inner:
            yield Counting(inner)

    return pool


def test_the_data_set_does_not_depend_on_workers(recordings: Path, whole: Path, tmp_path: Path) -> None:
    assert content(run("droid_raw", recordings, tmp_path / "out", *PLAIN, "workers=3")) == content(whole)


def test_a_stopped_conversion_goes_on_and_gives_the_same(recordings: Path, whole: Path, tmp_path: Path) -> None:
    first: list[str] = []
    with pytest.raises(Stopped):
        run("droid_raw", recordings, tmp_path / "out", *PLAIN, pool=stop_after(4, first))
    assert not (tmp_path / "out").exists()
    marks = sorted((tmp_path / ".out.work/episodes").glob("*.json"))
    assert len(marks) >= 2
    marks[0].write_text("{")  # cut short by the kill
    second: list[str] = []
    run("droid_raw", recordings, tmp_path / "out", *PLAIN, pool=stop_after(100, second))
    assert content(tmp_path / "out") == content(whole)
    assert len(second) == EPISODES - (len(marks) - 1)
    assert not (tmp_path / ".out.work").exists()


def test_a_finished_conversion_is_found_and_another_is_not_mixed_in(
    recordings: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    assert run("droid_raw", recordings, whole, *PLAIN, display=Display("plain"), pool=stop_after(0, [])) == whole
    assert "is complete" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"converted with another seed \(0 instead of 9\); choose another folder"):
        run("droid_raw", recordings, whole, *PLAIN, "seed=9")
    with pytest.raises(Stopped):
        run("droid_raw", recordings, tmp_path / "out", *PLAIN, pool=stop_after(3, []))
    with pytest.raises(DataError, match="unfinished conversion with another fps"):
        run("droid_raw", recordings, tmp_path / "out", *PLAIN, "fps=5")
    texts = tmp_path / "texts.json"
    texts.write_text("{}")
    with pytest.raises(Stopped):
        run("droid_raw", recordings, tmp_path / "told", *PLAIN, f"annotations={texts}", pool=stop_after(3, []))
    texts.write_text('{"a": {"language_instruction1": "push"}}')
    with pytest.raises(DataError, match="unfinished conversion with another instructions"):
        run("droid_raw", recordings, tmp_path / "told", *PLAIN, f"annotations={texts}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no converted data set; choose another folder"):
        run("droid_raw", recordings, tmp_path / "mine", *PLAIN)
    assert content(whole) == before


def test_what_an_earlier_version_converted_stays_complete_and_is_not_gone_on_with(
    recordings: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    record = out / "meta/rlspec.json"
    settings = json.loads(record.read_text())
    settings["settings"]["format"] = 1
    record.write_text(json.dumps(settings))
    before = content(out)
    run("droid_raw", recordings, out, *PLAIN, display=Display("plain"))
    assert content(out) == before
    shown = capsys.readouterr()
    assert "is complete" in shown.out
    assert "WARNING" in shown.out + shown.err and "convert again" in shown.out + shown.err
    shutil.rmtree(out)
    work = tmp_path / ".out.work"
    (work / "episodes").mkdir(parents=True)
    (work / "episodes/one.json").write_text('{"parts": 1}')
    (work / "settings.json").write_text(json.dumps(settings["settings"]))
    with pytest.raises(DataError, match=r"unfinished conversion with another format \(1 instead of 3\)"):
        run("droid_raw", recordings, out, *PLAIN)


@pytest.mark.parametrize(
    ("space", "frame", "warned"),
    [
        ("joint_velocity", "tcp", False),
        ("delta_eef", "flange", True),
        ("delta_eef", "tcp", False),
        ("cartesian_velocity", "tcp", True),
        ("cartesian_position", "flange", False),
    ],
)
def test_poses_of_an_earlier_version_are_warned_of(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str, frame: str, warned: bool
) -> None:
    more = (*PLAIN, f"action_space={space}", "limit=1", "cameras=wrist_left")
    record = run("droid_raw", recordings, tmp_path / "out", *more) / "meta/rlspec.json"
    stored = json.loads(record.read_text())
    stored["settings"]["format"], stored["pose_frame"] = 2, frame
    record.write_text(json.dumps(stored))
    run("droid_raw", recordings, tmp_path / "out", *more, display=Display("plain"))
    shown = capsys.readouterr()
    assert (f"{space} actions are not quite a robot's" in shown.out + shown.err) is warned
    assert "pictures" not in shown.out + shown.err


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    recordings: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        original(path, data)

    original = staging.write_whole
    with monkeypatch.context() as patch:
        patch.setattr(staging, "write_whole", write)
        patch.setattr(writing, "write_whole", write)
        with pytest.raises(DataError, match="the disk is full; free space, .*; what was converted is kept") as error:
            run("droid_raw", recordings, tmp_path / "out", *PLAIN)
    assert "\n" not in str(error.value)
    seen: list[str] = []
    run("droid_raw", recordings, tmp_path / "out", *PLAIN, pool=stop_after(100, seen))
    assert 0 < len(seen) < EPISODES
    assert content(tmp_path / "out") == content(whole)


def test_a_limit_counts_recordings_that_can_be_used(recordings: Path, tmp_path: Path) -> None:
    out = run("droid_raw", recordings, tmp_path / "out", *PLAIN, "limit=3")
    assert [each["source"] for each in read_record(out)["episodes"]] == ["e0", "e1", "e3"]
    assert list(refusals(out)) == ["e2"]


def test_stretches_without_idle_frames_become_episodes(tmp_path: Path) -> None:
    episode = write_raw(tmp_path / "raw/one", 60)
    velocity, closure = episode.arrays["action/joint_velocity"], np.zeros(60)
    velocity[20:30] = velocity[19]
    change(episode, "action/joint_velocity", velocity)
    change(episode, "action/gripper_position", closure)
    change(episode, "observation/robot_state/gripper_position", closure)
    out = run("droid_raw", tmp_path / "raw", tmp_path / "out", *PLAIN, "idle=drop")
    assert [(each["range"], each["frames"]) for each in read_record(out)["episodes"]] == [([0, 10], 10), ([30, 50], 20)]
    kept = [*range(10), *range(30, 50)]
    assert np.array_equal(read_rows(out)["action"][:, :7], velocity[kept].astype("f4"))
    assert np.array_equal(read_pictures(out, "wrist_left"), episode.films["wrist"][kept])
    assert check_dataset(out).episodes == 2


class Watched:
    """A source that counts recordings and images that are alive at once."""

    def __init__(self, source: RecordingSource) -> None:
        self.source = source
        self.images: weakref.WeakSet[Any] = weakref.WeakSet()
        self.recordings: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most_images = self.most_recordings = self.read_images = 0

    def items(self) -> list[Item]:
        return self.source.items()

    def read(self, item: Item) -> Recording:
        recording = self.source.read(item)
        frames = recording.frames
        recording.frames = lambda camera: (self.watched(frame) for frame in frames(camera))
        token = type("Token", (), {})()
        recording.token = token  # type: ignore[attr-defined]
        self.recordings.add(token)
        self.most_recordings = max(self.most_recordings, len(self.recordings))
        return recording

    def watched(self, frame: Frame) -> Frame:
        def decode() -> Any:
            image = frame().view(Image)
            self.images.add(image)
            self.read_images += 1
            self.most_images = max(self.most_images, len(self.images))
            return image

        return decode


class Image(np.ndarray):  # type: ignore[type-arg]
    """An array that can be watched."""

    __hash__ = object.__hash__


def test_episodes_and_images_are_in_memory_one_by_one(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Watched] = []

    def open_watched(settings: Any) -> Watched:
        made.append(Watched(raw.RawSource(settings)))
        return made[-1]

    monkeypatch.setattr(writing, "open_source", open_watched)
    run("droid_raw", recordings, tmp_path / "out", *PLAIN)
    (watched,) = made
    assert watched.read_images == 3 * sum(24 + number for number in (0, 1, 3, 4, 5))
    assert watched.most_images <= 3
    assert watched.most_recordings <= 2


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    place = [f"path={tmp_path}", f"out={tmp_path / 'out'}"]
    for arguments, message in (
        (["source=droid_raw", *place, "camera=wrist_left"], "camera=wrist_left: unknown key; .*cameras"),
        (["source=droid", *place], "source=droid: .*droid_r"),
        (place, "source: required; add source=droid_raw"),
        (["source=droid_raw", *place, "action_space=joint_velocities"], "joint_velocity"),
        (["source=droid_raw", *place, "image_size=180"], "image_size=180: height and width"),
        (["source=droid_raw", *place, "image_size=181x320"], "H.264 wants even numbers"),
        (["source=droid_raw", *place, "cameras=wrist_left,wrist_left"], "a camera is named twice"),
        (["source=droid_raw", *place, "fps=1.5"], "fps=1.5: must be a whole number"),
        (["source=droid_raw", *place, "workers=0"], "workers=0"),
        (["source=lerobot", *place, f"annotations={__file__}"], "has its instructions inside; leave it out"),
        (["source=droid_raw", *place, "source_action=joint_position"], "only source=lerobot"),
        (["source=droid_raw", f"path={tmp_path / 'no'}", f"out={tmp_path / 'out'}"], "no such folder"),
        (["source=droid_raw", f"path={tmp_path}", f"out={tmp_path}"], "that is path="),
        (["source=droid_raw", *place, "bgr"], "write key=value"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            ConvertSettings.read(arguments)
        assert "\n" not in str(error.value)


def test_the_command_exits_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    assert command.main(["source=droid_raw", f"path={tmp_path / 'raw'}", f"out={tmp_path / 'out'}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "no trajectory.h5" in shown.err
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.work").exists()
    assert command.main(["--help"]) == 0
    assert "python -m rlspec.convert" in capsys.readouterr().out


def test_an_outcome_is_kept_only_when_all_of_it_is_there(tmp_path: Path) -> None:
    staged = writing.StagedEpisodes(tmp_path)
    item = Item("a/../b")
    assert staged.outcome(item) is None
    episode = writing.ConvertedEpisode(["x"], np.zeros((2, 8), "f4"), np.ones((2, 8), "f4"), about={"source": "a"})
    assert staged.save(item, [episode, episode]) == staged.outcome(item) == ConversionOutcome(2)
    assert np.array_equal(staged.load(item, 1).action, episode.action)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_with_its_processes_and_continued(recordings: Path, whole: Path, tmp_path: Path) -> None:
    settings = ["source=droid_raw", f"path={recordings}", f"out={tmp_path / 'out'}", *PLAIN, "workers=2"]
    arguments = [sys.executable, "-m", "rlspec.convert", *settings]
    killed = subprocess.Popen(arguments, start_new_session=True)
    while not list((tmp_path / ".out.work" / "episodes").glob("*.json")):
        assert killed.poll() is None, "it should not have ended before it was killed"
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out").exists()
    subprocess.run(arguments, check=True)
    assert content(tmp_path / "out") == content(whole)
    wait_until_gone(killed.pid, 60)
    assert json.loads((tmp_path / "out/meta/rlspec.json").read_text())["suite"] == "droid"


class Told(Display):
    """Keeps its lines."""

    def __init__(self) -> None:
        super().__init__("plain", quiet=True)
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        self.lines.append(text)


def seconds_left(starting: float, staged: int, each: float, total: int) -> list[tuple[float, float]]:
    """(said, true) seconds left where workers start, what was staged passes at once, and each further one takes as
    long."""
    now, told = 0.0, Told()
    progress = ConversionProgress(total, staged, told, lambda: now)
    pairs = []
    now = starting
    for done in range(1, total + 1):
        now += each if done > staged else 0.0
        before = len(told.lines)
        progress.show(done - done // 10, done // 10, staged=done <= staged)
        if len(told.lines) > before and (said := re.search(r"about (\d+) s left", told.lines[-1])):
            pairs.append((float(said[1]), (total - done) * each))
    return pairs


@pytest.mark.parametrize(("starting", "staged"), [(5.0, 0), (60.0, 0), (0.0, 0), (5.0, 200)])
def test_the_time_left_is_that_of_the_speed_without_the_start(starting: float, staged: int) -> None:
    pairs = seconds_left(starting, staged, 0.25, 400)
    assert len(pairs) > 5
    for said, true in pairs:
        assert said == pytest.approx(true, abs=1.0)
