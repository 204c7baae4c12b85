"""The end of a process waits for threads that are in a driver, and not for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(("busy", "said"), [("time.sleep(0.5)", "back\n"), ("hang.wait()", "")])
def test_a_thread_in_a_driver_comes_back_before_the_interpreter_ends(busy: str, said: str) -> None:
    code = f"""
import threading, time
from rlspec import native_threads
hang = threading.Event()
def drive():
    {busy}
    print("back", flush=True)
thread = threading.Thread(target=drive, daemon=True)
thread.start()
native_threads.AT_EXIT = 30.0 if {bool(said)} else 0.1
native_threads.leave(thread, 0.0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
