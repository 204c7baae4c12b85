"""The server, from the outside: what clients see of it."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import openpi_messages
import pytest
from serving_cases import CAMERAS, PATIENCE, SPEC, WITH_CAMERAS, Echo, serving, state_message, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from rlspec.contract.pictures import resize_with_pad
from rlspec.contract.wire import pack, unpack
from rlspec.deploy.policy.client import PolicyClient
from rlspec.deploy.policy.remote import RemotePolicy, WatchedClient
from rlspec.errors import ConfigError, ServerError
from rlspec.serve import ServeCommand
from rlspec.serving.builtin import ReplayPolicy
from rlspec.serving.settings import tls_context

TOKEN = "correct horse"


def get(url: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url.replace("ws:", "http:"))
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def client(url: str, **options: Any) -> PolicyClient:
    return PolicyClient(url, timeout_s=options.pop("timeout_s", PATIENCE), **options)


class Plain:
    """As openpi's client does it: metadata, then one message for another."""

    def __init__(self, url: str, **options: Any) -> None:
        self.context = connect(url, compression=None, max_size=None, close_timeout=1, **options)
        self.connection = self.context.__enter__()
        self.metadata = unpack(self.connection.recv(timeout=PATIENCE))

    def ask(self, message: Any) -> Any:
        self.connection.send(message if isinstance(message, str | bytes) else pack(message))
        return self.connection.recv(timeout=PATIENCE)

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_metadata_come_first_and_say_what_the_actions_mean() -> None:
    with serving(Echo(WITH_CAMERAS)) as server, client(server.url) as robot:
        metadata = robot.metadata
    assert metadata["rlspec"]["action_space"] == "joint_velocity"
    assert metadata["rlspec"]["control_hz"] == 15.0
    assert metadata["rlspec"]["horizon"] == 10
    assert metadata["rlspec"]["n_action_steps"] == 8
    assert metadata["rlspec"]["execution_law"] == "droid_hybrid"
    assert metadata["rlspec"]["prompt_required"] is True
    assert metadata["rlspec"]["cameras"] == {
        "observation/exterior_image_1_left": [180, 320],
        "observation/wrist_image_left": [180, 320],
    }
    assert {key: metadata[key] for key in metadata if key != "rlspec"} == {
        "image_resolution": [180, 320],
        "needs_wrist_camera": True,
        "n_external_cameras": 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": "joint_velocity",
    }


def test_an_answer_in_openpis_form() -> None:
    with serving(Echo()) as server, Plain(server.url) as robot:
        replies = [msgpack.unpackb(robot.ask(state_message())) for _ in range(2)]
    actions = replies[0]["actions"]
    assert actions[b"shape"] == [10, 8]
    assert actions[b"dtype"] == "<f4"
    rows = np.frombuffer(actions[b"data"], np.float32).reshape(10, 8)
    np.testing.assert_allclose(rows[3], [*np.linspace(-0.5, 0.5, 7), 0.5])
    assert set(replies[0]["server_timing"]) == {"infer_ms", "queue_ms", "batch_size"}
    assert replies[1]["server_timing"]["prev_total_ms"] > 0
    assert "rlspec/request_id" not in replies[0]


def test_our_client_gets_the_same_with_its_number() -> None:
    with serving(Echo()) as server, client(server.url) as robot:
        for seed in (0.0, 0.25):
            reply = robot.infer(state_message(seed))
            np.testing.assert_allclose(reply.actions[0, 0], -0.5 + seed)
            assert reply.server_ms is not None and 0 <= reply.server_ms <= reply.round_trip_ms


