"""Train a policy by a recipe: `python -m rlspec.train recipe=NAME key=value ...`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from rlspec.config.command import CommandLine
from rlspec.config.schema import Key
from rlspec.entry import command


class TrainCommand(CommandLine):
    """A recipe, and what is different this time.

    recipe=NAME        one of the recipes below, or the recipe.yaml of an earlier run
    model=, data=      of language models: a profile or data set below; or a hub id, a local folder or a local file
    policy=, dataset=  of robots: a policy or data set below; or a hub id or a local folder
    env=, optim=       a simulator, an optimizer below
    key=value          any key of the recipe in Hydra's grammar, for example optim.lr=2e-6 trainer.max_steps=50 seed=1
    resume=DIR|auto    continue a run (its own recipe is used unless recipe= is given)
    """

    command = "train"
    synopsis = ("recipe=NAME [key=value ...] [--print]",)
    example = "optim.lr=2e-6"
    recipe = True

    print: Annotated[bool, Key("print the resolved recipe, with what each key means, and stop")] = False
    overrides: list[str] = []

    @classmethod
    def more(cls) -> str:
        """The names that the groups take."""
        from rlspec.config.paths import GROUPS, headline, list_group, list_recipes
        from rlspec.config.rules import known_rules

        recipes = list_recipes()
        width = max(map(len, recipes))
        lines = [f"  {name:{width}}  {headline(name)}" for name in recipes]
        groups = [f"  {group + '=':{width}}  {', '.join(list_group(group))}" for group in GROUPS]
        rules = [rule for rule in known_rules() if rule not in list_group("optim")]
        groups.insert(GROUPS.index("optim") + 1, f"  {'':{width}}  or a rule with its defaults: {', '.join(rules)}")
        return "\n".join(["", "recipes:", *lines, "", "groups:", *groups])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(TrainCommand, _train, argv)


def _train(line: TrainCommand) -> int:
    # Nothing below is imported before it is needed: a misspelt key is answered without torch.
    from rlspec.config.load import load_any_recipe
    from rlspec.config.vla_schema import VlaRecipe

    gc.disable()  # what is imported now lives on: collecting meanwhile costs time and frees nothing
    try:
        recipe = load_any_recipe(line.overrides)
    finally:
        gc.enable()
    if line.print:
        from rlspec.config.annotated import annotated_recipe

        sys.stdout.write(annotated_recipe(recipe))
        return 0
    if recipe.push is not None:
        from rlspec.runtime.push import check_push

        check_push(recipe.push)
    (_look_at_policy if isinstance(recipe, VlaRecipe) else _look_at_sources)(recipe)
    from rlspec.runtime.launching import is_launched, launch

    if not is_launched():  # of several processes the first one makes the folder
        _look_at_place(recipe)
        if recipe.launch.by != "here":
            return launch(recipe.launch, "rlspec.train", line.overrides)
    libraries = "torch and lerobot" if isinstance(recipe, VlaRecipe) else "torch, transformers and trl"
    sys.stdout.write(f"loading {libraries}\n")  # ten seconds or more in which nothing else is said
    sys.stdout.flush()
    return _runner(robotic=isinstance(recipe, VlaRecipe))(recipe)


def _look_at_sources(recipe: Any) -> None:
    """What cannot be had or read is said before libraries are loaded; the run takes the problems read here."""
    from rlspec.config.paths import initial_folder
    from rlspec.rlvr.data.problems import read_for_training

    if recipe.model.init is not None:
        initial_folder(recipe.model.init)
    if recipe.data.path is not None:
        read_for_training(recipe.data, whole_rows=recipe.whole_rows)


def _look_at_policy(recipe: Any) -> None:
    """The same for a robot's policy and its data, as far as they are folders, and for what the simulator is asked."""
    from rlspec.checkpoint import find_weights
    from rlspec.config.paths import resolve_path
    from rlspec.errors import DataError

    policy, dataset = recipe.policy, recipe.dataset
    if policy.path is not None and not resolve_path(policy.path).exists():
        find_weights(policy.path, key="policy.path")
    key, given = "dataset.root", None if dataset.demonstrations or dataset.recordings else dataset.root
    if dataset.repo_id is not None:
        key, given = "dataset.repo_id", dataset.repo_id if dataset.repo_id.startswith(("/", "~", ".")) else None
    if given is not None and not Path(given).expanduser().is_dir():
        raise DataError(f"{key}={given}: no such folder; correct it, or leave it out")
    if recipe.env is not None:
        from rlspec.vla.evaluation.simulator import Simulator

        simulator = Simulator(recipe.env.suite, dict(recipe.env.options))
        for task in recipe.env.tasks or simulator.tasks()[:1]:
            simulator.make(task).close()


def _look_at_place(recipe: Any) -> None:
    """A name that is taken, a folder that cannot be made and a run that is not there, before libraries are loaded."""
    from rlspec.run_directory import place_of_run, resume_folder

    if recipe.resume is None:
        place_of_run(Path(recipe.output_dir), recipe.run_name, explicit=recipe.run is not None)
    elif recipe.resume != "auto":
        resume_folder(recipe.resume)


def _runner(*, robotic: bool) -> Callable[[Any], int]:
    if robotic:
        from rlspec.vla.run import run_vla_recipe

        return run_vla_recipe
    from rlspec.rlvr.run import run_recipe

    return run_recipe


if __name__ == "__main__":
    sys.exit(main())
