"""One line a second on the terminal, from a thread of its own: the loop never waits for a terminal."""

from __future__ import annotations

import threading

from rlspec.deploy.loop import Loop
from rlspec.display import Display


class StatusLine:
    """Reads the loop's counts; writes lines."""

    def __init__(self, loop: Loop, display: Display, *, every: float = 1.0) -> None:
        self._loop, self._display, self._every = loop, display, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begin to show."""
        self._thread.start()

    def close(self) -> None:
        """Show no more."""
        self._ended.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            self._display.line(describe(self._loop))


def describe(loop: Loop) -> str:
    """`run    12.0 s  late 0.1 ms  inference 45 ms  chunk 12  held 0  stops 0  changed 3`."""
    outcome = loop.outcome
    seconds = (outcome.ticks + outcome.missed) / loop.parts.control_hz
    recent = outcome.late[-int(loop.parts.control_hz) :]
    inference = loop.parts.asker.inference_ms
    words = [
        f"{loop.phase:5} {seconds:6.1f} s",
        f"late {1e3 * max(recent, default=0.0):.1f} ms",
        "inference -" if inference is None else f"inference {inference:.0f} ms",
        f"actions {outcome.fresh}",
        f"held {outcome.holds}",
        f"stops {outcome.stops}",
        f"changed {sum(outcome.changed.values())}",
    ]
    if loop.parts.muted and loop.would_send is not None:
        words.append("would send " + " ".join(f"{angle:+.2f}" for angle in loop.would_send))
    if loop.last_event:
        words.append(f"({loop.last_event})")
    return "  ".join(words)
