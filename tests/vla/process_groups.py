"""What a killed command may leave behind."""

from __future__ import annotations

import os
import time


def wait_until_gone(group: int, seconds: float) -> None:
    """Until the last process of a group has ended.

    Raises:
        AssertionError: one of them is there after all this time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    raise AssertionError("a worker outlives its parent")
