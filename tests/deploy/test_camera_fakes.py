"""RealSense, ZED and OpenCV by fakes of their libraries: late, frozen, of the wrong size, unplugged, slow to wake."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlspec.deploy.clocks import MonotonicClock
from rlspec.deploy.robots.cameras import CameraThreads, opener
from rlspec.deploy.safety.watchdog import stalled_camera
from rlspec.errors import RobotError

BLUE_GREEN_RED = (10, 20, 30)


class Device:
    """What the three fakes share: pictures that change, and what can go wrong with them."""

    def __init__(self) -> None:
        self.shape, self.count, self.closed = (48, 64), 0, 0
        self.late = 0.0
        self.frozen = self.unplugged = False
        self.asleep = 0  # pictures that fail after the start
        self.colourless = False
        self.broken = False  # the library raises what it never says that it raises

    def take(self) -> np.ndarray | None:
        """The next picture as BGR, or None."""
        threading.Event().wait(self.late or 0.002)
        if self.broken:
            raise MemoryError("an assertion of the library")
        if self.asleep or self.unplugged:
            self.asleep = max(0, self.asleep - 1)
            return None
        self.count += not self.frozen
        picture = np.full((*self.shape, 3), BLUE_GREEN_RED, np.uint8)
        picture[0, 0] = self.count % 256
        return picture


def fake_opencv(device: Device) -> dict[str, Any]:
    class VideoCapture:
        def __init__(self, name: object) -> None:
            self.name = name

        def set(self, key: str, value: float) -> bool:
            return True  # drivers agree to whatever they are asked, and deliver what they have

        def isOpened(self) -> bool:  # noqa: N802
            return not device.unplugged

        def read(self) -> tuple[bool, np.ndarray | None]:
            picture = device.take()
            return picture is not None, picture

        def release(self) -> None:
            device.closed += 1

    module = ModuleType("cv2")
    module.VideoCapture = VideoCapture  # type: ignore[attr-defined]
    for name in ("FRAME_WIDTH", "FRAME_HEIGHT", "FPS", "BUFFERSIZE"):
        setattr(module, f"CAP_PROP_{name}", name)
    return {"cv2": module}


def fake_realsense(device: Device) -> dict[str, Any]:
    class Pipeline:
        def start(self, config: object) -> None:
            if device.unplugged:
                raise RuntimeError("No device connected")

        def wait_for_frames(self, timeout: int) -> Any:
            if (picture := device.take()) is None:
                raise RuntimeError(f"Frame didn't arrive within {timeout}")

            def get_data() -> np.ndarray:
                if device.colourless:
                    raise RuntimeError('null pointer passed for argument "frame_ref"')
                return picture[:, :, ::-1]

            return SimpleNamespace(get_color_frame=lambda: SimpleNamespace(get_data=get_data))

        def stop(self) -> None:
            device.closed += 1

    module = ModuleType("pyrealsense2")
    names = {"stream": SimpleNamespace(color=1), "format": SimpleNamespace(rgb8=2), "pipeline": Pipeline}
    nothing = SimpleNamespace(enable_device=lambda name: None, enable_stream=lambda *given: None)
    vars(module).update(names, config=lambda: nothing)
    return {"pyrealsense2": module}


def fake_zed(device: Device) -> dict[str, Any]:
    success = SimpleNamespace(SUCCESS="SUCCESS")

    class Camera:
        def open(self, settings: object) -> str:
            return "CAMERA NOT DETECTED" if device.unplugged else "SUCCESS"

        def grab(self) -> str:
            self.picture = device.take()
            return "CAMERA REBOOTING" if self.picture is None else "SUCCESS"

        def retrieve_image(self, matrix: Any, view: object, memory: object, size: object) -> None:
            matrix.data = np.dstack([self.picture, np.full(device.shape, 255, np.uint8)])  # BGRA

        def close(self) -> None:
            device.closed += 1

    class Mat:
        def get_data(self) -> np.ndarray:
            found: np.ndarray = self.data  # type: ignore[attr-defined]
            return found

    sl = ModuleType("pyzed.sl")
    words = {"VIEW": SimpleNamespace(LEFT=0), "MEM": SimpleNamespace(CPU=0), "ERROR_CODE": success}
    parameters = lambda: SimpleNamespace(set_from_serial_number=lambda number: None)  # noqa: E731
    kinds = {"RESOLUTION": SimpleNamespace(HD720=1), "DEPTH_MODE": SimpleNamespace(NONE=0)}
    vars(sl).update(words, **kinds, InitParameters=parameters, Camera=Camera, Mat=Mat, Resolution=lambda w, h: (w, h))
    package = ModuleType("pyzed")
    package.sl = sl  # type: ignore[attr-defined]
    return {"pyzed": package, "pyzed.sl": sl}


KINDS: dict[str, Callable[[Device], dict[str, Any]]] = {
    "opencv:0@64x48x30": fake_opencv,
    "realsense:0123@64x48x30": fake_realsense,
    "zed:123@64x48x30": fake_zed,
}


@pytest.fixture(params=KINDS)
def camera(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Device]:
    device = Device()
    for name, module in KINDS[request.param](device).items():
        monkeypatch.setitem(sys.modules, name, module)
    return request.param, device


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def test_pictures_are_rgb(camera: tuple[str, Device]) -> None:
    source = opener(camera[0])()
    picture = source.read()
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    assert tuple(picture[5, 5]) == BLUE_GREEN_RED[::-1]
    source.close()
    assert camera[1].closed == 1


def test_a_camera_that_sleeps_at_first_is_waited_for(camera: tuple[str, Device]) -> None:
    camera[1].asleep = 3
    cameras = CameraThreads({"wrist_left": opener(camera[0])}, MonotonicClock())
    until(lambda: "wrist_left" in cameras.newest())
    cameras.close()


def test_a_camera_that_is_unplugged_grows_old_says_why_and_comes_back(camera: tuple[str, Device]) -> None:
    text, device = camera
    clock = MonotonicClock()
    cameras = CameraThreads({"wrist_left": opener(text)}, clock)
    until(lambda: "wrist_left" in cameras.newest())
    device.unplugged = True
    until(lambda: bool(cameras.errors))
    assert "check its cable" in cameras.errors["wrist_left"]
    last = cameras.newest()["wrist_left"].time
    until(lambda: clock.now() > last + 0.05)
    assert "wrist_left" in stalled_camera(cameras.newest(), {"observation/wrist": "wrist_left"}, clock.now(), 0.05)
    device.unplugged = False
    until(lambda: cameras.newest()["wrist_left"].time > last)
    until(lambda: not cameras.errors)
    cameras.close()
    assert device.closed == 1


def test_whatever_its_library_raises_a_camera_says_it_and_comes_back(camera: tuple[str, Device]) -> None:
    """A thread that ended would be silent for good, and its device would stay open."""
    text, device = camera
    cameras = CameraThreads({"wrist_left": opener(text)}, MonotonicClock())
    until(lambda: "wrist_left" in cameras.newest())
    device.broken = True
    until(lambda: bool(cameras.errors))
    assert cameras.errors["wrist_left"] == "camera wrist_left: MemoryError: an assertion of the library"
    device.broken = False
    until(lambda: not cameras.errors)
    cameras.close()
    assert device.closed == 1


def test_a_realsenses_set_of_frames_may_come_without_its_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setitem(sys.modules, "pyrealsense2", fake_realsense(device)["pyrealsense2"])
    source = opener("realsense:0123@64x48x30")()
    device.colourless = True
    with pytest.raises(RobotError, match="RealSense 0123: null pointer .*; check its cable"):
        source.read()


def test_a_camera_that_is_not_there_at_the_start_is_one_line(camera: tuple[str, Device]) -> None:
    camera[1].unplugged = True
    with pytest.raises(RobotError) as caught:
        opener(camera[0])()
    assert "; `" in str(caught.value) and "\n" not in str(caught.value)


def test_a_late_camera_is_as_old_as_its_last_picture(camera: tuple[str, Device]) -> None:
    text, device = camera
    clock = MonotonicClock()
    cameras = CameraThreads({"wrist_left": opener(text)}, clock)
    until(lambda: "wrist_left" in cameras.newest())
    device.late = 0.5
    cameras.newest()
    last = cameras.newest()["wrist_left"].time
    until(lambda: clock.now() > last + 0.1)
    told = stalled_camera(cameras.newest(), {"k": "wrist_left"}, clock.now(), 0.05)
    assert "wrist_left" in told
    cameras.close(2.0)


def test_a_frozen_camera_counts_as_one_that_delivers_nothing(camera: tuple[str, Device]) -> None:
    """It goes on delivering, the same picture to the last bit: sensors have noise, a still scene has none like that."""
    text, device = camera
    clock = MonotonicClock()
    cameras = CameraThreads({"wrist_left": opener(text)}, clock)
    until(lambda: "wrist_left" in cameras.newest())
    device.frozen = True
    until(lambda: "frozen" in cameras.errors.get("wrist_left", ""))
    last = cameras.newest()["wrist_left"].time
    until(lambda: clock.now() > last + 0.05)
    assert cameras.newest()["wrist_left"].time == last
    device.frozen = False
    until(lambda: cameras.newest()["wrist_left"].time > last)
    cameras.close()


def test_a_camera_that_delivers_another_size_than_it_was_asked_for_is_named(camera: tuple[str, Device]) -> None:
    text, device = camera
    device.shape = (36, 64)
    cameras = CameraThreads({"wrist_left": opener(text)}, MonotonicClock())
    until(lambda: bool(cameras.errors))
    assert "delivers 64x36, not 64x48" in cameras.errors["wrist_left"]
    assert not cameras.newest(), "its picture would be another than the policy was trained on"
    cameras.close()
