"""The policy server: WebSocket sessions, /healthz and /metrics on one port."""

from __future__ import annotations

import asyncio
import functools
import hmac
import http
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, serve
from websockets.http11 import Request, Response

from rlspec import __version__
from rlspec.contract.actions import DROID_SPACES
from rlspec.contract.messages import USER_AGENT
from rlspec.contract.wire import pack
from rlspec.errors import ConfigError
from rlspec.serving.batching import Batcher
from rlspec.serving.connection import ConnectionGate, GuardedConnection
from rlspec.serving.metrics import CONTENT_TYPE, Metrics
from rlspec.serving.policy import BatchPolicy, openpi_metadata, roboarena_metadata
from rlspec.serving.session import Session, peer_of
from rlspec.serving.settings import ServerSettings, tls_context

_HANDSHAKES = 64  # connections that may be about to become sessions
_HUNG_S = 60.0
_CLOSE_S = 2.0
_REFUSALS_S = 10.0  # between two lines about refused connections

# Hostile connections must not fill the log: what matters is in the sessions' lines and in the metrics.
_SILENT = logging.getLogger("rlspec.serving.websockets")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
_SILENT.setLevel(logging.CRITICAL)


class PolicyServer:
    """Serves a policy from an event loop.

    Attributes:
        metrics: What has been counted.
        port: Where it listens, after `start`.
    """

    def __init__(
        self, policy: BatchPolicy, settings: ServerSettings, log: Callable[[str], None] = lambda line: None
    ) -> None:
        """Check the settings.

        Args:
            policy: What is served.
            settings: How.
            log: Takes a line per session.

        Raises:
            ConfigError: The settings cannot work.
        """
        if settings.roboarena and policy.spec.action_space not in DROID_SPACES:
            raise ConfigError(f"roboarena=true: has no action space {policy.spec.action_space}")
        self.metrics = Metrics()
        self.port = settings.port
        self._settings = settings
        self._token = settings.secret
        self._spec = policy.spec
        self._log = log
        self._tls = tls_context(settings)
        self._sessions: set[Session] = set()
        self._number = 0
        self._unsaid: Counter[str] = Counter()  # refusals since the last line about them
        self._next_line: dict[str, float] = {}
        self._stopping = False
        self._gate = ConnectionGate(settings.max_sessions + _HANDSHAKES, settings.max_sessions, settings.read_s)
        self._batcher = Batcher(
            policy,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            window_s=settings.batch_window_ms / 1000,
            sessions=lambda: len(self._sessions),
        )
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Address for clients."""
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        return f"{self._settings.scheme}://{host}:{self.port}"

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address cannot be had.
        """
        settings = self._settings
        try:
            self._server = await serve(
                self._handle,
                settings.host,
                settings.port,
                ssl=self._tls,
                origins=[None],  # a page in a browser on this machine must not reach the robot
                compression=None,  # images do not compress, and a small message must not become a large one
                process_request=self._answer_http,
                server_header=f"{USER_AGENT}{__version__}",
                open_timeout=settings.handshake_s,
                ping_interval=settings.ping_s,
                ping_timeout=settings.ping_s,
                close_timeout=_CLOSE_S,
                max_size=settings.wire_limits.max_bytes,
                max_queue=1,  # who sends ahead waits in the network
                logger=_SILENT,
                create_connection=functools.partial(GuardedConnection, gate=self._gate),  # type: ignore[arg-type]
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(f"host={settings.host} port={settings.port}: cannot listen there: {reason}") from error
        self.port = self._server.sockets[0].getsockname()[1]
        self._batcher.start()

    async def stop(self) -> None:
        """Let requests in flight finish, within `grace_s`, and end all sessions. Idempotent."""
        if self._server is None:
            return
        server, self._server, self._stopping = self._server, None, True
        server.close(close_connections=False)
        for session in list(self._sessions):
            session.stop()
        try:
            async with asyncio.timeout(self._settings.grace_s + _CLOSE_S):
                await server.wait_closed()
        except TimeoutError:
            for connection in list(self._gate.connections):
                connection.transport.abort()
        self._batcher.stop()
        end = time.monotonic() + self._settings.grace_s
        while self._batcher.alive and time.monotonic() < end:  # a policy that hangs is left behind
            await asyncio.sleep(0.01)

    def abandon(self) -> None:
        """Compute nothing that has not been begun: for an end that waits for no answer."""
        self._batcher.abandon()

    async def _handle(self, connection: Any) -> None:
        self._number += 1
        session = Session(
            connection,
            self._number,
            spec=self._spec,
            batcher=self._batcher,
            metrics=self.metrics,
            settings=self._settings,
        )
        self._sessions.add(session)
        self.metrics.sessions_total += 1
        self.metrics.sessions = len(self._sessions)
        session.stopping = self._stopping
        try:
            await session.run(self._metadata(connection), self._log)
        finally:
            self._sessions.discard(session)
            self.metrics.sessions = len(self._sessions)

    def _metadata(self, connection: Any) -> bytes:
        ours = connection.request.headers.get("User-Agent", "").startswith(USER_AGENT)
        bare = self._settings.roboarena and not ours
        return pack(roboarena_metadata(self._spec) if bare else openpi_metadata(self._spec))

    def _answer_http(self, connection: Any, request: Request) -> Response | None:
        """Answer everything that is no session; None lets a session begin."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return self._health(connection)
        if not self._may_enter(request):
            self._refused(connection, "token", "without the token (HTTP 401)")
            response: Response = connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is required\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self.metrics.text(queued=self._batcher.queued))
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if not self._gate.admit(connection):
            self._refused(connection, "sessions", "all sessions are taken (HTTP 503)")
            text = f"all {self._settings.max_sessions} sessions are taken\n"
            response = connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        else:
            return None
        return response

    def _refused(self, connection: Any, kind: str, why: str) -> None:
        """Count it, and say it: at once the first time, then at most every few seconds, however many there are."""
        self.metrics.refused[kind] += 1
        self._unsaid[kind] += 1
        now = time.monotonic()
        if now < self._next_line.get(kind, now):
            return
        self._next_line[kind] = now + _REFUSALS_S
        more = f", the last of {self._unsaid[kind]}" if self._unsaid[kind] > 1 else ""
        self._unsaid[kind] = 0
        self._log(f"refused {peer_of(connection)}: {why}{more}")

    def _health(self, connection: Any) -> Response:
        hung = self._batcher.busy_s() > _HUNG_S or not self._batcher.alive
        status = http.HTTPStatus.SERVICE_UNAVAILABLE if hung else http.HTTPStatus.OK
        response: Response = connection.respond(status, "the policy hangs\n" if hung else "OK\n")
        return response

    def _may_enter(self, request: Request) -> bool:
        """Compare in a time that does not tell how much of the token was right."""
        if self._token is None:
            return True
        given = request.headers.get_all("Authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        known = scheme.lower() in ("bearer", "api-key")
        same = hmac.compare_digest(token.strip().encode("utf-8", "replace"), self._token.encode())
        return same and known
