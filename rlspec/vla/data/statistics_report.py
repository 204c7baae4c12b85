"""A data set's exact statistics: shown beside what it stores, put right, and compared with a policy's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rlspec.display import Display
from rlspec.errors import CheckpointError, DataError
from rlspec.vla.data.files import INFO, STATS, read_json

_SHOWN = ("mean", "std", "min", "q01", "q99", "max")
_WIDTH = 132  # columns of the table in a pipe


def report_statistics(path: str, *, fix: bool, against: str | None, norm_stats: Path | None, display: Display) -> int:
    """Show, and do what is asked for; returns the exit code: 1 where stored statistics are, and stay, wrong.

    Args:
        path: A folder, or an id on the hub.
        fix: Replace wrong statistics.
        against: A policy or openpi's file that the data must go together with.
        norm_stats: Where to write openpi's file.
        display: Where lines go.

    Raises:
        DataError: There is no such data set, a number of it is not finite, or it does not go together with `against`.
        CheckpointError: `against` has no statistics.
    """
    from rlspec.vla.data.exact_statistics import numeric_statistics, statistics_fault
    from rlspec.vla.data.norm_stats import write_norm_stats

    root = find_dataset(path)
    info = read_json(root / INFO)
    _check_version(root, info)
    exact = numeric_statistics(root)
    stored = read_json(root / STATS) if (root / STATS).is_file() else {}
    _show(root, info, exact, stored, display)
    code = _mend(root, statistics_fault(root, exact), fix, display)
    if norm_stats is not None:
        write_norm_stats(norm_stats.expanduser(), exact)
        display.line(f"openpi's statistics: {norm_stats}")
    if against is not None:
        _compare(root, info, exact, against, display)
    return code


def find_dataset(path: str) -> Path:
    """The folder of a data set: as given, LeRobot's copy of a hub id, or a download of its numbers.

    Raises:
        DataError: There is none.
    """
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
    from rlspec.vla.data.norm_stats import vector_sizes
    from rlspec.vla.data.preflight import numbers

    checkpoint, facts = _checkpoint(against, info["features"])
    meta = SimpleNamespace(root=root, stats=exact, features=info["features"], fps=info.get("fps"), renamed={})
    findings = [*_sizes(vector_sizes(info["features"]), checkpoint), *numbers(meta, None, checkpoint, facts)]
    for is_fault, line in findings:
        if not is_fault:
            display.warn(line)
    if faults := [line for is_fault, line in findings if is_fault]:
        raise DataError(join_lines(faults))
    display.line(f"the data goes together with {against}")


def _sizes(sizes: Mapping[str, int], checkpoint: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    """A fault where the data's vectors are not as long as those that are normalised: nothing else is compared there."""
    for name, size in sizes.items():
        other = len(checkpoint.get(name, {}).get("mean", ()))
        if other not in (0, size):
            yield True, f"{name}: {size} numbers in the data, {other} in the checkpoint; take the policy of that robot"


def _checkpoint(against: str, features: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics and facts of a policy, or of openpi's file.

    Raises:
        CheckpointError: It has no statistics.
    """
    from rlspec.checkpoint import find_weights
    from rlspec.vla.data.facts import read_facts
    from rlspec.vla.data.norm_stats import read_norm_stats, vector_sizes
    from rlspec.vla.data.preflight import checkpoint_statistics

    path = Path(against).expanduser()
    if path.is_file():
        return dict(read_norm_stats(path, vector_sizes(features))), {
            "normalization": {"STATE": "QUANTILES", "ACTION": "QUANTILES"}
        }
    folder = Path(find_weights(against))
    if not folder.is_dir():
        raise CheckpointError(f"against={against}: no such folder; give a policy's folder or a norm_stats.json")
    stats = checkpoint_statistics(folder)
    if stats is None:
        raise CheckpointError(f"against={against}: {folder} has no statistics (policy_preprocessor*.safetensors)")
    return stats, read_facts(folder)
