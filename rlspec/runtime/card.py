"""The model card of a run's weights: what they are, what they reached, whose licence holds, how to make them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from rlspec.checkpoint import CARD, list_checkpoints, read_manifest, write_text_atomically
from rlspec.config.gguf_header import is_gguf, read_gguf_header
from rlspec.hub import fetch_snapshot, is_local
from rlspec.run_directory import RECIPE
from rlspec.runtime.starting import Run

NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Proportion:
    """A share in [0, 1] with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


@dataclass(frozen=True)
class CardRow:
    """What an evaluation said before the training and after it."""

    what: str  # pass@1, for example
    on: str  # data set or simulator
    before: Proportion | None
    after: Proportion | None


@dataclass(frozen=True)
class Origin:
    """Where weights come from, and what loads them."""

    library: str  # transformers, peft or lerobot
    task: str  # the hub's word: text-generation, robotics
    base: str | None  # hub id or local folder; None: random weights
    revision: str | None  # of a hub id
    data: str  # in words
    datasets: Sequence[str] = ()  # hub ids
    load: str = ""  # lines of Python that load them

    @property
    def name(self) -> str:
        """Of the base; of a local folder no more than its own name, since a card is for others."""
        return "" if self.base is None else self.base if self.public else Path(self.base).name

    @property
    def public(self) -> bool:
        """Whether others know the base by its name."""
        return self.base is not None and not is_local(self.base)


def write_cards(run: Run, origin: Origin, measured: Sequence[CardRow], *, status: str, steps: int) -> Path | None:
    """Put a card beside the newest weights of a run and beside its best; returns the folder of the newest."""
    found = list_checkpoints(run.directory.checkpoints)
    licence = licence_of(origin.base, origin.revision) if found else None
    best = run.directory.best
    if best.is_dir():
        step = read_manifest(best)["step"]
        note = f"These are the best weights of the run by its evaluations: those of step {step}."
        write_text_atomically(best / CARD, card(run, origin, (), licence, note))
    if not found:
        return None
    note = f"The run {status} after {steps} steps."
    write_text_atomically(found[-1] / CARD, card(run, origin, measured, licence, note))
    return found[-1]


def licence_of(base: str | None, revision: str | None) -> str | None:
    """The hub's word for a model's licence, as its card or header says it; None: it says nothing, or cannot be had."""
    if base is None:
        return None
    try:
        if is_gguf(base):
            licence = read_gguf_header(Path(base).expanduser()).metadata.get("general.license")
            return licence if isinstance(licence, str) else None
        folder = Path(base) if is_local(base) else fetch_snapshot(base, kind="model", files=[CARD], revision=revision)
        _, front, _ = (folder.expanduser() / CARD).read_text(encoding="utf-8").split("---", 2)
        licence = yaml.safe_load(front)["license"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def card(run: Run, origin: Origin, measured: Sequence[CardRow], licence: str | None, note: str) -> str:
    """The whole text."""
    recipe, name = run.recipe, run.directory.path.name
    return "\n".join(
        [
            "---",
            _front(run, origin, measured, licence),
            "---",
            "",
            f"# {name}",
            "",
            f"{_start(origin)}, trained with rlspec by recipe `{recipe.recipe}`: {recipe.algorithm} on {origin.data}, "
            f"optimizer `{recipe.optim.name}` at learning rate {recipe.optim.lr:g}, seed {recipe.seed}. {note}",
            "",
            *_numbers(measured),
            *_section("Use", f"```python\n{origin.load}\n```" if origin.load else ""),
            *_section("Make it again", f"`{RECIPE}` in this folder is the whole recipe:\n\n```\n{_command(run)}\n```"),
            *_section("Which rule updated which parameter", _symmetry(run)),
            *_section("Licence", _licence(origin, licence)),
        ]
    )


def _start(origin: Origin) -> str:
    return "Weights that began at random" if origin.base is None else f"Weights that began as `{origin.name}`"


def _command(run: Run) -> str:
    elsewhere = "" if run.recipe.push is None else " push=null"
    return f"python -m rlspec.train recipe={RECIPE} run=again output_dir=checkpoints{elsewhere}"


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", "", text, ""] if text else []


def _front(run: Run, origin: Origin, measured: Sequence[CardRow], licence: str | None) -> str:
    results = [
        EvalResult(
            task_type=origin.task,
            dataset_type=each.on,
            dataset_name=each.on,
            metric_type=each.what,
            metric_value=round(each.after.value, 4),
            metric_args={"ci95": [round(each.after.low, 4), round(each.after.high, 4)]},
        )
        for each in measured
        if each.after is not None
    ]
    data = ModelCardData(
        base_model=origin.base if origin.public else None,
        datasets=list(origin.datasets) or None,
        library_name=origin.library,
        license=licence,
        model_name=run.directory.path.name,
        pipeline_tag=origin.task,
        tags=["rlspec", run.recipe.algorithm],
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _numbers(measured: Sequence[CardRow]) -> list[str]:
    if not measured:
        return _section("Numbers", "None were measured.")
    rows = [f"| {each.on} | {each.what} | {each.before or '-'} | {each.after or '-'} |" for each in measured]
    head = ["| measured on | what | before | after |", "|---|---|---|---|"]
    return _section("Numbers, with 95% intervals", "\n".join([*head, *rows]))


def _symmetry(run: Run) -> str:
    path = run.directory.path / "symmetry.md"
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _licence(origin: Origin, licence: str | None) -> str:
    if origin.base is None:
        return "There is no base model: choose one."
    stated = licence or f"{NOT_KNOWN}; look it up before you share these weights"
    return f"Of the base, `{origin.name}`: {stated}."
