"""A server in the foreground: from the first line of its log to the signal that ends it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable

from rlspec.errors import INTERRUPTED
from rlspec.serving.policy import BatchPolicy, summary
from rlspec.serving.server import PolicyServer
from rlspec.serving.settings import ServerSettings, is_loopback

_SWITCH_S = 0.0005  # the policy's thread yields to the event loop as soon; Python's default is 5 ms


def serve_policy(policy: BatchPolicy, settings: ServerSettings) -> int:
    """Serve until SIGTERM (returns 0) or SIGINT (returns 130).

    Raises:
        ConfigError: The settings cannot work, or the address is taken.
    """
    sys.setswitchinterval(_SWITCH_S)
    return asyncio.run(_serve(policy, settings, write_log))


def write_log(line: str) -> None:
    """A line with the time on stdout. Who started the server may have gone away since."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stdout.flush()


async def _serve(policy: BatchPolicy, settings: ServerSettings, log: Callable[[str], None]) -> int:
    server = PolicyServer(policy, settings, log)
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, signals.put_nowait, number)
    await server.start()
    for name, text in summary(policy.spec).items():
        log(f"{name:8} {text}")
    if not is_loopback(settings.host):
        log(f"warning: others can reach {settings.host}; {_openness(settings)}")
    log(f"serving  {server.url} (Ctrl-C ends it)")
    first = await signals.get()
    log("ending: requests in flight are answered first; a second signal ends at once")
    stopping = asyncio.ensure_future(server.stop())
    hurry = asyncio.ensure_future(signals.get())
    await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopping, hurry):
        task.cancel()
    server.abandon()
    log("ended")
    return INTERRUPTED if first == signal.SIGINT else 0


def _openness(settings: ServerSettings) -> str:
    token = "a token is required" if settings.secret else "NO TOKEN is required"
    return f"{token}, {'by TLS' if settings.tls_cert else 'pictures and token are NOT encrypted (no tls_cert)'}"
