"""Time: deadlines, late answers, batches, queues, and clients that are slow."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from typing import Any

import numpy as np
import pytest
from serving_cases import PATIENCE, SPEC, Echo, serving, state_message, wait_until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from rlspec.contract.wire import pack, unpack
from rlspec.deploy.policy.client import PolicyClient
from rlspec.errors import ServerError
from rlspec.serving.batching import Batcher, Expired, Ticket
from rlspec.serving.policy import Observation


def robot(url: str, timeout_s: float = PATIENCE) -> PolicyClient:
    client = PolicyClient(url, timeout_s=timeout_s)
    client.connect()
    return client


def in_background(function: Any) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except (ServerError, ConnectionClosed) as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def gated() -> Echo:
    policy = Echo()
    policy.gate = threading.Event()
    return policy


def open_gate(policy: Echo) -> None:
    assert policy.gate is not None
    policy.gate.set()


def test_a_request_whose_deadline_passed_in_the_queue_is_never_computed() -> None:
    policy = gated()
    with serving(policy, max_batch=1) as server:
        first, second = robot(server.url), robot(server.url)
        one, _ = in_background(lambda: first.infer(state_message()))
        assert policy.entered.wait(PATIENCE)
        with connect(server.url, compression=None) as impatient:
            impatient.recv()
            impatient.send(pack({**state_message(), "rlspec/deadline_ms": 50}))
            assert "no answer within 50 ms" in str(impatient.recv(timeout=PATIENCE))
            with pytest.raises(ConnectionClosed) as caught:
                impatient.recv(timeout=PATIENCE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1013
        open_gate(policy)
        one.join(PATIENCE)
        second.infer(state_message())
        assert policy.batches == [1, 1]
        wait_until(lambda: server.server.metrics.requests == {"ok": 2, "deadline": 1})  # counted after it is sent


def test_the_batcher_itself_passes_over_what_is_too_late() -> None:
    policy = Echo()

    async def ask() -> list[Any]:
        batcher = Batcher(policy, max_batch=4, max_queue=4, window_s=0.0, sessions=lambda: 1)
        tickets = [
            Ticket(Observation({}, np.zeros(8), "", number), time.monotonic() + left)
            for number, left in enumerate((-1.0, PATIENCE))
        ]
        for ticket in tickets:
            batcher.submit(ticket)
        batcher.start()
        results = await asyncio.gather(*(ticket.answer for ticket in tickets), return_exceptions=True)
        batcher.stop()
        return results

    expired, answer = asyncio.run(ask())
    assert isinstance(expired, Expired)
    assert answer.actions.shape == (10, 8)
    assert policy.batches == [1]


def test_the_servers_own_deadline_holds_for_clients_without_one() -> None:
    policy = gated()
    with serving(policy, deadline_ms=100.0) as server, connect(server.url, compression=None) as openpi:
        openpi.recv()
        openpi.send(pack(state_message()))
        assert openpi.recv(timeout=PATIENCE) == "deadline: no answer within 100 ms"
        open_gate(policy)


def test_a_late_answer_ends_the_session_and_is_never_sent() -> None:
    policy = gated()
    with serving(policy) as server, connect(server.url, compression=None) as late:
        late.recv()
        late.send(pack({**state_message(1.0), "rlspec/deadline_ms": 50}))
        assert policy.entered.wait(PATIENCE)
        frames = []
        with pytest.raises(ConnectionClosed):
            while True:
                frames.append(late.recv(timeout=PATIENCE))
        open_gate(policy)
        assert frames == ["deadline: no answer within 50 ms"]
        client = robot(server.url)
        np.testing.assert_allclose(client.infer(state_message(2.0)).actions[0, 0], 1.5)


def test_the_request_of_a_client_that_left_is_not_computed() -> None:
    policy = gated()
    with serving(policy, max_batch=1) as server:
        first = robot(server.url)
        one, _ = in_background(lambda: first.infer(state_message()))
        assert policy.entered.wait(PATIENCE)
        with connect(server.url, compression=None) as leaver:
            leaver.recv()
            leaver.send(pack(state_message(3.0)))
            wait_until(lambda: server.server._batcher.queued == 1)
        wait_until(lambda: server.server.metrics.sessions == 1)
        open_gate(policy)
        one.join(PATIENCE)
        first.infer(state_message())
        assert policy.batches == [1, 1]


def test_a_full_queue_refuses() -> None:
    policy = gated()
    with serving(policy, max_batch=1, max_queue=1) as server:
        robots = [robot(server.url) for _ in range(3)]
        one, _ = in_background(lambda: robots[0].infer(state_message()))
        assert policy.entered.wait(PATIENCE)
        two, _ = in_background(lambda: robots[1].infer(state_message()))
        wait_until(lambda: server.server._batcher.queued == 1)
        with pytest.raises(ServerError, match="busy: too many requests wait"):
            robots[2].infer(state_message())
        open_gate(policy)
        one.join(PATIENCE)
        two.join(PATIENCE)
        wait_until(lambda: server.server.metrics.requests == {"ok": 2, "busy": 1})


def test_a_client_that_sends_ahead_is_answered_in_order_one_at_a_time() -> None:
    policy = Echo()
    with serving(policy, batch_window_ms=50) as server, connect(server.url, compression=None) as eager:
        eager.recv()
        for seed in range(6):
            eager.send(pack(state_message(seed)))
        values = [unpack(eager.recv(timeout=PATIENCE))["actions"][0, 0] for _ in range(6)]
    np.testing.assert_allclose(values, np.arange(6) - 0.5)
    assert policy.batches == [1] * 6


def test_several_robots_share_a_forward_pass_and_get_each_their_own() -> None:
    policy = gated()
    with serving(policy, max_batch=8, batch_window_ms=0) as server:
        robots = [robot(server.url) for _ in range(6)]
        plug, _ = in_background(lambda: robots[0].infer(state_message(100.0)))
        assert policy.entered.wait(PATIENCE)
        asked = [in_background(lambda i=i: robots[i].infer(state_message(float(i)))) for i in range(1, 6)]
        wait_until(lambda: server.server._batcher.queued == 5)
        open_gate(policy)
        plug.join(PATIENCE)
        for index, (thread, results) in enumerate(asked, start=1):
            thread.join(PATIENCE)
            np.testing.assert_allclose(results[0].actions[0, 0], index - 0.5)
    assert policy.batches == [1, 5]


def test_batches_are_as_large_as_allowed() -> None:
    policy = gated()
    with serving(policy, max_batch=2, batch_window_ms=0) as server:
        robots = [robot(server.url) for _ in range(6)]
        asked = [in_background(lambda: robots[0].infer(state_message()))]
        assert policy.entered.wait(PATIENCE)
        asked += [in_background(lambda i=i: robots[i].infer(state_message())) for i in range(1, 6)]
        wait_until(lambda: server.server._batcher.queued == 5)
        open_gate(policy)
        for thread, _ in asked:
            thread.join(PATIENCE)
    assert policy.batches == [1, 2, 2, 1]


def test_the_window_collects_requests_that_come_one_after_the_other() -> None:
    policy = Echo()
    with serving(policy, batch_window_ms=20_000) as server:
        robots = [robot(server.url) for _ in range(3)]
        asked = [in_background(lambda i=i: robots[i].infer(state_message())) for i in range(3)]
        for thread, _ in asked:
            thread.join(PATIENCE)
        assert policy.batches == [3]  # all sessions have asked: no need to wait for the end of the window
        for each in robots[1:]:
            each.close()
        wait_until(lambda: server.server.metrics.sessions == 1)
        robots[0].infer(state_message())  # alone, it does not wait at all


def test_a_silent_client_loses_its_session() -> None:
    with serving(Echo(), idle_s=0.2) as server, connect(server.url, compression=None) as silent:
        silent.recv()
        assert silent.recv(timeout=PATIENCE) == "no request for 0.2 s"


def raw_session(port: int) -> socket.socket:
    """A WebSocket session by hand, its handshake and metadata read."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    lines = (
        "GET / HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    )
    peer.sendall("\r\n".join([*lines, "", ""]).encode())
    data = b""
    while b"action_space" not in data:
        data += peer.recv(4096)
    return peer


