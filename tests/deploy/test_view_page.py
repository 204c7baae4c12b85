"""The page: it shows the run, its one command is the e-stop, nobody foreign reaches it, and nobody slows the loop."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from rlspec.deploy.__main__ import main
from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.robots.dry_run import DryRunRobot
from rlspec.deploy.safety.estop import EStop
from rlspec.deploy.safety.gate import Gate
from rlspec.deploy.view.server import View, ViewFacts
from rlspec.deploy.view.tees import WatchedFrames, WatchedLog
from rlspec.errors import ConfigError

FACTS = ViewFacts("arm", "droid_hybrid", "put it away", (-2.0,) * 7, (2.0,) * 7, 15.0, 8)
LINE = {
    "tick": 3,
    "time": 1.0,
    "phase": "run",
    "event": "",
    "reasons": ["joint_velocity"],
    "late_ms": 0.1,
    "inference_ms": 40.0,
    "chunk": 2,
    "index": 5,
    "state": {"joints": np.full(7, 0.5), "velocities": np.zeros(7), "closure": 0.25, "mode": "moving"},
    "target": np.full(7, 0.8),
    "sent": np.full(7, 0.6),
}


@contextlib.contextmanager
def viewing(stop: Callable[[str], None] = lambda _: None, address: str = "127.0.0.1:0") -> Iterator[View]:
    view = View(FACTS, stop, address)
    try:
        yield view
    finally:
        view.close()


def socket_of(view: View, **more: Any) -> Any:
    return connect(view.url.replace("http", "ws", 1).replace("/?", "/run?").rstrip("/") + _end(view), **more)


def _end(view: View) -> str:
    return "" if "?" in view.url else "/run"


def until(true: Callable[[], bool]) -> None:
    waiting = threading.Event()
    for _ in range(2000):
        if true():
            return
        waiting.wait(0.01)
    raise AssertionError("it did not happen")


def newest(client: Any, wanted: Callable[[Any], bool]) -> Any:
    for _ in range(200):
        message = client.recv(timeout=20)
        if wanted(message):
            return message
    raise AssertionError("it did not come")


def test_the_page_is_whole_and_may_load_nothing_from_elsewhere() -> None:
    with viewing() as view, urllib.request.urlopen(view.url) as answer:
        page = answer.read().decode()
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["Referrer-Policy"] == "no-referrer", "the token is in the address"
    assert '<button id="stop"' in page and "http://" not in page and "https://" not in page


def test_a_viewer_gets_what_the_filter_changed_and_what_is_left_of_the_chunk() -> None:
    with viewing() as view, socket_of(view) as client:
        facts = json.loads(client.recv(timeout=20))["facts"]
        assert facts["low"] == [-2.0] * 7 and len(facts["joint_names"]) == 7
        view.put(LINE)
        told = json.loads(newest(client, lambda text: isinstance(text, str) and json.loads(text).get("tick") == 3))
        assert (told["joints"], told["target"], told["sent"]) == ([0.5] * 7, [0.8] * 7, [0.6] * 7)
        assert told["reasons"] == ["joint_velocity"] and told["left"] == pytest.approx(2 / 15)


def test_what_happens_between_two_looks_is_told_to_whoever_comes_later() -> None:
    """Looks are more seldom than ticks: of an event only in its own tick most viewers would never hear."""
    with viewing() as view:
        for tick in range(100):
            event = f"event {tick}" if tick % 2 else ""
            view.put({**LINE, "tick": tick, "event": event, "reasons": ["slew", "slew"] if tick >= 85 else []})
        told = view.described()
        assert [text for _, text in told["events"]] == [f"event {tick}" for tick in range(41, 100, 2)]
        assert told["events"][-1][0] == pytest.approx(99 / 15)
        assert told["changed"] == [("slew", 15 / 75)]  # of the ticks of the last five seconds
        view.put({**LINE, "tick": 100, "sent": None, "would_send": np.full(7, 0.7)})
        assert view.described()["sent"] == [0.7] * 7, "in shadow mode"


def test_a_viewer_gets_pictures_that_are_new_and_each_once() -> None:
    with viewing() as view, socket_of(view) as client:
        for red in (10, 200):
            image = np.full((24, 32, 3), [red, 0, 0], np.uint8)
            view.put_frames({"wrist_left": Frame(float(red), image)})
            data = newest(client, lambda message: isinstance(message, bytes))
            name = data[1 : 1 + data[0]].decode()
            seen = np.array(Image.open(io.BytesIO(data[1 + data[0] :])))
            assert name == "wrist_left" and abs(int(seen[0, 0, 0]) - red) < 8
        texts = [client.recv(timeout=20) for _ in range(6)]
        assert all(isinstance(text, str) for text in texts), "a picture that is not new is not sent again"


def test_the_stop_button_goes_the_way_of_the_emergency_stop(tmp_path: Path) -> None:
    class Robot(DryRunRobot):
        stops = 0

        def stop(self) -> None:
            self.stops += 1

    robot = Robot.__new__(Robot)
    gate = Gate(robot)
    estop = EStop(gate, tmp_path / "ESTOP")
    estop.start()
    with viewing(estop.trigger) as view, socket_of(view) as client:
        client.send("go")
        client.send(json.dumps({"joints": [0.0] * 7}))
        client.send("stop")
        newest(client, lambda text: isinstance(text, str) and json.loads(text).get("stopped") == 1)
        until(lambda: robot.stops > 0)
    assert gate.tripped == "e-stop: the page's stop button"
    estop.close()


def test_whoever_does_not_read_can_still_stop_and_delays_nobody() -> None:
    """Megabytes wait for a viewer that reads nothing; the slots of the loop stay free, and others are served."""
    stopped = threading.Event()
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    with viewing(lambda _: stopped.set()) as view, socket_of(view, max_queue=1, close_timeout=0.1) as slow:
        end, tick = threading.Event(), 0
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        json.loads(slow.recv(timeout=20))  # the last that it reads
        stuck = [thread for thread in threading.enumerate() if thread.name == "view to one"][-1]
        for _ in range(40):
            tick += 1
            view.put({**LINE, "tick": tick})
            view.put_frames({"wrist_left": Frame(float(tick), noise)})
            end.wait(0.02)
        assert stuck.is_alive()
        with socket_of(view) as quick:
            told = newest(quick, lambda text: isinstance(text, str) and json.loads(text).get("tick") == tick)
            assert json.loads(told)["phase"] == "run"
        assert set(view._frames) == {"wrist_left"} and len(view._jpegs) == 1, "only the newest is kept"
        slow.send("stop")
        assert stopped.wait(20)


def refused(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_on_this_machine_no_foreign_site_gets_through_the_browser() -> None:
    with viewing() as view:
        assert refused(view.url) == 200
        assert refused(view.url, Host="evil.example") == 403  # a name of theirs that leads here
        assert refused(view.url + "log") == 404
        with pytest.raises(InvalidStatus, match="403"):
            socket_of(view, origin="https://evil.example")
        with socket_of(view, origin=view.url.rstrip("/")) as client:
            assert "facts" in json.loads(client.recv(timeout=20))


def test_beyond_this_machine_a_token_is_wanted_for_the_page_and_for_the_run() -> None:
    stops: list[str] = []
    with viewing(stops.append, "0.0.0.0:0") as view:
        bare = view.url.partition("?")[0].replace("0.0.0.0", "127.0.0.1")
        token = view.url.partition("token=")[2]
        assert len(token) >= 20
        assert [refused(bare), refused(f"{bare}?token=x"), refused(f"{bare}?token={token}")] == [403, 403, 200]
        run = bare.replace("http", "ws") + "run"
        for wrong in (run, f"{run}?token=", f"{run}?token={token}x"):
            with pytest.raises(InvalidStatus, match="403"):
                connect(wrong)
        with connect(f"{run}?token={token}") as client:
            client.send("stop")
            until(lambda: bool(stops))


def test_eight_may_watch_and_whoever_leaves_makes_room() -> None:
    with viewing() as view, contextlib.ExitStack() as watching:
        clients = [watching.enter_context(socket_of(view)) for _ in range(8)]
        until(lambda: view._viewers == 8)
        with pytest.raises(InvalidStatus, match="503"):
            socket_of(view)
        clients[3].close()
        until(lambda: view._viewers == 7)
        with socket_of(view) as late:
            assert "facts" in json.loads(late.recv(timeout=20))


def test_who_watches_takes_nothing_from_the_log_and_the_pictures() -> None:
    """What is full or broken there must still end the run."""

    class Keeper:
        error = ""

        def __init__(self) -> None:
            self.taken: list[Any] = []

        def put(self, *given: Any) -> None:
            self.taken.append(given)
            self.error = "the disk is full"

    log, keeper = Keeper(), Keeper()
    frames = {"wrist_left": Frame(1.0, np.zeros((8, 8, 3), np.uint8))}
    with viewing() as view:
        told, kept = WatchedLog(log, view), WatchedFrames(keeper, view)  # type: ignore[arg-type]
        told.put(LINE)
        kept.put(3, frames)
        assert view.described()["tick"] == 3 and set(view._frames) == {"wrist_left"}
    assert (log.taken, keeper.taken) == ([(LINE,)], [(3, frames)])
    assert (told.error, kept.error) == ("the disk is full", "the disk is full")


@pytest.mark.parametrize("address", ["8090", "here:", "127.0.0.1:99999"])
def test_a_wrong_address_is_one_line(address: str) -> None:
    with pytest.raises(ConfigError, match=f"view_address={address}: HOST:PORT is wanted"):
        View(FACTS, lambda _: None, address)


def test_a_port_that_is_taken_is_one_line() -> None:
    with viewing() as view, pytest.raises(ConfigError, match="take another port"):
        View(FACTS, lambda _: None, f"127.0.0.1:{view.url.rsplit(':', 1)[1].rstrip('/')}")


def test_a_run_with_a_page_is_stopped_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pressed: list[dict[str, Any]] = []

    def press() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not pressed:
            with contextlib.suppress(OSError), connect(f"ws://127.0.0.1:{port}/run") as client:
                moving = newest(client, lambda text: isinstance(text, str) and json.loads(text).get("phase") == "run")
                client.send("stop")
                pressed.append(json.loads(moving))

    presser = threading.Thread(target=press)
    presser.start()
    given = f"robot=dry_run policy=expert seconds=60 view=true view_address=127.0.0.1:{port} out={tmp_path}/run"
    assert main(given.split()) == 130
    presser.join(60)
    printed = capsys.readouterr().out
    assert f"watch it at http://127.0.0.1:{port}/" in printed
    assert "user: e-stop: the page's stop button" in printed
    assert len(pressed[0]["joints"]) == 7
