"""view=true: a page on this machine that shows the run and stops it; it can do nothing else.

The loop leaves what it has in two slots, and never waits: every viewer has threads of its own, which take the newest
and skip what they are too slow for. The only message that is listened to is "stop", which is the e-stop.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import ipaddress
import json
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from rlspec.contract.actions import JOINT_NAMES
from rlspec.deploy.arm.interfaces import Frame
from rlspec.errors import ConfigError

STOP = "stop"
_PERIOD = 0.1  # seconds between two looks at the run
_PICTURES = 2  # looks between two pictures of a camera
_QUALITY = 70
_MOST_VIEWERS = 8
_PAGE = Path(__file__).with_name("page.html")
_MOST_EVENTS = 30
_LOOKS_BACK = 5.0  # seconds of which the page tells what the filter changed
_LOGGER = logging.getLogger("rlspec.deploy.view")  # who comes and goes is no news of the robot
_LOGGER.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class ViewFacts:
    """What does not change during a run: robot and law by name, joint limits as the filter keeps them, (7,) radians."""

    robot: str
    law: str
    prompt: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    control_hz: float
    n_action_steps: int


class View:
    """Serves the page.

    Args:
        facts: Of the run.
        stop: Called with a reason; returns at once.
        address: HOST:PORT; beyond this machine a token is made, without which nothing is shown and nothing stopped.

    Attributes:
        url: Of the page.
        stopped: How often it was told to stop.

    Raises:
        ConfigError: The address is none, or taken.
    """

    def __init__(self, facts: ViewFacts, stop: Callable[[str], None], address: str) -> None:
        from websockets.sync.server import serve

        self._facts, self._stop = facts, stop
        self._line: Mapping[str, Any] = {}
        self._events: tuple[tuple[float, str], ...] = ()
        self._reasons: tuple[tuple[str, ...], ...] = ()
        self._frames: Mapping[str, Frame] = {}
        self._jpegs: dict[str, tuple[float, bytes]] = {}
        self._ended = threading.Event()
        self._viewers, self._lock = 0, threading.Lock()
        self.stopped = 0
        host, port = _address(address)
        self._token = "" if _is_here(host) else secrets.token_urlsafe(16)
        try:
            self._server = serve(
                self._watch,
                host,
                port,
                process_request=self._answer,
                compression=None,
                max_size=1024,
                logger=_LOGGER,
            )
        except OSError as error:
            raise ConfigError(f"view_address={address}: {error.strerror or error}; take another port") from None
        self._port = int(self._server.socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._port}/{f'?token={self._token}' if self._token else ''}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="view", daemon=True)
        self._thread.start()

    def put(self, line: Mapping[str, Any]) -> None:
        """Take the line of a tick; the newest counts, but no event is lost on who looks more seldom."""
        hz = self._facts.control_hz
        self._reasons = (*self._reasons[1 - max(1, round(_LOOKS_BACK * hz)) :], tuple(line.get("reasons") or ()))
        if line.get("event"):
            self._events = (*self._events[1 - _MOST_EVENTS :], (line["tick"] / hz, line["event"]))
        self._line = line

    def put_frames(self, frames: Mapping[str, Frame]) -> None:
        """Take the pictures of a tick; the newest count."""
        self._frames = frames

    def close(self) -> None:
        """Show no more. Viewers that hang are left behind."""
        self._ended.set()
        threading.Thread(target=self._server.shutdown, daemon=True).start()  # it waits for viewers that may be stuck
        self._thread.join(1.0)

    def described(self) -> dict[str, Any]:
        """The newest tick, as the page takes it."""
        line, facts = self._line, self._facts
        state = line.get("state") or {}
        index = line.get("index")
        left = None if index is None else max(0, facts.n_action_steps - 1 - int(index)) / facts.control_hz
        reasons = self._reasons
        changed = Counter(chain.from_iterable(map(set, reasons)))
        told = ("tick", "time", "phase", "reasons", "late_ms", "inference_ms", "action_age_ms", "chunk")
        return {
            **{key: line.get(key) for key in (*told, "observation_age_ms")},
            "joints": _numbers(state.get("joints")),
            "velocities": _numbers(state.get("velocities")),
            "closure": state.get("closure"),
            "mode": state.get("mode"),
            "target": _numbers(line.get("target")),
            "sent": _numbers(line.get("would_send") if line.get("sent") is None else line["sent"]),
            "left": left,
            "changed": [(reason, times / len(reasons)) for reason, times in changed.most_common()],
            "events": self._events,
            "stopped": self.stopped,
        }

    # -- requests -----------------------------------------------------------------------------------------------------

    def _answer(self, connection: Any, request: Any) -> Any:
        """The page, or None: go on as a websocket."""
        from websockets.datastructures import Headers
        from websockets.http11 import Response

        parts = urlsplit(request.path)
        if not self._may(parts.query, request.headers):
            return connection.respond(403, "open the address that the run has printed, token and all\n")
        if parts.path == "/":
            page, headers = _page()
            return Response(200, "OK", Headers(headers), page)
        if parts.path != "/run":
            return connection.respond(404, "there is only /\n")
        if self._viewers >= _MOST_VIEWERS:
            return connection.respond(503, f"{_MOST_VIEWERS} are watching already\n")
        return None

    def _may(self, query: str, headers: Any) -> bool:
        """The token; without one, that no foreign site sent the browser (by its origin, or by a name of its own)."""
        if self._token:
            given = parse_qs(query).get("token", [""])[0]
            return hmac.compare_digest(given.encode(), self._token.encode())
        host = urlsplit(f"//{headers.get('Host', '')}").hostname or ""
        origin = headers.get("Origin")
        return _is_here(host) and (origin is None or _is_here(urlsplit(origin).hostname or ""))

    def _watch(self, connection: Any) -> None:
        """One viewer: this thread listens, another shows; a viewer who is not read from can still stop the robot."""
        from websockets.exceptions import ConnectionClosed

        with self._lock:
            self._viewers += 1
        threading.Thread(target=self._show, args=(connection,), name="view to one", daemon=True).start()
        try:
            for message in connection:
                if message == STOP:
                    self._stop("the page's stop button")
                    self.stopped += 1
                    connection.send(json.dumps({"stopped": self.stopped}))  # before the run ends, and with it this
        except ConnectionClosed:
            return
        finally:
            with self._lock:
                self._viewers -= 1

    def _show(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        facts, shown, looks = vars(self._facts) | {"joint_names": JOINT_NAMES}, dict[str, float](), 0
        try:
            connection.send(json.dumps({"facts": facts}))
            while not self._ended.wait(_PERIOD):
                connection.send(json.dumps(self.described()))
                looks += 1
                if looks % _PICTURES == 0:
                    for camera, frame in dict(self._frames).items():
                        if shown.get(camera) != frame.time:
                            shown[camera] = frame.time
                            name = camera.encode()
                            connection.send(bytes([len(name)]) + name + self._jpeg(camera, frame))
            connection.close()
        except (ConnectionClosed, OSError):
            return

    def _jpeg(self, camera: str, frame: Frame) -> bytes:
        """Made once for all who look."""
        from PIL import Image

        time, made = self._jpegs.get(camera, (-1.0, b""))
        if time != frame.time:
            file = io.BytesIO()
            Image.fromarray(frame.image).save(file, "JPEG", quality=_QUALITY)
            made = file.getvalue()
            self._jpegs[camera] = (frame.time, made)
        return made


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers: what runs and dresses it is named by its hash, and nothing else does."""
    page = _PAGE.read_bytes()
    allowed = {}
    for tag in ("style", "script"):
        start, end = page.index(f"<{tag}>".encode()) + len(tag) + 2, page.index(f"</{tag}>".encode())
        allowed[tag] = f"'sha256-{base64.b64encode(hashlib.sha256(page[start:end]).digest()).decode()}'"
    policy = {
        **{"default-src": "'none'", "style-src": allowed["style"], "script-src": allowed["script"]},
        **{"img-src": "blob: data:", "connect-src": "'self'", "frame-ancestors": "'none'"},
        **{"base-uri": "'none'", "form-action": "'none'"},
    }
    return page, {
        **{"Connection": "close", "Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(page))},
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        **{"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"},
    }


def _numbers(values: Any) -> list[float] | None:
    return None if values is None else [round(float(value), 4) for value in np.asarray(values)]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"view_address={text}: HOST:PORT is wanted, for example 127.0.0.1:8090")
    return host.strip("[]"), int(port)


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
