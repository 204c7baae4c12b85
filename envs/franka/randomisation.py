"""What differs between episodes besides the layout of objects, and by how much."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from rlspec_envs.franka.world import World


@dataclass(frozen=True)
class Randomisation:
    """Half widths of uniform ranges. Object positions vary in the task's workspace at every level.

    Attributes:
        object_yaw: Turn of objects about the vertical, from alignment with the resting hand, radians.
        home: Each joint of the starting pose, radians.
        start: Each coordinate of the hand at the start, metres. From a single starting pose an imitator learns to read
            the goal off the way that the arm has come, and not off the image.
        colour: Each RGB channel of objects, 0 to 1.
        table_colour: Each RGB channel of table and wall, 0 to 1.
        light: Brightness as a share of itself.
        light_direction: Each component of the light's direction (its vertical one is 1).
        camera_position: Each coordinate of an external camera, metres.
        camera_rotation: An external camera about each axis, radians.
    """

    object_yaw: float = 0.0
    home: float = 0.0
    start: float = 0.0
    colour: float = 0.0
    table_colour: float = 0.0
    light: float = 0.0
    light_direction: float = 0.0
    camera_position: float = 0.0
    camera_rotation: float = 0.0


RANDOMISATIONS: dict[str, Randomisation] = {
    "none": Randomisation(),
    "default": Randomisation(
        object_yaw=0.35,
        home=0.02,
        start=0.08,
        colour=0.04,
        table_colour=0.04,
        light=0.1,
        light_direction=0.2,
        camera_position=0.01,
        camera_rotation=0.01,
    ),
    "strong": Randomisation(
        object_yaw=0.785,
        home=0.06,
        start=0.1,
        colour=0.1,
        table_colour=0.2,
        light=0.4,
        light_direction=0.6,
        camera_position=0.05,
        camera_rotation=0.05,
    ),
}


class Appearance:
    """Remembers how a fresh model looks and varies it around that."""

    def __init__(self, world: World) -> None:
        self._world = world
        model = world.model
        external = [i for i in range(model.ncam) if model.camera(i).name.startswith("external")]
        self._cameras = {i: (model.cam_pos[i].copy(), model.cam_quat[i].copy()) for i in sorted(external)}
        self._light = model.light_diffuse[0].copy(), model.light_dir[0].copy()
        self._surfaces = {name: model.geom(name).rgba[:3].copy() for name in ("table", "wall")}

    def vary(self, ranges: Randomisation, rng: np.random.Generator) -> None:
        """Draw table, light and cameras anew; the number of draws does not depend on the ranges."""
        model = self._world.model
        for name, colour in self._surfaces.items():
            self._world.paint(name, colour + ranges.table_colour * rng.uniform(-1, 1, 3))
        diffuse, direction = self._light
        model.light_diffuse[0] = np.clip(diffuse * (1 + ranges.light * rng.uniform(-1, 1)), 0.0, 1.0)
        model.light_dir[0] = direction + ranges.light_direction * np.append(rng.uniform(-1, 1, 2), 0.0)
        model.light_dir[0] /= np.linalg.norm(model.light_dir[0])
        for camera, (position, quaternion) in self._cameras.items():
            model.cam_pos[camera] = position + ranges.camera_position * rng.uniform(-1, 1, 3)
            turned = quaternion.copy()
            mujoco.mju_quatIntegrate(turned, ranges.camera_rotation * rng.uniform(-1, 1, 3), 1.0)
            model.cam_quat[camera] = turned
