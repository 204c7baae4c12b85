"""Every way to stop for good: call, file, key, signal; and nothing passes afterwards."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from rlspec.deploy.arm.interfaces import Command
from rlspec.deploy.safety.estop import EStop
from rlspec.deploy.safety.gate import Gate
from rlspec.errors import ConfigError, RobotError

COMMAND = Command(np.zeros(7), np.zeros(7), 0.2)
PATIENCE = 20.0


class Arm:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.blocked = threading.Event()
        self.refuses = False

    def command(self, command: Command) -> None:
        self.told.append("command")
        if self.blocked.is_set():
            time.sleep(0.5)

    def grip(self, closure: float) -> None:
        self.told.append("grip")

    def stop(self) -> None:
        if self.refuses:
            raise RobotError("no connection")
        self.told.append("stop")


def wait_for(condition: object) -> None:
    assert callable(condition)
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_called(tmp_path: Path) -> None:
    arm = Arm()
    gate = Gate(arm)  # type: ignore[arg-type]
    estop = EStop(gate, tmp_path / "ESTOP")
    estop.start()
    assert gate.send(COMMAND)
    estop.trigger()
    assert not gate.send(COMMAND)
    assert not gate.grip(1.0)
    wait_for(lambda: "stop" in arm.told)
    estop.close()
    assert arm.told == ["command", "stop"]
    assert gate.tripped == "e-stop: called"


def test_file(tmp_path: Path) -> None:
    arm = Arm()
    gate = Gate(arm)  # type: ignore[arg-type]
    estop = EStop(gate, tmp_path / "ESTOP")
    estop.start()
    (tmp_path / "ESTOP").touch()
    wait_for(lambda: "stop" in arm.told)
    estop.close()
    assert gate.tripped == f"e-stop: file {tmp_path}/ESTOP"
    with pytest.raises(ConfigError, match="remove it before a new run"):
        EStop(gate, tmp_path / "ESTOP")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM])
def test_signal(number: signal.Signals) -> None:
    arm, before = Arm(), signal.getsignal(number)
    gate = Gate(arm)  # type: ignore[arg-type]
    estop = EStop(gate, signals=True)
    estop.start()
    os.kill(os.getpid(), number)
    wait_for(lambda: "stop" in arm.told)
    estop.close()
    assert gate.tripped == f"e-stop: signal {number.name}"
    assert signal.getsignal(number) is before


KEYBOARD = """
import sys, time
from rlspec.deploy.safety.estop import EStop
from rlspec.deploy.safety.gate import Gate
class Arm:
    stopped = False
    def stop(self): print("stopped", flush=True); self.stopped = True
arm = Arm()
gate = Gate(arm)
estop = EStop(gate, keyboard=True)
estop.start()
print("ready", flush=True)
while not arm.stopped: time.sleep(0.01)
estop.close()
print(gate.tripped, flush=True)
"""


@pytest.mark.parametrize("key", [b" ", b"q"])
def test_key(key: bytes) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", KEYBOARD], stdin=theirs, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.write(terminal, b"x")
    os.write(terminal, key)
    rest = process.stdout.read()
    assert process.wait(PATIENCE) == 0
    os.close(terminal)
    os.close(theirs)
    assert rest.splitlines() == ["stopped", f"e-stop: key {key.decode()!r}"]


def test_a_stop_does_not_wait_for_a_command_that_hangs() -> None:
    arm = Arm()
    gate = Gate(arm)  # type: ignore[arg-type]
    arm.blocked.set()
    sender = threading.Thread(target=gate.send, args=(COMMAND,))
    sender.start()
    wait_for(lambda: arm.told == ["command"])
    gate.trip("e-stop: test")
    assert sender.is_alive()  # still hangs
    assert arm.told == ["command", "stop"]
    sender.join()
    assert arm.told == ["command", "stop", "stop"]  # the command may have come after the first stop


def test_a_stop_that_the_robot_does_not_take_is_told() -> None:
    arm = Arm()
    gate = Gate(arm)  # type: ignore[arg-type]
    arm.refuses = True
    gate.trip("e-stop: test")
    assert gate.problem == "no connection"
    assert not gate.send(COMMAND)


def test_a_muted_gate_lets_nothing_through() -> None:
    arm = Arm()
    gate = Gate(arm, muted=True)  # type: ignore[arg-type]
    assert not gate.send(COMMAND)
    assert not gate.grip(0.0)
    gate.trip("e-stop: test")
    assert arm.told == []


def test_a_watcher_that_cannot_see_stops_the_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = Arm()
    gate = Gate(arm)  # type: ignore[arg-type]
    estop = EStop(gate, tmp_path / "ESTOP")

    def fails(self: Path) -> bool:
        raise OSError("stale file handle")

    monkeypatch.setattr(Path, "exists", fails)
    estop.start()
    wait_for(lambda: arm.told == ["stop"])
    assert "its watcher failed: OSError: stale file handle" in gate.tripped
    estop.close()
