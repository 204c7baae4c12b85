"""The product's own door on this device: debug recipes trained, stopped and resumed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.part import Part, Setup, one_line

REPOSITORY = Path(__file__).resolve().parents[3]
RUNS = {
    "grpo": ["recipe=debug_grpo", "trainer.max_steps=2"],
    "grpo, resumed": ["resume=auto", "recipe=debug_grpo", "trainer.max_steps=4"],
    "gmpo": ["recipe=debug_gmpo", "trainer.max_steps=2"],
    "sft": ["recipe=debug_sft", "trainer.max_steps=2"],
}


def run(part: Part, setup: Setup) -> None:
    with _installed(), tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        from rlspec.train import main

        arithmetic = f"trainer.bf16={str(setup.device == 'cuda').lower()}"
        for name, arguments in RUNS.items():
            if setup.dry_run and "grpo" not in name or setup.left < 10:
                continue
            started = time.monotonic()
            row: dict[str, object] = {"run": name}
            try:
                row["exit_code"] = main([*arguments, f"device={setup.device}", arithmetic, "checkpoints.every=2"])
            except Exception as error:
                row["error"] = one_line(error)
            row |= {"seconds": round(time.monotonic() - started, 1), "logged": _logged(Path(folder))}
            part.add("runs", row)
            part.say(f"  {name}: {row.get('error', row.get('exit_code'))} after {row['seconds']} s")
    wrong = [row["run"] for row in part.content["results"].get("runs", []) if row.get("exit_code") != 0]
    if wrong:
        raise RuntimeError(f"did not end well: {', '.join(wrong)}")


def _logged(folder: Path) -> list[dict[str, object]]:
    """The newest run's losses and rewards."""
    files = sorted(folder.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in files[-1].read_text().splitlines()] if files else []
    return [{key: row.get(key) for key in ("step", "loss", "reward", "grad_norm")} for row in rows if "loss" in row]


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """A checkout that was not installed finds its recipes and environments too."""
    with tempfile.TemporaryDirectory() as folder:
        if importlib.util.find_spec("rlspec_recipes") is None:
            for name, target in (("rlspec_recipes", "recipes"), ("rlspec_envs", "envs")):
                os.symlink(REPOSITORY / target, Path(folder) / name)
            sys.path.insert(0, folder)
        try:
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
