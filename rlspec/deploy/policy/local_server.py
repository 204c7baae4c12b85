"""checkpoint=DIR: a policy server of our own on this machine, which ends with us, however we end."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rlspec.errors import ServerError

_ADDRESS = re.compile(r"wss?://[\w.\-]+:\d+")
_PR_SET_PDEATHSIG = 1


class LocalServer:
    """`python -m rlspec.serve checkpoint=DIR` as a child, on a free port of the loopback, with a secret token."""

    def __init__(self, checkpoint: str, *, patience: float = 300.0, command: list[str] | None = None) -> None:
        """Start it and wait until it serves: loading may take minutes.

        Args:
            checkpoint: Folder.
            patience: Seconds until it must serve.
            command: To start instead, in tests.

        Raises:
            ServerError: It ended, or does not serve; with its last words.
        """
        self.token = secrets.token_urlsafe(24)
        self._folder = tempfile.TemporaryDirectory(prefix="rlspec-")
        secret = Path(self._folder.name) / "token"
        secret.touch(mode=0o600)
        secret.write_text(self.token, encoding="utf-8")  # not among the arguments, which every user can list
        arguments = [f"checkpoint={checkpoint}", "host=127.0.0.1", "port=0", f"token_file={secret}"]
        self._process = subprocess.Popen(
            command or [sys.executable, "-u", "-m", "rlspec.serve", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=_end_with_parent(os.getpid()),
            start_new_session=True,  # Ctrl-C is for us; we end the child
        )
        self._lines: deque[str] = deque(maxlen=50)
        self._address = ""
        self._found = threading.Event()
        threading.Thread(target=self._read, name="server output", daemon=True).start()
        self.url = self._wait(patience)

    def close(self) -> None:
        """End the server; one that does not within three seconds is killed."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> LocalServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip())
            found = _ADDRESS.search(line)
            if found and not self._address:
                self._address = found[0]
                self._found.set()
        self._found.set()

    def _wait(self, patience: float) -> str:
        start = time.monotonic()
        self._found.wait(patience)
        if self._address:
            return self._address
        seconds = time.monotonic() - start
        self.close()
        last = next((line for line in reversed(self._lines) if line), "it said nothing")
        raise ServerError(f"the policy server does not serve after {seconds:.0f} s: {last}")


def _end_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # died in between
                os._exit(1)

    return prepare
