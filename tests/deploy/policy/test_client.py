"""The robot's side of a policy server, against servers that are scripted to misbehave."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from websockets.sync.server import ServerConnection, serve

from rlspec.contract.messages import DEADLINE, REQUEST_ID
from rlspec.deploy.arm.kinematics import forward
from rlspec.deploy.policy.client import PolicyClient
from rlspec.deploy.policy.sources import read_contract
from rlspec.errors import ConfigError, ServerError

OBSERVATION = {"observation/joint_position": np.arange(7.0), "prompt": "pick it up"}
METADATA = {"rlspec": {"action_space": "joint_velocity", "control_hz": 15.0}}


def array(values: Any) -> dict[bytes, Any]:
    """As openpi-client writes it, by hand."""
    numbers = np.asarray(values)
    keys = (b"__ndarray__", b"data", b"dtype", b"shape")
    return dict(zip(keys, (True, numbers.tobytes(), numbers.dtype.str, numbers.shape), strict=True))


ACTIONS = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


@contextmanager
def server(script: Callable[[ServerConnection], None], **options: Any) -> Iterator[str]:
    with serve(script, "127.0.0.1", 0, compression=None, **options) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        port = running.socket.getsockname()[1]
        yield f"ws://127.0.0.1:{port}"
        running.shutdown()
        thread.join()


def answering(
    reply: Callable[[dict[Any, Any]], Any], metadata: Any = METADATA, first: Any = None
) -> Callable[[ServerConnection], None]:
    def script(connection: ServerConnection) -> None:
        connection.send(msgpack.packb(metadata) if first is None else first)
        for message in connection:
            answer = reply(msgpack.unpackb(message))
            if answer is not None:
                connection.send(answer if isinstance(answer, str | bytes) else msgpack.packb(answer))

    return script


def openpi(request: dict[Any, Any]) -> Any:
    """openpi's own server: knows nothing of ids and deadlines."""
    assert b"__ndarray__" in request["observation/joint_position"]
    return {"actions": array(ACTIONS), "server_timing": {"infer_ms": 12.5}}


def test_a_plain_openpi_server_is_understood() -> None:
    with server(answering(openpi, metadata={})) as url, PolicyClient(url, timeout_s=10) as client:
        reply = client.infer(OBSERVATION)
        assert client.metadata == {}
    np.testing.assert_array_equal(reply.actions, ACTIONS.astype(float))
    assert reply.actions.dtype == np.float64
    assert reply.server_ms == 12.5
    assert reply.round_trip_ms > 0


def test_a_bare_array_is_understood_as_actions() -> None:
    with server(answering(lambda _: array(ACTIONS))) as url, PolicyClient(url, timeout_s=10) as client:
        assert client.infer(OBSERVATION).actions.shape == (2, 8)
        assert client.infer(OBSERVATION).server_ms is None


def test_requests_carry_their_number_and_deadline_beside_the_observation() -> None:
    seen = []

    def reply(request: dict[Any, Any]) -> Any:
        seen.append(request)
        return {"actions": array(ACTIONS), REQUEST_ID: request[REQUEST_ID]}

    with server(answering(reply)) as url, PolicyClient(url, timeout_s=10) as client:
        client.infer(OBSERVATION)
        client.infer(OBSERVATION)
    assert seen[0][REQUEST_ID] != seen[1][REQUEST_ID]
    assert seen[0][DEADLINE] == 10_000
    assert seen[0]["prompt"] == "pick it up"


def test_a_server_that_compiles_for_a_minute_is_not_taken_for_dead() -> None:
    """openpi's server infers in its event loop, which answers no ping meanwhile: none may be out of time."""
    with server(answering(openpi, metadata={})) as url, PolicyClient(url, timeout_s=10) as client:
        assert client._connection is not None and client._connection.ping_interval is None


def test_the_token_goes_into_the_header() -> None:
    headers = []

    def script(connection: ServerConnection) -> None:
        assert connection.request is not None
        headers.append(connection.request.headers["Authorization"])
        answering(openpi)(connection)

    with server(script) as url, PolicyClient(url, token="secret", timeout_s=10) as client:
        client.infer(OBSERVATION)
    assert headers == ["Bearer secret"]


