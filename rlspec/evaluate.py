"""Measure a policy: `python -m rlspec.evaluate checkpoint=DIR data=NAME ...`, pass@k with confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.entry import run_command
from rlspec.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from rlspec.config.schema import Recipe

USAGE = """\
usage: python -m rlspec.evaluate checkpoint=WHAT [data=NAME[,NAME]] [key=value ...] [out=DIR]

  checkpoint=WHAT    a run directory (its newest checkpoint), a checkpoint in one, its best/, a model folder or a hub id
  data=NAME          a data set of recipes/data (its held-out part) or a local file (all of it); several with commas.
                     Without it: the held-out problems of the run's own training data
  evaluation.*       problems, samples, k, temperature, top_p, top_k, max_new_tokens, batch_size, seed
  out=DIR            where completions (JSONL) and metrics (JSON) go; by default the run's own folder evaluations/
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    return run_command(argv, lambda: USAGE, _evaluate)


def _evaluate(arguments: list[str]) -> int:
    checkpoint, out = _take(arguments, "checkpoint"), _take(arguments, "out")
    if checkpoint is None:
        raise ConfigError("checkpoint: required; add checkpoint=DIR (a run directory, a model folder or a hub id)")
    folder = find_weights(checkpoint)
    recipe = evaluation_recipe(folder, arguments)
    from rlspec.rlvr.measure import measure

    return measure(recipe, folder=folder, out=Path(out) if out else default_output(folder))


def _take(arguments: list[str], key: str) -> str | None:
    """Remove `key=value` from the arguments and return the value."""
    found = [argument for argument in arguments if argument.startswith(f"{key}=")]
    for argument in found:
        arguments.remove(argument)
    return found[-1].partition("=")[2] if found else None


def find_weights(checkpoint: str) -> str:
    """The folder that holds the weights, or a hub id as it is.

    Raises:
        CheckpointError: A run directory without a whole checkpoint, or a damaged checkpoint.
    """
    from rlspec.checkpoint import MANIFEST, newest_whole_checkpoint, verify_checkpoint

    path = Path(checkpoint).expanduser()
    if not path.is_dir():
        if checkpoint.count("/") != 1 or path.is_absolute() or checkpoint.startswith("."):
            raise CheckpointError(f"checkpoint={checkpoint}: no such folder")
        return checkpoint
    if (path / MANIFEST).is_file():
        verify_checkpoint(path)
        return str(path)
    if (path / "checkpoints").is_dir():
        newest, refused = newest_whole_checkpoint(path / "checkpoints")
        if newest is None:
            raise CheckpointError(refused[0] if refused else f"checkpoint={checkpoint}: the run has no checkpoint yet")
        return str(newest)
    return str(path)


def evaluation_recipe(folder: str, arguments: Sequence[str]) -> Recipe:
    """The recipe of the run that wrote the weights, or the profile of any model, with the data asked for."""
    from rlspec.config.load import load_recipe

    stored = Path(folder) / "recipe.yaml"
    base = [f"recipe={stored}"] if stored.is_file() else ["recipe=grpo_math", f"model={folder}"]
    others = list(arguments)
    names = _take(others, "data")
    if names is None:
        return load_recipe([*base, *others])
    if "," in names:
        return load_recipe([*base, f"evaluation.data=[{names}]", *others])
    recipe = load_recipe([*base, f"data={names}", "evaluation.data=[]", *others])
    if recipe.data.path is not None and Path(recipe.data.path).is_file() and recipe.data.test_path is None:
        recipe.data.test_split = recipe.data.split  # a file that was named is measured on as a whole
    return recipe


def default_output(folder: str) -> Path:
    """`evaluations/` of the run that wrote the checkpoint; for other models a folder below checkpoints/."""
    from rlspec.checkpoint import MANIFEST

    path = Path(folder).absolute()
    if (path / MANIFEST).is_file() and path.parent.name == "checkpoints":
        return path.parent.parent / "evaluations" / path.name
    return Path("checkpoints") / "evaluations" / path.name


if __name__ == "__main__":
    sys.exit(main())