def test_openpis_recorded_observation_reaches_the_policy() -> None:
    policy = Echo(WITH_CAMERAS)
    with serving(policy) as server, Plain(server.url) as robot:
        robot.ask((openpi_messages.RECORDED / "droid.msgpack").read_bytes())
    seen = policy.seen[0]
    np.testing.assert_array_equal(seen.images["exterior_1_left"], openpi_messages.picture(6, 8))
    np.testing.assert_array_equal(seen.images["wrist_left"], openpi_messages.picture(6, 8, seed=1))
    np.testing.assert_array_equal(seen.state, [*np.linspace(-1, 1, 7), 0.25])
    assert seen.prompt == "put the marker in the cup"


def test_roboarenas_recorded_session() -> None:
    """Cameras count from 0, the answer is a map, a reset is answered by words."""
    policy = Echo(replace(WITH_CAMERAS, cameras={**CAMERAS, "exterior_2_left": (180, 320)}))
    with serving(policy, roboarena=True) as server, Plain(server.url) as robot:
        assert sorted(robot.metadata) == [
            "action_space",
            "image_resolution",
            "n_external_cameras",
            "needs_session_id",
            "needs_stereo_camera",
            "needs_wrist_camera",
        ]
        assert robot.metadata["n_external_cameras"] == 2
        reply = unpack(robot.ask((openpi_messages.RECORDED / "roboarena.msgpack").read_bytes()))
        assert type(reply) is dict
        actions = reply["actions"]
        assert isinstance(actions, np.ndarray)
        assert actions.shape == (10, 8)
        assert robot.ask((openpi_messages.RECORDED / "roboarena_reset.msgpack").read_bytes()) == "reset successful"
        assert unpack(robot.ask((openpi_messages.RECORDED / "roboarena.msgpack").read_bytes()))["actions"].shape == (
            10,
            8,
        )
        assert policy.forgotten == [1]
        with client(server.url) as ours:
            assert "rlspec" in ours.metadata
    np.testing.assert_array_equal(policy.seen[0].images["exterior_1_left"], openpi_messages.picture(6, 8))
    np.testing.assert_array_equal(policy.seen[0].images["exterior_2_left"], openpi_messages.picture(6, 8, seed=2))


def test_roboarenas_former_client_gets_the_bare_array_where_it_is_wanted() -> None:
    policy = Echo(WITH_CAMERAS)
    with serving(policy, roboarena=True, roboarena_arrays=True) as server, Plain(server.url) as robot:
        actions = unpack(robot.ask((openpi_messages.RECORDED / "roboarena.msgpack").read_bytes()))
        assert isinstance(actions, np.ndarray) and actions.shape == (10, 8)
        assert unpack(robot.ask((openpi_messages.RECORDED / "droid.msgpack").read_bytes()))["actions"].shape == (10, 8)


def test_roboarena_has_no_delta_eef() -> None:
    with (
        pytest.raises(ConfigError, match="roboarena=true"),
        serving(Echo(replace(SPEC, action_space="delta_eef")), roboarena=True),
    ):
        pass


