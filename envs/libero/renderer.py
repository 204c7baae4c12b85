"""Renders a LIBERO scene in an OpenGL context of its own."""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from rlspec_envs import rendering

CAMERAS: Mapping[str, str] = {"image": "agentview", "image2": "robot0_eye_in_hand"}
"""LeRobot's names for LIBERO's two views."""


class LiberoRenderer:
    """Draws what robosuite would draw, but selects its own context each time.

    robosuite 1.4 never re-selects the context of an environment, so with two environments in one process frames come
    out of the wrong one. Pixels are the same: no collision geometry, robosuite's draw options, the scene's
    multisampling unless `multisampling` is False.
    """

    def __init__(self, model: Any, size: int, *, multisampling: bool = True) -> None:
        import mujoco

        self._gl: Any = None
        self._mujoco = mujoco
        self._model = model
        self.size = size
        if not multisampling:
            model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = size
        model.vis.global_.offheight = size
        self._gl = rendering._make_context(size, size)
        self._gl.make_current()
        _close_at_exit(self)
        self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._perturbation = mujoco.MjvPerturb()
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, size, size)

    def render(self, data: Any, camera: str) -> np.ndarray:
        """Return (size, size, 3) uint8 of the scene's camera `camera`, first row at the bottom of the view."""
        mujoco = self._mujoco
        self._camera.fixedcamid = self._model.camera(camera).id
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._options, self._perturbation, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._viewport, self._context)
        return pixels

    def close(self) -> None:
        """Free the context with its own GL context current, else MuJoCo frees another environment's objects."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = self._context = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


_open_renderers: weakref.WeakSet[LiberoRenderer] = weakref.WeakSet()


def _close_at_exit(renderer: LiberoRenderer) -> None:
    """Free contexts before the GL library's own exit hook, registered earlier, takes the display away."""
    if not _open_renderers:
        atexit.register(_close_open_renderers)
    _open_renderers.add(renderer)


def _close_open_renderers() -> None:
    for renderer in list(_open_renderers):
        renderer.close()
