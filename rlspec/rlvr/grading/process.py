"""The parent's end of one grading process: start it, talk to it, notice its death, replace it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlspec.errors import UserError
from rlspec.rlvr.grading.frames import Channel, ChannelClosed, ChannelTimeout
from rlspec.rlvr.grading.verdict import Verdict

Item = tuple[int, str, str]
"""Mode (see `worker`), completion or answer, gold."""

WORKER = "rlspec.rlvr.grading.worker"
STARTUP = 120.0  # seconds that importing computer algebra may take on a busy machine
STARTS = 3  # tries before giving up
INNER_SHARE = 0.8  # of the timeout, after which the process ends itself
OUTER_SHARE = 0.93  # of the timeout, after which it is killed from outside

_ROOT = str(Path(__file__).resolve().parents[3])


class GraderUnavailable(UserError):
    """The grading process does not start."""


class GraderProcess:
    """One `rlspec.rlvr.grading.worker` with its pipes. Not thread-safe: one owner at a time."""

    def __init__(self, timeout: float, *, warm: bool) -> None:
        self.timeout, self.warm = timeout, warm
        self.restarts = 0
        self._ready = self._ended = False
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the keeper, which is also its process group."""
        return self._process.pid

    def grade(self, items: Sequence[Item]) -> list[Verdict]:
        """Verdicts in order, one for every item, whatever the items do to the process.

        A grader that works too long on an item is ended by its own timer: `timeout`. An item that is being worked on
        when the process dies otherwise gets one more try in a new process, then `grader_error`. An item whose process
        had no processor for so long, or stays silent (a busy machine's fault), is a `grader_error` at once.

        Raises:
            GraderUnavailable: the process does not start.
        """
        verdicts: list[Verdict] = []
        suspect = -1
        while len(verdicts) < len(items):
            self.wait_ready()
            try:
                self._exchange(items, verdicts)
            except ChannelTimeout:
                verdicts.append(_fallen("grader_error", items[len(verdicts)]))
                self._replace()
            except ChannelClosed:
                if suspect == len(verdicts):
                    verdicts.append(_fallen("grader_error", items[suspect]))
                else:
                    suspect = len(verdicts)
                self._replace()
        return verdicts

    def wait_ready(self) -> None:
        """Wait until the process can grade.

        Raises:
            GraderUnavailable: it ended or stayed silent `STARTS` times.
        """
        for attempt in range(STARTS):
            if self._ready:
                return
            try:
                while not self._ready:
                    self._ready = self._channel.receive(time.monotonic() + STARTUP) == "ready"
            except (ChannelClosed, ChannelTimeout):
                said = self._last_words()
                if attempt == STARTS - 1:
                    raise GraderUnavailable(
                        f"the grading process does not start: {said or 'it says nothing'};"
                        " is math-verify installed (the `train` extra)?"
                    ) from None
                self._replace()

    def kill(self) -> None:
        """End the process for good; safe from any thread. The owner's `grade` fails, and no new process is started."""
        self._ended = True
        self._kill()

    def close(self) -> None:
        """End the process and whatever it started, at once, and free its pipes; for the owner only."""
        self._kill()
        for stream in (self._process.stdin, self._process.stdout, self._words):
            if stream is not None:
                stream.close()
        self._process.wait()
        self._ready = False

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _exchange(self, items: Sequence[Item], verdicts: list[Verdict]) -> None:
        """Send what has no verdict yet and read answers, until all are there or the process wants a pause."""
        self._channel.send(items[len(verdicts) :], self._deadline())
        while len(verdicts) < len(items):
            answer = self._channel.receive(self._deadline())
            if answer in ("timeout", "starved", "warming"):
                self._ready = False
                if answer != "warming":
                    self.restarts += 1
                    reason = "timeout" if answer == "timeout" else "grader_error"
                    verdicts.append(_fallen(reason, items[len(verdicts)]))
                return
            reason, extracted, boxes = answer
            mode, text, _ = items[len(verdicts)]
            verdicts.append(Verdict.of(reason, text if mode == 0 else extracted, boxes))

    def _deadline(self) -> float:
        return time.monotonic() + OUTER_SHARE * self.timeout

    def _replace(self) -> None:
        if self._ended:
            raise GraderUnavailable("the grading process was closed")
        self.restarts += 1
        self.close()
        self._start()

    def _start(self) -> None:
        arguments = [str(INNER_SHARE * self.timeout), str(os.getpid()), *([] if self.warm else ["cold"])]
        self._words: Any = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the parent; and the whole group can be killed
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno())
        self._ready = False

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _fallen(reason: Any, item: Item) -> Verdict:
    mode, text, _ = item
    return Verdict.of(reason, text if mode == 0 else None)


def _environment() -> dict[str, str]:
    """The parent's environment; rlspec importable from here, sympy's order of terms the same in every run."""
    path = os.pathsep.join(part for part in (_ROOT, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
