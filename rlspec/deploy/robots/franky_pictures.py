"""Pictures for robot=franka_sim, whose simulator has no cameras: rendered from the measured joints, or synthetic."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspec.config.extras import install
from rlspec.contract.features import EXTERIOR_1, WRIST
from rlspec.deploy.arm.interfaces import Array
from rlspec.deploy.robots.cameras import CameraSource, Image
from rlspec.errors import RobotError

if TYPE_CHECKING:
    import mujoco

PICTURES = ("synthetic", "render", "none")
_VIEWS: dict[str, tuple[str, dict[str, str]]] = {
    EXTERIOR_1: ("world", {"pos": "1.3 0.7 0.8", "xyaxes": "-0.5 0.87 0 -0.4 -0.23 0.89", "fovy": "50"}),
    WRIST: ("robot0_hand", {"pos": "0.07 0 0", "xyaxes": "0 -1 0 -0.95 0 -0.3", "fovy": "75"}),
}
Joints = Callable[[], Array]


def source_openers(
    names: Sequence[str], kind: str, size: tuple[int, int], period: float, joints: Joints
) -> dict[str, Callable[[], CameraSource]]:
    """Functions that open the cameras.

    Args:
        names: Of the cameras.
        kind: One of `PICTURES`.
        size: (height, width) pixels.
        period: Seconds between two pictures.
        joints: Returns the measured joints, (7,) rad.
    """
    make: Any = RenderedSource if kind == "render" else SyntheticSource
    return {name: functools.partial(make, name, size, period, joints) for name in names}


class SyntheticSource:
    """A picture of a gradient with one bar per joint; costs nothing and follows the arm."""

    def __init__(self, name: str, size: tuple[int, int], period: float, joints: Joints) -> None:
        height, width = size
        rows, columns = np.mgrid[0:height, 0:width]
        shade = sum(name.encode()) % 128
        parts = (255 * rows // max(height - 1, 1), 255 * columns // max(width - 1, 1), np.full_like(rows, shade))
        self._ground: Image = np.stack(parts, axis=-1).astype(np.uint8)
        self._period, self._joints = period, joints

    def read(self) -> Image:
        """Wait a period and draw."""
        time.sleep(self._period)
        image = self._ground.copy()
        height, width = image.shape[:2]
        for place, angle in enumerate(self._joints()):
            top, bottom = (place * height) // 7, ((place + 1) * height) // 7
            middle = int((0.5 + float(angle) / 8.0) * width)
            image[top:bottom, max(middle - 3, 0) : max(middle + 3, 0)] = 255
        return image

    def close(self) -> None:
        """Nothing to free."""


@functools.cache
def _model() -> mujoco.MjModel:
    """Franky-sim's scene with the cameras of `_VIEWS`."""
    import xml.etree.ElementTree as ElementTree

    import mujoco
    from franky_sim.mujoco_simulator import MujocoSimulator

    simulator = MujocoSimulator()
    simulator.add_robot()
    for name, (place, attributes) in _VIEWS.items():
        bodies = [body for body in simulator.worldbody.iter("body") if body.get("name") == place]
        ElementTree.SubElement(bodies[0] if bodies else simulator.worldbody, "camera", {"name": name, **attributes})
    return mujoco.MjModel.from_xml_string(ElementTree.tostring(simulator.scene, encoding="unicode"))


class RenderedSource:
    """The arm as MuJoCo draws it at the measured joints."""

    def __init__(self, name: str, size: tuple[int, int], period: float, joints: Joints) -> None:
        try:
            from rlspec_envs.errors import EnvironmentUnavailable
            from rlspec_envs.rendering import choose_gl
        except ImportError as error:
            raise RobotError(f"images=render: {error.name} is missing; {install('vla')}") from None
        try:
            choose_gl()
        except EnvironmentUnavailable as error:
            raise RobotError(f"images=render: {error}; or set images=synthetic") from None
        self._model = _model()
        self._name, self._size, self._period, self._joints = name, size, period, joints
        self._renderer: Any = None  # made in the thread that draws: a GL context belongs to its thread
        self._due = time.monotonic()

    def read(self) -> Image:
        """Wait for the next picture's time and draw."""
        import mujoco
        from rlspec_envs.rendering import OffscreenRenderer

        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._model, *self._size)
            self._data = mujoco.MjData(self._model)
        self._due = max(self._due + self._period, time.monotonic())
        time.sleep(self._due - time.monotonic() if self._due > time.monotonic() else 0.0)
        self._data.qpos[:7] = self._joints()
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        picture: Image = self._renderer.render(self._data, self._name)
        return picture

    def close(self) -> None:
        """Free the GL context."""
        if self._renderer is not None:
            self._renderer.close()
