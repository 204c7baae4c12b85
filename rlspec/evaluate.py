"""Measure a policy: on problems (pass@k) or in the simulator (success rates), with 95% confidence intervals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlspec.checkpoint import find_weights
from rlspec.config.command import CommandLine, one_of
from rlspec.config.paths import list_group, show
from rlspec.config.schema import Key
from rlspec.entry import command
from rlspec.errors import ConfigError

_WHAT = "a run directory (its newest checkpoint), a checkpoint in one, its best/, a model folder or a hub id"
_SHORT = ("episodes", "workers", "profile", "perturb", "strength")  # settings of `evaluation` that go without its name
_OF_TRAINING = ("optim", "batch", "checkpoints", "guard", "corruption", "launch", "sharding", "push", "resume", "run")
_OF_TRAINER = ("max_completion_length", "bf16", "fp16")  # how long answers may be, and in what they are computed
_SIMULATED = ("policy", "env", "env_options", "task", "dataset", *_SHORT)


class EvaluateCommand(CommandLine):
    """Measures with 95% confidence intervals. evaluation.KEY=VALUE sets anything of the section, for example
    evaluation.seed=7.
    """  # noqa: D205

    command = "evaluate"
    synopsis = (
        "checkpoint=WHAT [data=NAME[,NAME]] [key=value ...] [out=DIR]",
        "env=NAME policy=WHAT [task=NAME[,NAME]] [key=value ...] [out=DIR]",
    )
    example = "episodes=20"
    below = {"env": "env_options"}
    recipe = True

    checkpoint: Annotated[str | None, Key(_WHAT, "WHAT")] = None
    out: Annotated[Path | None, Key("where results go (default: the run's own folder evaluations/)", "DIR")] = None
    data: Annotated[
        list[str] | None,
        Key(
            "a data set of recipes/data (its held-out part), several with commas, or one local file, all of it "
            "(default: the held-out problems of the run's own training data)",
            "NAME",
            group="of language models",
        ),
    ] = None
    policy: Annotated[
        str | None,
        Key(
            "as checkpoint=, or expert (the scripted one), or replay (the demonstrations of a data set)",
            "WHAT",
            group="in the simulator",
        ),
    ] = None
    env: Annotated[
        str | None,
        one_of(lambda: list_group("env")),
        Key("an environment of recipes/env (default: the one that the policy was trained for)", "NAME"),
    ] = None
    env_options: Annotated[
        dict[str, Any], Key("options of the environment, for example env.image_size=128", "KEY=VALUE")
    ] = {}
    task: Annotated[
        list[str] | None, Key("of its tasks, several with commas (default: all that the recipe names)", "NAME")
    ] = None
    episodes: Annotated[int | None, Key("per task (default 50)")] = Field(None, ge=1)
    workers: Annotated[int | None, Key("processes (default 2)")] = Field(None, ge=1)
    profile: Annotated[Literal["openpi", "lerobot"] | None, Key("a published protocol of LIBERO")] = None
    perturb: Annotated[
        list[str] | None,
        Key(
            "factors to change in further episodes: camera, start, light, background, noise, layout, language, "
            "wrong_instruction; several with commas, or all",
            "NAME",
        ),
    ] = None
    strength: Annotated[list[int] | None, Key("how far, 1 to 3; several with commas (default 2)")] = None
    dataset: Annotated[
        Path | None,
        Key("demonstrations that policy=replay repeats, and that are replayed before a policy is measured", "DIR"),
    ] = None
    overrides: list[str] = []

    @model_validator(mode="after")
    def _one_policy(self) -> EvaluateCommand:
        in_simulator = self.env is not None or self.policy is not None
        if in_simulator and (self.policy is None) == (self.checkpoint is None):
            raise ValueError("policy: required, and not together with checkpoint; add policy=expert, replay or DIR")
        if self.policy is None and self.checkpoint is None:
            raise ValueError("checkpoint: required; add checkpoint=DIR (a run directory, a model folder or a hub id)")
        if self.dataset is not None:
            self.dataset = self.dataset.expanduser()
            if not self.dataset.is_dir():
                raise ValueError(f"dataset={self.dataset}: no such folder")
        if self.policy == "replay" and self.dataset is None:
            raise ValueError("policy=replay: needs dataset=DIR, a data set of python -m rlspec.collect")
        if self.strength is not None and not self.perturb:
            raise ValueError("strength: does nothing without perturb=; add perturb=all, or factors of it")
        return self

    def simulation_overrides(self) -> Iterator[str]:
        """Its keys and the rest of the line as overrides of a recipe.

        Raises:
            ConfigError: A key has no effect on an evaluation.
        """
        from rlspec.config.overrides import quote
        from rlspec.config.vla_schema import Env

        if self.task is not None:
            yield f"env.tasks=[{','.join(map(quote, self.task))}]"
        for key in _SHORT:
            if (value := getattr(self, key)) is not None:
                given = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
                yield f"evaluation.{key}={given}"
        for name, value in self.env_options.items():
            yield f"env.{'' if name.partition('.')[0] in Env.model_fields else 'options.'}{name}={show(value)}"
        for override in self.overrides:
            key = override.partition("=")[0]
            if key.partition(".")[0] not in ("evaluation", "device") and key != "report.display":
                raise ConfigError(f"{override}: has no effect on an evaluation in the simulator; {self.near(key)}")
            yield override

    def language_overrides(self) -> Iterator[str]:
        """The rest of the line as overrides of a language model's recipe.

        Raises:
            ConfigError: A key has no effect on an evaluation.
        """
        for override in self.overrides:
            section, _, knob = override.lstrip("+~").partition("=")[0].partition(".")
            if section in _OF_TRAINING or (section == "trainer" and knob not in _OF_TRAINER):
                raise ConfigError(f"{override}: has no effect on an evaluation; leave it out")
            yield override

    def refuse(self, keys: Sequence[str], why: str) -> None:
        """Raises ConfigError where one of the keys is given."""
        if given := [key for key in keys if key in self.model_fields_set]:
            raise ConfigError(f"{given[0]}={_plain(getattr(self, given[0]))}: {why}; leave it out")


def _plain(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else show(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where a replay fails, 2 for a mistake of the user, 130 after Ctrl-C."""
    return command(EvaluateCommand, _evaluate, argv)


