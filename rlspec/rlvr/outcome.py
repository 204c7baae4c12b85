"""What a run of a language model says of its outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlspec.config.paths import resolve_path
from rlspec.config.rlvr_schema import Data, Model, Recipe
from rlspec.hub import is_local
from rlspec.rlvr.data.problems import is_single_file
from rlspec.run_directory import RunDirectory
from rlspec.runtime.card import CardRow, Origin, Proportion
from rlspec.runtime.outcome import Ending, RunOutcome


def describe_ending(outcome: RunOutcome, recipe: Recipe, directory: RunDirectory) -> Ending:
    """Rates on the first data set, and the override that makes a run longer."""
    first = next(iter(outcome.before or outcome.after or {}), recipe.data.name)
    before, after = (outcome.before or {}).get(first), (outcome.after or {}).get(first)
    lines = []
    if before and after:
        rates = before["sampled_pass_at_1"], after["sampled_pass_at_1"]
        gain = f"{rates[0]:.1%} before, {rates[1]:.1%} after ({100 * (rates[1] - rates[0]):+.1f} points)"
        lines.append(f"sampled pass@1 on {first}: {gain}")
    if outcome.status == "collapsed":
        kept = directory.best if directory.best.is_dir() else "none were kept (evaluation.every is not set)"
        lines.append(f"best weights: {kept}")
    if recipe.trainer.get("max_steps", -1) > 0:
        further = f"trainer.max_steps={2 * outcome.steps}"
    else:
        further = f"trainer.num_train_epochs={2 * recipe.trainer['num_train_epochs']:g}"
    return Ending(
        subject=f"{recipe.algorithm}, {recipe.model.name}",
        entries={
            "model": recipe.model.name,
            "data": first,
            "before": before,
            "after": after,
            "evaluations": {"before": outcome.before, "after": outcome.after},  # by set of problems, this one first
        },
        lines=lines,
        evaluations="answers",
        further=further,
        origin=_origin(recipe.model, recipe.data),
        measured=list(_measured(outcome)),
    )


def _origin(model: Model, data: Data) -> Origin:
    path = data.path
    start = model.path or (str(resolve_path(model.init)) if model.init else None)
    loader = "AutoModelForCausalLM" if model.lora is None else "AutoPeftModelForCausalLM"
    library = "transformers" if model.lora is None else "peft"
    tokens = "from transformers import AutoTokenizer\n"
    return Origin(
        library=library,
        task="text-generation",
        base=start,
        revision=model.revision,
        data=f"`{data.name}`",
        datasets=[path] if path is not None and not is_local(path) and not is_single_file(path) else [],
        load=f"from {library} import {loader}\n{tokens}\n"
        f"model = {loader}.from_pretrained(FOLDER)\ntokenizer = AutoTokenizer.from_pretrained(FOLDER)",
    )


def _measured(outcome: RunOutcome) -> Iterator[CardRow]:
    before, after = outcome.before or {}, outcome.after or {}
    for name in dict.fromkeys([*before, *after]):
        then, now = _rates(before.get(name)), _rates(after.get(name))
        for what in dict.fromkeys([*then, *now]):
            yield CardRow(what, name, then.get(what), now.get(what))


def _rates(metrics: Mapping[str, Any] | None) -> dict[str, Proportion]:
    """Of one evaluation's metrics, as JSON."""
    if metrics is None:
        return {}
    rates = {
        "greedy pass@1": Proportion(metrics["pass_at_1"], *metrics["ci95"]),
        "sampled pass@1": Proportion(metrics["sampled_pass_at_1"], *metrics["sampled_ci95"]),
    }
    several = {k: value for k, value in metrics["pass_at_k"].items() if k != "1"}
    return rates | {f"pass@{k}": Proportion(value, *metrics["pass_at_k_ci95"][k]) for k, value in several.items()}
