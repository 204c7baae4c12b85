"""A run that was stopped and resumed ends with the weights of the run that never stopped, bit for bit.

TRL 1.16 fails this wherever a block of rollouts serves several updates, in every pass over the data but the first, and at
the end of a pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlspec.config.load import load_recipe
from rlspec.rlvr import session
from rlspec.rlvr.run import run_recipe

SMALL = [
    "model=debug",
    "optim.lr=0.01",  # large, so that a difference would show
    "evaluation.before=false",
    "evaluation.after=false",
    "evaluation.every=null",
    "checkpoints.every=null",
    "report.tensorboard=false",
]


class DigitReward:
    """Share of digits in a completion: even random weights earn different rewards, so that every step moves them."""

    __name__ = "digits"

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        texts = [completion[-1]["content"] for completion in completions]
        return [sum(character.isdigit() for character in text) / (len(text) or 1) for text in texts]


@pytest.fixture(autouse=True)
def reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MathReward", DigitReward)


def train(folder: Path, *overrides: str) -> Path:
    recipe = load_recipe([*SMALL, f"output_dir={folder}", "run=run", *overrides])
    assert run_recipe(recipe) == 0
    return folder / "run"


def resume(run: Path, *overrides: str) -> Path:
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}", f"resume={run}", *overrides])
    assert run_recipe(recipe) == 0
    return run


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / f"checkpoint-{step}").glob("*model.safetensors")
    return load_file(file)


def course(run: Path) -> list[dict[str, float | None]]:
    """What the policy did in every step: equal rewards and lengths mean equal prompts and completions."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "reward", "completions/mean_length", "entropy", "grad_norm")
    return [{key: row.get(key) for key in keys} for row in rows]  # rewards stand in the first row of a block


CASES = {
    "in epoch 0": (["recipe=grpo_math"], 2, 4),
    "inside a block of rollouts": (["recipe=grpo_math", "batch.updates_per_generation=4"], 2, 5),
    "inside epoch 1": (["recipe=grpo_math", "data.limit=6"], 4, 6),
    "exactly at an epoch's end": (["recipe=grpo_math", "data.limit=6"], 3, 5),
    "in a block across an epoch's end, GMPO, AdamW": (["recipe=gmpo_math", "optim=adamw", "data.limit=6"], 3, 6),
    "with several micro batches per step, Muon": (["recipe=grpo_math", "optim=muon", "batch.micro_batch=4"], 2, 4),
    "with LoRA": (["recipe=grpo_math", "model.lora.r=4"], 2, 4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_the_run_that_never_stopped(case: str, tmp_path: Path) -> None:
    overrides, cut, steps = CASES[case]
    whole = train(tmp_path / "whole", *overrides, f"trainer.max_steps={steps}")
    parts = train(tmp_path / "parts", *overrides, f"trainer.max_steps={cut}")
    stopped_at = weights(parts, cut)
    resume(parts, f"trainer.max_steps={steps}")

    expected, found = weights(whole, steps), weights(parts, steps)
    assert course(parts) == course(whole)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert any(not torch.equal(stopped_at[name], found[name]) for name in found), "nothing was learnt after the cut"
