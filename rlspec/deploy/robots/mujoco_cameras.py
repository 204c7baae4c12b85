"""Simulated cameras: each takes pictures at its own rate, and draws only those that somebody asks for."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlspec.deploy.arm.interfaces import Frame

if TYPE_CHECKING:
    import mujoco
    from rlspec_envs.rendering import OffscreenRenderer

    from rlspec.deploy.robots.mujoco_faults import Faults

_SOON = 1e-6  # seconds: a step that ends this close before a picture's time counts as having reached it


@dataclass(frozen=True)
class _Shot:
    """The state of the world at the moment of a picture."""

    time: float
    qpos: NDArray[np.float64]
    mocap_pos: NDArray[np.float64]
    mocap_quat: NDArray[np.float64]


class Cameras:
    """The cameras of one world.

    Drawing happens in a thread of its own, as a GL context belongs to one thread at a time.

    Args:
        model: The world's.
        names: Our name of a camera -> the model's.
        image_size: (height, width) pixels.
        rate: Pictures per second of each.
    """

    def __init__(
        self, model: mujoco.MjModel, names: Mapping[str, str], image_size: tuple[int, int], rate: float
    ) -> None:
        self._model = model
        self._names = dict(names)
        self._size = image_size
        self._period = 1.0 / rate
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="cameras")
        self._renderer: OffscreenRenderer | None = None
        self._scratch: Any = None
        self.restart(0.0)

    def restart(self, time: float) -> None:
        """Forget all pictures; the next ones are due now."""
        self._shots: dict[str, _Shot] = {}
        self._drawn: dict[str, Frame] = {}
        self._due = dict.fromkeys(self._names, time)

    def watch(self, time: float, data: mujoco.MjData, faults: Faults) -> None:
        """Take the pictures that are due."""
        shot: _Shot | None = None
        for camera, due in self._due.items():
            if time < due - _SOON:
                continue
            self._due[camera] = due + self._period * (1 + int((time - due + _SOON) / self._period))
            if not faults.stalls(camera, time):
                shot = shot or _Shot(time, data.qpos.copy(), data.mocap_pos.copy(), data.mocap_quat.copy())
                self._shots[camera] = shot

    def shots(self) -> dict[str, _Shot]:
        """The newest of each camera, undrawn."""
        return dict(self._shots)

    def draw(self, shots: Mapping[str, _Shot]) -> dict[str, Frame]:
        """Pictures of `shots`.

        Raises:
            EnvironmentUnavailable: There is no GL library.
        """
        return self._painter.submit(self._draw, dict(shots)).result()

    def _draw(self, shots: dict[str, _Shot]) -> dict[str, Frame]:
        for camera, shot in shots.items():
            known = self._drawn.get(camera)
            if known is None or known.time != shot.time:
                self._drawn[camera] = Frame(shot.time, self._paint(self._names[camera], shot))
        return {camera: self._drawn[camera] for camera in shots}

    def _paint(self, camera: str, shot: _Shot) -> NDArray[np.uint8]:
        from rlspec_envs.rendering import OffscreenRenderer

        if self._renderer is None:
            self._renderer = OffscreenRenderer(self._model, *self._size)
        import mujoco

        if self._scratch is None:
            self._scratch = mujoco.MjData(self._model)
        data = self._scratch
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = shot.qpos, shot.mocap_pos, shot.mocap_quat
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_camlight(self._model, data)
        return self._renderer.render(data, camera)

    def close(self) -> None:
        """Free the GL context and the thread."""

        def free() -> None:
            if self._renderer is not None:
                self._renderer.close()
                self._renderer = None

        self._painter.submit(free).result()
        self._painter.shutdown()
