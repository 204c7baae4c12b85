"""Measure a policy: on problems (pass@k) or in the simulator (success rates), with 95% confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlspec.checkpoint import find_weights
from rlspec.entry import run_command
from rlspec.errors import ConfigError

if TYPE_CHECKING:
    from rlspec.config.schema import Recipe
    from rlspec.config.vla_schema import VlaRecipe

USAGE = """\
usage: python -m rlspec.evaluate checkpoint=WHAT [data=NAME[,NAME]] [key=value ...] [out=DIR]
       python -m rlspec.evaluate env=NAME policy=WHAT [task=NAME[,NAME]] [key=value ...] [out=DIR]

  checkpoint=WHAT    a run directory (its newest checkpoint), a checkpoint in one, its best/, a model folder or a hub id
  evaluation.*       any setting of the section, for example evaluation.seed=7
  out=DIR            where results go; by default the run's own folder evaluations/

of language models:
  data=NAME          a data set of recipes/data (its held-out part) or a local file (all of it); several with commas.
                     Without it: the held-out problems of the run's own training data

in the simulator:
  policy=WHAT        as checkpoint=, or expert (the scripted one), or replay (the demonstrations of a data set)
  env=NAME           an environment of recipes/env; without it the one that the policy was trained for
  task=NAME          tasks of it, several with commas; default: all that the environment's recipe names
  env.KEY=VALUE      options of the environment, for example env.image_size=128
  episodes=N         per task (default 50)
  workers=N          processes (default 2)
  profile=NAME       a published protocol of LIBERO: openpi or lerobot
  dataset=DIR        demonstrations that policy=replay repeats, and that are replayed before a policy is measured
"""
_SHORT = ("episodes", "workers", "profile")  # settings of `evaluation` that go without its name
_SIMULATOR = ("env=", "policy=", "task=", "dataset=", "env.", *(f"{name}=" for name in _SHORT))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where a replay fails, 2 for a mistake of the user, 130 after Ctrl-C."""
    return run_command(argv, lambda: USAGE, _evaluate)


def _evaluate(arguments: list[str]) -> int:
    if any(argument.startswith(("env=", "policy=")) for argument in arguments):
        return _simulate(arguments)
    checkpoint = _take(list(arguments), "checkpoint")
    if checkpoint is None:
        raise ConfigError("checkpoint: required; add checkpoint=DIR (a run directory, a model folder or a hub id)")
    folder = find_weights(checkpoint)
    if _is_robot_policy(folder):
        return _simulate(arguments)
    _take(arguments, "checkpoint")
    out = _take(arguments, "out")
    recipe = evaluation_recipe(folder, arguments)
    from rlspec.rlvr.measure import measure

    return measure(recipe, folder=folder, out=Path(out) if out else default_output(folder))


def _is_robot_policy(folder: str) -> bool:
    from rlspec.config.kinds import BC, algorithm_of

    stored = Path(folder) / "recipe.yaml"
    return stored.is_file() and algorithm_of(str(stored)) == BC


def _simulate(arguments: list[str]) -> int:
    """Measure in the simulator."""
    policy, checkpoint = _take(arguments, "policy"), _take(arguments, "checkpoint")
    if (policy is None) == (checkpoint is None):
        raise ConfigError("policy: required, and not together with checkpoint; add policy=expert, replay or a folder")
    what = str(policy or checkpoint)
    out, dataset = _take(arguments, "out"), _take(arguments, "dataset")
    if dataset is not None and not Path(dataset).expanduser().is_dir():
        raise ConfigError(f"dataset={dataset}: no such folder")
    if what == "replay" and dataset is None:
        raise ConfigError("policy=replay: needs dataset=DIR, a data set of python -m rlspec.collect")
    weights = what if what in ("expert", "replay") else find_weights(what)
    named = any(argument.startswith("env=") for argument in arguments)
    trained = stored_vla_recipe(weights)
    recipe = simulation_recipe(weights, arguments)
    target = Path(out).expanduser() if out else simulation_output(weights, recipe, named=named)
    sys.stdout.write("loading the simulator\n")
    sys.stdout.flush()
    from rlspec.vla.evaluation.command import measure

    return measure(recipe, what=weights, out=target, trained=trained, dataset=Path(dataset) if dataset else None)


def stored_vla_recipe(weights: str) -> VlaRecipe | None:
    """The recipe that a robot's policy was trained by, if it is one of ours."""
    from rlspec.config.load import load_vla_recipe

    return load_vla_recipe([f"recipe={Path(weights) / 'recipe.yaml'}"]) if _is_robot_policy(weights) else None


def simulation_recipe(weights: str, arguments: Sequence[str]) -> VlaRecipe:
    """The recipe that the policy was trained by, or any, with the environment and the settings asked for.

    Raises:
        ConfigError: A key that has no effect on an evaluation, or a value that is not allowed.
    """
    from rlspec.config.load import load_vla_recipe

    stored = Path(weights) / "recipe.yaml" if _is_robot_policy(weights) else None
    if stored is None and not any(argument.startswith("env=") for argument in arguments):
        from rlspec.config.paths import list_group

        raise ConfigError(f"env: required; add env=NAME; allowed: {', '.join(list_group('env'))}")
    # Without a recipe of the policy any will do: nothing but `env`, `evaluation` and `device` is read.
    base = f"recipe={stored}" if stored else "recipe=vla_franka"
    recipe = load_vla_recipe([base, *map(_override, arguments)])
    if recipe.env is None:
        raise ConfigError(f"env: {weights} was trained without a simulator; add env=NAME")
    return recipe


def _override(argument: str) -> str:
    """An argument of an evaluation as an override of a recipe."""
    from rlspec.config.arguments import split_setting
    from rlspec.config.overrides import quote
    from rlspec.config.vla_schema import Env
    from rlspec.errors import nearest

    key, value = split_setting(argument, "episodes=20")
    if key == "task":
        return f"env.tasks=[{','.join(quote(name) for name in value.split(','))}]"
    if key in _SHORT:
        return f"evaluation.{key}={value}"
    section, _, name = key.partition(".")
    if section == "env" and name and name.partition(".")[0] not in Env.model_fields:
        return f"env.options.{name}={value}"
    if section not in ("env", "evaluation", "device") and key != "report.display":
        known = ("policy", "checkpoint", "env", "task", "dataset", "out", "device", "evaluation.KEY", *_SHORT)
        raise ConfigError(f"{argument}: has no effect on an evaluation in the simulator; {nearest(key, known)}")
    return argument


def simulation_output(weights: str, recipe: VlaRecipe, *, named: bool) -> Path:
    """`evaluations/` of the run that wrote the policy; for others a folder below checkpoints/."""
    from rlspec.config.overrides import safe_name

    assert recipe.env is not None
    folder = default_output(weights)
    if folder.parent.parent != Path("checkpoints"):
        return folder.with_name(f"{folder.name}-{recipe.env.name}") if named else folder
    return folder.with_name(f"{recipe.env.name}-{safe_name(folder.name)}")


def _take(arguments: list[str], key: str) -> str | None:
    """Remove `key=value` from the arguments and return the value."""
    found = [argument for argument in arguments if argument.startswith(f"{key}=")]
    for argument in found:
        arguments.remove(argument)
    return found[-1].partition("=")[2] if found else None


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
