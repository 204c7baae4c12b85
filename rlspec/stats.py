"""Exact statistics of a LeRobotDataset: `python -m rlspec.stats path=DIR [--fix] [against=CHECKPOINT]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rlspec.entry import run_command
from rlspec.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from rlspec.display import Display

USAGE = """\
usage: python -m rlspec.stats path=DIR|OWNER/NAME [--fix] [against=CHECKPOINT] [norm_stats=FILE]

  Statistics over all frames of a LeRobotDataset v3 (mean, std, min, max, q01, q99 of every number), and which of those
  that it stores are others: LeRobot 0.6.1 merges the quantiles of episodes wrongly. Exit code 1 where any is wrong.

  path=DIR             a data set's folder, or its id on the hub (a local copy where there is one)
  --fix                replace wrong statistics in meta/stats.json, in one step
  against=CHECKPOINT   a policy (run directory, checkpoint or folder) or openpi's norm_stats.json: compare units,
                       ranges, action space and rate with it; exit code 2 where they do not go together
  norm_stats=FILE      write mean, std, q01 and q99 of state and actions as openpi's norm_stats.json
"""
_KEYS = ("path", "against", "norm_stats")
_SHOWN = ("mean", "std", "min", "q01", "q99", "max")
_WIDTH = 132


@dataclass(frozen=True)
class Arguments:
    """What was asked for."""

    path: str
    fix: bool = False
    against: str | None = None
    norm_stats: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 where stored statistics are wrong, 2 for a mistake or a refusal."""
    return run_command(argv, lambda: USAGE, _stats)


def parse(arguments: Sequence[str]) -> Arguments:
    """Read the command line.

    Raises:
        ConfigError: An unknown key, with the nearest one, or no path.
    """
    from rlspec.config.arguments import split_setting
    from rlspec.errors import nearest

    given: dict[str, str] = {}
    for argument in arguments:
        if argument == "--fix":
            continue
        key, value = split_setting(argument, "path=DIR, or --fix")
        if key not in _KEYS:
            raise ConfigError(f"{argument}: unknown key; {nearest(key, (*_KEYS, '--fix'))}")
        if not value:
            raise ConfigError(f"{key}=: no value; leave it out, or give one")
        given[key] = value
    if "path" not in given:
        raise ConfigError("path: required; add path=DIR, the folder of a data set, or its id on the hub")
    return Arguments(given["path"], "--fix" in arguments, given.get("against"), given.get("norm_stats"))


def _stats(arguments: list[str]) -> int:
    given = parse(arguments)
    from rlspec.display import Display
    from rlspec.vla.data.exact_statistics import numeric_statistics, statistics_fault
    from rlspec.vla.data.files import INFO, STATS, read_json
    from rlspec.vla.data.norm_stats import write_norm_stats

    display, root = Display(), find_dataset(given.path)
    info = read_json(root / INFO)
    _check_version(root, info)
    exact = numeric_statistics(root)
    stored = read_json(root / STATS) if (root / STATS).is_file() else {}
    _show(root, info, exact, stored, display)
    fault = statistics_fault(root, exact)
    code = _mend(root, fault, given.fix, display)
    if given.norm_stats is not None:
        write_norm_stats(Path(given.norm_stats).expanduser(), exact)
        display.line(f"openpi's statistics: {given.norm_stats}")
    if given.against is not None:
        _compare(root, info, exact, given.against, display)
    return code


