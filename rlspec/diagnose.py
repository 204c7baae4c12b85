"""Look into a model: `python -m rlspec.diagnose what=spectra checkpoint=DIR`, as a table, a picture and JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from rlspec.checkpoint import MANIFEST, find_weights, list_checkpoints, named_folder, no_such_folder
from rlspec.config.command import CommandLine, one_of
from rlspec.config.schema import Key
from rlspec.diagnostics.catalogue import STUDIES
from rlspec.entry import command
from rlspec.errors import CheckpointError

if TYPE_CHECKING:
    from rlspec.config.rlvr_schema import Recipe
    from rlspec.config.vla_schema import VlaRecipe
    from rlspec.diagnostics.subject import Subject
    from rlspec.display import Display

_SIGNS = ("config.json", "adapter_config.json", MANIFEST)  # of a folder with weights
_STARTS = {"model": "grpo_math", "policy": "vla_franka", "recipe": ""}  # key -> recipe that it is a part of


class DiagnoseCommand(CommandLine):
    """Looks into a model, its gradients and its optimizer. The loss is that of its recipe: fresh, graded rollouts of a
    language model, demonstrations of a robot's policy. Writes a table, a picture and JSON.

    model=NAME     the model that a recipe starts from, for example model=tiny, or a hub id or a local folder
    policy=NAME    a robot's policy, for example policy=adapter_tiny
    key=value      any key of the recipe, for example optim=muon or batch.prompts_per_step=64
    """  # noqa: D205

    command = "diagnose"
    synopsis = ("what=NAME checkpoint=DIR|run=DIR|model=NAME|policy=NAME|recipe=NAME [key=value ...] [out=DIR]",)
    example = "what=spectra"
    recipe = True

    what: Annotated[str, one_of(lambda: STUDIES), Key("which study, see below", "NAME")]
    checkpoint: Annotated[str | None, Key("a checkpoint in a run, a model folder or a hub id", "DIR")] = None
    run: Annotated[str | None, Key("a run directory: its newest checkpoint, or all where time matters", "DIR")] = None
    out: Annotated[
        Path | None, Key("where results go (default: the run's own folder diagnostics/, or checkpoints/)", "DIR")
    ] = None
    parts: Annotated[
        int | None, Key("groups of completions, or micro-batches (default: two steps' worth, at most 64)", "N")
    ] = Field(None, ge=2)
    size: Annotated[
        int | None, Key("completions of a group, or frames of a micro-batch (default: the recipe's, or 4)", "N")
    ] = Field(None, ge=1)
    role: Annotated[
        str | None, Key("only matrices of a role or part, for example attention, mlp.down or action", "NAME")
    ] = None
    overrides: list[str] = []

    @classmethod
    def more(cls) -> str:
        """The studies."""
        width = max(map(len, STUDIES))
        return "\n".join(["", "what:", *(f"  {name:{width}}  {about}" for name, about in STUDIES.items())])

    @model_validator(mode="after")
    def _one_subject(self) -> DiagnoseCommand:
        named = [key for key in ("checkpoint", "run") if getattr(self, key) is not None]
        keys = {override.partition("=")[0] for override in self.overrides}
        if not named and not keys & _STARTS.keys():
            raise ValueError("nothing to look into: add checkpoint=DIR, run=DIR, model=NAME or policy=NAME")
        if len(named) > 1 or (named and keys & _STARTS.keys()):
            second = [*named, *sorted(keys & _STARTS.keys())][1]
            raise ValueError(f"{named[0]} and {second} both name what to look into; leave one out")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(DiagnoseCommand, _diagnose, argv)


def _diagnose(line: DiagnoseCommand) -> int:
    weights = _weights(line)
    recipe = _recipe(line, weights)
    sys.stdout.write("loading torch\n")  # ten seconds or more in which nothing else is said
    sys.stdout.flush()
    from rlspec.diagnostics.catalogue import run_study
    from rlspec.diagnostics.result import show_result, write_result
    from rlspec.display import Display

    display = Display(recipe.report.display)
    display.relay_messages_of("rlspec")
    subject = _subject(line, recipe, weights, display)
    result = run_study(line.what, subject)
    display.heading(f"{line.what} of {subject.title}")
    show_result(result, display)
    written = write_result(result, _output(line, recipe, weights), line.what, title=f"{line.what}: {subject.title}")
    display.line(f"written: {', '.join(map(str, written))}")
    return 0


def _weights(line: DiagnoseCommand) -> str | None:
    """The folder or hub id with the weights; None: those that a recipe starts from.

    Raises:
        CheckpointError: There are none.
    """
    given = line.checkpoint or line.run
    if given is None:
        return None
    key = "checkpoint" if line.checkpoint is not None else "run"
    path = named_folder(Path(given).expanduser())
    if not path.is_dir() and key == "run":
        raise CheckpointError(f"run={given}: {no_such_folder(path)}")
    found = find_weights(given, key=key)
    folder = Path(found)
    if folder.is_dir() and not any((folder / sign).is_file() for sign in _SIGNS):
        raise CheckpointError(
            f"{key}={given}: no checkpoint in this folder; give a run directory or a checkpoint-N folder in one"
        )
    return found


def _recipe(line: DiagnoseCommand, weights: str | None) -> Recipe | VlaRecipe:
    """By which the weights were trained, with the overrides of the line; for other weights the usual one."""
    from rlspec.config.load import load_any_recipe, load_vla_recipe
    from rlspec.runtime.measuring import evaluation_recipe, is_robot_policy

    if weights is not None and is_robot_policy(weights):
        return load_vla_recipe([f"recipe={Path(weights) / 'recipe.yaml'}", *line.overrides])
    if weights is not None:
        return evaluation_recipe(weights, line.overrides, data=None)
    keys = [override.partition("=")[0] for override in line.overrides]
    base = next((f"recipe={name}" for key, name in _STARTS.items() if key in keys and name), "")
    return load_any_recipe([*([base] if "recipe" not in keys else []), *line.overrides])


def _subject(line: DiagnoseCommand, recipe: Any, weights: str | None, display: Display) -> Subject:
    if hasattr(recipe, "policy"):
        from rlspec.vla.diagnosis import robot_subject

        subject = robot_subject(recipe, weights, display=display, parts=line.parts, size=line.size)
    else:
        from rlspec.rlvr.diagnosis import language_subject

        subject = language_subject(recipe, weights, display=display, parts=line.parts, size=line.size)
    subject.role = line.role
    if weights is not None and _run_folder(weights) is not None:
        folders = list_checkpoints(Path(weights).absolute().parent)
        subject.checkpoints = {int(folder.name.rpartition("-")[2]): folder for folder in folders}
    return subject


def _run_folder(weights: str) -> Path | None:
    """The run that a checkpoint belongs to."""
    path = Path(weights).absolute()
    inside = (path / MANIFEST).is_file() and path.parent.name == "checkpoints"
    return path.parent.parent if inside else None


def _output(line: DiagnoseCommand, recipe: Any, weights: str | None) -> Path:
    if line.out is not None:
        return line.out.expanduser()
    if weights is not None and (run := _run_folder(weights)) is not None:
        return run / "diagnostics" / Path(weights).name
    name = Path(weights).name if weights else recipe.policy.name if hasattr(recipe, "policy") else recipe.model.name
    return Path("checkpoints") / "diagnostics" / name


if __name__ == "__main__":
    sys.exit(main())