def _evaluate(line: EvaluateCommand) -> int:
    from rlspec.runtime.measuring import default_output, evaluation_recipe, is_robot_policy

    what = str(line.policy or line.checkpoint)
    weights = what if line.policy in ("expert", "replay") else find_weights(what)
    if line.env is not None or line.policy is not None or is_robot_policy(weights):
        return _simulate(line, weights)
    line.refuse(_SIMULATED, "only for robots' policies, in a simulator")
    recipe = evaluation_recipe(weights, list(line.language_overrides()), data=line.data)
    from rlspec.rlvr.measure import measure

    return measure(recipe, folder=weights, out=line.out or default_output(weights))


def _simulate(line: EvaluateCommand, weights: str) -> int:
    from rlspec.runtime.measuring import simulation_output, simulation_recipe, stored_vla_recipe

    line.refuse(["data"], "only for language models")
    trained = stored_vla_recipe(weights)
    recipe = simulation_recipe(weights, list(line.simulation_overrides()), env=line.env)
    assert recipe.env is not None
    if line.policy == "expert":
        from rlspec.config.vla_checks import without_expert

        for fault in without_expert(recipe.env, "policy=expert"):
            raise ConfigError(fault)
    out = line.out or simulation_output(weights, recipe.env.name, named=line.env is not None)
    sys.stdout.write("loading the simulator\n")
    sys.stdout.flush()
    from rlspec.vla.evaluation.command import measure

    return measure(recipe, what=weights, out=out.expanduser(), trained=trained, dataset=line.dataset)


if __name__ == "__main__":
    sys.exit(main())
