"""robot=franka_sim: the real driver (franky) on a simulated arm (franky-sim) that speaks the robot's protocol.

The simulation runs in real time in a process of its own, which ends with this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspec.config.extras import install
from rlspec.contract.actions import DROID_HZ
from rlspec.contract.features import EXTERIOR_1, WRIST
from rlspec.contract.pictures import DROID_SIZE
from rlspec.deploy.arm.interfaces import Array
from rlspec.deploy.arm.robot_limits import RobotLimits
from rlspec.deploy.robots.franky import FrankyRobot, FrankySettings
from rlspec.deploy.robots.franky_pictures import PICTURES, source_openers
from rlspec.deploy.robots.options import RobotDescription
from rlspec.errors import ConfigError, RobotError

CAMERAS = (EXTERIOR_1, WRIST)
_START = 60.0  # seconds for the simulator to answer; two on an idle machine


class SimulatorProcess:
    """franky-sim's server as a child.

    Args:
        joints: (7,) rad at the start; None: franky-sim's own.
    """

    def __init__(self, joints: Sequence[float] | None = None) -> None:
        command = [sys.executable, "-m", "rlspec.deploy.robots.franky_server"]
        if joints is not None:
            command += ["--joints", ",".join(str(float(joint)) for joint in joints)]
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._asking = threading.Lock()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self.host = self._await("address ", _START).removeprefix("address ")

    def order(self, text: str) -> None:
        """Give an order (see `franky_server`) and wait until it is done."""
        with self._asking:
            assert self._process.stdin is not None
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
            answer = self._await("", 20.0)
        if answer != "done":
            raise RobotError(f"franky-sim: {answer}")

    def record(self) -> Array:
        """What the arm did, one row per millisecond; columns as in `franky_server.COLUMNS`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "record.npy"
            self.order(f"dump {path}")
            return np.asarray(np.load(path), dtype=np.float64)

    def close(self) -> None:
        """End the process. Idempotent."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(2.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._lines.append(line.strip())
                self._news.notify_all()

    def _await(self, start: str, patience: float) -> str:
        end = time.monotonic() + patience
        with self._news:
            while True:
                for place, line in enumerate(self._lines):
                    if line.startswith(start):
                        del self._lines[: place + 1]
                        return line
                if self._process.poll() is not None:
                    raise RobotError(f"franky-sim ended: {self._last_words()}; {install('franka')}")
                if time.monotonic() > end:
                    self._process.kill()
                    raise RobotError(f"franky-sim has not answered within {patience:g} s; is the machine overloaded?")
                self._news.wait(0.1)

    def _last_words(self) -> str:
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]


class FrankySimRobot(FrankyRobot):
    """The driver on a simulated FR3.

    Args:
        images: "render": pictures of the arm; "synthetic": cheap ones that change with it; "none": no cameras.
        image_size: (height, width) pixels.
        camera_hz: Pictures per second of each camera.
        joints: (7,) rad at the start; None: franky-sim's own.
        host: Of a simulator that runs already; None: one is started, and ends with `close`.
    """

    simulated = True

    def __init__(
        self,
        *,
        images: str = "synthetic",
        image_size: tuple[int, int] = DROID_SIZE,
        camera_hz: float = DROID_HZ,
        joints: Sequence[float] | None = None,
        host: str | None = None,
    ) -> None:
        if images not in PICTURES:
            raise ConfigError(f"images={images}: franka_sim has {', '.join(PICTURES)}")
        names = () if images == "none" else CAMERAS
        self._shapes = {name: (*image_size, 3) for name in names}
        self._joints, self._given = joints, host
        self._simulator: SimulatorProcess | None = None
        openers = source_openers(names, images, image_size, 1.0 / camera_hz, self._newest_joints)
        settings = FrankySettings(realtime=False, patience=3.0)  # a busy machine simulates slowly
        super().__init__(host or "", "fr3", name="franka_sim", cameras=openers, settings=settings)

    @property
    def camera_shapes(self) -> dict[str, tuple[int, int, int]]:
        """(height, width, 3) of each camera."""
        return self._shapes

    @property
    def simulator(self) -> SimulatorProcess:
        """The simulator that this robot has started."""
        assert self._simulator is not None, "connect first"
        return self._simulator

    def connect(self, law: str, control_hz: float, *, read_only: bool = False) -> RobotLimits:
        """Connect to the simulator, which is started where none runs."""
        if self._given is None and self._simulator is None:
            self._simulator = SimulatorProcess(self._joints)
            self.host = self._simulator.host
        return super().connect(law, control_hz, read_only=read_only)

    def close(self) -> None:
        """Stop, disconnect, and end the simulator if it was started here."""
        super().close()
        if self._simulator is not None:
            self._simulator.close()
            self._simulator = None

    def _newest_joints(self) -> Array:
        return np.zeros(7) if self._state is None else self._state.joints


def make(settings: RobotDescription, **options: Any) -> FrankySimRobot:
    """The driver on a simulator of its own, or on the one at the settings' address."""
    return FrankySimRobot(host=settings.host, **options)