def test_a_late_answer_is_never_taken_for_the_next_one() -> None:
    answers = iter([(0.4, 1.0), (0.0, 2.0)])

    def late(request: dict[Any, Any]) -> Any:
        wait, value = next(answers)
        time.sleep(wait)
        return {"actions": array(np.full((1, 8), value))}

    with server(answering(late)) as url:
        client = PolicyClient(url, timeout_s=10)
        client.connect()
        client.timeout_s = 0.1
        with pytest.raises(ServerError, match="no answer within 100 ms"):
            client.infer(OBSERVATION)
        assert not client.connected
        with pytest.raises(ServerError, match="no session"):
            client.infer(OBSERVATION)
        client.timeout_s = 10
        client.reconnect()
        assert client.infer(OBSERVATION).actions[0, 0] == 2.0
        client.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("ValueError: no such camera", "the server says: ValueError: no such camera"),
        (b"\xc1", "cannot be read"),
        (b"", "cannot be read"),
        ({"actions": [1, 2]}, "no array of numbers"),
        ({"action": array(ACTIONS)}, "no array of numbers"),
        ({"actions": array(ACTIONS[0])}, r"shape \(8,\); wanted \(horizon, 8\)"),
        ({"actions": array(ACTIONS[:, :7])}, r"shape \(2, 7\)"),
        ({"actions": array(ACTIONS[:0])}, r"shape \(0, 8\)"),
        ({"actions": array(np.zeros((1001, 8)))}, "horizon 1 to 1000"),
        ({"actions": array(ACTIONS * np.nan)}, "NaN"),
        ({"actions": array(np.full((1, 8), np.inf))}, "NaN or infinity"),
        ({"actions": array(ACTIONS), REQUEST_ID: 99}, "another request"),
        ({"actions": {**array(ACTIONS), b"shape": (2**40, 8)}}, "elements are allowed"),
    ],
)
def test_an_answer_that_is_none_ends_the_session(answer: Any, message: str) -> None:
    with server(answering(lambda _: answer)) as url:
        client = PolicyClient(url, timeout_s=10)
        client.connect()
        with pytest.raises(ServerError, match=message):
            client.infer(OBSERVATION)
        assert not client.connected


def test_two_answers_to_one_question_end_the_session() -> None:
    def script(connection: ServerConnection) -> None:
        connection.send(msgpack.packb(METADATA))
        for _ in connection:
            connection.send(msgpack.packb({"actions": array(ACTIONS)}))
            connection.send(msgpack.packb({"actions": array(ACTIONS)}))

    refused = pytest.raises(ServerError, match="without being asked")
    with server(script) as url, PolicyClient(url, timeout_s=10) as client, refused:
        for _ in range(100):  # one that is late passes for the next answer, and so one more waits each time
            client.infer(OBSERVATION)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("hello", "the server says: hello"),
        (b"\xc1", "cannot be read"),
        (msgpack.packb([1, 2]), "no metadata"),
        (msgpack.packb({1: 2}, default=str), "cannot be read"),
        (msgpack.packb({"rlspec": 1}), "no map"),
        (msgpack.packb({"rlspec": {"action_space": "joints", "control_hz": 15}}), "action_space 'joints' is unknown"),
        (msgpack.packb({"rlspec": {"action_space": "joint_velocity", "control_hz": 0}}), "no rate"),
        (msgpack.packb({"rlspec": {"action_space": "joint_velocity", "control_hz": 15, "horizon": "x"}}), "no number"),
    ],
)
def test_a_server_must_introduce_itself(first: Any, message: str) -> None:
    with server(answering(openpi, first=first)) as url:
        client = PolicyClient(url, timeout_s=10)
        with pytest.raises(ServerError, match=message):
            client.connect()
        assert not client.connected


def test_a_server_that_says_nothing_is_given_up() -> None:
    def mute(connection: ServerConnection) -> None:
        connection.recv()

    with server(mute) as url, pytest.raises(ServerError, match="within 200 ms"):
        PolicyClient(url, timeout_s=0.2).connect()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ServerError, match=r"cannot connect.*rlspec\.serve` up"):
        PolicyClient(f"127.0.0.1:{port}", timeout_s=5).connect()


def test_a_refusal_is_shown_with_the_remedy() -> None:
    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(401, "no token\n")

    with (
        server(answering(openpi), process_request=refuse) as url,
        pytest.raises(ServerError, match="HTTP 401 no token; let RLSPEC_TOKEN hold its token"),
    ):
        PolicyClient(url, timeout_s=10).connect()


