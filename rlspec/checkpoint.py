"""A checkpoint is a folder that is either complete or not there: staged, synced, renamed, and listed in a manifest.

Imports no torch: what is in the files is the business of those who write them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rlspec.errors import CheckpointError

MANIFEST = "manifest.json"
CARD = "README.md"  # written when a run has ended, over what a library may have left there: no part of a checkpoint
FORMAT = "rlspec-checkpoint-1"
CHECKPOINTS = "checkpoints"  # of a run
TRAINING_STATE = (
    "optimizer.*",
    "scheduler.pt",
    "rng_state*",
    "scaler.pt",
    "trainer_state.json",
    "training_args.bin",  # a pickle
    "training_state*",
    "rollouts_*.pt",
    "reference.pt",
)
"""Patterns of the files that only a resume needs."""
_NAME = re.compile(r"^checkpoint-(\d+)$")
_STAGING = ".incomplete-"
_ASIDE = f"{_STAGING}old-"
_ABANDONED = "abandoned-"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` optimizer steps."""
    return f"checkpoint-{step}"


def staging_path(target: Path) -> Path:
    """Where a checkpoint is written before it is put in place."""
    return target.with_name(_STAGING + target.name)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints below `folder`, oldest first; staged and foreign folders are passed over."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.match(path.name)) and path.is_dir()]
    return [path for _, path in sorted(found) if (path / MANIFEST).is_file()]


@contextmanager
def staged_folder(target: Path, *, metadata: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder to fill; on success it becomes `target` in one rename, on any failure it is removed.

    Every file is synced to the disk and entered in the manifest, with its size and SHA-256, before the rename:
    killing the process at any moment leaves either the old state or the new one. An existing `target` is replaced.

    Args:
        target: Where the folder will be.
        metadata: Plain values kept in the manifest (step, recipe, versions, ...).

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; the message says what is still there.
    """
    staging = staging_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        yield staging
        write_manifest(staging, metadata)
        _replace_folder(staging, target)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        undo_half_swaps(target.parent)
        if (reason := explain_write_failure(error)) is None:
            raise
        raise CheckpointError(f"{target}: {reason}; {what_is_left(target.parent)}") from error


def write_manifest(folder: Path, metadata: dict[str, Any]) -> None:
    """Sync every file of `folder` and write the manifest last."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, CARD)):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    content = {"format": FORMAT, **metadata, "files": files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _sync(manifest)
    _sync(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without looking at the files.

    Raises:
        CheckpointError: The folder is missing, has no manifest, or one of another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a run directory or a checkpoint-N folder in one")
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder}: no checkpoint of rlspec (it has no {MANIFEST}); to start from its weights, use "
            f"model={shlex.quote(str(folder))}"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{folder}: its {MANIFEST} cannot be read ({error}); use an earlier checkpoint"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{folder}: written in another format ({found}, this version reads {FORMAT})")
    return content


def verify_checkpoint(folder: Path, *, weights_only: bool = False) -> dict[str, Any]:
    """Read the manifest and compare every file with it.

    Args:
        folder: The checkpoint.
        weights_only: Leave out the files that only a resume needs: they are the most of it, and people delete them.

    Raises:
        CheckpointError: Naming the first file that is missing, truncated or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        if name == CARD:  # listed by earlier versions
            continue
        of_training = any(fnmatch(name, pattern) for pattern in TRAINING_STATE)
        if weights_only and of_training:
            continue
        path = folder / name
        remedy = "use an earlier checkpoint, or resume=auto, which takes the newest that is whole"
        if of_training:
            remedy += ", or begin anew from its weights with model= or policy.path="
        if not path.is_file():
            raise CheckpointError(f"{folder}: {name} is missing; {remedy}")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"{folder}: {name} has {path.stat().st_size} bytes instead of {expected['bytes']}; {remedy}"
            )
        if _sha256(path) != expected["sha256"]:
            raise CheckpointError(f"{folder}: the content of {name} has changed since it was written; {remedy}")
    return manifest


def newest_whole_checkpoint(folder: Path, *, weights_only: bool = False) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that passes `verify_checkpoint`, and a line for each newer one that does not."""
    refused = []
    for path in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(path, weights_only=weights_only)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return path, refused
    return None, refused


