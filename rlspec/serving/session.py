"""One robot's session: metadata first, then one request at a time. Whoever breaks the rules loses the session."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from rlspec.contract.messages import (
    ACTIONS,
    DEADLINE,
    ENDPOINT,
    INFER,
    INFER_MS,
    REQUEST_ID,
    RESET,
    RESET_REPLY,
    TIMING,
)
from rlspec.contract.pictures import has_bars
from rlspec.contract.wire import WireError, pack, unpack
from rlspec.serving.batching import Answer, Batcher, Expired, PolicyFailed, QueueFull, Ticket
from rlspec.serving.connection import GuardedConnection
from rlspec.serving.metrics import Metrics
from rlspec.serving.observation import RequestError, read_observation
from rlspec.serving.policy import Observation, PolicySpec
from rlspec.serving.settings import ServerSettings

_WRITE_S = 5.0  # for a client to take an answer
_MAX_ID = 64  # characters


class Refusal(Exception):
    """The session ends with these words.

    Attributes:
        outcome: For the metrics.
        code: Of the closing frame.
    """

    def __init__(self, outcome: str, text: str, code: CloseCode) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.code = code


class Session:
    """Serves one connection until it ends.

    Attributes:
        waiting: It waits for a message; it may be cancelled then.
        stopping: It ends after the request in flight.
    """

    def __init__(
        self,
        connection: GuardedConnection,
        number: int,
        *,
        spec: PolicySpec,
        batcher: Batcher,
        metrics: Metrics,
        settings: ServerSettings,
    ) -> None:
        self.connection = connection
        self.number = number
        self.waiting = False
        self.stopping = False
        self._spec = spec
        self._batcher = batcher
        self._metrics = metrics
        self._settings = settings
        self._answered = 0
        self._log: Callable[[str], None] = lambda line: None
        self._recent: deque[float] = deque(maxlen=1000)  # milliseconds per answer
        self._previous_ms: float | None = None
        self._task = asyncio.current_task()
        self._started = time.monotonic()

    def stop(self) -> None:
        """End after the request in flight, or at once where there is none."""
        self.stopping = True
        if self.waiting and self._task is not None:
            self._task.cancel()

    async def run(self, metadata: bytes, log: Callable[[str], None]) -> None:
        """Serve; every end is a line in the log, none is an exception."""
        self._log = log
        end = "closed by the client"
        try:
            await self._send(metadata)
            while not self.stopping:
                await self._serve_one()
            end = await self._say_goodbye()
        except Refusal as refusal:
            end = str(refusal)
            self._metrics.requests[refusal.outcome] += 1
            await self._refuse(refusal)
        except ConnectionClosed as error:
            end = self.connection.ended_because or _closing_words(error)
        except asyncio.CancelledError:
            if not self.stopping or self._task is None:
                raise
            self._task.uncancel()
            end = await self._say_goodbye()
        finally:
            self._batcher.forget(self.number)
            log(self._summary(end))

    async def _serve_one(self) -> None:
        message = await self._receive()
        start = time.monotonic()
        request = self._read(message)
        if request.get(ENDPOINT) == RESET:
            self._batcher.forget(self.number)
            await self._send(RESET_REPLY)
            return
        answer = await self._ask(request, start)
        await self._send(self._reply(request, answer))
        took = time.monotonic() - start
        self._previous_ms = 1000 * took
        self._recent.append(1000 * took)
        self._answered += 1
        self._metrics.requests["ok"] += 1
        self._metrics.request_seconds.observe(took)

    async def _receive(self) -> bytes:
        self.waiting = True
        try:
            async with asyncio.timeout(self._settings.idle_s):
                message = await self.connection.recv()
        except TimeoutError:
            raise Refusal("idle", f"no request for {self._settings.idle_s:g} s", CloseCode.POLICY_VIOLATION) from None
        except UnicodeDecodeError:
            raise Refusal("invalid", "a text that is no UTF-8", CloseCode.INVALID_DATA) from None
        finally:
            self.waiting = False
        self._metrics.received_bytes += len(message)
        if isinstance(message, str):
            raise Refusal("invalid", "a text; wanted a binary message of msgpack", CloseCode.UNSUPPORTED_DATA)
        return message

    def _read(self, message: bytes) -> dict[str, Any]:
        try:
            request = unpack(message, self._settings.wire_limits)
        except WireError as error:
            raise Refusal("invalid", str(error), CloseCode.INVALID_DATA) from None
        if not isinstance(request, dict) or not all(isinstance(key, str) for key in request):
            raise Refusal("invalid", "wanted a map with texts as keys", CloseCode.INVALID_DATA)
        if request.get(ENDPOINT, INFER) not in (INFER, RESET):
            raise Refusal("invalid", f"{ENDPOINT}: wanted {INFER} or {RESET}", CloseCode.POLICY_VIOLATION)
        return request

    async def _ask(self, request: dict[str, Any], start: float) -> Answer:
        """The policy's answer, in time or not at all."""
        deadline = start + self._patience(request)
        try:
            observation = read_observation(request, self._spec, self.number)
        except RequestError as error:
            raise Refusal("invalid", str(error), CloseCode.POLICY_VIOLATION) from None
        self._look_for_bars(observation)
        ticket = Ticket(observation, deadline)
        self.connection.on_lost = lambda: self._lost(ticket)
        try:
            self._batcher.submit(ticket)
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
                answer = await ticket.answer
            if time.monotonic() > deadline:
                raise TimeoutError
        except QueueFull:
            raise Refusal("busy", "busy: too many requests wait; try again later", CloseCode.TRY_AGAIN_LATER) from None
        except (TimeoutError, Expired):
            text = f"deadline: no answer within {1000 * (deadline - start):.0f} ms"
            raise Refusal("deadline", text, CloseCode.TRY_AGAIN_LATER) from None
        except PolicyFailed as error:
            raise Refusal("failed", f"inference failed: {error}", CloseCode.INTERNAL_ERROR) from None
        finally:
            ticket.abandon()
            self.connection.on_lost = None
        self._metrics.queue_seconds.observe(answer.queue_s)
        self._metrics.inference_seconds.observe(answer.infer_s)
        self._metrics.batch_size.observe(answer.batch)
        return answer

    def _look_for_bars(self, observation: Observation) -> None:
        """Say once in a session that its pictures were scaled into black bars before, and get more of them here."""
        if self._answered:
            return
        for name, image in observation.images.items():
            if has_bars(image, *(size := self._spec.cameras[name])):
                self._log(
                    f"session {self.number} {peer_of(self.connection)}: {self._spec.wire_key(name)} comes with black "
                    f"bars of its own ({image.shape[1]}x{image.shape[0]}) and gets more to be {size[1]}x{size[0]}; "
                    "send what the camera delivers"
                )

    def _lost(self, ticket: Ticket) -> None:
        """The client is gone: whatever waits in the queue for it is not computed."""
        ticket.abandon()
        if not ticket.answer.done():
            ticket.answer.set_exception(ConnectionClosed(None, None))

    def _patience(self, request: dict[str, Any]) -> float:
        """Seconds for an answer: the server's, or the client's where that is less."""
        asked = request.get(DEADLINE)
        longest = self._settings.deadline_ms
        if asked is None:
            return longest / 1000
        if type(asked) not in (int, float) or not 0 < asked < float("inf"):
            raise Refusal("invalid", f"{DEADLINE}: wanted milliseconds above zero", CloseCode.POLICY_VIOLATION)
        return min(float(asked), longest) / 1000

    def _reply(self, request: dict[str, Any], answer: Answer) -> bytes:
        if ENDPOINT in request and self._settings.roboarena_arrays:
            return pack(answer.actions)
        timing = {
            INFER_MS: 1000 * answer.infer_s,
            "queue_ms": 1000 * answer.queue_s,
            "batch_size": answer.batch,
        }
        if self._previous_ms is not None:
            timing["prev_total_ms"] = self._previous_ms
        reply: dict[str, Any] = {ACTIONS: answer.actions, TIMING: timing}
        number = request.get(REQUEST_ID)
        if type(number) is int or (isinstance(number, str) and len(number) <= _MAX_ID):
            reply[REQUEST_ID] = number
        return pack(reply)

    async def _send(self, message: bytes | str) -> None:
        try:
            async with asyncio.timeout(_WRITE_S):
                await self.connection.send(message)
        except TimeoutError:
            self.connection.transport.abort()
            raise Refusal("slow", "the client does not read its answers", CloseCode.POLICY_VIOLATION) from None

    async def _refuse(self, refusal: Refusal) -> None:
        """Say why as a text, which openpi's client shows as an error, and close."""
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(_WRITE_S):
                await self.connection.send(str(refusal))
                await self.connection.close(refusal.code, _short(str(refusal)))
            return
        self.connection.transport.abort()

    async def _say_goodbye(self) -> str:
        await self.connection.close(CloseCode.GOING_AWAY, "the server ends")
        return "the server ends"

    def _summary(self, end: str) -> str:
        median = f", median {statistics.median(self._recent):.1f} ms" if self._recent else ""
        seconds = time.monotonic() - self._started
        served = f"{self._answered} answers{median}, {seconds:.1f} s"
        return f"session {self.number} {peer_of(self.connection)}: {served}; {_printable(end)}"


def peer_of(connection: Any) -> str:
    """Address of the other end."""
    peer = connection.remote_address
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unknown"


def _closing_words(error: ConnectionClosed) -> str:
    if error.sent is not None and not error.rcvd_then_sent:
        return f"closed: {error.sent.reason or error.sent.code}"
    if error.rcvd is not None:
        return "closed by the client"
    return "the connection was lost"


def _short(text: str) -> str:
    """A reason for the closing frame, which holds 123 bytes."""
    return text.encode("utf-8")[:120].decode("utf-8", "ignore")


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)[:300]
