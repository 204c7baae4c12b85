"""The table of all rules: tuned alike, fresh seeds, and it goes on where it was stopped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "benchmarks" / "family.py"
BEST = {"adamw": 4e-3, "muon": 6.4e-2, "sgd": 0.1}  # muon's lies two factors beyond the grid


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    specification = importlib.util.spec_from_file_location("family", PATH)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "family", module)  # dataclasses look their module up there
    specification.loader.exec_module(module)
    return module


def test_every_arm_is_tuned_beyond_its_grid_and_measured_on_fresh_seeds(script, tmp_path, capsys, monkeypatch) -> None:
    trained = []

    def pretrain(settings, lr: float, seed: int) -> float | None:
        trained.append((settings["rule"], lr, seed))
        distance = abs(lr - BEST[settings["rule"]])
        return None if lr == 1.0 else 2 + 10 * distance + (0.5 if settings["rule"] == "muon" else 0) + seed / 1e4

    monkeypatch.setattr(script, "pretrain", pretrain)
    arguments = ["--arms", "adamw", "muon", "sgd", "--output", str(tmp_path / "family.json")]
    script.main(arguments)
    arms = {row["arm"]: row for row in json.loads((tmp_path / "family.json").read_text())["arms"]}
    assert {name: arms[name]["lr"] for name in arms} == pytest.approx(BEST)
    assert list(arms)[-1] == "muon" and arms["sgd"]["tuning"]["1"] is None
    assert arms["muon"]["statistics"]["paired"]["mean"] == pytest.approx(0.5)
    assert arms["adamw"]["statistics"]["mean"] == pytest.approx(2.0002)
    assert len(trained) == (5 + 5) + (5 + 3 + 5) + (5 + 5)
    assert "| muon | 0.064 | 2.500 [" in capsys.readouterr().out

    lines = (tmp_path / "family.jsonl").read_text().splitlines()
    (tmp_path / "family.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    trained.clear()
    script.main(arguments)
    assert trained == [("sgd", 0.1, 3), ("sgd", 0.1, 4)]


def test_a_run_learns_and_a_rate_that_destroys_is_no_score(script, monkeypatch) -> None:
    monkeypatch.setattr(script, "STEPS", 12)
    monkeypatch.setattr(script, "WARMUP", 4)
    build, rates = script.build_optimizer, []

    def recording(*arguments, **settings):
        optimizer = build(*arguments, **settings)
        optimizer.register_step_pre_hook(lambda taken, *_: rates.append(taken.param_groups[0]["lr"] / 4e-3))
        return optimizer

    monkeypatch.setattr(script, "build_optimizer", recording)
    learnt = script.pretrain({"rule": "adamw"}, 4e-3, 0)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, *(left / 8 for left in range(8, 0, -1))])
    assert learnt < 6  # 7 bits name one of 128 letters
    assert learnt == script.pretrain({"rule": "adamw"}, 4e-3, 0)
    assert script.pretrain({"rule": "sgd"}, 1e30, 0) is None