def find_dataset(path: str) -> Path:
    """The folder of a data set: as given, LeRobot's copy of a hub id, or a download of its numbers.

    Raises:
        DataError: There is none.
    """
    from rlspec.vla.data.files import INFO

    root = Path(path).expanduser()
    if root.is_dir():
        if not (root / INFO).is_file():
            raise DataError(f"path={path}: no LeRobotDataset there (no {INFO}); correct the folder")
        return root
    if path.count("/") != 1 or root.is_absolute() or path.startswith("."):
        raise DataError(f"path={path}: no such folder")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HOME
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    copy = Path(HF_HOME) / "lerobot" / path
    if (copy / INFO).is_file():
        return copy
    try:
        return Path(snapshot_download(path, repo_type="dataset", allow_patterns=["meta/*", "data/*"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise DataError(f"path={path}: no such folder, and not found on the hub ({reason})") from None


def _check_version(root: Path, info: Mapping[str, Any]) -> None:
    if (version := info.get("codebase_version")) != "v3.0":
        raise DataError(
            f"{root}: format {version}, v3.0 is read; convert it with python -m rlspec.convert source=lerobot, or "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )


def _show(
    root: Path, info: Mapping[str, Any], exact: Mapping[str, Any], stored: Mapping[str, Any], display: Display
) -> None:
    """A table of all numbers; what is stored wrongly has the stored number behind it."""
    from rich.console import Console
    from rich.table import Table

    display.heading(f"{root}: {info['total_episodes']} episodes, {info['total_frames']} frames")
    table = Table("number")
    for kind in _SHOWN:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_column("stored", overflow="fold")
    for row in _rows(info["features"], exact, stored):
        table.add_row(*row)
    # Names hold brackets; into a pipe, rich would cut everything to 80 columns.
    width = display.console.width if display.console.is_terminal else _WIDTH
    Console(markup=False, highlight=False, width=width).print(table)


def _rows(
    features: Mapping[str, Any], exact: Mapping[str, Any], stored: Mapping[str, Any]
) -> Iterator[tuple[str, ...]]:
    from rlspec.vla.data.exact_statistics import BOOKKEEPING

    for name, stats in exact.items():
        if name in BOOKKEEPING:
            continue
        labels = features[name].get("names")
        for index in range(len(stats["mean"])):
            label = labels[index] if isinstance(labels, list) and len(labels) == len(stats["mean"]) else index
            numbers = (f"{stats[kind][index]:.4g}" for kind in _SHOWN)
            yield f"{name}[{label}]", *numbers, _verdict(stats, stored.get(name, {}), index)


def _verdict(exact: Mapping[str, Any], stored: Mapping[str, Any], index: int) -> str:
    """`ok`, or what is stored instead."""
    import numpy as np

    from rlspec.vla.data.exact_statistics import QUANTILES, TOLERANCE

    scale = max(float(exact["max"][index] - exact["min"][index]), 1e-6)
    wrong = []
    for kind in (*_SHOWN, *(level for level in QUANTILES if level not in _SHOWN)):
        given = np.asarray(stored.get(kind, []), np.float64).reshape(-1)
        if index >= len(given):
            wrong.append(f"no {kind}")
        elif not abs(given[index] - exact[kind][index]) <= TOLERANCE * scale:
            wrong.append(f"{kind} {given[index]:.4g}")
    return ", ".join(wrong) or "ok"


def _mend(root: Path, fault: str | None, fix: bool, display: Display) -> int:
    if fault is None:
        display.line("stored statistics are those of all frames")
        return 0
    if not fix:
        display.warn(f"{fault}; add --fix to replace wrong statistics")
        return 1
    from rlspec.vla.data.exact_statistics import repair_statistics

    repair_statistics(root)
    display.line(f"repaired {root}/meta/stats.json ({fault})")
    return 0


def _compare(root: Path, info: Mapping[str, Any], exact: Mapping[str, Any], against: str, display: Display) -> None:
    """Raises DataError where data and checkpoint do not go together."""
    from rlspec.config.messages import join_lines
    from rlspec.vla.data.preflight import numbers

    checkpoint, facts = _checkpoint(against)
    meta = SimpleNamespace(root=root, stats=exact, features=info["features"], fps=info.get("fps"), renamed={})
    findings = list(numbers(meta, None, checkpoint, facts))
    for is_fault, line in findings:
        if not is_fault:
            display.warn(line)
    if faults := [line for is_fault, line in findings if is_fault]:
        raise DataError(join_lines(faults))
    display.line(f"the data goes together with {against}")


def _checkpoint(against: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics and facts of a policy, or of openpi's file.

    Raises:
        CheckpointError: It has no statistics.
    """
    from rlspec.checkpoint import find_weights
    from rlspec.vla.data.facts import read_facts
    from rlspec.vla.data.norm_stats import read_norm_stats
    from rlspec.vla.data.preflight import checkpoint_statistics

    path = Path(against).expanduser()
    if path.is_file():
        return dict(read_norm_stats(path)), {"normalization": {"STATE": "QUANTILES", "ACTION": "QUANTILES"}}
    folder = Path(find_weights(against))
    if not folder.is_dir():
        raise CheckpointError(f"against={against}: no such folder; give a policy's folder or a norm_stats.json")
    stats = checkpoint_statistics(folder)
    if stats is None:
        raise CheckpointError(f"against={against}: {folder} has no statistics (policy_preprocessor*.safetensors)")
    return stats, read_facts(folder)


if __name__ == "__main__":
    sys.exit(main())
