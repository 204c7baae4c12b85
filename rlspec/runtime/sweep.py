"""Many runs: every combination of values, each trained in a process of its own, and the table of their results."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspec.checkpoint import list_checkpoints, write_json_atomically, write_text_atomically
from rlspec.errors import ConfigError
from rlspec.intervals import t_interval

_GROUPS = ("recipe", "model", "data", "optim", "policy", "env", "dataset", "seed")
_SCORES = {"sampled_pass_at_1": "sampled pass@1", "success_rate": "success"}  # what a summary measures, in words


@dataclass(frozen=True)
class Arm:
    """One combination of the values that vary, over all its seeds."""

    settings: tuple[str, ...]  # key=value of the varying keys other than the seed
    runs: tuple[tuple[str, ...], ...]  # arguments of each run

    @property
    def name(self) -> str:
        """The values, for a table's row."""
        return ", ".join(setting.partition("=")[2] for setting in self.settings) or "all"


def sweep(values: Mapping[str, str], out: Path, *, workers: int) -> int:
    """Train what is not trained yet and write report.md and report.json; returns 1 if a run failed.

    Args:
        values: Key -> values with commas between them, as on the command line.
        out: Where the runs and the report go.
        workers: Runs at a time.

    Raises:
        ConfigError: A combination is no valid recipe, or its folder holds another one.
    """
    arms = plan_arms(values)
    runs = [run for arm in arms for run in arm.runs]
    _check(runs, out)
    sys.stdout.write(f"{len(runs)} runs in {len(arms)} arms, {workers} at a time, in {out}\n")
    with ThreadPoolExecutor(workers) as pool:
        results = dict(zip(runs, pool.map(lambda run: run_or_read(run, out, workers), runs), strict=True))
    report = {arm.name: [results[run] for run in arm.runs] for arm in arms}
    write_json_atomically(out / "report.json", report)
    text = render_report(report, [*map("=".join, values.items()), f"out={out}"])
    write_text_atomically(out / "report.md", text)
    sys.stdout.write(f"\n{text}\nreport: {out / 'report.md'}\n")
    return 1 if any(result is None for result in results.values()) else 0