def header(length: int, first: int = 0x82) -> bytes:
    """Of a masked frame; the mask is zero."""
    return struct.pack("!BBQ", first, 0x80 | 127, length) + b"\0\0\0\0"


def drain(peer: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    data = b""
    try:
        while chunk := peer.recv(4096):
            data += chunk
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize(
    "beginning",
    [header(1000) + b"\0" * 10, header(1000)[:3], header(4, first=0x02) + b"\0" * 4],
    ids=["payload", "header", "fragments"],
)
def test_a_message_that_does_not_end_is_cut_off(beginning: bytes) -> None:
    with serving(Echo(), read_s=0.3) as server, robot(server.url) as other, raw_session(server.port) as slow:
        slow.sendall(beginning)
        assert b"took longer than 0.3 s" in drain(slow)
        other.infer(state_message())
        wait_until(lambda: any("took longer" in line for line in server.lines))


def test_pings_do_not_buy_time_for_a_message() -> None:
    with serving(Echo(), read_s=0.5) as server, raw_session(server.port) as slow:
        slow.sendall(header(4, first=0x02) + b"\0" * 4)
        start = time.monotonic()
        data = b""
        slow.settimeout(0.05)
        while b"took longer" not in data and time.monotonic() - start < PATIENCE:
            slow.sendall(b"\x89\x80\0\0\0\0")
            try:
                data += slow.recv(4096)
            except TimeoutError:
                continue
        assert b"took longer than 0.5 s" in data


def test_a_message_that_trickles_in_time_is_read() -> None:
    message = pack(state_message())
    with serving(Echo(), read_s=PATIENCE) as server, raw_session(server.port) as slow:
        slow.sendall(header(len(message)))
        for start in range(0, len(message), 40):
            slow.sendall(message[start : start + 40])
            time.sleep(0.005)
        assert b"actions" in slow.recv(4096)


def test_connections_that_never_begin_are_cut_off() -> None:
    with serving(Echo(), handshake_s=1.0) as server, robot(server.url) as other:
        for beginning in (b"", b"GET / HT", b"\x16\x03\x01\x02\x00"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as peer:
                peer.sendall(beginning)
                drain(peer)
        other.infer(state_message())


def test_idle_connections_cannot_take_all_seats() -> None:
    with serving(Echo(), max_sessions=2, handshake_s=PATIENCE) as server:
        with robot(server.url) as other:
            crowd = [socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) for _ in range(100)]
            for _ in range(20):
                other.infer(state_message())
            assert len(server.server._gate.connections) <= 66
            for each in crowd:
                each.close()
        wait_until(lambda: not server.server._gate.connections)
        robot(server.url).close()


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlspec.serving.session._WRITE_S", 0.3)
    policy = Echo()
    policy.script = lambda observations: [np.zeros((40_000, 8), np.float32) for _ in observations]
    with serving(policy) as server, raw_session(server.port) as deaf:
        message = pack(state_message())
        frame = header(len(message)) + message
        for _ in range(40):
            try:
                deaf.sendall(frame)
            except (ConnectionError, TimeoutError):
                break
        wait_until(lambda: any("does not read" in line for line in server.lines))
    assert SPEC.horizon == 10
