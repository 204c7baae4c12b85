"""The robot's side of a policy server: one session, one request at a time, every wait bounded.

Speaks to rlspec.serve, to openpi's own server and to RoboArena's, the current one and that of before February 2026,
which answered with the bare array. A session in which something went wrong is never used again: an
answer that comes too late must not be taken for the answer to the next question.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from rlspec import __version__
from rlspec.contract.actions import ACTION_SPACES
from rlspec.contract.droid import pose_of
from rlspec.contract.messages import (
    ACTIONS,
    DEADLINE,
    ENDPOINT,
    INFER,
    INFER_MS,
    JOINTS,
    MAX_HORIZON,
    POSE,
    REQUEST_ID,
    RESET,
    RESET_REPLY,
    SECTION,
    SESSION_ID,
    TIMING,
    USER_AGENT,
    ArenaConfig,
    arena_config_of,
    fault_of_arena_config,
    fault_of_terms,
    terms_of,
)
from rlspec.contract.wire import WireError, WireLimits, pack, unpack
from rlspec.deploy.arm.interfaces import Reply
from rlspec.deploy.arm.kinematics import flange
from rlspec.deploy.policy.reach import remedy_of
from rlspec.errors import ConfigError, ServerError

REPLY_LIMITS = WireLimits(max_bytes=4 * 2**20, max_elements=2**20)
_CLOSE_TIMEOUT = 1.0  # seconds for a polite goodbye


class PolicyClient:
    """A session with a policy server. One thread asks; any thread may close."""

    def __init__(
        self, url: str, token: str | None = None, ca_file: str | Path | None = None, timeout_s: float = 1.0
    ) -> None:
        """Remember where the server is; `connect` connects.

        Args:
            url: ws://HOST:PORT or wss://HOST:PORT; without a scheme: ws.
            token: What the server was started with.
            ca_file: Certificates (PEM) to trust instead of the system's.
            timeout_s: Longest wait for an answer, and for each step of connecting.

        Raises:
            ConfigError: No such URL, or a file that cannot be read.
        """
        self.url = _checked_url(url)
        self.timeout_s = timeout_s
        self._token = token
        self._ssl = _tls(self.url, ca_file)
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] | None = None
        self._numbers = itertools.count(1)
        self._session_id = secrets.token_hex(8)

    @property
    def connected(self) -> bool:
        """Whether there is a session that can be asked."""
        return self._connection is not None

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said about itself at the handshake; ours is below "rlspec".

        Raises:
            ServerError: `connect` has not succeeded yet.
        """
        if self._metadata is None:
            raise ServerError(f"{self.url}: not connected yet")
        return self._metadata

    def connect(self) -> dict[str, Any]:
        """Open a session and return the server's metadata.

        Raises:
            ServerError: Nobody listens, the server refuses, or its first message is no metadata.
        """
        self.close()
        connection = self._open()
        try:
            metadata = self._metadata_of(connection)
            # Bounds every send as well: a server that hangs stops reading, and its buffers fill.
            connection.socket.settimeout(self.timeout_s)
        except OSError as error:
            raise ServerError(f"{self.url}: the session was lost: {_line(error)}") from error
        except BaseException:
            _drop(connection)
            raise
        self._connection, self._metadata = connection, metadata
        return metadata

    def reconnect(self, attempts: int = 5, first_wait_s: float = 0.1, longest_wait_s: float = 2.0) -> dict[str, Any]:
        """Connect anew, waiting twice as long after each failure.

        Raises:
            ServerError: The last attempt's, where all have failed, or the server now serves something else.
        """
        before, wait = self._metadata, first_wait_s
        for attempt in range(1, attempts + 1):
            try:
                metadata = self.connect()
                break
            except ServerError:
                if attempt == attempts:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, longest_wait_s)
        if before is not None and terms_of(metadata) != terms_of(before):
            self.close()
            raise ServerError(f"{self.url}: it serves another policy than before; start the deployment anew")
        return metadata

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """Ask for actions.

        Args:
            observation: Keys of openpi's DROID client, or whatever the server's metadata asks for.

        Raises:
            ServerError: No answer in time, an error of the server, or an answer that is none; the session is over.
        """
        connection = self._connection
        if connection is None:
            raise ServerError(f"{self.url}: no session; call connect or reconnect")
        number = next(self._numbers)
        request = {**observation, **self._arena_keys(observation)}
        request |= {REQUEST_ID: number, DEADLINE: 1000.0 * self.timeout_s}
        start = time.monotonic()
        try:
            message = self._ask(connection, _packed(request), start)
            return self._read_reply(message, number, 1000.0 * (time.monotonic() - start))
        except BaseException:
            self._connection = None
            _drop(connection)
            raise

    def reset(self) -> None:
        """Have the policy forget the session's requests so far, where the server knows how; openpi's does not.

        Raises:
            ServerError: It fails at that; the session is over.
        """
        connection = self._connection
        if connection is None or (SECTION not in self.metadata and self._arena is None):
            return
        try:
            said = self._ask(connection, _packed({ENDPOINT: RESET}), time.monotonic())
            if said != RESET_REPLY:
                self._decode(said)
                raise ServerError(f"{self.url}: it does not answer a reset as RoboArena's servers do")
        except BaseException:
            self._connection = None
            _drop(connection)
            raise

    def close(self) -> None:
        """End the session. Idempotent, from any thread."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(WebSocketException, OSError):
                connection.close()

    def __enter__(self) -> PolicyClient:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _arena(self) -> ArenaConfig | None:
        return arena_config_of(self.metadata)

    def _arena_keys(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """What RoboArena's servers want beside an observation."""
        arena = self._arena
        if arena is None:
            return {}
        keys: dict[str, Any] = {ENDPOINT: INFER}
        if arena["needs_session_id"]:
            keys[SESSION_ID] = self._session_id
        if POSE not in observation and JOINTS in observation:
            keys[POSE] = pose_of(*flange(np.asarray(observation[JOINTS], np.float64)))
        return keys

    def _open(self) -> ClientConnection:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None
        try:
            # Entered by hand: the session outlives this function, and websockets 17 wants `connect` to be entered.
            return connect(
                self.url,
                ssl=self._ssl,
                compression=None,
                additional_headers=headers,
                user_agent_header=f"{USER_AGENT}{__version__}",
                proxy=None,
                open_timeout=self.timeout_s,
                close_timeout=_CLOSE_TIMEOUT,
                ping_interval=None,  # openpi's server answers none while it infers or compiles; answers have deadlines
                max_size=REPLY_LIMITS.max_bytes,
            ).__enter__()
        except InvalidStatus as error:
            raise ServerError(f"{self.url}: {_refusal(error)}") from error
        except (WebSocketException, OSError, EOFError) as error:
            raise ServerError(f"{self.url}: cannot connect: {_line(error)}; {remedy_of(self.url, error)}") from error

    def _metadata_of(self, connection: ClientConnection) -> dict[str, Any]:
        message = self._receive(connection, self.timeout_s)
        metadata = self._decode(message)
        if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
            raise ServerError(f"{self.url}: its first message is no metadata; it is no policy server")
        arena = arena_config_of(metadata)
        problem = fault_of_terms(metadata.get(SECTION)) if arena is None else fault_of_arena_config(arena)
        if problem:
            raise ServerError(f"{self.url}: its metadata are wrong: {problem}")
        return metadata

    def _ask(self, connection: ClientConnection, packed: bytes, start: float) -> str | bytes:
        with contextlib.suppress(TimeoutError):
            self._receive(connection, 0.0, quiet=True)
            raise ServerError(f"{self.url}: it sent something without being asked; the session is over")
        try:
            connection.send(packed)
        except (WebSocketException, OSError) as error:
            raise ServerError(f"{self.url}: cannot send: {_line(error)}") from error
        return self._receive(connection, self.timeout_s - (time.monotonic() - start))

    def _receive(self, connection: ClientConnection, timeout: float, *, quiet: bool = False) -> str | bytes:
        try:
            return connection.recv(timeout=max(0.0, timeout))
        except TimeoutError as error:
            if quiet:
                raise
            raise ServerError(f"{self.url}: no answer within {1000 * self.timeout_s:.0f} ms") from error
        except (WebSocketException, OSError, EOFError) as error:
            raise ServerError(f"{self.url}: the session was lost: {_line(error)}") from error

    def _decode(self, message: str | bytes) -> Any:
        if isinstance(message, str):
            raise ServerError(f"{self.url}: the server says: {' '.join(message.split())[:400]}")
        try:
            return unpack(message, REPLY_LIMITS)
        except WireError as error:
            raise ServerError(f"{self.url}: its answer cannot be read: {error}") from error

    def _read_reply(self, message: str | bytes, number: int, round_trip_ms: float) -> Reply:
        content = self._decode(message)
        reply = content if isinstance(content, dict) else {ACTIONS: content}
        if reply.get(REQUEST_ID, number) != number:
            raise ServerError(f"{self.url}: an answer to another request; the session is over")
        actions = self._checked_actions(reply.get(ACTIONS))
        timing = reply.get(TIMING)
        server_ms = timing.get(INFER_MS) if isinstance(timing, dict) else None
        return Reply(actions, float(server_ms) if isinstance(server_ms, int | float) else None, round_trip_ms)

    def _checked_actions(self, actions: Any) -> NDArray[np.float64]:
        if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
            raise ServerError(f"{self.url}: its answer has no array of numbers named {ACTIONS}")
        arena = self._arena
        space = terms_of(self.metadata).get("action_space") if arena is None else arena["action_space"]
        width = ACTION_SPACES[space].size if space in ACTION_SPACES else None
        shape = actions.shape
        if len(shape) != 2 or not 1 <= shape[0] <= MAX_HORIZON or shape[1] != (width or shape[1]) or not shape[1]:
            wanted = f"(horizon, {width or 'numbers'})"
            raise ServerError(f"{self.url}: actions of shape {shape}; wanted {wanted}, horizon 1 to {MAX_HORIZON}")
        values = np.asarray(actions, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ServerError(f"{self.url}: actions with NaN or infinity")
        return values


def _packed(request: Mapping[str, Any]) -> bytes:
    try:
        return pack(dict(request))
    except WireError as error:
        raise ServerError(f"observation {error}") from error


def _drop(connection: ClientConnection) -> None:
    """End a session at once, without the closing handshake that a server that hangs would not answer."""
    with contextlib.suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)


def _checked_url(url: str) -> str:
    full = url if "://" in url else f"ws://{url}"
    try:
        parts = urlsplit(full)
        usable = parts.scheme in ("ws", "wss") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"server={url}: no address of a policy server; write ws://HOST:PORT or wss://HOST:PORT")
    return f"{parts.scheme}://{full.partition('://')[2]}"


def _tls(url: str, ca_file: str | Path | None) -> ssl.SSLContext | None:
    if not url.startswith("wss:"):
        if ca_file is not None:
            raise ConfigError(f"ca_file={ca_file}: has no effect without TLS; write wss:// instead of ws://")
        return None
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:
        raise ConfigError(f"ca_file={ca_file}: cannot be read as certificates: {_line(error)}") from error


def _refusal(error: InvalidStatus) -> str:
    response = error.response
    body = " ".join((response.body or b"").decode("utf-8", "replace").split())[:200]
    remedy = "; let RLSPEC_TOKEN hold its token" if response.status_code == 401 else ""
    return f"refused with HTTP {response.status_code} {body}{remedy}".rstrip()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
