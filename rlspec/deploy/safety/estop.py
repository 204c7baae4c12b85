"""The emergency stop: a key, a file, a signal or a call closes the gate for good, within milliseconds."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rlspec.deploy.safety.gate import Gate
from rlspec.errors import ConfigError

SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal is gone
KEYS = " qQ\x1b"
_POLL = 0.02  # seconds between looks at the file


class EStop:
    """Watches for reasons to stop, in a thread of its own; the loop's thread only reads `Gate.tripped`."""

    def __init__(self, gate: Gate, file: Path | None = None, *, keyboard: bool = False, signals: bool = False) -> None:
        """Prepare.

        Args:
            gate: What is closed.
            file: Its appearance is an e-stop.
            keyboard: Whether keys of the terminal are; ignored where stdin is none.
            signals: Whether SIGUSR1, SIGINT, SIGTERM and SIGHUP are; main thread only.

        Raises:
            ConfigError: The file exists already.
        """
        if file is not None and file.exists():
            raise ConfigError(f"{file}: the e-stop file exists: remove it before a new run")
        self._gate, self._file = gate, file
        self._keyboard = keyboard and sys.stdin is not None and sys.stdin.isatty()
        self._signals = signals
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._ended = False
        self._thread = threading.Thread(target=self._watch, name="e-stop", daemon=True)
        self._restore: list[Callable[[], object]] = []

    def start(self) -> None:
        """Begin to watch."""
        if self._keyboard:
            terminal = sys.stdin.fileno()
            before: list[Any] = termios.tcgetattr(terminal)
            self._restore.append(lambda: termios.tcsetattr(terminal, termios.TCSADRAIN, before))
            tty.setcbreak(terminal)  # keys without Enter; Ctrl-C still signals
        if self._signals:
            for number in SIGNALS:
                self._restore.append(partial(signal.signal, number, signal.signal(number, self._on_signal)))
        self._thread.start()

    def trigger(self, reason: str = "called") -> None:
        """Stop now: the callback. Returns at once; safe in a signal handler and from any thread."""
        self._gate.latch(f"e-stop: {reason}")
        self._wake()

    def close(self) -> None:
        """Watch no more; terminal and signal handlers are as before."""
        self._ended = True
        for undo in reversed(self._restore):
            undo()
        self._restore.clear()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        os.close(self._reader)
        os.close(self._writer)

    def _wake(self) -> None:
        try:
            os.write(self._writer, b"!")
        except BlockingIOError:
            return  # full: the thread is awake

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.trigger(f"signal {signal.Signals(number).name}")

    def _watch(self) -> None:
        try:
            self._look()
        except Exception as error:  # a watcher that cannot see must not look like one that sees nothing
            self._gate.latch(f"e-stop: its watcher failed: {type(error).__name__}: {error}")
            self._gate.halt()

    def _look(self) -> None:
        sources = [self._reader, *([sys.stdin.fileno()] if self._keyboard else [])]
        while not self._ended:
            ready, _, _ = select.select(sources, [], [], _POLL)
            if self._keyboard and sys.stdin.fileno() in ready and not self._read_key():
                sources = sources[:1]
            if self._file is not None and self._file.exists():
                self._gate.latch(f"e-stop: file {self._file}")
            if self._gate.tripped:
                self._gate.halt()
                return

    def _read_key(self) -> bool:
        """Whether the terminal is still there."""
        typed = os.read(sys.stdin.fileno(), 16).decode(errors="ignore")
        if set(typed) & set(KEYS):
            self._gate.latch(f"e-stop: key {next(key for key in typed if key in KEYS)!r}")
        return bool(typed)
