"""Off-screen pictures from MuJoCo: the choice of the GL library, and a renderer without costly extras."""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rlspec_envs.errors import EnvironmentUnavailable

if TYPE_CHECKING:
    import mujoco

GL_PACKAGES = "apt-get install libegl1 libgl1-mesa-dri (EGL) or libosmesa6 (OSMesa)"
_HEADLESS = ("egl", "osmesa")
_first_context: list[int] = []  # id of the process that made the first GL context, in this process or a parent


def _egl_devices() -> int:
    """Count EGL's devices, Mesa's software device included, without initialising any (which would not survive fork)."""
    try:
        library = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    library.eglGetProcAddress.restype = ctypes.c_void_p
    address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def _osmesa_library() -> bool:
    for name in (ctypes.util.find_library("OSMesa"), "libOSMesa.so.8", "libOSMesa.so.6"):
        if name is not None:
            try:
                ctypes.CDLL(name)
            except OSError:
                continue
            return True
    return False


def choose_gl() -> str:
    """Choose the GL library of this process and tell MuJoCo and PyOpenGL by environment variables.

    Call it before mujoco is imported by code that uses `mujoco.Renderer` (robosuite does); `OffscreenRenderer` follows
    the choice in any case. MUJOCO_GL, where set, decides.

    Returns:
        "egl", "osmesa", or what MUJOCO_GL says ("glfw"...); the system's own on other systems than Linux.

    Raises:
        EnvironmentUnavailable: On Linux, where neither EGL nor OSMesa is installed, or where PYOPENGL_PLATFORM names
            another library than MUJOCO_GL.
    """
    choice = os.environ.get("MUJOCO_GL", "").lower().strip()
    platform = os.environ.get("PYOPENGL_PLATFORM", "").lower().strip()
    if not choice:
        if not sys.platform.startswith("linux"):
            return {"darwin": "cgl", "win32": "wgl"}.get(sys.platform, "glfw")
        installed = [name for name, found in (("egl", _egl_devices), ("osmesa", _osmesa_library)) if found()]
        choice = platform if platform in installed else next(iter(installed), "")
        if not choice:
            raise EnvironmentUnavailable(f"no GL library for off-screen pictures: install one with {GL_PACKAGES}")
        os.environ["MUJOCO_GL"] = choice
    if choice in _HEADLESS:
        if platform not in ("", choice):
            raise EnvironmentUnavailable(
                f"PYOPENGL_PLATFORM={platform} contradicts MUJOCO_GL={choice}: unset it, or set it to {choice}"
            )
        os.environ["PYOPENGL_PLATFORM"] = choice
    return choice


def _make_context(width: int, height: int) -> Any:
    choice = choose_gl()
    if _first_context and _first_context[0] != os.getpid():
        raise EnvironmentUnavailable(
            "this process was forked from one that had rendered, where GL hangs: "
            "start workers with multiprocessing's 'spawn' or 'forkserver' (AsyncVectorEnv(..., context='spawn'))"
        )
    try:
        if choice == "egl":
            from mujoco.egl import GLContext

            if not hasattr(GLContext, "_context"):
                GLContext._context = None  # of one that was refused a device, whose finaliser would print a traceback
        elif choice == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        context = GLContext(width, height)
    except Exception as error:  # PyOpenGL raises whatever the driver left: ImportError, AttributeError, GLError...
        reason = str(error).split("\n")[0]
        remedy = f"set MUJOCO_GL to egl or osmesa, or {GL_PACKAGES}"
        if (device := "MUJOCO_EGL_DEVICE_ID") in reason:
            remedy = f"unset {device}, or set it to one of these (CUDA_VISIBLE_DEVICES does not number them)"
        raise EnvironmentUnavailable(f"MUJOCO_GL={choice} gives no GL context ({reason}): {remedy}") from error
    if not _first_context:
        _first_context.append(os.getpid())
        atexit.register(_close_all)  # now, so that it runs before what the GL library registered on import
    return context


class OffscreenRenderer:
    """Renders cameras of one model at one size, without shadows, reflections and haze.

    Args:
        model: Its off-screen buffer (`vis.global_.offwidth`, `offheight`) must be at least as large.
        height: Pixels.
        width: Pixels.

    Raises:
        EnvironmentUnavailable: No GL context can be had.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int) -> None:
        self._closed = True
        self._context = _make_context(width, height)
        import mujoco  # after the GL library was chosen

        self._mujoco = mujoco
        self._model = model
        self._context.make_current()
        self._buffer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._buffer)
        self._scene = mujoco.MjvScene(model, maxgeom=max(200, 2 * model.ngeom))
        for flag in ("SHADOW", "REFLECTION", "HAZE", "FOG", "SKYBOX"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0
        self._options.geomgroup[:] = (1, 1, 1, 0, 0, 0)  # group 3 holds invisible collision geometry
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._shape = (height, width, 3)
        self._closed = False
        _open.add(self)

    def render(self, data: mujoco.MjData, camera: str) -> NDArray[np.uint8]:
        """Return the picture of a named camera, uint8 (height, width, 3), first row on top."""
        mujoco = self._mujoco
        self._context.make_current()
        self._camera.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._buffer)
        image = np.empty(self._shape, dtype=np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._buffer)
        return np.ascontiguousarray(image[::-1])

    def close(self) -> None:
        """Free the GL context; calling it twice does no harm."""
        if not self._closed:
            self._closed = True
            self._context.make_current()
            self._buffer.free()
            self._context.free()


_open: weakref.WeakSet[OffscreenRenderer] = weakref.WeakSet()


def _close_all() -> None:
    """Free what is left before the GL library is taken down, which would complain."""
    for renderer in list(_open):
        renderer.close()
