"""Thousands of malformed messages against the server while eight robots work: none of them notices."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import openpi_messages
import pytest
from serving_cases import PATIENCE, SPEC, Echo, Running, serving, state_message
from test_deadlines import drain, header, raw_session
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from rlspec.contract.wire import pack
from rlspec.deploy.policy.client import PolicyClient
from rlspec.errors import ServerError

ROBOTS = 8
VALID = [pack(message) for message in openpi_messages.messages().values()] + [pack(state_message())]


def truncated(generator: random.Random) -> bytes:
    data = generator.choice(VALID)
    return data[: generator.randrange(len(data))]


def mutated(generator: random.Random) -> bytes:
    data = bytearray(generator.choice(VALID))
    for _ in range(generator.randint(1, 8)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def nested(generator: random.Random) -> bytes:
    return generator.choice((b"\x91", b"\x81\xa1a")) * generator.randint(9, 5000) + b"\xc0"


def huge(generator: random.Random) -> bytes:
    """Sizes that are declared and not sent."""
    size = generator.choice((2**31 - 1, 2**24, 2**32 - 1)).to_bytes(4, "big")
    return bytes([generator.choice((0xDD, 0xDF, 0xC6, 0xDB, 0xC9))]) + size + generator.randbytes(20)


def huge_array(generator: random.Random) -> bytes:
    shape = [generator.choice((2**40, 2**31, 10**6, -1)) for _ in range(generator.randint(1, 5))]
    dtype = generator.choice(("<f4", "|O", "<U99999", "|V8", "f4,f4"))
    array = {b"__ndarray__": True, b"data": b"\0" * 16, b"dtype": dtype, b"shape": shape}
    return bytes(msgpack.packb({"observation/joint_position": array}))


def crowded(generator: random.Random) -> bytes:
    return b"\xdc\x03\xff" + generator.choice((b"\x80", b"\x90", b"\xc0")) * generator.randint(1000, 50_000)


def noise(generator: random.Random) -> bytes:
    return generator.randbytes(generator.randint(0, 2000))


def wrong(generator: random.Random) -> bytes:
    """A message that is one, of something else."""
    key = generator.choice(list(state_message()))
    value = generator.choice((None, [], "x", np.zeros(3), np.full(7, np.nan), {"a": {"b": 1}}, -1, [[1.0] * 7]))
    return pack({**state_message(), key: value, generator.choice("abc"): value})


MESSAGES = (truncated, mutated, nested, huge, huge_array, crowded, noise, wrong)


def send_message(port: int, generator: random.Random) -> None:
    """One malformed message in a session of its own; whatever was valid by chance is answered."""
    message: bytes | str = generator.choice(MESSAGES)(generator)
    if generator.random() < 0.05:
        message = "text " * generator.randint(0, 100)
    with connect(f"ws://127.0.0.1:{port}", compression=None, open_timeout=PATIENCE, close_timeout=0.1) as session:
        session.recv(timeout=PATIENCE)
        session.send(message)
        session.recv(timeout=PATIENCE)


def send_garbage(port: int, generator: random.Random) -> None:
    """Bytes that are no WebSocket, or one that is broken off."""
    kind = generator.randrange(6)
    if kind < 2:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:
            peer.sendall(
                generator.choice((b"", b"GET / HTTP/1.1\r\n", b"POST /metrics HTTP/1.1\r\n\r\n")) + noise(generator)
            )
            peer.shutdown(socket.SHUT_WR)
            drain(peer)
        return
    with raw_session(port) as peer:
        if kind == 2:
            peer.sendall(noise(generator))
            peer.shutdown(socket.SHUT_WR)
            drain(peer)
        elif kind == 3:  # a frame of 2**62 bytes, a frame beyond the cap, one without a mask
            peer.sendall(generator.choice((header(2**62), header(2**26), b"\x82\x05hello")))
            drain(peer)
        elif kind == 4:  # gone in the middle of a message
            peer.sendall(header(100_000) + b"\0" * generator.randrange(50_000))
        else:  # slow: cut off by the server
            peer.sendall(header(1000)[: generator.randint(1, 14)])
            drain(peer)


def attack(port: int, seed: int, count: int, done: list[int]) -> None:
    generator = random.Random(seed)
    for _ in range(count):
        # Being cut off is expected; waiting in vain (TimeoutError) is not.
        with contextlib.suppress(WebSocketException, ConnectionError):
            (send_message if generator.random() < 0.9 else send_garbage)(port, generator)
        done.append(1)


def work(server: Running, number: int, stop: threading.Event, results: list[Any]) -> None:
    """A robot: its answers are its own, and its session never ends."""
    client = PolicyClient(server.url, timeout_s=PATIENCE)
    client.connect()
    asked = 0
    try:
        while not stop.is_set() or asked == 0:
            seed = number + asked / 1000
            actions = client.infer(state_message(seed)).actions
            assert abs(actions[0, 0] - (seed - 0.5)) < 1e-5
            asked += 1
            stop.wait(0.02)
        results.append(asked)
    except (ServerError, AssertionError) as error:
        results.append(error)
    finally:
        client.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def besiege(count: int, attackers: int = 4) -> tuple[list[Any], int, Running]:
    """Eight robots and the attack; returns what became of the robots, and the growth of memory in its second half."""
    with serving(Echo(SPEC), read_s=0.3, handshake_s=2.0, max_sessions=64) as server:
        stop, results, done = threading.Event(), [], []
        robots = [threading.Thread(target=work, args=(server, number, stop, results)) for number in range(ROBOTS)]
        for each in robots:
            each.start()
        sizes = []
        for half in range(2):
            crowd = [
                threading.Thread(target=attack, args=(server.port, 10 * half + seed, count // attackers // 2, done))
                for seed in range(attackers)
            ]
            for each in crowd:
                each.start()
            for each in crowd:
                each.join()
            sizes.append(resident_bytes())
        stop.set()
        for each in robots:
            each.join(PATIENCE)
        assert len(done) == count
        assert server.server._batcher.alive
    return results, sizes[1] - sizes[0], server


def check(count: int) -> None:
    results, growth, server = besiege(count)
    assert len(results) == ROBOTS
    assert all(isinstance(result, int) and result > 5 for result in results), results
    metrics = server.server.metrics
    assert metrics.requests["ok"] >= sum(results)
    assert metrics.requests["invalid"] > count // 2
    assert metrics.requests["failed"] == metrics.requests["busy"] == metrics.requests["deadline"] == 0
    assert metrics.sessions == 0
    assert not server.server._gate.connections
    assert server.server._gate.admitted == 0
    assert growth < 16 * 2**20, f"memory grew by {growth / 2**20:.1f} MiB"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of this process from /proc")
def test_hundreds_of_malformed_messages_disturb_nobody() -> None:
    check(400)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of this process from /proc")
def test_ten_thousand_malformed_messages_disturb_nobody() -> None:
    check(10_000)
