"""Builds the model: table, light, cameras and the arm; tasks add their objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np
from rlspec_envs.franka.arm import ARM_BIT, WORLD_BIT, add_arm
from rlspec_envs.franka.meshes import add_meshes
from rlspec_envs.franka.robots import Robot
from rlspec_envs.franka.rotations import quaternion_of

TABLE = {"x": (-0.3, 1.1), "y": (-0.7, 0.7)}
"""Extent of the table top, metres; its height is 0, as that of the robot's base."""

MAX_RENDER = 1024
"""Largest side of a picture, pixels."""

CAMERAS: dict[str, str] = {
    **{name: name for name in ("external", "wrist", "external_2")},
    "exterior_1_left": "external",
    "exterior_2_left": "external_2",
    "wrist_left": "wrist",
}
"""Camera by any of its names, the last three DROID's -> camera of the model."""

_WRIST_FOVY, _EXTERNAL_FOVY = 80.0, 44.0
_EXTERNAL_EYE, _EXTERNAL_AIM = (1.12, 0.30, 0.62), (0.44, 0.0, 0.165)
_EXTERNAL_2_EYE, _EXTERNAL_2_AIM = (0.72, -0.74, 0.66), (0.44, 0.0, 0.09)
_WRIST_EYE, _WRIST_AIM = (0.07, 0.0, 0.035), (0.012, 0.0, 0.14)


def look_at(eye: Sequence[float], aim: Sequence[float], up: Sequence[float]) -> list[float]:
    """Return the quaternion of a MuJoCo camera (x right, y up, z backwards) at `eye` that looks at `aim`."""
    backwards = np.subtract(eye, aim)
    right = np.cross(up, backwards)
    above = np.cross(backwards, right)
    columns = [axis / np.linalg.norm(axis) for axis in (right, above, backwards)]
    return [float(number) for number in quaternion_of(np.stack(columns, axis=1))]


def _set_options(spec: mujoco.MjSpec, timestep: float) -> None:
    spec.compiler.degree = False
    option = spec.option
    option.timestep = timestep
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 10.0
    quality = spec.visual.quality
    # Software rendering is bound by vertices; multisampling would multiply its cost.
    quality.offsamples, quality.numslices, quality.numstacks, quality.numquads = 0, 14, 6, 1
    spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_RENDER
    spec.visual.map.znear, spec.visual.map.zfar = 0.005, 10.0
    spec.stat.extent, spec.stat.center = 1.0, [0.4, 0.0, 0.2]
    headlight = spec.visual.headlight
    headlight.ambient, headlight.diffuse, headlight.specular = [0.4] * 3, [0.15] * 3, [0.0] * 3


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    box = mujoco.mjtGeom.mjGEOM_BOX
    (x_low, x_high), (y_low, y_high) = TABLE["x"], TABLE["y"]
    spec.worldbody.add_geom(
        name="table",
        type=box,
        size=[(x_high - x_low) / 2, (y_high - y_low) / 2, 0.02],
        pos=[(x_low + x_high) / 2, (y_low + y_high) / 2, -0.02],
        rgba=[0.62, 0.60, 0.57, 1],
        contype=WORLD_BIT,
        conaffinity=WORLD_BIT | ARM_BIT,
        friction=[0.8, 0.005, 0.0001],
    )
    # A cloth below and a wall behind everything: pictures have no black parts.
    spec.worldbody.add_geom(
        name="wall", type=box, size=[8.0, 8.0, 0.01], pos=[-4.0, 0, -0.4], rgba=[0.36, 0.39, 0.44, 1],
        contype=0, conaffinity=0,
    )  # fmt: skip
    spec.worldbody.add_light(
        name="sun",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0.4, 0, 2.0],
        dir=[-0.25, -0.15, -1.0],
        diffuse=[0.55] * 3,
        specular=[0.05] * 3,
        castshadow=False,
    )


def _add_external_camera(spec: mujoco.MjSpec, name: str, eye: Sequence[float], aim: Sequence[float]) -> None:
    quat = look_at(eye, aim, up=(0, 0, 1))
    spec.worldbody.add_camera(name=name, pos=list(eye), quat=quat, fovy=_EXTERNAL_FOVY)


def build_model(
    robot: Robot,
    arm: str,
    timestep: float,
    add_objects: Callable[[mujoco.MjSpec], None],
    *,
    second_camera: bool = False,
) -> mujoco.MjModel:
    """Compile the scene.

    Args:
        robot: Which arm.
        arm: "primitive", "meshes" or "menagerie": what the arm looks like (contacts do not depend on it).
        timestep: Physics step, seconds.
        add_objects: Adds a task's objects.
        second_camera: Add the camera `external_2`, on the other side of the table.

    Raises:
        EnvironmentUnavailable: The meshes asked for are not installed.
    """
    spec = mujoco.MjSpec()
    spec.modelname = f"{robot.name}_table"
    _set_options(spec, timestep)
    bodies = add_arm(spec, robot, primitive_look=arm == "primitive")
    if arm != "primitive":
        add_meshes(spec, bodies, robot, arm)
    bodies["hand"].add_camera(
        name="wrist", pos=list(_WRIST_EYE), quat=look_at(_WRIST_EYE, _WRIST_AIM, up=(1, 0, 0)), fovy=_WRIST_FOVY
    )
    _add_surroundings(spec)
    _add_external_camera(spec, "external", _EXTERNAL_EYE, _EXTERNAL_AIM)
    if second_camera:
        _add_external_camera(spec, "external_2", _EXTERNAL_2_EYE, _EXTERNAL_2_AIM)
    add_objects(spec)
    model = spec.compile()
    if arm != "primitive":
        from rlspec_envs.thinning import thin_visual_meshes

        thin_visual_meshes(model)  # a third of the rendering time, hardly a different pixel
    return model
