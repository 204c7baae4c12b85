"""The tick log: complete after a crash, after a full disk, and readable as JSON whatever was in it."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlspec.deploy.log.ticklog import TickLog
from rlspec.errors import ConfigError


def lines_of(path: Path) -> list[dict[str, Any]]:
    def refuse(text: str) -> None:
        raise ValueError(text)

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_header_ticks_footer(tmp_path: Path) -> None:
    log = TickLog(tmp_path / "a" / "ticks.jsonl", {"robot": "dry_run"})
    log.put({"tick": 0, "requested": np.array([1.0, math.nan, math.inf]), "n": np.float32(0.5), "reasons": ("a",)})
    assert log.close({"outcome": "time"}) == ""
    first, tick, last = lines_of(log.path)
    assert first == {"header": {"robot": "dry_run"}}
    assert tick == {"tick": 0, "requested": [1.0, None, None], "n": 0.5, "reasons": ["a"]}
    assert last == {"footer": {"outcome": "time"}}


def test_an_old_log_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "ticks.jsonl").write_text("precious")
    with pytest.raises(ConfigError, match="exists: choose another folder"):
        TickLog(tmp_path / "ticks.jsonl", {})
    assert (tmp_path / "ticks.jsonl").read_text() == "precious"


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TickLog(tmp_path / "ticks.jsonl", {})
    intact = os.write
    room = [400]

    def write(file: int, data: bytes) -> int:
        if file != log._file:
            return intact(file, data)
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = intact(file, data[: room[0]])  # a disk that fills up takes a part of a line
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    for tick in range(100):
        log.put({"tick": tick, "words": "x" * 20})
        time.sleep(0.0005)
    end = time.monotonic() + 20
    while not log.error and time.monotonic() < end:
        time.sleep(0.01)
    assert "No space left on device: the log cannot be written, so the robot stops" in log.error
    assert "\n" not in log.error
    elsewhere = Path(log.close({"outcome": "fault"}))
    written, rescued = lines_of(log.path), lines_of(elsewhere)
    elsewhere.unlink()
    assert [line["tick"] for line in (written + rescued)[1:-1]] == list(range(100))
    assert rescued[-1] == {"footer": {"outcome": "fault"}}


def test_disk_with_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TickLog(tmp_path / "ticks.jsonl", {})
    intact, full = os.write, [True]

    def write(file: int, data: bytes) -> int:
        if full[0] and file == log._file:
            raise OSError(errno.ENOSPC, "No space left on device")
        return intact(file, data)

    monkeypatch.setattr(os, "write", write)
    log.put({"tick": 0})
    end = time.monotonic() + 20
    while not log.error and time.monotonic() < end:
        time.sleep(0.01)
    full[0] = False
    assert log.close({}) == ""
    assert [next(iter(line)) for line in lines_of(log.path)] == ["header", "tick", "footer"]


def test_killed_process_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "ticks.jsonl"
    code = (
        "import sys, time; from pathlib import Path; from rlspec.deploy.log.ticklog import TickLog\n"
        f"log = TickLog(Path({str(path)!r}), {{}})\n"
        "for tick in range(10**6):\n"
        "    log.put({'tick': tick, 'words': 'x' * 200}); time.sleep(0.001)\n"
        "    tick == 50 and print('fifty', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    end = time.monotonic() + 20
    while path.read_bytes().count(b"\n") < 60 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    text = path.read_text()
    assert text.endswith("\n")
    ticks = [line["tick"] for line in lines_of(path)[1:]]
    assert ticks == list(range(len(ticks)))
    assert len(ticks) > 50


def test_what_json_does_not_know_is_written_as_text(tmp_path: Path) -> None:
    log = TickLog(tmp_path / "ticks.jsonl", {"metadata": {"key": b"\x01"}})
    assert log.close({"outcome": "time"}) == "" and log.error == ""
    lines = (tmp_path / "ticks.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["header"]["metadata"]["key"] == "b'\\x01'" and len(lines) == 2
