"""Cameras of a real robot, each read in a thread of its own: the newest picture and when it was taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.interfaces import Frame
from rlspec.deploy.clocks import Clock
from rlspec.errors import ConfigError, RobotError
from rlspec.native_threads import leave

Image = NDArray[np.uint8]
KINDS = ("opencv", "realsense", "zed")
_USE = "write KIND:SERIAL@WIDTHxHEIGHTxFPS, such as opencv:/dev/video0@640x480x30, realsense:0123456 or zed:30785375"
_PAUSE = 0.02  # seconds after a failed picture
_FROZEN = 15  # pictures that are the same to the last bit: half a second at 30 Hz


class CameraSource(Protocol):
    """A camera that is open."""

    def read(self) -> Image:
        """Wait for the next picture, uint8 (height, width, 3) RGB; RobotError where there is none."""
        ...

    def close(self) -> None:
        """Free the device."""
        ...


def opener(text: str) -> Callable[[], CameraSource]:
    """Read a camera's description.

    Args:
        text: KIND:SERIAL, optionally with @WIDTHxHEIGHTxFPS.

    Returns:
        A function that opens it, or raises RobotError with the remedy.
    """
    kind, _, rest = text.partition(":")
    name, _, size = rest.partition("@")
    if kind not in KINDS or not name:
        raise ConfigError(f"camera {text}: {_USE}")
    try:
        width, height, rate = (int(word) for word in size.split("x")) if size else (640, 480, 30)
    except ValueError:
        raise ConfigError(f"camera {text}: {size} is no WIDTHxHEIGHTxFPS; {_USE}") from None
    classes: dict[str, Callable[[str, int, int, int], CameraSource]]
    classes = {"opencv": OpenCVSource, "realsense": RealSenseSource, "zed": ZedSource}
    asked = (height, width) if size else None
    return lambda: CheckedSource(text, classes[kind](name, width, height, rate), asked)


class CheckedSource:
    """A camera whose pictures are of the size that was asked for, and live.

    Args:
        text: Its description.
        source: The camera.
        asked: (height, width) pixels; None: whatever it has.
    """

    def __init__(self, text: str, source: CameraSource, asked: tuple[int, int] | None) -> None:
        self._text, self._source, self._asked = text, source, asked
        self._last: Image | None = None
        self._same = 0

    def read(self) -> Image:
        """Wait for the next picture; RobotError where there is none, or none that may be used."""
        image = self._source.read()
        height, width = image.shape[:2]
        if self._asked not in (None, (height, width)):
            wanted = f"not {self._asked[1]}x{self._asked[0]}" if self._asked else ""
            raise RobotError(f"camera {self._text} delivers {width}x{height}, {wanted}; ask for a size that it has")
        # Sensors are never without noise: the same picture to the last bit comes from a driver that repeats itself.
        self._same = self._same + 1 if self._last is not None and np.array_equal(image, self._last) else 0
        self._last = image
        if self._same >= _FROZEN:
            raise RobotError(f"camera {self._text} is frozen: {self._same} pictures are the same; plug it in anew")
        return image

    def close(self) -> None:
        """Free the device."""
        self._source.close()


class OpenCVSource:
    """A V4L2 (USB) camera by number or device file."""

    def __init__(self, name: str, width: int, height: int, rate: int) -> None:
        try:
            import cv2
        except ImportError:
            raise RobotError("cameras: OpenCV is missing; pip install opencv-python-headless") from None
        self._name = name
        self._cv2 = cv2
        self._capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
        for setting, value in (("FRAME_WIDTH", width), ("FRAME_HEIGHT", height), ("FPS", rate), ("BUFFERSIZE", 1)):
            self._capture.set(getattr(cv2, f"CAP_PROP_{setting}"), value)
        if not self._capture.isOpened():
            raise RobotError(f"camera {name} cannot be opened; `ls /dev/video*` and the group `video` say why")

    def read(self) -> Image:
        """Wait for the next picture."""
        good, image = self._capture.read()
        if not good:
            raise RobotError(f"camera {self._name} delivers nothing; check its cable")
        return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)

    def close(self) -> None:
        """Free the device."""
        self._capture.release()


class RealSenseSource:
    """An Intel RealSense's colour stream, by serial number."""

    def __init__(self, name: str, width: int, height: int, rate: int) -> None:
        try:
            import pyrealsense2
        except ImportError:
            raise RobotError("cameras: RealSense support is missing; pip install pyrealsense2") from None
        self._name = name
        config = pyrealsense2.config()
        config.enable_device(name)
        config.enable_stream(pyrealsense2.stream.color, width, height, pyrealsense2.format.rgb8, rate)
        self._pipeline = pyrealsense2.pipeline()
        try:
            self._pipeline.start(config)
        except RuntimeError as error:
            raise RobotError(f"RealSense {name}: {error}; `rs-enumerate-devices` lists serials and modes") from None

    def read(self) -> Image:
        """Wait for the next picture."""
        try:
            frame = self._pipeline.wait_for_frames(1000).get_color_frame()
            return np.array(frame.get_data(), dtype=np.uint8)  # a set may come without its colour
        except RuntimeError as error:
            raise RobotError(f"RealSense {self._name}: {error}; check its cable") from None

    def close(self) -> None:
        """Free the device."""
        self._pipeline.stop()


