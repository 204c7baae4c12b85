"""The parent's end of keepers: several processes that run programs, behind one object."""

from __future__ import annotations

import json
import os
import queue
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rlspec.errors import ConfigError, UserError
from rlspec.rlvr.verifiers.keeper import PATIENCE

_ROOT = str(Path(__file__).resolve().parents[3])
_START = (
    f"import sys; sys.path.insert(0, {_ROOT!r}); from rlspec.rlvr.verifiers.keeper import main; del sys.path[0]; main()"
)
_STARTUP = 120.0  # seconds, on a busy machine
_SLACK = 10.0  # seconds beyond a program's own time in which the keeper must answer
_STARTS = 3


@dataclass(frozen=True)
class ProgramJob:
    """One run of one program.

    Attributes:
        code: its text.
        kind: `program` reads standard input and writes standard output; `call` calls a function of it; `script` runs
            tests in its namespace.
        input: standard input.
        function: of a call.
        arguments: of a call.
        script: the tests.
        seconds: of wall time, less that in which no processor was free for it.
        memory: bytes of address space.
        output: bytes of standard output.
        files: bytes of all files that it may leave in its folder.
    """

    code: str
    kind: Literal["program", "call", "script"]
    input: str = ""
    function: str = ""
    arguments: Sequence[Any] = ()
    script: str = ""
    seconds: float = 10.0
    memory: int = 512 << 20
    output: int = 64 << 10
    files: int = 1 << 20


@dataclass(frozen=True)
class ProgramEnd:
    """How a run ended.

    Attributes:
        how: `exit`, `signal`, `timeout`, `output` (too much of it), `files` (too much in them), or `lost`: the keeper
            failed or the machine was too busy, and nothing is known of the program.
        status: exit status, or the signal's number.
        written: to standard output, cut to the limit.
        result: what a call returned, as JSON has it; True after a script that came through.
        reported: whether there is a result.
        error: the exception that ended it, in one line.
    """

    how: Literal["exit", "signal", "timeout", "output", "files", "lost"]
    status: int = 0
    written: str = ""
    result: Any = None
    reported: bool = False
    error: str = ""


class Sandbox:
    """`workers` keepers; use it from any thread, and close it."""

    def __init__(self, workers: int) -> None:
        self._keepers: queue.SimpleQueue[_Keeper] = queue.SimpleQueue()
        self._all = [_Keeper() for _ in range(workers)]
        for keeper in self._all:
            self._keepers.put(keeper)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")

    def map[Item, Result](self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`work` on every item, on as many threads as there are keepers, in order."""
        return list(self._threads.map(work, items))

    def run(self, job: ProgramJob) -> ProgramEnd:
        """Run one program in the next free keeper."""
        keeper = self._keepers.get()
        try:
            return keeper.run(job)
        finally:
            self._keepers.put(keeper)

    def close(self) -> None:
        """End the keepers and what they run."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for keeper in self._all:
            keeper.end()


class _Keeper:
    """One keeper process, started anew where it fails."""

    def __init__(self) -> None:
        self._network = False
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._words: Any = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0"},
            start_new_session=True,  # Ctrl-C is for the parent
        )
        self._ready = False
        self._rest = b""

    def ready(self) -> bool:
        """Wait until it can run programs; whether it has a network of its own.

        Raises:
            UserError: It does not start.
        """
        for _ in range(_STARTS):
            if self._ready:
                return self._network
            answer = self._receive(time.monotonic() + _STARTUP)
            if answer is not None:
                self._ready, self._network = True, bool(answer["network"])
            else:
                self._words.seek(0)
                said = self._words.read().decode("utf-8", "replace").strip().splitlines()
                self._replace()
        if not self._ready:
            raise UserError(f"reward=python: the sandbox does not start: {said[-1] if said else 'it says nothing'}")
        return self._network

    def run(self, job: ProgramJob) -> ProgramEnd:
        """One job; a keeper that does not answer is replaced."""
        self.ready()
        try:
            assert self._process.stdin is not None
            token = secrets.token_hex(8)
            self._process.stdin.write(json.dumps({**asdict(job), "token": token}).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._receive(time.monotonic() + PATIENCE * job.seconds + _SLACK)
        except OSError:
            answer = None
        if answer is None:
            if not self._closed:
                self._replace()
            return ProgramEnd("lost")
        report = _last_report(answer["said"], token)
        return ProgramEnd(
            answer["end"],
            answer["status"],
            answer["written"],
            report.get("result"),
            "result" in report,
            str(report.get("error", "")),
        )

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(descriptor, 1 << 16) if ready else b""
            if not part:
                return None
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def _replace(self) -> None:
        self._stop()
        self._start()

    def end(self) -> None:
        """For good."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout, self._words):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process.wait()


def _last_report(said: str, token: str) -> dict[str, Any]:
    """The last line that the child's frame wrote; a result without the token is the program's own invention."""
    for line in reversed(said.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and ("result" not in found or found.get("token") == token):
                return found
    return {}


def check_machine(missing: Sequence[str], *, weaker: bool) -> None:
    """Refuse to run what cannot be held, unless the user wants it.

    Raises:
        ConfigError: With what is lacking.
    """
    if missing and not weaker:
        raise ConfigError(
            f"reward=python: this machine cannot confine {' and '.join(missing)} of a program (Linux with Landlock "
            "on x86_64 or aarch64 can); use such a machine, or accept it with reward.options.weaker=true"
        )
