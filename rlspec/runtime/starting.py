"""The beginning of a run: a new directory, or the point from which an old one goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rlspec.checkpoint import set_later_aside, write_text_atomically
from rlspec.config.load import dump_recipe
from rlspec.config.match import as_written_today, differing_keys
from rlspec.config.schema import AnyRecipe
from rlspec.display import Display
from rlspec.errors import CheckpointError
from rlspec.run_directory import RECIPE, ResumePoint, RunDirectory, create_run, find_resume_point, restart_run
from rlspec.runtime.interrupt import Interrupt

StretchedSchedule = Callable[[Mapping[str, Any]], str | None]
"""From the stored recipe to the name of a schedule that spans a run whose length has changed."""


@dataclass(frozen=True)
class Run:
    """A run that has a place: what its parts write to, show on and listen to."""

    recipe: AnyRecipe
    directory: RunDirectory
    point: ResumePoint | None  # from which it goes on; None: it is new
    process: PartialState
    display: Display
    interrupt: Interrupt = field(default_factory=Interrupt)

    @property
    def start(self) -> int:
        """Optimizer steps that are behind it."""
        return self.point.step if self.point else 0


def stored_recipe(recipe: AnyRecipe) -> str:
    """A recipe as it is kept with a run: who uses it later decides whether to resume."""
    return dump_recipe(recipe.model_copy(update={"resume": None}))


def start_run(recipe: AnyRecipe, display: Display, process: PartialState, *, stretched: StretchedSchedule) -> Run:
    """A new run, or one that goes on, whose files are made to say what holds from here on.

    Raises:
        ConfigError: The name of the run is taken, or its folder cannot be made.
        CheckpointError: There is nothing to resume, or the stored recipe shaped the weights in another way.
    """
    point = None if recipe.resume is None else _resume_point(recipe, recipe.resume, display, process, stretched)
    directory = point.run if point else _new_directory(recipe, process, display)
    display.line(f"run directory: {directory.path}" + (f", resumed after step {point.step}" if point else ""))
    return Run(recipe, directory, point, process, display)


def _new_directory(recipe: AnyRecipe, process: PartialState, display: Display) -> RunDirectory:
    """Made by the main process; the others learn its name. With resume=auto, that of a run without any checkpoint."""
    path, parent = [""], Path(recipe.output_dir)
    if process.is_main_process:
        again = restart_run(parent, recipe.run_name) if recipe.resume is not None else None
        if again is not None:
            display.warn(f"{again.path}: ended before its first checkpoint; it starts over")
        run = again or create_run(parent, recipe.run_name, explicit=recipe.run is not None)
        write_text_atomically(run.path / RECIPE, stored_recipe(recipe))
        path = [str(run.path)]
    if process.num_processes > 1:
        broadcast_object_list(path)
    return RunDirectory(Path(path[0]))


def _resume_point(
    recipe: AnyRecipe, resume: str, display: Display, process: PartialState, stretched: StretchedSchedule
) -> ResumePoint | None:
    point = find_resume_point(resume, Path(recipe.output_dir), recipe.run_name)
    if point is None:
        return None
    text = (point.checkpoint / RECIPE).read_text(encoding="utf-8")
    stored = as_written_today(yaml.safe_load(text), type(recipe))
    _check_match(point, stored, recipe.model_dump(mode="json"))
    if (schedule := stretched(stored)) is not None:
        display.warn(
            f"the run's length has changed, and its learning rate follows a {schedule} schedule over that length"
        )
    for note in point.notes:
        display.warn(note)
    process.wait_for_everyone()  # all have found the point before its surroundings change
    if process.is_main_process:
        for path in set_later_aside(point.run.checkpoints, step=point.step):
            display.warn(f"of a later step than {point.step}, set aside: {path}")
        point.run.forget_metrics_after(point.step)
        write_text_atomically(point.run.path / RECIPE, stored_recipe(recipe))
    process.wait_for_everyone()
    return point


def _check_match(point: ResumePoint, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = differing_keys(stored, wanted)
    if different:
        key, old, new = different[0]
        others = f" and {len(different) - 1} more" if len(different) > 1 else ""
        raise CheckpointError(
            f"{point.checkpoint}: written with {key}={old}, the recipe says {new}{others}; drop the override, "
            "or start a new run without resume"
        )
