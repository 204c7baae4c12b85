"""What the command that measures outside training says and returns."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from rlspec.config.load import load_vla_recipe
from rlspec.vla.evaluation import command


class Evaluator:
    """Knows the result."""

    rate, crashed = 1.0, 0

    def __init__(self, recipe: Any, run: Any, display: Any, *, folder: Path, **_: Any) -> None:
        self.folder, self.protocol = folder, SimpleNamespace(tasks=["pick_place"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def measure(self, what: str, label: str, step: int) -> Any:
        target = self.folder / label
        target.mkdir(parents=True)
        (target / "episodes.jsonl").write_text(json.dumps({"task": "pick_place", "index": 0, "note": ""}) + "\n")
        lines = [f"success {self.rate:.0%}"]
        return SimpleNamespace(success_rate=self.rate, lines=lambda: lines, crashed=self.crashed)


@pytest.mark.parametrize(
    ("what", "rate", "code"), [("replay", 1.0, 0), ("replay", 0.5, 1), ("expert", 0.5, 0), ("some/policy", 0.0, 0)]
)
def test_a_replay_that_fails_is_a_failure_and_a_bad_policy_is_a_result(
    what: str,
    rate: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "SimEvaluator", Evaluator)
    monkeypatch.setattr(Evaluator, "rate", rate)
    recipe = load_vla_recipe(["recipe=vla_franka"])
    root = tmp_path / "demonstrations"
    assert command.measure(recipe, what=what, out=tmp_path / "out", trained=None, dataset=root) == code
    said = f"WARNING: replay: not all demonstrations of {root} succeed again" in capsys.readouterr().out
    assert said is (code == 1)


def test_rates_with_crashed_episodes_are_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SimEvaluator", Evaluator)
    monkeypatch.setattr(Evaluator, "crashed", 1)
    recipe = load_vla_recipe(["recipe=vla_franka"])
    assert command.measure(recipe, what="some/policy", out=tmp_path / "out", trained=None, dataset=None) == 1
    assert "WARNING: these are no success rates yet" in capsys.readouterr().out
