"""What the factors of a perturbation change in a LIBERO scene."""

from __future__ import annotations

from typing import Any

import numpy as np
from rlspec_envs.libero.renderer import CAMERAS
from rlspec_envs.libero.simulation import LiberoSimulation
from rlspec_envs.libero.tasks import LiberoTask, get_task, list_libero_tasks
from rlspec_envs.perturbation import Generator, Look, direction

_ATTEMPTS = 20


def background_of(simulation: LiberoSimulation) -> Look:
    """The scene's look: its outer camera; as background what is neither robot nor object nor fixture."""
    model = simulation.model
    furniture = _things(simulation) | {_root(model, _robot_body(simulation))}
    surfaces = [geom for geom in range(model.ngeom) if _root(model, int(model.geom_bodyid[geom])) not in furniture]
    return Look(model, [model.camera(CAMERAS["image"]).id], surfaces)


def displace(simulation: LiberoSimulation, strength: int, rng: Generator) -> None:
    """Move every free object that stands on the table alone by 2 cm times `strength`, to where it touches nothing."""
    model, data = simulation.model, simulation.data
    things = _things(simulation) | {_root(model, _robot_body(simulation))}
    for name in simulation.env.objects_dict:
        body = simulation.env.obj_body_id[name]
        own, joint = _root(model, body), int(model.body_jntadr[body])
        if joint < 0 or _touches(model, data, own, things - {own}):
            continue
        address = int(model.jnt_qposadr[joint])
        place = data.qpos[address : address + 2]
        before = place.copy()
        for _ in range(_ATTEMPTS):
            place[:] = before + 0.02 * strength * direction(rng, 2)
            simulation.env.sim.forward()
            if not _touches(model, data, own, things - {own}):
                break
        else:
            place[:] = before
    simulation.refresh()


def wrong_instruction(task: LiberoTask, rng: Generator) -> str:
    """The instruction of another task of the suite."""
    others = [get_task(task.suite, int(number)).instruction for number in list_libero_tasks(task.suite)]
    return str(rng.choice([text for text in others if text != task.instruction]))


def _robot_body(simulation: LiberoSimulation) -> int:
    return int(simulation.model.body(simulation.env.robots[0].robot_model.root_body).id)


def _things(simulation: LiberoSimulation) -> set[int]:
    """Roots of the trees of bodies of objects and fixtures."""
    return {_root(simulation.model, body) for body in simulation.env.obj_body_id.values()}


def _root(model: Any, body: int) -> int:
    return int(model.body_rootid[body])


def _touches(model: Any, data: Any, own: int, others: set[int]) -> bool:
    pairs = np.asarray(data.contact.geom).reshape(-1, 2)
    roots = model.body_rootid[model.geom_bodyid[pairs]]
    partners = np.concatenate([roots[roots[:, 0] == own, 1], roots[roots[:, 1] == own, 0]])
    return bool(np.isin(partners, list(others)).any())
