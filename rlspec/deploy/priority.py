"""Real-time priority for the loop, where the system permits it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rlspec.display import Display

_LOOP, _OTHERS = 20, 10  # of SCHED_FIFO: above everything ordinary, below drivers and the kernel's own threads


@contextmanager
def real_time_priority(wanted: bool | None, display: Display) -> Iterator[None]:
    """SCHED_FIFO for this thread and, below it, for the process's other threads.

    Those hold Python's lock now and then: one that an ordinary process pushes aside meanwhile would keep the loop from
    running. Threads and processes that are started later are ordinary.

    Args:
        wanted: False: no. None: where it is permitted. True: warn where it is not.
        display: For the warning.
    """
    if wanted is False or not hasattr(os, "sched_setscheduler"):
        yield
        return
    raised: list[int] = []
    try:
        _raise(threading.get_native_id(), _LOOP, raised)
        for thread in threading.enumerate():
            if thread.native_id is not None:
                _raise(thread.native_id, _OTHERS, raised)
    except OSError as error:
        if wanted:
            display.warn(f"realtime=true: {error.strerror}; allow rtprio in /etc/security/limits.d, or leave it out")
    try:
        yield
    finally:
        for thread_id in raised:
            _lower(thread_id)


def _raise(thread_id: int, priority: int, raised: list[int]) -> None:
    if os.sched_getscheduler(thread_id) == os.SCHED_OTHER:
        os.sched_setscheduler(thread_id, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        raised.append(thread_id)


def _lower(thread_id: int) -> None:
    try:
        os.sched_setscheduler(thread_id, os.SCHED_OTHER, os.sched_param(0))
    except ProcessLookupError:
        return  # it has ended
