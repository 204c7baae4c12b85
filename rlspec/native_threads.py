"""Threads that are in a library's C++ code, a driver's or torch's, while their process wants to end."""

from __future__ import annotations

import atexit
import threading
import time

AT_EXIT = 5.0
"""Seconds that the end of the process waits for such threads; one that hangs for good does no harm."""

_left: set[threading.Thread] = set()


def leave(thread: threading.Thread, patience: float) -> None:
    """Wait for a daemon thread for so many seconds, and once more before the interpreter ends.

    Python before 3.14 unwinds a thread that comes back from C++ while the interpreter ends, through frames that may not
    be unwound: the process dies with SIGABRT ("terminate called without an active exception").
    """
    if thread.is_alive():
        thread.join(patience)
    if thread.is_alive():
        _left.add(thread)


@atexit.register
def _wait() -> None:
    end = time.monotonic() + AT_EXIT
    for thread in _left:
        thread.join(max(0.0, end - time.monotonic()))