def test_a_server_that_stops_reading_does_not_block_the_sender() -> None:
    """The socket's buffers are full: without a limit `send` would wait for ever."""

    def deaf(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        request = b""
        while b"\r\n\r\n" not in request:
            request += peer.recv(4096)
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
        peer.sendall(handshake(key.split(b":")[1].strip()) + frame(msgpack.packb(METADATA)))
        done.wait(20)
        peer.close()

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=deaf, args=(listener,))
        thread.start()
        client = PolicyClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout_s=3)  # also of the socket, for good
        client.connect()
        client.timeout_s = 0.5
        start = time.monotonic()
        with pytest.raises(ServerError, match="cannot send|no answer"):
            client.infer({"image": np.zeros((5000, 2000, 3), np.uint8)})
        waited = time.monotonic() - start
        done.set()
        thread.join()
    assert waited < 15
    assert not client.connected


def handshake(key: bytes) -> bytes:
    import base64
    import hashlib

    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = (
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept,
    )
    return b"\r\n".join([*lines, b"", b""])


def frame(payload: bytes) -> bytes:
    assert len(payload) < 126
    return struct.pack("!BB", 0x82, len(payload)) + payload


def test_the_server_dies_while_we_wait() -> None:
    def die(connection: ServerConnection) -> None:
        connection.send(msgpack.packb(METADATA))
        connection.recv()
        connection.socket.shutdown(socket.SHUT_RDWR)

    with server(die) as url:
        client = PolicyClient(url, timeout_s=10)
        client.connect()
        with pytest.raises(ServerError, match="session was lost"):
            client.infer(OBSERVATION)


def test_reconnecting_waits_for_a_server_that_comes_back_and_refuses_another_policy() -> None:
    with server(answering(openpi)) as url:
        client = PolicyClient(url, timeout_s=5)
        client.connect()
    port = int(url.rpartition(":")[2])
    with pytest.raises(ServerError):
        client.infer(OBSERVATION)
    with pytest.raises(ServerError, match="cannot connect"):
        client.reconnect(attempts=2, first_wait_s=0.01)
    other = {"rlspec": {"action_space": "joint_position", "control_hz": 15.0}}
    with serve(answering(openpi, metadata=other), "127.0.0.1", port) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with pytest.raises(ServerError, match="another policy"):
            client.reconnect()
        running.shutdown()
        thread.join()
    assert not client.connected


def test_closing_from_another_thread_ends_the_wait() -> None:
    with server(answering(lambda _: None)) as url:
        client = PolicyClient(url, timeout_s=20)
        client.connect()
        threading.Timer(0.2, client.close).start()
        start = time.monotonic()
        with pytest.raises(ServerError):
            client.infer(OBSERVATION)
        assert time.monotonic() - start < 15


@pytest.mark.parametrize("url", ["http://host:1", "ws://", "ws://host:port", "ws://host:99999", ""])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of a policy server"):
        PolicyClient(url)


def test_certificates_are_checked(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="ca_file.*cannot be read"):
        PolicyClient("wss://host:1", ca_file=tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="without TLS"):
        PolicyClient("ws://host:1", ca_file=tmp_path / "none.pem")


def test_an_observation_that_cannot_be_sent_is_named() -> None:
    with (
        server(answering(openpi)) as url,
        PolicyClient(url, timeout_s=10) as client,
        pytest.raises(ServerError, match="a value of type set"),
    ):
        client.infer({"camera": {1, 2}})


def test_the_client_imports_nothing_heavy() -> None:
    program = (
        "import sys, rlspec.deploy.policy.client\n"
        "heavy = {'torch', 'lerobot', 'pandas', 'PIL', 'gymnasium'}\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ARENA = {
    "image_resolution": [224, 224],
    "needs_wrist_camera": True,
    "n_external_cameras": 2,
    "needs_stereo_camera": False,
    "needs_session_id": True,
    "action_space": "joint_position",
}


def arena(seen: list[dict[Any, Any]], *, former: bool, reset: str = "reset successful") -> Callable[..., Any]:
    """RoboArena's server, roboarena/policy_server.py at 6fa329f; the former form is that of 5350209."""

    def reply(request: dict[Any, Any]) -> Any:
        seen.append(request)
        endpoint = request["endpoint"]  # it raises KeyError without
        if endpoint == "reset":
            return reset
        return array(ACTIONS) if former else {"actions": array(ACTIONS)}

    return reply


