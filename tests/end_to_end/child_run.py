"""A run in a process of its own, followed by what it shows. A run that hangs is ended by the test's timeout alone."""

from __future__ import annotations

import subprocess
from typing import IO


def shown(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def wait_for_step(process: subprocess.Popen[str], step: int, total: int) -> None:
    """Wait until the run shows that step: checkpoints of earlier steps are there, its own is written next."""
    beginning = f"step {step:>{len(str(total))}}/{total}"
    lines = []
    for line in shown(process):
        lines.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("the run ended before:\n" + "".join(lines[-30:]))
