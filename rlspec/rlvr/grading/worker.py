"""One grading process: `python -m rlspec.rlvr.grading.worker LIMIT PARENT [cold]`, frames on stdin and stdout.

Two processes in fact. The *keeper* imports computer algebra once and forks the *grader*, which answers. The grader
arms two of the kernel's timers before every item: an item that uses the processor for half of LIMIT seconds is ended
by SIGPROF, one that has not had it for so long after LIMIT seconds by SIGALRM, even inside a big-number routine that
never returns to Python, and even if the parent is dead by then. The keeper reports which (a timeout is the answer's
fault, a starved grader is the machine's) and forks the next grader within milliseconds. (Forking is safe here: the
keeper has one thread and no torch.) Any other death ends the keeper too, and the pool starts a new one.

The grader ends at the end of stdin, that is when its parent dies, however that happened.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from typing import Any

from rlspec.rlvr.grading.compare import grade_answer, grade_completion
from rlspec.rlvr.grading.frames import Channel, ChannelClosed, ChannelTimeout, pack
from rlspec.rlvr.grading.question import Question
from rlspec.rlvr.grading.verdict import Reason, Verdict

BARE, COMPLETION, THINKING = 0, 1, 2
MEMORY = 2 << 30  # bytes of address space for the grader
IDLE_CHECK = 5.0  # seconds between two looks whether the parent lives
OWN_SHARE = 0.5  # of the limit, in processor time: beyond it the answer is at fault, and not a busy machine
_FIRST_PROOFS = (("x=y", "y=x"), ("x+1", r"\frac{x^2-1}{x-1}"), (r"\sqrt{8}+x", r"x+2\sqrt{2}"))
_ENDINGS: dict[int, str] = {signal.SIGPROF: "timeout", signal.SIGALRM: "starved"}
_NEEDS_ALGEBRA = 75  # exit status of a cold grader that met its first symbolic question


class _NeedsAlgebra(Exception):
    """A cold grader cannot answer; the keeper must import computer algebra first."""


def _refuse_to_prove(question: Question) -> Reason:
    raise _NeedsAlgebra


def main(argv: list[str]) -> int:
    """Import, report `ready`, keep a grader alive until stdin ends."""
    limit, parent, warm = float(argv[0]), int(argv[1]), argv[2:] != ["cold"]
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not look like a frame
    if warm:
        _import_algebra()
    _silence()
    while True:
        pid = os.fork()
        if pid == 0:
            os._exit(_serve(replies, limit, parent, warm))
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in _ENDINGS:
            _write(replies, _ENDINGS[os.WTERMSIG(status)])
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == _NEEDS_ALGEBRA:
            _write(replies, "warming")
            _import_algebra()
            warm = True
        else:
            return 0 if status == 0 else 1


def _import_algebra() -> None:
    """Import computer algebra, and what it imports in its first proofs: a grader has no time for that."""
    import rlspec.rlvr.grading.symbolic  # noqa: F401

    for text, gold in _FIRST_PROOFS:
        _answer(BARE, text, gold, True)


def _silence() -> None:
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)


def _write(descriptor: int, message: Any) -> None:
    os.set_blocking(descriptor, True)
    os.write(descriptor, pack(message))


def _serve(replies: int, limit: float, parent: int, warm: bool) -> int:
    """The grader: answer frames of items until stdin ends. Returns the exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_DFL)
    channel = Channel(0, replies)
    keeper = os.getppid()
    try:
        channel.send("ready")
        while True:
            items = _next(channel, keeper, parent)
            for mode, text, gold in items:
                _set_timers(limit)
                answer = _answer(mode, text, gold, warm)
                _set_timers(0)
                channel.send(answer)
    except _NeedsAlgebra:
        _set_timers(0)
        return _NEEDS_ALGEBRA
    except ChannelClosed:
        return 0


def _set_timers(limit: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, OWN_SHARE * limit)
    signal.setitimer(signal.ITIMER_REAL, limit)


def _next(channel: Channel, keeper: int, parent: int) -> list[tuple[int, str, str]]:
    while True:
        try:
            return channel.receive(time.monotonic() + IDLE_CHECK)
        except ChannelTimeout:
            if os.getppid() != keeper or not _alive(parent):
                raise ChannelClosed("orphaned") from None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _answer(mode: int, text: str, gold: str, warm: bool) -> tuple[str, str | None, int]:
    """Reason, extracted text and boxes of one item; a failure of the grader is a reason of its own."""
    prove = None if warm else _refuse_to_prove
    try:
        if mode == BARE:
            verdict = grade_answer(text, gold, prove=prove)
        else:
            verdict = grade_completion(text, gold, thinking=mode == THINKING, prove=prove)
    except (MemoryError, RecursionError):
        verdict = Verdict.of("budget")
    except _NeedsAlgebra:
        raise
    except Exception:  # the reason is counted by the pool, and the sample excluded
        verdict = Verdict.of("grader_error")
    return verdict.reason, None if mode == BARE else verdict.extracted, verdict.boxes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
