"""Checkpoints are complete or absent, and every kind of damage is named in one line with the remedy."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlspec.checkpoint import (
    MANIFEST,
    find_weights,
    list_checkpoints,
    named_folder,
    newest_whole_checkpoint,
    rotate_checkpoints,
    set_later_aside,
    staged_folder,
    verify_checkpoint,
    write_text_atomically,
)
from rlspec.errors import CheckpointError


def write(folder: Path, step: int, content: bytes = b"weights") -> Path:
    target = folder / f"checkpoint-{step}"
    with staged_folder(target, metadata={"step": step}) as staging:
        (staging / "model.bin").write_bytes(content)
        (staging / "part").mkdir()
        (staging / "part" / "state.json").write_text("{}")
    return target


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_a_written_checkpoint_is_whole_and_knows_its_files(tmp_path: Path) -> None:
    manifest = verify_checkpoint(write(tmp_path, 3))
    assert manifest["step"] == 3
    assert manifest["files"]["model.bin"]["bytes"] == 7
    assert set(manifest["files"]) == {"model.bin", "part/state.json"}


def test_a_failure_while_writing_leaves_the_earlier_state(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(ValueError, match="bug"), staged_folder(tmp_path / "checkpoint-2", metadata={}) as staging:
        (staging / "model.bin").write_bytes(b"half")
        raise ValueError("bug")
    assert names(tmp_path) == ["checkpoint-1"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_replacing_a_checkpoint_swaps_all_of_its_files(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with staged_folder(tmp_path / "checkpoint-1", metadata={"step": 1}) as staging:
        (staging / "other.bin").write_bytes(b"new")
    assert set(verify_checkpoint(tmp_path / "checkpoint-1")["files"]) == {"other.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_checkpoints_are_listed_by_number_and_what_is_incomplete_is_not(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        write(tmp_path, step)
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / ".incomplete-checkpoint-300").mkdir()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-20", "checkpoint-100"]


def test_rotation_keeps_the_newest_and_clears_what_killed_processes_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    (tmp_path / ".incomplete-checkpoint-4").mkdir()
    (tmp_path / "best").mkdir()
    rotate_checkpoints(tmp_path, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoint-2", "checkpoint-3"]


def truncate(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"wei")


def flip(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"Weights")


def remove(folder: Path) -> None:
    (folder / "part" / "state.json").unlink()


def foreign(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"format": "somebody-elses-2", "files": {}}))


def garbled(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")


DAMAGE = {
    truncate: r"model.bin has 3 bytes instead of 7.*resume=auto",
    flip: r"content of model.bin has changed.*earlier checkpoint",
    remove: r"part/state.json is missing.*earlier checkpoint",
    foreign: r"another format \(somebody-elses-2",
    garbled: r"manifest.json cannot be read.*earlier checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_newest_whole_checkpoint_found(damage, tmp_path: Path) -> None:
    good, bad = write(tmp_path, 1), write(tmp_path, 2)
    damage(bad)
    with pytest.raises(CheckpointError, match=DAMAGE[damage]) as caught:
        verify_checkpoint(bad)
    assert "\n" not in str(caught.value)
    newest, refused = newest_whole_checkpoint(tmp_path)
    assert newest == good
    assert len(refused) == 1


def test_where_only_weights_are_wanted_the_training_state_may_be_gone(tmp_path: Path) -> None:
    target = tmp_path / "run" / "checkpoints" / "checkpoint-5"
    with staged_folder(target, metadata={"step": 5}) as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        (staging / "optimizer.pt").write_bytes(b"moments")
    (target / "optimizer.pt").unlink()
    assert find_weights(str(tmp_path / "run")) == find_weights(str(target)) == str(target)
    with pytest.raises(CheckpointError, match=r"optimizer.pt is missing.*begin anew from its weights with model="):
        verify_checkpoint(target)
    (target / "model.safetensors").write_bytes(b"others")
    with pytest.raises(CheckpointError, match="model.safetensors has 6 bytes instead of 7"):
        find_weights(str(tmp_path / "run"))


def test_a_path_into_a_run_means_the_run_or_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    five = write(run / "checkpoints", 5)
    (run / "recipe.yaml").touch()
    meant = {
        "checkpoints": run,
        "checkpoints/last": run,
        "recipe.yaml": run,
        "checkpoints/checkpoint-5/model.bin": five,
    }
    for path, folder in meant.items():
        assert named_folder(run / path) == folder
        assert find_weights(str(run / path)) == str(five)
    (run / "checkpoints" / "last").symlink_to(five)
    for path in (run, five, run / "checkpoints" / "last", run / "other", tmp_path / "checkpoints" / "tiny"):
        assert named_folder(path) == path
    with pytest.raises(
        CheckpointError, match=r"policy.path=.*/checkpoint-6: no such checkpoint; here are checkpoint-5"
    ):
        find_weights(str(run / "checkpoints" / "checkpoint-6"), key="policy.path")
    (run / "q.gguf").touch()
    (tmp_path / "checkpoints" / "tiny").mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    for path in (run / "q.gguf", tmp_path / "config.yaml", tmp_path / "last", run / "last"):
        assert named_folder(path) == path  # a model's file, files beside a folder of runs, a name that means nothing
    with pytest.raises(CheckpointError, match=r"/other: no such folder$"):
        find_weights(str(run / "other"))


def test_a_folder_of_another_kind_is_refused_with_what_it_is_good_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint of rlspec.*model="):
        verify_checkpoint(tmp_path)


def test_a_full_disk_is_one_line_and_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    good = write(tmp_path, 1)
    with (
        pytest.raises(CheckpointError, match="disk is full.*previous checkpoint is whole: .*checkpoint-1"),
        staged_folder(tmp_path / "checkpoint-2", metadata={}),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    verify_checkpoint(good)


def test_torchs_own_report_of_a_full_disk_is_understood(small_disk: Path) -> None:
    import torch

    good = write(small_disk, 1)
    with (
        pytest.raises(CheckpointError, match="disk is full.*checkpoint-1"),
        staged_folder(small_disk / "checkpoint-2", metadata={}) as staging,
    ):
        torch.save(torch.zeros(1_000_000), staging / "optimizer.pt")
    verify_checkpoint(good)
    assert names(small_disk) == ["checkpoint-1"]


def test_safetensors_own_report_of_a_full_disk_is_understood(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(CheckpointError, match="disk is full.*no earlier checkpoint"),
        staged_folder(small_disk / "checkpoint-2", metadata={}) as staging,
    ):
        save_file({"a": torch.zeros(1_000_000)}, staging / "model.safetensors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a traceback may hold a file open


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match="a file cannot be written; mend its permissions"),
        staged_folder(tmp_path / "checkpoint-2", metadata={}),
    ):
        raise OSError(errno.EROFS, "Read-only file system")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from rlspec import checkpoint
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
calls = 0
def count(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
for name in ("fsync", "replace", "open"):
    setattr(os, name, count(getattr(os, name)))
with checkpoint.staged_folder(folder / "checkpoint-1", metadata={"step": 2}) as staging:
    (staging / "model.bin").write_bytes(b"new")
print("done")
"""


