"""MuJoCo's warnings as messages of Python's logging; by itself MuJoCo writes MUJOCO_LOG.TXT into the current folder."""

from __future__ import annotations

import logging

import mujoco

log = logging.getLogger("rlspec_envs.physics")


def relay_warnings() -> None:
    """Log what MuJoCo warns of, in this process; somebody else's handler is left in place.

    Diverged physics, the commonest cause, is reported by environments as a failure anyway, so the level is DEBUG.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_relay)


def _relay(message: str) -> None:
    log.debug("MuJoCo: %s", message)