OBJECTS = {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "|O", b"shape": [1]}
FULL = {**openpi_messages.droid_observation(), "prompt": "go"}
WRIST, JOINTS = "observation/wrist_image_left", "observation/joint_position"


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in FULL.items() if name != key}


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("hello", 1003, "a text; wanted a binary message"),
        (b"\xc1\x00", 1007, "no message of msgpack"),
        (b"", 1007, "no message of msgpack"),
        (pack([1]), 1007, "map with texts as keys"),
        (msgpack.packb({b"a": 1}), 1007, "map with texts as keys"),
        (pack(FULL)[:-3], 1007, "no message of msgpack"),
        (msgpack.packb({"x": OBJECTS}), 1007, "'|O' is not allowed"),
        ({**FULL, "endpoint": "kill"}, 1008, "endpoint: wanted infer or reset"),
        ({**FULL, "endpoint": [1]}, 1008, "endpoint: wanted infer or reset"),
        ({**FULL, "rlspec/deadline_ms": -1}, 1008, "deadline_ms: wanted milliseconds"),
        ({**FULL, "rlspec/deadline_ms": "soon"}, 1008, "deadline_ms: wanted milliseconds"),
        ({}, 1008, "observation/exterior_image_1_left: missing; the policy wants this camera, and got nothing"),
        (without(WRIST), 1008, f"{WRIST}: missing"),
        (
            {**FULL, WRIST: FULL[WRIST].astype(np.float32)},
            1008,
            "got float32 (6, 8, 3); wanted uint8 (height, width, 3)",
        ),
        ({**FULL, WRIST: FULL[WRIST].transpose(2, 0, 1)}, 1008, "got uint8 (3, 6, 8); wanted uint8 (height, width, 3)"),
        ({**FULL, WRIST: FULL[WRIST][:0]}, 1008, "got (0, 8, 3)"),
        ({**FULL, WRIST: "picture"}, 1008, "got str; wanted uint8 (height, width, 3)"),
        (without(JOINTS), 1008, f"{JOINTS}: missing; wanted 7 numbers"),
        ({**FULL, JOINTS: np.zeros(6)}, 1008, "got float64 (6,); wanted numbers (7,)"),
        ({**FULL, JOINTS: np.full(7, np.nan)}, 1008, "NaN, infinity"),
        ({**FULL, JOINTS: np.full(7, 1e300)}, 1008, "more than float32 holds"),
        ({**FULL, JOINTS: ["a"] * 7}, 1008, "other things than numbers"),
        ({**FULL, JOINTS: None}, 1008, "got object ()"),
        ({**FULL, "prompt": " "}, 1008, "prompt: got an empty text"),
        ({**FULL, "prompt": 5}, 1008, "prompt: got int"),
        (without("prompt"), 1008, "prompt: got nothing"),
        ({**FULL, "prompt": "x" * 2001}, 1008, "2001 characters"),
    ],
)
def test_whoever_breaks_the_rules_hears_why_and_loses_the_session(message: Any, code: int, words: str) -> None:
    with serving(Echo(WITH_CAMERAS)) as server, client(server.url) as other:
        robot = Plain(server.url)
        answer = robot.ask(message)
        assert isinstance(answer, str)
        assert words in answer
        with pytest.raises(ConnectionClosed) as caught:
            robot.connection.recv(timeout=PATIENCE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == code
        assert other.infer(FULL).actions.shape == (10, 8)
        wait_until(lambda: server.server.metrics.requests["invalid"] == 1)


def test_keys_of_lerobot_and_lists_of_numbers_will_do() -> None:
    policy = Echo(replace(SPEC, cameras={"front": (4, 4)}))
    message = {
        "observation.images.front": np.zeros((4, 4, 3), np.uint8),
        "observation.state": list(range(8)),
        "task": "go",
    }
    with serving(policy) as server, client(server.url) as robot:
        assert robot.infer(message).actions[0].tolist() == list(range(8))
    assert policy.seen[0].prompt == "go"


def test_states_of_other_robots_come_whole() -> None:
    policy = Echo(replace(SPEC, state=9))
    policy.script = lambda observations: [np.zeros((10, 8), np.float32) for _ in observations]
    with serving(policy) as server, client(server.url) as robot:
        robot.infer({"observation/state": np.arange(9.0), "prompt": "go"})
        assert policy.seen[0].state.tolist() == list(range(9))
        with pytest.raises(ServerError, match="observation/state: missing; the policy wants 9 numbers"):
            robot.infer(state_message())


def test_a_default_prompt_stands_in() -> None:
    policy = Echo(replace(SPEC, prompt="tidy up"))
    message = {key: value for key, value in state_message().items() if key != "prompt"}
    with serving(policy) as server, client(server.url) as robot:
        assert robot.metadata["rlspec"]["prompt_required"] is False
        robot.infer(message)
        robot.infer({**message, "prompt": "wipe"})
    assert [each.prompt for each in policy.seen] == ["tidy up", "wipe"]


def test_an_oversized_message_costs_the_session() -> None:
    with serving(Echo(), max_message_mb=0.01) as server, client(server.url) as other:
        robot = Plain(server.url)
        with pytest.raises(ConnectionClosed) as caught:
            robot.ask({**state_message(), "more": b"\0" * 20_000})
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
        other.infer(state_message())


def test_health_and_metrics_are_on_the_same_port() -> None:
    with serving(Echo()) as server, client(server.url) as robot:
        robot.infer(state_message())
        assert get(f"{server.url}/healthz") == (200, "OK\n")
        wait_until(lambda: server.server.metrics.requests["ok"] == 1)
        status, text = get(f"{server.url}/metrics")
    assert status == 200
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert samples['rlspec_serve_requests_total{outcome="ok"}'] == "1"
    assert samples["rlspec_serve_sessions"] == "1"
    assert samples['rlspec_serve_request_seconds_bucket{le="+Inf"}'] == "1"
    assert samples["rlspec_serve_batch_size_sum"] == "1.000000"
    assert int(samples["rlspec_serve_received_bytes_total"]) > 50


@pytest.mark.parametrize(
    ("header", "enters"),
    [
        (f"Bearer {TOKEN}", True),
        (f"Api-Key {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Basic {TOKEN}", False),
        ("Bearer wrong horse", False),
        (f"Bearer {TOKEN}x", False),
        ("Bearer", False),
        ("", False),
        (None, False),
    ],
)
def test_a_token_opens_the_door(header: str | None, enters: bool) -> None:
    headers = None if header is None else {"Authorization": header}
    with serving(Echo(), token=TOKEN) as server:
        if enters:
            with Plain(server.url, additional_headers=headers) as robot:
                assert isinstance(robot.ask(state_message()), bytes)
        else:
            with pytest.raises(InvalidStatus, match="401"):
                Plain(server.url, additional_headers=headers)
            assert server.server.metrics.refused["token"] == 1
            (line,) = [line for line in server.lines if line.startswith("refused 127.0.0.1:")]
            assert line.endswith(": without the token (HTTP 401)")


def test_many_refusals_are_few_lines_that_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Echo(), token=TOKEN) as server:
        for _ in range(5):
            assert get(f"{server.url}/metrics")[0] == 401
        assert len(server.lines) == 1
        server.server._next_line.clear()  # the seconds between two lines are over
        assert get(f"{server.url}/metrics", "wrong")[0] == 401
    assert server.lines[1].endswith("without the token (HTTP 401), the last of 5")
    assert not any(TOKEN in line or "wrong" in line for line in server.lines)


