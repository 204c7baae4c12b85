"""What all writers of data sets do alike: one process at a time, errors of the file system as one line, staging."""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlspec.display import Display
from rlspec.errors import DataError

_REFUSALS = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def writing(out: Path, kept: str) -> Iterator[None]:
    """Errors of the file system as one line.

    Args:
        out: folder that is written, or will be.
        kept: what an earlier part of the work is called, which is not lost ("what was collected").
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or error.errno in _REFUSALS:
            reason = "the disk is full; free space" if full else f"cannot be written ({error.strerror}); mend that"
            raise DataError(f"{out}: {reason}, or choose another folder; {kept} is kept") from error
        raise


@contextmanager
def locked(work: Path, display: Display, name: str) -> Iterator[None]:
    """One process at a time; the lock ends with the process that holds it, however it ends.

    Args:
        work: folder that is written.
        display: says that another process holds it.
        name: of the command, before its lines.
    """
    with work.with_name(f"{work.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            display.line(f"{name}: another process is writing these; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_settings(path: Path) -> dict[str, Any] | None:
    """A JSON file; None where there is none or it was cut short."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content


def first_difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """`seed (4 instead of 9)`: the first wanted setting that is stored otherwise; of a mapping, its first such key."""
    for key in wanted:
        old, new = stored.get(key), wanted[key]
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            inner = first_difference({**dict.fromkeys(new), **old}, {**dict.fromkeys(old), **new})
            if inner is not None:  # None: a key that is null on one side and left out on the other
                return inner
        return f"{key} ({json.dumps(old)} instead of {json.dumps(new)})"
    return None
