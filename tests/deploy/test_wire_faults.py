"""Faults on the wire, with the real server in a process of its own and the real client; time is real here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import ListLog, fresh_ticks

from rlspec.deploy.build import agree, choose_law, connect, make_dry_run, open_policy
from rlspec.deploy.loop import Loop
from rlspec.deploy.policy.local_server import LocalServer
from rlspec.deploy.run import assemble
from rlspec.deploy.safety.gate import Gate
from rlspec.deploy.settings import Settings
from rlspec.errors import ServerError

SOON = 0.3
MOVING = 0.1  # rad/s
TOKEN = "a-token-for-the-test"


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Joint velocities for ever: two joints swing."""
    rows = np.zeros((600, 8), np.float32)
    rows[:, 0] = rows[:, 4] = 0.15 * np.sign(np.sin(2 * np.pi * np.arange(600) / 60))
    path = tmp_path_factory.mktemp("motions") / "actions.npy"
    np.save(path, rows)
    return path


def serve(motions: Path) -> tuple[subprocess.Popen[str], str]:
    arguments = [f"policy=replay:{motions}", "action_space=joint_velocity", "control_hz=15", "port=0", f"token={TOKEN}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlspec.serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "ws://" in line:
            return process, next(word for word in line.split() if word.startswith("ws://"))
    raise AssertionError("it does not serve")


@pytest.fixture
def server(motions: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, url = serve(motions)
    yield process, url
    process.kill()
    process.wait()


class Deployment:
    """A dry run against a server, in a thread, with the arm watched every 5 ms."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.settings = Settings.read(
            ["robot=dry_run", f"server={url}", f"token={TOKEN}", "inference.deadline=0.5", *arguments]
        )
        self.robot: Any = make_dry_run(self.settings)
        self.log = ListLog()
        self.trace: list[tuple[float, float]] = []

    def run(self, fault: Callable[[], Any] | None = None, ticks: int = 20) -> Loop:
        """Run to the end; the fault comes once so many actions were sent and the arm moves."""
        with open_policy(self.settings, self.robot, choose_law(self.settings)) as policy:
            agreement = agree(self.settings, policy, self.robot)
            limits = connect(self.settings, self.robot, agreement.law, 15.0)
            loop = assemble(self.settings, self.robot, policy, agreement, limits, Gate(self.robot), self.log)
            policy.hurry()
            thread = threading.Thread(target=loop.run)
            thread.start()
            self.fault_at = 0.0
            while thread.is_alive():
                speed = float(np.abs(self.robot.read().velocities).max())
                self.trace.append((time.monotonic(), speed))
                if fault and not self.fault_at and speed > MOVING and len(fresh_ticks(self.log.lines)) >= ticks:
                    fault()
                    self.fault_at = time.monotonic()
                time.sleep(0.005)
        return loop

    def standstill(self) -> float:
        moving = [moment for moment, speed in self.trace if moment >= self.fault_at and speed > 0.005]
        return moving[-1] - self.fault_at if moving else 0.0


def check(deployment: Deployment, loop: Loop) -> None:
    assert deployment.fault_at, f"it ended before the fault: {loop.outcome.reason}"
    assert loop.outcome.exit_code == 1
    assert deployment.trace[-1][1] < 0.005
    ticks = [line["tick"] for line in deployment.log.lines]
    assert ticks == sorted(set(ticks))
    assert len(ticks) == loop.outcome.ticks


def test_server_killed(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    deployment = Deployment(url, "watchdog.give_up=1")
    loop = deployment.run(process.kill)
    check(deployment, loop)
    assert url in loop.outcome.reason


def test_server_hangs(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    deployment = Deployment(url, "watchdog.give_up=1")
    loop = deployment.run(lambda: process.send_signal(signal.SIGSTOP))
    check(deployment, loop)


@pytest.mark.slow
def test_server_hangs_for_a_while(server: tuple[subprocess.Popen[str], str]) -> None:
    process, url = server
    deployment = Deployment(url, "seconds=6", "watchdog.give_up=20")

    def hang() -> None:
        process.send_signal(signal.SIGSTOP)
        threading.Timer(1.0, process.send_signal, (signal.SIGCONT,)).start()

    loop = deployment.run(hang)
    assert loop.outcome.end == "time"
    assert loop.outcome.stops >= 1
    assert fresh_ticks(deployment.log.lines)[-1]["time"] > deployment.fault_at + 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_time_to_standstill(motions: Path, number: signal.Signals) -> None:
    found = []
    for trial in range(5):
        process, url = serve(motions)
        deployment = Deployment(url, "watchdog.give_up=1")
        deployment.run(lambda process=process: process.send_signal(number), ticks=20 + 2 * trial)  # type: ignore[misc]
        found.append(deployment.standstill())
        process.kill()
        process.wait()
    print(f"\n{number.name}: standstill after {' '.join(f'{1e3 * value:.0f}' for value in found)} ms")
    assert max(found) < SOON


class Delay:
    """A TCP proxy that holds back what the server says, by uneven times."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("ws://").split(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self._generator = np.random.default_rng(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, slow: bool) -> None:
        try:
            while data := source.recv(65536):
                if slow:
                    time.sleep(self._generator.uniform(0.0, 0.3))
                sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.slow
def test_packets_are_late(server: tuple[subprocess.Popen[str], str]) -> None:
    proxy = Delay(server[1])
    deployment = Deployment(proxy.url, "seconds=5", "watchdog.heartbeat=null", "inference.deadline=2")
    loop = deployment.run()
    proxy.close()
    assert loop.outcome.end == "time"
    ticks = fresh_ticks(deployment.log.lines)
    assert len(ticks) > 30
    for before, after in zip(ticks, ticks[1:], strict=False):
        if after["chunk"] == before["chunk"]:
            assert after["index"] == before["index"] + 1
        else:
            assert after["chunk"] > before["chunk"]


def test_wrong_token(server: tuple[subprocess.Popen[str], str]) -> None:
    deployment = Deployment(server[1], "token=somebody-else")
    with pytest.raises(ServerError, match="401"):
        deployment.run()


STUB = """
import sys, time
print("loading", flush=True)
print("12:00:00 serving  ws://127.0.0.1:12345 (Ctrl-C ends it)", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_server_of_our_own_ends_with_us() -> None:
    with LocalServer("x", command=[sys.executable, "-c", STUB]) as local:
        assert local.url == "ws://127.0.0.1:12345"
        assert len(local.token) >= 24
        assert alive(local.pid)
    assert not alive(local.pid)


def test_a_server_of_our_own_ends_when_we_are_killed() -> None:
    code = (
        "import sys, time; from rlspec.deploy.policy.local_server import LocalServer\n"
        f"local = LocalServer('x', command=[sys.executable, '-c', {STUB!r}])\n"
        "print(local.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_of_our_own_that_does_not_start_tells_why() -> None:
    command = [sys.executable, "-c", "print('no such checkpoint'); raise SystemExit(2)"]
    with pytest.raises(ServerError, match="does not serve after . s: no such checkpoint"):
        LocalServer("x", command=command)
