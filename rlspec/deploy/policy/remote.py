"""A policy behind a socket, as the loop asks it: sessions that are replaced, a pulse that is felt."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.protocol import State
from websockets.sync.client import ClientConnection

from rlspec.contract.messages import SECTION
from rlspec.deploy.arm.interfaces import Reply
from rlspec.deploy.policy.client import PolicyClient
from rlspec.errors import ServerError


class WatchedClient(PolicyClient):
    """A client whose session can be looked at while nobody asks."""

    @property
    def session(self) -> ClientConnection | None:
        """The session, where it is open on both ends."""
        connection = self._connection
        return connection if connection is not None and connection.state is State.OPEN else None


class RemotePolicy:
    """A policy server. A session that broke is replaced at the next request; a thread keeps trying its pulse."""

    def __init__(self, client: WatchedClient, heartbeat: float | None = None, deadline: float = 2.0) -> None:
        """Take a client and connect it.

        Args:
            client: Of the server; its `timeout_s` holds for connecting and for the answers before `hurry`.
            heartbeat: Seconds within which it must answer a ping; None: it is not asked.
            deadline: Seconds within which it must answer after `hurry`.

        Raises:
            ServerError: There is no server.
        """
        self._client = client
        self._limit = heartbeat
        self._deadline = deadline
        self._closed = threading.Event()
        self._ping: tuple[ClientConnection, float, threading.Event] | None = None
        self.metadata = client.connect()
        if heartbeat is not None:
            threading.Thread(target=self._beat, args=(heartbeat / 3,), name="heartbeat", daemon=True).start()

    def infer(self, observation: Mapping[str, Any]) -> Reply:
        """See `Policy`."""
        if self._closed.is_set():
            raise ServerError("the policy is closed")
        if self._client.session is None:
            self._client.reconnect(attempts=1)
        return self._client.infer(observation)

    def hurry(self) -> None:
        """See `RobotPolicy`. What the warm-up asked is forgotten: a policy that counts its requests begins anew."""
        self._client.reset()
        self._client.timeout_s = self._deadline
        if (session := self._client.session) is not None:
            session.socket.settimeout(self._deadline)

    def trouble(self, *, waiting: bool) -> str:
        """See `Policy`. Foreign servers are judged between requests only: openpi's answers no ping while it infers."""
        session, ping = self._client.session, self._ping
        if session is None:
            return f"{self._client.url}: the session is lost"
        if self._limit is None or ping is None or ping[0] is not session or ping[2].is_set():
            return ""
        if waiting and SECTION not in self.metadata:
            return ""
        waited = time.monotonic() - ping[1]
        return f"{self._client.url}: no heartbeat for {1e3 * waited:.0f} ms" if waited > self._limit else ""

    def close(self) -> None:
        """See `Policy`."""
        self._closed.set()
        self._client.close()

    def _beat(self, every: float) -> None:
        while not self._closed.wait(every):
            session, ping = self._client.session, self._ping
            if session is None or (ping is not None and ping[0] is session and not ping[2].is_set()):
                continue
            try:
                self._ping = (session, time.monotonic(), session.ping())
            except (WebSocketException, OSError):
                continue  # the session is over, which `trouble` sees