def test_metrics_want_the_token_and_health_does_not() -> None:
    with serving(Echo(), token=TOKEN) as server:
        assert get(f"{server.url}/healthz")[0] == 200
        assert get(f"{server.url}/metrics")[0] == 401
        assert get(f"{server.url}/metrics", TOKEN)[0] == 200
        with client(server.url, token=TOKEN) as robot:
            robot.infer(state_message())
        with pytest.raises(ServerError, match="401 a token is required; let RLSPEC_TOKEN hold its token"):
            client(server.url).connect()


def test_pages_in_a_browser_are_refused() -> None:
    with serving(Echo()) as server, pytest.raises(InvalidStatus, match="403"):
        Plain(server.url, origin="http://evil.example")


def test_more_sessions_than_seats_are_refused_until_one_leaves() -> None:
    with serving(Echo(), max_sessions=2) as server:
        first, second = client(server.url), client(server.url)
        first.connect()
        second.connect()
        with pytest.raises(ServerError, match="503 all 2 sessions are taken"):
            client(server.url).connect()
        first.close()
        wait_until(lambda: server.server.metrics.sessions == 1)
        client(server.url).reconnect(attempts=20, first_wait_s=0.05)
        second.infer(state_message())
        second.close()


def test_a_policy_that_fails_costs_the_one_who_asked() -> None:
    def fail(observations: Any) -> Any:
        if any(each.prompt == "bad" for each in observations):
            raise ValueError("no\nsuch thing")
        return [np.zeros((10, 8), np.float32) for _ in observations]

    policy = Echo()
    policy.script = fail
    with serving(policy, batch_window_ms=300) as server:
        robots = [client(server.url) for _ in range(3)]
        for robot in robots:
            robot.connect()
        results: dict[int, Any] = {}

        def ask(index: int) -> None:
            try:
                results[index] = robots[index].infer({**state_message(), "prompt": "bad" if index == 1 else "good"})
            except ServerError as error:
                results[index] = str(error)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert "inference failed: ValueError: no such thing" in results[1]
    assert results[0].actions.shape == results[2].actions.shape == (10, 8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.full((10, 8), np.nan, np.float32), "NaN"),
        (np.zeros((10, 7), np.float32), r"shape (10, 7)"),
        (np.zeros((0, 8), np.float32), "shape (0, 8)"),
        (None, "shape ()"),
    ],
)
def test_nonsense_of_the_policy_is_not_passed_on(given: Any, words: str) -> None:
    policy = Echo()
    policy.script = lambda observations: [given for _ in observations]
    with serving(policy) as server, client(server.url) as robot, pytest.raises(ServerError) as caught:
        robot.infer(state_message())
    assert words in str(caught.value)


