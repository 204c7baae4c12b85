"""The plans that a folder of runs was made under, and where the runs left them."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rlspec.checkpoint import write_text_atomically
from rlspec.comparison.plan import Plan
from rlspec.errors import ConfigError, DataError
from rlspec.run_directory import RECIPE

PLAN, HISTORY = "plan.yaml", "plans.jsonl"


def record_plan(plan: Plan, out: Path) -> None:
    """Write the plan beside the runs, with its hash, its time, and how many runs there were before it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be made ({error.strerror}); choose another folder") from None
    with (out / HISTORY).open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another command may begin at the same time
        known = read_history(out)
        text = (out / HISTORY).read_text(encoding="utf-8")
        file.truncate(len(text[: text.rfind("\n") + 1].encode()))  # what a kill cut short
        if known and known[-1]["sha256"] == plan.sha256:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry: dict[str, Any] = {
            "sha256": plan.sha256,
            "written": now,
            "runs_before": len(list(_runs(out))),
            "plan": _content(plan),
        }
        file.write(json.dumps(entry) + "\n")
    write_text_atomically(out / PLAN, plan_text(entry))


def plan_text(entry: Mapping[str, Any]) -> str:
    """A line of the history as a plan's file."""
    text = yaml.safe_dump(entry["plan"], sort_keys=False, allow_unicode=True, width=120)
    return f"# written {entry['written']}\n# sha256 {entry['sha256']}\n{text}"


def _content(plan: Plan) -> dict[str, Any]:
    return plan.model_dump(mode="json", exclude_defaults=True)


def read_history(out: Path) -> list[dict[str, Any]]:
    """All plans, the oldest first; a last line that a kill cut short is passed over.

    Raises:
        DataError: Another line is corrupt.
    """
    path = out / HISTORY
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError:
        raise DataError(f"{path}: a line is no JSON; restore it, or choose another out=DIR") from None


def _runs(out: Path) -> Iterator[Path]:
    return out.glob(f"*/*/{RECIPE}")


def deviations(out: Path, folders: Sequence[Path]) -> list[str]:
    """Where the runs did not follow a plan that stood before them, in words.

    Args:
        out: Of the comparison.
        folders: Of the runs that its report is about.
    """
    known = read_history(out)
    found = []
    for earlier, later in zip(known, known[1:], strict=False):
        old, new = earlier["plan"], later["plan"]
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if later["runs_before"]:
            found.append(
                f"the plan was changed after {later['runs_before']} runs: {', '.join(keys) or 'the order of arms'}"
            )
    written = datetime.fromisoformat(known[0]["written"]).timestamp() if known else float("inf")
    early = [
        folder for folder in folders if (folder / RECIPE).is_file() and (folder / RECIPE).stat().st_mtime < written
    ]
    if early:
        found.append(f"{len(early)} of {len(folders)} runs are older than the plan")
    return found
