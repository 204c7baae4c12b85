"""A WebSocket connection that notices slow senders, counts itself, and says when it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode, Frame, Opcode

_DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)
_GOODBYE = 1.0  # seconds for a slow sender to take the closing frame


@dataclass
class ConnectionGate:
    """What all connections of a server share.

    Attributes:
        max_open: TCP connections at a time, before they are sessions.
        max_sessions: Of those, sessions.
        read_s: Longest time for one message to arrive.
    """

    max_open: int
    max_sessions: int
    read_s: float
    connections: set[GuardedConnection] = field(default_factory=set)
    admitted: int = 0

    def admit(self, connection: GuardedConnection) -> bool:
        """Take a seat for a session; it is given back when the connection is lost."""
        if self.admitted >= self.max_sessions:
            return False
        self.admitted += 1
        connection.admitted = True
        return True


class GuardedConnection(ServerConnection):
    """See the module.

    Attributes:
        on_lost: Called when the peer is gone, while a request is in flight.
        ended_because: What this class had against the peer.
    """

    def __init__(self, *args: Any, gate: ConnectionGate, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gate = gate
        self.admitted = False
        self.on_lost: Callable[[], None] | None = None
        self.ended_because = ""
        self._events = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse at once where there are too many."""
        super().connection_made(transport)
        if len(self.gate.connections) >= self.gate.max_open:
            self.transport.abort()
        else:
            self.gate.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back the seat."""
        self._stop_timer()
        self.gate.connections.discard(self)
        if self.admitted:
            self.admitted = False
            self.gate.admitted -= 1
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Bytes that complete no frame begin one: from then on its time runs."""
        before = self._events
        super().data_received(data)
        if self._events == before and self.request is not None:
            self._start_timer()

    def process_event(self, event: Any) -> None:
        """A whole frame: the last one of a message stops the time, an earlier one starts it."""
        self._events += 1
        if isinstance(event, Frame) and event.opcode in _DATA:
            if event.fin:
                self._stop_timer()
            else:
                self._start_timer()
        super().process_event(event)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.gate.read_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self.ended_because = f"a message took longer than {self.gate.read_s:g} s to arrive"
        self.protocol.fail(CloseCode.POLICY_VIOLATION, self.ended_because)
        self.send_data()
        self.loop.call_later(_GOODBYE, self.transport.abort)
