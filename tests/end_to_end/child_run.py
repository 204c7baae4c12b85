"""A run in a process of its own, followed by what it shows. A run that hangs is ended by the test's timeout alone."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import IO, Any


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


def digits(completions: Sequence[Any], **_: Any) -> list[float]:
    """A reward in TRL's signature: the share of digits in a completion."""
    texts = [completion[-1]["content"] for completion in completions]
    return [sum(character.isdigit() for character in text) / (len(text) or 1) for text in texts]