def numbers(packed: dict[bytes, Any]) -> np.ndarray:
    return np.frombuffer(packed[b"data"], packed[b"dtype"]).reshape(packed[b"shape"])


@pytest.mark.parametrize("former", [True, False])
def test_roboarenas_server_gets_what_it_wants_and_is_understood(*, former: bool) -> None:
    seen: list[dict[Any, Any]] = []
    joints = np.array([0.1, -0.7, 0.2, -2.0, 0.3, 1.5, 0.4])
    with server(answering(arena(seen, former=former), ARENA)) as url, PolicyClient(url, timeout_s=10) as client:
        replies = [client.infer({**OBSERVATION, "observation/joint_position": joints}) for _ in range(2)]
        client.reset()
        client.infer(OBSERVATION)
    for reply in replies:
        np.testing.assert_array_equal(reply.actions, ACTIONS.astype(float))
    assert [request["endpoint"] for request in seen] == ["infer", "infer", "reset", "infer"]
    assert len({request["session_id"] for request in seen if request["endpoint"] == "infer"}) == 1
    pose = numbers(seen[0]["observation/cartesian_position"])
    position, rotation = forward(joints)  # of the hand's tip, 0.1034 m before the flange and turned by -45 degrees
    turned = Rotation.from_euler("xyz", pose[3:])
    np.testing.assert_allclose(pose[:3] + turned.apply([0, 0, 0.1034]), position)
    hand = turned * Rotation.from_euler("z", -np.pi / 4)
    np.testing.assert_allclose(hand.as_matrix(), rotation, atol=1e-12)


def test_roboarenas_cameras_and_actions_are_those_of_its_metadata() -> None:
    contract = read_contract(ARENA, "test", action_space=None, rate=None)
    assert contract.action_space == "joint_position"
    assert contract.cameras == {
        "observation/exterior_image_0_left": (224, 224),
        "observation/exterior_image_1_left": (224, 224),
        "observation/wrist_image_left": (224, 224),
    }
    blind = {**ARENA, "image_resolution": None, "n_external_cameras": 0}
    contract = read_contract(blind, "test", action_space=None, rate=None)
    assert contract.cameras == {"observation/wrist_image_left": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"needs_stereo_camera": True}, "needs_stereo_camera True asks for right images"),
        ({"action_space": "delta_eef"}, "action_space 'delta_eef' is unknown to RoboArena"),
        ({"action_space": ["joint_position"]}, "is unknown to RoboArena"),
        ({"n_external_cameras": 3}, "n_external_cameras 3 is not 0, 1 or 2"),
        ({"n_external_cameras": True}, "n_external_cameras True"),
        ({"image_resolution": [0, 224]}, "image_resolution .* is no"),
        ({"needs_session_id": 1}, "needs_session_id 1 is neither true nor false"),
    ],
)
def test_roboarena_metadata_that_cannot_be_served_are_named(change: dict[str, Any], words: str) -> None:
    with (
        server(answering(openpi, {**ARENA, **change})) as url,
        pytest.raises(ServerError, match=words),
        PolicyClient(url, timeout_s=10),
    ):
        pass


def test_the_width_is_that_of_roboarenas_action_space() -> None:
    metadata = {**ARENA, "action_space": "cartesian_position"}
    with (
        server(answering(arena([], former=False), metadata)) as url,
        PolicyClient(url, timeout_s=10) as client,
        pytest.raises(ServerError, match=r"shape \(2, 8\); wanted \(horizon, 7\)"),
    ):
        client.infer(OBSERVATION)


def test_openpis_server_is_never_sent_a_key_of_roboarenas_nor_a_reset() -> None:
    seen: list[dict[Any, Any]] = []

    def reply(request: dict[Any, Any]) -> Any:
        seen.append(request)
        return openpi(request)

    with server(answering(reply, {})) as url, PolicyClient(url, timeout_s=10) as client:
        client.reset()
        client.infer(OBSERVATION)
    (request,) = seen
    assert not {"endpoint", "session_id", "observation/cartesian_position"} & request.keys()


def test_a_reset_that_fails_is_told_and_ends_the_session() -> None:
    with (
        server(answering(arena([], former=False, reset="Traceback: reset() is missing"), ARENA)) as url,
        PolicyClient(url, timeout_s=10) as client,
    ):
        with pytest.raises(ServerError, match="the server says: Traceback: reset"):
            client.reset()
        assert not client.connected
