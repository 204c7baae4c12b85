"""KL to the start against a plain loop without padding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rlspec.config.load import dump_recipe, load_recipe
from rlspec.errors import CheckpointError
from rlspec.rlvr import drift
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.models.loading import load_tokenizer
from rlspec.rlvr.sampling.generation import Policy
from rlspec.rlvr.session import load_policy, prompt_style

ANSWERS = [("1+2=?", "\\boxed{3}"), ("47+85=?", "7+5=12,4+8+1=13,\\boxed{132}"), ("1+2=?", "no"), ("47+85=?", "7+5=1")]
CUT = 3  # the last one was cut short


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe(["recipe=debug_grpo", "evaluation.temperature=1.0"])))
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-2" / "rlspec.json").write_text("{}")
    (tmp_path / "evaluations").mkdir()
    rows = [{"problem": p, "completion": a, "mode": i, "truncated": i == CUT} for i, (p, a) in enumerate(ANSWERS)]
    rows.append(rows[0] | {"mode": "greedy", "completion": "left out"})
    (tmp_path / "evaluations" / "after-arithmetic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_it_is_the_mean_log_ratio_of_the_answers_and_zero_for_the_start(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe([f"recipe={run / 'recipe.yaml'}"])
    tokenizer = load_tokenizer(recipe.model.path)
    start, now = (load_policy(recipe.model, tokenizer, seed=0).eval() for _ in range(2))
    monkeypatch.setattr(drift, "list_checkpoints", lambda folder: [folder / "checkpoint-2"])
    monkeypatch.setattr(drift, "_policies", lambda *_: (now, start, tokenizer))
    assert drift.drift_of_run(run) == {"KL per answer": 0.0, "KL per token": 0.0, "KL error": 0.0}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in now.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    style, ratios, tokens = prompt_style(recipe.model), [], 0
    for number, (problem, answer) in enumerate(ANSWERS):
        prompt = tokenizer(style.text(Problem(problem, "", None, None, ""), tokenizer), add_special_tokens=False)[
            "input_ids"
        ]
        ids = [*prompt, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
        ids += [] if number == CUT else [tokenizer.eos_token_id]
        ratio = 0.0
        for position in range(len(prompt), len(ids)):
            logits = [_last_logits(model, ids[:position]) for model in (now, start)]
            ratio += math.fsum(
                sign * float(torch.log_softmax(each, -1)[ids[position]])
                for sign, each in zip((1, -1), logits, strict=True)
            )
        ratios.append(ratio)
        tokens += len(ids) - len(prompt)
    found = drift.drift_of_run(run)
    assert found["KL per answer"] == pytest.approx(sum(ratios) / 4, rel=1e-4)
    assert found["KL per token"] == pytest.approx(sum(ratios) / tokens, rel=1e-4)
    assert found["KL error"] == pytest.approx(torch.tensor(ratios).std().item() / math.sqrt(4), rel=1e-4)


def test_answers_that_were_drawn_otherwise_say_nothing_of_it(run: Path) -> None:
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe(["recipe=debug_grpo", "evaluation.top_p=0.9"])))
    with pytest.raises(CheckpointError, match="not drawn at temperature 1"):
        drift.drift_of_run(run)


@torch.no_grad()
def _last_logits(model: Policy, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0, -1].double()
