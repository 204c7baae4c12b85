"""MuJoCo's interactive window, for `render_mode="human"`."""

from __future__ import annotations

import os
import sys
from typing import Any

import mujoco
from rlspec_envs.errors import EnvironmentUnavailable


def has_display() -> bool:
    """True where a window can be opened: always but on a Linux without X11 or Wayland."""
    return not sys.platform.startswith("linux") or any(os.environ.get(key) for key in ("DISPLAY", "WAYLAND_DISPLAY"))


def require_display() -> None:
    """Refuse to go on without a display.

    Raises:
        EnvironmentUnavailable: There is none.
    """
    if not has_display():
        raise EnvironmentUnavailable(
            "render_mode='human' needs a display (DISPLAY or WAYLAND_DISPLAY): use render_mode='rgb_array'"
        )


def open_viewer(model: mujoco.MjModel, data: mujoco.MjData) -> Any:
    """Open a window that shows a simulation; call `sync()` after each step and `close()` at the end.

    Raises:
        EnvironmentUnavailable: No window can be opened.
    """
    require_display()
    try:
        import mujoco.viewer

        return mujoco.viewer.launch_passive(model, data, show_left_ui=False, show_right_ui=False)
    except Exception as error:  # glfw and the viewer's threads raise plain Exception and RuntimeError
        reason = str(error).split("\n")[0]
        raise EnvironmentUnavailable(f"the viewer does not open ({reason}): use render_mode='rgb_array'") from error
