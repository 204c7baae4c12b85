"""Cameras of a real robot by fakes, and the pictures of the simulated one."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from rlspec.deploy.clocks import MonotonicClock
from rlspec.deploy.robots.cameras import CameraThreads, opener
from rlspec.deploy.robots.franky_pictures import source_openers
from rlspec.errors import ConfigError, RobotError

HOME = np.array([0.0, 0.0, 0.0, -1.57, 0.0, 1.57, 0.785])


class Stalling:
    """Delivers three pictures, then nothing."""

    def __init__(self) -> None:
        self.count, self.closed = 0, threading.Event()

    def read(self) -> np.ndarray:
        self.count += 1
        if self.count > 3:
            raise RobotError("camera delivers nothing; check its cable")
        return np.full((4, 6, 3), self.count, np.uint8)

    def close(self) -> None:
        self.closed.set()


def test_a_stalled_camera_keeps_its_last_picture_and_its_age_grows() -> None:
    clock, source = MonotonicClock(), Stalling()
    cameras = CameraThreads({"wrist_left": lambda: source}, clock)
    end = time.monotonic() + 10
    while not cameras.errors and time.monotonic() < end:
        time.sleep(0.001)
    frame = cameras.newest()["wrist_left"]
    assert frame.image[0, 0, 0] == 3 and frame.time <= clock.now()
    assert "cable" in cameras.errors["wrist_left"]
    assert cameras.newest()["wrist_left"].time == frame.time
    cameras.close()
    assert source.closed.wait(5)


def test_what_was_opened_is_closed_when_a_camera_fails() -> None:
    source = Stalling()

    def broken() -> Stalling:
        raise RobotError("no such camera; plug it in")

    with pytest.raises(RobotError, match="no such camera"):
        CameraThreads({"a": lambda: source, "b": broken}, MonotonicClock())
    assert source.closed.is_set()


@pytest.mark.parametrize("text", ["usb:0", "opencv", "opencv:0@640x480"])
def test_a_wrong_description_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="write KIND:SERIAL@WIDTHxHEIGHTxFPS"):
        opener(text)


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(RobotError, match="video9876|OpenCV is missing"):
        opener("opencv:/dev/video9876")()
    with pytest.raises(RobotError, match="pyrealsense2|RealSense"):
        opener("realsense:1")()


@pytest.mark.parametrize("kind", ["synthetic", pytest.param("render", marks=pytest.mark.slow)])
def test_pictures_follow_the_arm(kind: str) -> None:
    if kind == "render":
        pytest.importorskip("franky_sim")
    joints = HOME.copy()
    openers = source_openers(("exterior_1_left",), kind, (45, 80), 0.0, lambda: joints)
    try:
        source = openers["exterior_1_left"]()
    except RobotError as error:
        pytest.skip(str(error))
    before = source.read()
    joints[0] = 0.8
    after = source.read()
    source.close()
    assert before.shape == (45, 80, 3) and before.dtype == np.uint8
    assert before.std() > 5 and np.abs(before.astype(int) - after).max() > 50