def test_a_writer_killed_at_any_moment_leaves_one_whole_state(tmp_path: Path) -> None:
    """Replacing a checkpoint is the hardest case: for a moment its old folder stands aside."""
    survived = set()
    for moment in range(1, 40):
        folder = tmp_path / str(moment)
        write(folder, 0)
        write(folder, 1, b"old")
        done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(folder), str(moment)], capture_output=True)
        rotate_checkpoints(folder, keep_last=2)  # what the next save or start does
        newest, refused = newest_whole_checkpoint(folder)
        assert newest == folder / "checkpoint-1"
        assert not refused
        survived.add((newest / "model.bin").read_bytes())
        if done.returncode == 0:
            break
    assert done.stdout == b"done\n", "the writer was never let through: raise the number of moments"
    assert {b"old", b"new"} <= survived


def test_what_stood_aside_for_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 7)
    os.replace(tmp_path / "checkpoint-7", tmp_path / ".incomplete-old-checkpoint-7")
    (tmp_path / ".incomplete-checkpoint-7").mkdir()
    rotate_checkpoints(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    verify_checkpoint(tmp_path / "checkpoint-7")


def test_checkpoints_of_an_abandoned_future_are_set_aside_and_kept(tmp_path: Path) -> None:
    for step in (20, 40, 60):
        write(tmp_path, step)
    with staged_folder(tmp_path / "best", metadata={"step": 55}):
        pass
    set_later_aside(tmp_path, step=40)
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-40"]
    verify_checkpoint(tmp_path / "abandoned-checkpoint-60")
    assert not (tmp_path / "best").exists()
    set_later_aside(tmp_path, step=40)  # nothing is left to be set aside
    assert (tmp_path / "abandoned-best").is_dir()


def test_a_text_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_text_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="full"):
        write_text_atomically(path, "new")
    assert path.read_text() == "old"
