"""Factors in which an episode may differ from those of training, graded and seeded, and what they do to any scene.

The factors are LIBERO-plus's (arXiv 2510.13626), and a control: an instruction that names another task. An episode's
perturbation is drawn apart from the episode itself, so that the same seed gives the same scene but for the one factor,
and a stronger grade goes further the same way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mujoco

FACTORS: dict[str, str] = {
    "camera": "outer cameras moved by 4 cm and turned by 0.04 rad",
    "start": "the arm's joints moved by 0.1 rad in all",
    "light": "brightness changed by 25%, its direction by 0.3, its colour by up to 10%",
    "background": "colours of table, floor and walls mixed with 25% of others",
    "noise": "noise of 12 of 255 on pixels and of 2 mm (or mrad) on the state",
    "layout": "objects further from where they are in training: apart by 20% (Franka), moved by 2 cm (LIBERO)",
    "language": "the instruction in other words",
}
"""Factor -> what strength 1 means; 2 and 3 are as many times as much."""
CONTROL = "wrong_instruction"
"""The words of another task, while success is judged by the own one: a policy that reads words fails."""
STRENGTHS = (1, 2, 3)

_STREAM = 7_700_417  # random numbers beside those of the episode
Generator = np.random.Generator


@dataclass(frozen=True)
class Perturbation:
    """One factor at one strength; written `camera:2`, the control without a strength."""

    factor: str
    strength: int = 1

    @classmethod
    def parse(cls, text: object) -> Perturbation:
        """Read what `str` writes.

        Raises:
            ValueError: There is no such factor or strength.
        """
        factor, _, strength = str(text).partition(":")
        check_factor(factor)
        if factor == CONTROL and not strength:
            return cls(factor)
        if factor == CONTROL or strength not in map(str, STRENGTHS):
            raise ValueError(f"perturb={text}: give FACTOR:STRENGTH, with strength 1, 2 or 3, or {CONTROL}")
        return cls(factor, int(strength))

    def __str__(self) -> str:
        return self.factor if self.factor == CONTROL else f"{self.factor}:{self.strength}"

    def generator(self, *path: int) -> Generator:
        """Random numbers of an episode's seed, and of a step where there is one; the strength does not matter."""
        return np.random.default_rng([_STREAM, [*FACTORS, CONTROL].index(self.factor), *path])


def check_factor(name: str) -> str:
    """The name of a factor or of the control.

    Raises:
        ValueError: There is no such one.
    """
    known = [*FACTORS, CONTROL]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"perturb={name}: unknown; {hint}allowed: {', '.join(known)}, or all")
    return name


def expand(factors: Sequence[str], strengths: Iterable[int]) -> list[str]:
    """All perturbations of some factors ("all": of every one, and the control) at some strengths, each once.

    Raises:
        ValueError: There is no such factor or strength.
    """
    named = list(dict.fromkeys([*FACTORS, CONTROL] if "all" in factors else map(check_factor, factors)))
    graded = [f"{name}:{strength}" for name in named if name != CONTROL for strength in dict.fromkeys(strengths)]
    return [str(Perturbation.parse(text)) for text in [*graded, *([CONTROL] if CONTROL in named else [])]]


def direction(rng: Generator, size: int) -> NDArray[np.float64]:
    """A unit vector, any as likely as another."""
    vector = rng.normal(size=size)
    return vector / np.linalg.norm(vector)


def arm_offset(perturbation: Perturbation | None, rng_path: Sequence[int], joints: int) -> NDArray[np.float64]:
    """By how much each joint (rad) of the starting arm is moved; zeros where another factor is perturbed."""
    if perturbation is None or perturbation.factor != "start":
        return np.zeros(joints)
    return 0.1 * perturbation.strength * direction(perturbation.generator(*rng_path), joints)


def with_noise(observation: dict[str, Any], perturbation: Perturbation, rng_path: Sequence[int]) -> dict[str, Any]:
    """The observation as bad sensors would give it; black pictures, which nobody rendered, stay black."""
    rng, strength = perturbation.generator(*rng_path), perturbation.strength
    state = observation["agent_pos"]
    noise = 0.002 * strength * rng.normal(size=state.shape)
    pixels = {
        name: np.clip(picture + 12.0 * strength * rng.normal(size=picture.shape), 0, 255).astype(np.uint8)
        if picture.any()
        else picture
        for name, picture in observation["pixels"].items()
    }
    return {"pixels": pixels, "agent_pos": (state + noise).astype(state.dtype)}


class Look:
    """Changes how a compiled model looks, and takes the changes back.

    Args:
        model: Its cameras, lights and colours are changed in place.
        cameras: Numbers of those that stand outside.
        surfaces: Numbers of the geoms that are background.
    """

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[int], surfaces: Sequence[int]) -> None:
        self._model, self._cameras, self._surfaces = model, list(cameras), list(surfaces)
        self._kept: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def restore(self) -> None:
        """Take the changes of the last `perturb` back."""
        for array, before in self._kept:
            array[...] = before
        self._kept.clear()

    def perturb(self, perturbation: Perturbation, rng_path: Sequence[int]) -> None:
        """Change what the factor says; nothing where the factor is none of the look."""
        change = {"camera": self._move_cameras, "light": self._relight, "background": self._repaint}
        if perturbation.factor in change:
            change[perturbation.factor](perturbation.strength, perturbation.generator(*rng_path))

    def _keep(self, *arrays: NDArray[Any]) -> None:
        self._kept += [(array, array.copy()) for array in arrays]

    def _move_cameras(self, strength: int, rng: Generator) -> None:
        import mujoco

        model = self._model
        self._keep(model.cam_pos, model.cam_quat)
        for camera in self._cameras:
            model.cam_pos[camera] += 0.04 * strength * direction(rng, 3)
            turned = model.cam_quat[camera].copy()
            mujoco.mju_quatIntegrate(turned, 0.04 * strength * direction(rng, 3), 1.0)
            model.cam_quat[camera] = turned

    def _relight(self, strength: int, rng: Generator) -> None:
        model, head = self._model, self._model.vis.headlight
        self._keep(model.light_diffuse, model.light_dir, head.ambient, head.diffuse)
        sign, tint = rng.choice([-1.0, 1.0]), rng.uniform(-1, 1, 3)
        colour = np.clip((1 + 0.25 * strength * sign) * (1 + 0.1 * strength * tint), 0.0, None)
        for light in (model.light_diffuse, head.ambient, head.diffuse):
            light[...] = np.clip(light * colour, 0.0, 1.0)
        aside = 0.3 * strength * np.append(direction(rng, 2), 0.0)
        directions = model.light_dir + aside
        model.light_dir[...] = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def _repaint(self, strength: int, rng: Generator) -> None:
        model = self._model
        self._keep(model.geom_rgba, model.mat_rgba)
        painted: set[tuple[bool, int]] = set()
        for geom in self._surfaces:
            material = int(model.geom_matid[geom])
            what = (material >= 0, material if material >= 0 else geom)
            if what not in painted:  # a material that several share changes once
                painted.add(what)
                colours = (model.mat_rgba if what[0] else model.geom_rgba)[what[1]]
                colours[:3] += 0.25 * strength * (rng.uniform(0.1, 0.9, 3) - colours[:3])
