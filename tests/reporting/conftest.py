"""Folders of runs and sweeps as training leaves them, without training; and a browser where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from markupsafe import Markup

from rlspec.reporting import drawing

ROLES = ("embed", "attention.q", "mlp.up")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """`make_run(name, seed=0, optim="pion", after=0.8, steps=40)` writes a run of a language model."""
    return partial(write_run, tmp_path)


@pytest.fixture(scope="session")
def make_shared_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The same for tests that only look."""
    return partial(write_run, tmp_path_factory.mktemp("reporting"))


@pytest.fixture(scope="session")
def make_answer() -> Callable[..., dict[str, Any]]:
    """A row of an evaluation's answers."""
    return answer_row


def write_run(
    place: Path,
    name: str = "run",
    *,
    seed: int = 0,
    optim: str = "pion",
    lr: float = 1e-3,
    after: float | None = 0.8,
    steps: int = 40,
) -> Path:
    folder = place / name
    (folder / "evaluations").mkdir(parents=True)
    recipe = {
        "recipe": "sums",
        "algorithm": "grpo",
        "seed": seed,
        "output_dir": str(place),
        "model": {"name": "tiny"},
        "data": {"name": "arithmetic"},
        "optim": {"name": optim, "lr": lr},
        "trainer": {"max_steps": steps},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = [json.dumps(row(step)) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    table = [{"role": role, "rule": optim, "group": "O(d) x O(d)", "broken": [], "shape": [8, 4]} for role in ROLES]
    (folder / "symmetry.json").write_text(json.dumps({"rows": table, "coverage": "coverage: all", "warnings": []}))
    if after is not None:
        score = {"sampled_pass_at_1": after, "sampled_ci95": [after - 0.05, after + 0.05]}
        summary = {"status": "finished", "steps": steps, "seconds": 90.0, "versions": {"torch": "2.11.0"}}
        before = {"sampled_pass_at_1": 0.4}
        (folder / "summary.json").write_text(json.dumps(summary | {"before": before, "after": score}))
    return folder


def row(step: int) -> dict[str, Any]:
    optim = {
        f"optim/{role}/{name}": value * (place + 1)
        for place, role in enumerate(ROLES)
        for name, value in {"update_rms": 0.2, "update_spectral": 3.0, "pass_energy": 0.5, "stable_rank": 1.5}.items()
    }
    gated = {f"optim/{role}/gated_share": 0.25 for role in ROLES}
    return {"step": step, "loss": 0.1, "reward": 0.5 + 0.4 * math.tanh(step / 20), **optim, **gated}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures without their drawings, which take most of a page's time."""
    monkeypatch.setattr(drawing, "_markup", lambda *_: Markup("<svg></svg>"))


def answer_row(
    key: str, text: str, *, correct: bool, mode: str | int = "greedy", problem: str = "1+1=?"
) -> dict[str, Any]:
    return {
        "id": key,
        "problem": problem,
        "gold": "2",
        "mode": mode,
        "completion": text,
        "extracted": "2",
        "correct": correct,
        "reason": "exact" if correct else "different",
    }