def rotate_checkpoints(folder: Path, *, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints, oldest first, and what killed processes left half written."""
    for path in list_checkpoints(folder)[:-keep_last]:
        remove_folder(path)
    undo_half_swaps(folder)
    for path in folder.glob(f"{_STAGING}*"):
        shutil.rmtree(path, ignore_errors=True)


def undo_half_swaps(folder: Path) -> None:
    """Put back what stood aside for a replacement that never came: the process was killed in between."""
    for aside in folder.glob(f"{_ASIDE}*"):
        target = folder / aside.name.removeprefix(_ASIDE)
        if not target.exists():
            os.replace(aside, target)


def set_later_aside(folder: Path, *, step: int) -> list[Path]:
    """Rename checkpoints of later steps, and a best one of a later step, to `abandoned-*`; returns their new places.

    A run that goes on from an earlier step writes these again; left in place they would be taken for its newest.
    """
    undo_half_swaps(folder)
    moved = []
    for path in [manifest.parent for manifest in folder.glob(f"*/{MANIFEST}")]:
        if path.name.startswith((_ABANDONED, _STAGING)) or _step_of(path) <= step:
            continue
        target = path.with_name(_ABANDONED + path.name)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
        moved.append(target)
    return sorted(moved)


def _step_of(path: Path) -> int:
    if match := _NAME.match(path.name):
        return int(match[1])
    return int(read_manifest(path).get("step", 0))


def remove_folder(path: Path) -> None:
    """Remove a checkpoint so that a kill half-way does not leave something that looks whole."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replace a small file in one step; where the disk is full nothing is left of it."""
    staging = path.with_name(f".{path.name}.{os.getpid()}.incomplete")  # two processes may write the same file
    try:
        staging.write_bytes(content)
        _sync(staging)
        os.replace(staging, path)
    except OSError:
        staging.unlink(missing_ok=True)
        raise


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step."""
    write_bytes_atomically(path, text.encode())


def write_json_atomically(path: Path, content: Any) -> None:
    """Replace a JSON file in one step; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _replace_folder(staging: Path, target: Path) -> None:
    if target.exists():
        # rename cannot replace a folder that is not empty; the old one steps aside for the moment in between.
        aside = target.with_name(_ASIDE + target.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(target, aside)
        os.replace(staging, target)
        shutil.rmtree(aside)
    else:
        os.replace(staging, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def explain_write_failure(error: BaseException) -> str | None:
    """A cause that the user can mend, or None. torch and safetensors wrap the system's error in their own types."""
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{error.filename or 'a file'} cannot be written; mend its permissions or choose another output_dir"
    text = str(error).lower()
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "no space left" in text or "file write failed" in text or "unexpected pos" in text:
        return "the disk is full; free space, lower checkpoints.keep_last, or choose another output_dir"
    return None


def what_is_left(folder: Path) -> str:
    """What a run that ends here can go on from."""
    previous = list_checkpoints(folder)
    return f"the previous checkpoint is whole: {previous[-1]}" if previous else "there is no earlier checkpoint"


def named_folder(path: Path) -> Path:
    """What a path into a run means: the run for its `checkpoints`, or `last` in there, and its folder for a file."""
    if path.is_file() and path.suffix != ".gguf":
        inside = (path.parent / MANIFEST).is_file() or bool(list_checkpoints(path.parent / CHECKPOINTS))
        return path.parent if inside else path
    if path.name == "last" and path.parent.name == CHECKPOINTS and not path.exists():  # LeRobot's name for the newest
        path = path.parent
    return path.parent if path.name == CHECKPOINTS and list_checkpoints(path) else path


def no_such_folder(path: Path) -> str:
    """What is said of a path that is not there, with the checkpoints that are."""
    found = ", ".join(each.name for each in list_checkpoints(path.parent))
    return f"no such checkpoint; here are {found}" if found else "no such folder"


def find_weights(checkpoint: str, *, key: str = "checkpoint") -> str:
    """The folder that holds the weights (of a run directory: its newest whole checkpoint), or a hub id as it is.

    Of a checkpoint it is the weights that must be whole.

    Args:
        checkpoint: Folder or hub id.
        key: What the user calls it.

    Raises:
        CheckpointError: No such folder, a run directory without a whole checkpoint, or a damaged checkpoint.
    """
    path = named_folder(Path(checkpoint).expanduser())
    if not path.is_dir():
        if checkpoint.count("/") != 1 or path.is_absolute() or checkpoint.startswith((".", "~")):
            raise CheckpointError(f"{key}={checkpoint}: {no_such_folder(path)}")
        return checkpoint
    if (path / MANIFEST).is_file():
        verify_checkpoint(path, weights_only=True)
    elif (path / CHECKPOINTS).is_dir():
        newest, refused = newest_whole_checkpoint(path / CHECKPOINTS, weights_only=True)
        if newest is None:
            raise CheckpointError(refused[0] if refused else f"{key}={checkpoint}: the run has no checkpoint yet")
        return str(newest)
    return str(path)