def _check(runs: Sequence[tuple[str, ...]], out: Path) -> None:
    """Every combination is a valid recipe with a folder of its own before the first is trained."""
    from rlspec.config.load import load_any_recipe

    names = [run_name(run) for run in runs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two combinations would share the folder {max(names, key=names.count)}")
    for run, name in zip(runs, names, strict=True):
        load_any_recipe(run)
        _check_stored(run, out / name)


def split_values(text: str) -> list[str]:
    """Cut at commas outside of brackets: `a,b` are two values, `[1,8]` is one."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return values


def plan_arms(options: Mapping[str, str]) -> list[Arm]:
    """All combinations; those that differ only in the seed form one arm."""
    values = {key: split_values(text) for key, text in options.items()}
    seeds = values.pop("seed", ["0"])
    varying = [key for key, choices in values.items() if len(choices) > 1]
    arms = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        fixed = [f"{key}={value}" for key, value in chosen.items()]
        runs = tuple((*fixed, f"seed={seed}") for seed in seeds)
        arms.append(Arm(tuple(f"{key}={chosen[key]}" for key in varying), runs))
    return arms


def run_name(arguments: Sequence[str]) -> str:
    """A folder name that tells runs apart: `grpo_math-pion-lr_1e-4-0`; keys but for the usual ones are in it."""
    parts = []
    for key, _, value in (argument.partition("=") for argument in arguments):
        plain = key in _GROUPS and "/" not in value
        parts.append(value if plain else f"{key.rpartition('.')[2]}_{value}")
    text = "-".join(parts)
    return "".join(character if character.isalnum() or character in "._-" else "_" for character in text)


def run_or_read(arguments: tuple[str, ...], out: Path, workers: int) -> dict[str, Any] | None:
    """The summary of a run: an earlier one, a resumed one or a new one; None if it failed."""
    name = run_name(arguments)
    folder = out / name
    summary = read_summary(folder)
    if summary is None:
        _train(arguments, folder, workers)
        summary = read_summary(folder)
    sys.stdout.write(f"{name}: {_brief(summary, out / f'{name}.log')}\n")
    sys.stdout.flush()
    return summary


def _train(arguments: tuple[str, ...], folder: Path, workers: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = [f"resume={folder}"]
    if not list_checkpoints(folder / "checkpoints"):
        place = [f"output_dir={folder.parent}", f"run={folder.name}"]
        if folder.exists():  # stopped before its first checkpoint: out of the way, not away
            stopped = len(list(folder.parent.glob(f"{folder.name}.stopped-*")))
            os.replace(folder, folder.with_name(f"{folder.name}.stopped-{stopped + 1}"))
    command = [sys.executable, "-m", "rlspec.train", *arguments, *place, "report.display=plain"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    with folder.with_name(f"{folder.name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)


def _check_stored(run: tuple[str, ...], folder: Path) -> None:
    """A folder of this name must come from this recipe.

    Raises:
        ConfigError: It holds a run of another one.
    """
    from rlspec.config.load import load_any_recipe
    from rlspec.config.match import differing_keys

    stored = folder / "recipe.yaml"
    if not stored.is_file():
        return
    both = (load_any_recipe([f"recipe={stored}"]), load_any_recipe(run))
    old, new = (recipe.model_dump(mode="json") for recipe in both)
    different = [key for key, *_ in differing_keys(old, new)]
    different += [
        f"{section}.{key}"
        for section, key in (("trainer", "max_steps"), ("training", "steps"))
        if old.get(section, {}).get(key) != new.get(section, {}).get(key)
    ]
    if different:
        raise ConfigError(f"out: {folder} holds a run with another {different[0]}; choose another out=DIR")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that ended by itself."""
    path = folder / "summary.json"
    if not path.is_file():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary["status"] != "interrupted" else None


def _brief(summary: dict[str, Any] | None, log: Path) -> str:
    if summary is None:
        return f"FAILED, see {log}"
    before, after = summary["before"], summary["after"]
    measured = next((words for name, words in _SCORES.items() if name in (after or before or {})), "score")
    return f"{summary['status']}, {measured} {_percent(before)} -> {_percent(after)}, {summary['seconds']:.0f} s"


def _score(metrics: dict[str, Any]) -> float:
    return 100 * next(float(metrics[name]) for name in _SCORES if name in metrics)


def _percent(metrics: dict[str, Any] | None) -> str:
    return f"{_score(metrics):.1f}%" if metrics else "?"


def render_report(report: dict[str, list[dict[str, Any] | None]], arguments: Sequence[str]) -> str:
    """A Markdown table: each seed's result, the mean over seeds with its 95% t-interval, cut to 0 to 100."""
    lines = [
        f"Command: `python -m rlspec.compare {' '.join(arguments)}`",
        "",
        "| arm | before | after, by seed | mean after [95% over seeds] | mean gain, points | least gain | status |",
        "|---|---:|---|---:|---:|---:|---|",
    ]
    for name, results in report.items():
        done = [result for result in results if result and result["after"]]
        if not done:
            lines.append(f"| {name} | | | | | | failed |")
            continue
        before = [_score(result["before"]) for result in done if result["before"]]
        after = [_score(result["after"]) for result in done]
        gains = [_score(result["after"]) - _score(result["before"]) for result in done if result["before"]]
        low, high = (min(max(end, 0.0), 100.0) for end in t_interval(after))  # percent
        status = ", ".join(sorted({result["status"] if result else "failed" for result in results}))
        lines.append(
            f"| {name} | {f'{_mean(before):.1f}' if before else ''} | {', '.join(f'{value:.1f}' for value in after)} | "
            f"{_mean(after):.1f} [{low:.1f}, {high:.1f}] | "
            + (f"{_mean(gains):+.1f} | {min(gains):+.1f} | {status} |" if gains else f"| | {status} |")
        )
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