def test_a_policy_that_loses_an_answer_is_found_out() -> None:
    policy = Echo()
    policy.script = lambda observations: []
    with serving(policy) as server, client(server.url) as robot, pytest.raises(ServerError, match="0 answers to 1"):
        robot.infer(state_message())


def test_a_session_leaves_a_line_without_pictures() -> None:
    with serving(Echo(WITH_CAMERAS)) as server:
        with client(server.url) as robot:
            robot.infer(FULL)
        wait_until(lambda: bool(server.lines))
        Plain(server.url).ask({**FULL, "prompt": "\x1b[31m" * 500})
        wait_until(lambda: len(server.lines) == 2)
    assert "1 answers, median" in server.lines[0]
    assert "closed by the client" in server.lines[0]
    assert "characters" in server.lines[1]
    assert all(len(line) < 300 and line.isprintable() for line in server.lines)


def test_ipv6_addresses_are_written_as_such() -> None:
    try:
        with serving(Echo(), host="::1") as server, client(server.url) as robot:
            assert server.url.startswith("ws://[::1]:")
            robot.infer(state_message())
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_a_port_in_use_is_named() -> None:
    with serving(Echo()) as server:
        from rlspec.serving.server import PolicyServer
        from rlspec.serving.settings import ServerSettings

        second = PolicyServer(Echo(), ServerSettings(port=server.port))
        import asyncio

        with pytest.raises(ConfigError, match=f"port={server.port}: cannot listen there"):
            asyncio.run(second.start())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "0.0.0.0"}, "token_file=FILE"),
        ({"host": "192.168.1.5"}, "token_file=FILE"),
        ({"host": "robot.example"}, "token_file=FILE"),
        ({"host": "::"}, "token_file=FILE"),
        ({"token": "short"}, "at least 8"),
        ({"tls_cert": "cert.pem"}, "give both"),
        ({"tls_cert": "none.pem", "tls_key": "none.key"}, "no such file"),
        ({"max_batch": 0}, "max_batch=0: must be a whole number >= 1"),
        ({"deadline_ms": float("nan")}, "deadline_ms=nan"),
        ({"read_s": -1.0}, "read_s=-1"),
        ({"max_message_mb": 5000.0}, "max_message_mb=5000.0: must be a number > 0 and <= 1024"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tls_context(ServeCommand.checked({"policy": "hold", **settings}))


def test_with_a_token_others_may_reach_it() -> None:
    with serving(Echo(), host="0.0.0.0", token=TOKEN) as server:
        assert get(f"ws://127.0.0.1:{server.port}/metrics", TOKEN)[0] == 200
    with serving(Echo(), host="0.0.0.0", insecure=True) as server:
        assert get(f"ws://127.0.0.1:{server.port}/metrics")[0] == 200


def test_a_stopped_server_answers_what_is_in_flight_and_says_goodbye() -> None:
    policy = Echo()
    policy.gate = threading.Event()
    with serving(policy) as server:
        busy, idle = client(server.url), Plain(server.url)
        busy.connect()
        results: list[Any] = []
        asking = threading.Thread(target=lambda: results.append(busy.infer(state_message())))
        asking.start()
        assert policy.entered.wait(PATIENCE)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(ConnectionClosed) as caught:
            idle.connection.recv(timeout=PATIENCE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1001
        with pytest.raises(ServerError):
            client(server.url, timeout_s=5).connect()
        policy.gate.set()
        asking.join(PATIENCE)
        stopping.join(PATIENCE)
        assert not stopping.is_alive()
        assert results[0].actions.shape == (10, 8)


def test_a_policy_that_hangs_does_not_keep_the_server_from_ending() -> None:
    policy = Echo()
    policy.gate = threading.Event()
    with serving(policy, grace_s=0.2) as server:
        robot = Plain(server.url)
        robot.connection.send(pack(state_message()))
        assert policy.entered.wait(PATIENCE)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < PATIENCE / 2
        policy.gate.set()


@pytest.mark.parametrize("forms", [{}, {"roboarena": True}])
def test_the_warm_up_is_not_the_beginning_of_a_replay(forms: dict[str, bool]) -> None:
    recorded = np.arange(40 * 8, dtype=np.float32).reshape(40, 8)
    with serving(ReplayPolicy(replace(SPEC, prompt_required=False), recorded), **forms) as server:
        policy = RemotePolicy(WatchedClient(server.url, timeout_s=PATIENCE), None, deadline=PATIENCE)
        for _ in range(2):
            policy.infer(state_message())
        policy.hurry()
        np.testing.assert_array_equal(policy.infer(state_message()).actions[0], recorded[0])
        np.testing.assert_array_equal(policy.infer(state_message()).actions[0], recorded[SPEC.n_action_steps])
        policy.close()


def droid_client(robot: Plain, camera: tuple[int, int]) -> np.ndarray:
    """What openpi's examples/droid/main.py does at 15a9616: two cameras letterboxed to 224 x 224, (10, 8) expected."""
    pictures = [np.full((*camera, 3), 200, np.uint8), np.full((*camera, 3), 90, np.uint8)]
    keys = ("observation/exterior_image_1_left", "observation/wrist_image_left")
    request = {key: resize_with_pad(picture, 224, 224) for key, picture in zip(keys, pictures, strict=True)}
    actions: np.ndarray = unpack(robot.ask({**state_message(), **request}))["actions"]
    assert actions.shape == (10, 8)
    return actions


def test_openpis_droid_client_shows_the_policy_the_scene_alone() -> None:
    policy = Echo(WITH_CAMERAS)
    with serving(policy) as server, Plain(server.url) as robot:
        droid_client(robot, (720, 1280))
    assert set(policy.seen[0].images) == {"exterior_1_left", "wrist_left"}
    for name, value in (("exterior_1_left", 200), ("wrist_left", 90)):
        seen = resize_with_pad(policy.seen[0].images[name], 180, 320)
        assert (seen == value).all()
    assert not [line for line in server.lines if "black bars" in line]


def test_bars_of_another_ratio_are_told_once_in_a_session() -> None:
    with serving(Echo(WITH_CAMERAS)) as server, Plain(server.url) as robot:
        for _ in range(3):
            droid_client(robot, (480, 640))
    told = [line for line in server.lines if "black bars" in line]
    assert len(told) == 2  # one for each camera
    assert (
        "observation/wrist_image_left comes with black bars of its own (224x224) and gets more to be 320x180" in told[1]
    )