class ZedSource:
    """A Stereolabs ZED's left picture, by serial number (DROID's cameras)."""

    def __init__(self, name: str, width: int, height: int, rate: int) -> None:
        try:
            import pyzed.sl as sl
        except ImportError:
            raise RobotError("cameras: ZED support is missing; install the ZED SDK and its Python API") from None
        self._name, self._size, self._sl = name, (width, height), sl
        settings = sl.InitParameters()
        settings.set_from_serial_number(int(name))
        settings.camera_resolution, settings.camera_fps = sl.RESOLUTION.HD720, rate
        settings.depth_mode = sl.DEPTH_MODE.NONE
        self._camera, self._matrix = sl.Camera(), sl.Mat()
        if (status := self._camera.open(settings)) != sl.ERROR_CODE.SUCCESS:
            raise RobotError(f"ZED {name}: {status}; `ZED_Explorer --all` lists serials")

    def read(self) -> Image:
        """Wait for the next picture."""
        if (status := self._camera.grab()) != self._sl.ERROR_CODE.SUCCESS:
            raise RobotError(f"ZED {self._name}: {status}; check its cable")
        size = self._sl.Resolution(*self._size)
        self._camera.retrieve_image(self._matrix, self._sl.VIEW.LEFT, self._sl.MEM.CPU, size)
        return np.ascontiguousarray(self._matrix.get_data()[:, :, 2::-1], dtype=np.uint8)

    def close(self) -> None:
        """Free the device."""
        self._camera.close()


class CameraThreads:
    """Reads each camera as fast as it delivers and keeps its newest picture.

    Args:
        openers: Camera name -> function that opens it.
        clock: Of the deployment.
    """

    def __init__(self, openers: Mapping[str, Callable[[], CameraSource]], clock: Clock) -> None:
        self._clock = clock
        self._frames: dict[str, Frame] = {}
        self._done = False
        self.errors: dict[str, str] = {}
        sources: dict[str, Any] = {}
        try:
            for name, open_camera in openers.items():
                sources[name] = open_camera()
        except RobotError:
            for source in sources.values():
                source.close()
            raise
        self._threads = [
            threading.Thread(target=self._run, args=item, name=f"camera {item[0]}", daemon=True)
            for item in sources.items()
        ]
        for thread in self._threads:
            thread.start()

    def newest(self) -> dict[str, Frame]:
        """The newest picture of each camera that has delivered one."""
        return dict(self._frames)

    def close(self, patience: float = 0.5) -> None:
        """Stop reading; a camera that hangs is left behind."""
        self._done = True
        for thread in self._threads:
            leave(thread, patience)

    def _run(self, name: str, source: CameraSource) -> None:
        while not self._done:
            try:
                image = source.read()
            except Exception as error:  # of whatever library; the picture grows old, which the loop notices
                what = "" if isinstance(error, RobotError) else f"camera {name}: {type(error).__name__}: "
                self.errors[name] = f"{what}{error}"
                threading.Event().wait(_PAUSE)
                continue
            self._frames[name] = Frame(self._clock.now(), image)
            self.errors.pop(name, None)
        source.close()
