"""The process that runs programs: it reads a job per line, forks a confined child for each, and writes what came out.

It knows no expected output, so that no program can find one in its memory. `python -I -S`, standard library alone.
"""

from __future__ import annotations

import atexit
import builtins
import json
import os
import select
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

from rlspec.rlvr.verifiers.jail import Limits, confine, leave_network

PATIENCE = 5  # times its own time, for a program on a busy machine
_LOOK = 0.02  # seconds between two looks at a running program
_RESULT = 3  # file descriptor on which the child reports
_MOST_RESULT = 1 << 20
_MOST_FILES = 10_000

Job = dict[str, Any]


def main() -> None:
    """Answer jobs until standard input ends."""
    answers = os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    _say(answers, {"ready": True, "network": leave_network()})
    for line in sys.stdin:
        _say(answers, run(json.loads(line)))


def _say(descriptor: int, answer: dict[str, Any]) -> None:
    data = (json.dumps(answer) + "\n").encode()
    while data:
        data = data[os.write(descriptor, data) :]


def run(job: Job) -> dict[str, Any]:
    """Run one program; returns how it ended (the keys of `ProgramEnd.how`) and what it wrote."""
    folder = tempfile.mkdtemp(prefix="rlspec-program-")
    try:
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as written:
            given.write(job["input"].encode("utf-8", "surrogatepass"))
            given.seek(0)
            receive, send = os.pipe()
            child = os.fork()
            if child == 0:
                _become(job, folder, given.fileno(), written.fileno(), send)
            os.close(send)
            end, status, said = _wait(child, job, folder, written.fileno(), receive)
            os.close(receive)
            written.seek(0)
            text = written.read(job["output"]).decode("utf-8", "replace")
        return {"end": end, "status": status, "written": text, "said": said.decode("utf-8", "replace")}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(child: int, job: Job, folder: str, written: int, receive: int) -> tuple[str, int, bytes]:
    """Watch the child until it ends or has to be ended."""
    handle = os.pidfd_open(child)
    os.set_blocking(receive, False)
    said, end = b"", ""
    start = time.monotonic()
    while not end:
        ready, _, _ = select.select([handle], [], [], min(_LOOK, job["seconds"]))
        said += _read(receive, _MOST_RESULT - len(said))
        if ready:
            break
        passed = time.monotonic() - start
        if passed - _queued(child) >= job["seconds"]:
            end = "timeout"
        elif passed >= PATIENCE * job["seconds"]:
            end = "lost"
        elif os.fstat(written).st_size > job["output"]:
            end = "output"
        elif _size(folder) > job["files"]:
            end = "files"
    if end:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    os.close(handle)
    said += _read(receive, _MOST_RESULT - len(said))
    if os.fstat(written).st_size > job["output"]:
        end = end or "output"
    if not end:
        end = "signal" if os.WIFSIGNALED(status) else "exit"
    code = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return end, code, said


def _queued(child: int) -> float:
    """Seconds in which the child could have run and no processor was free; 0 where the kernel does not count them."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{child}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[1]) / 1e9
    return 0.0


def _read(descriptor: int, most: int) -> bytes:
    data = b""
    with suppress(BlockingIOError):
        while len(data) < most and (part := os.read(descriptor, most - len(data))):
            data += part
    return data


def _size(folder: str) -> float:
    """Bytes of all files in the folder; too many files count as too much."""
    total = count = 0
    for place, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > _MOST_FILES:
            return float("inf")
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _become(job: Job, folder: str, given: int, written: int, send: int) -> None:
    """The child: confine itself, run the program, report, end. Never returns."""
    status = 1
    try:
        for source, target in ((given, 0), (written, 1), (send, _RESULT)):
            os.dup2(source, target)
        os.closerange(_RESULT + 1, 4096)
        os.chdir(folder)
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.__stdin__, sys.__stdout__ = sys.stdin, sys.stdout  # type: ignore[misc]
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.argv = ["program"]
        os.environ.clear()
        sys.setrecursionlimit(10_000)
        limits = Limits(int(job["seconds"]) + 1, job["memory"], max(job["files"], job["output"] + 1))
        confine(folder, limits)
        status = _perform(job)
        if job["kind"] == "program":
            _finish()
    except BaseException as error:  # MemoryError in the flush, a closed file: the program's own doing
        _report({"error": f"{type(error).__name__}: {error}"[:300]})
    finally:
        os._exit(status)


def _report(content: dict[str, Any]) -> None:
    with suppress(BaseException):
        os.write(_RESULT, (json.dumps(content) + "\n").encode())


def _perform(job: Job) -> int:
    """Run the program by its kind; 0 where it came through."""
    names = _namespace("__main__" if job["kind"] == "program" else "solution")
    if job["kind"] != "program":  # its signature was given, with `List` and the like, as in the harnesses of APPS
        exec("from typing import *", names)  # noqa: S102
    try:
        exec(compile(job["code"], "<program>", "exec", dont_inherit=True), names)  # noqa: S102
        if job["kind"] == "call":
            result = _plain(_function(names, job["function"])(*job["arguments"]))
            _report({"result": result, "token": job["token"]})
        elif job["kind"] == "script":
            exec(compile(job["script"], "<tests>", "exec", dont_inherit=True), names)  # noqa: S102
            _report({"result": True, "token": job["token"]})
    except SystemExit as leaving:
        return 0 if job["kind"] == "program" and not leaving.code else 1
    except BaseException as error:
        _report({"error": f"{type(error).__name__}: {error}"[:300]})
        return 1
    return 0


def _namespace(name: str) -> dict[str, Any]:
    """Of a module that dataclasses and pickle find by its name; `exit` and `quit` are there as without `-S`."""
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    module = sys.modules[name] = ModuleType(name)
    return vars(module)


def _finish() -> None:
    """What Python does at a program's end: wait for its threads, call what it registered, write what is buffered."""
    written = sys.__stdout__
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, written):
        if stream is not None:
            stream.flush()


def _function(names: dict[str, Any], name: str) -> Callable[..., Any]:
    """A function of the program, or a method of its class `Solution`."""
    found = names.get(name)
    if found is None and "Solution" in names:
        found = getattr(names["Solution"](), name)
    if not callable(found):
        raise NameError(f"no function {name}")
    return found


def _plain(value: Any) -> Any:
    """A result as JSON has it: tuples are lists, keys are texts."""
    return json.loads(json.dumps(value))
