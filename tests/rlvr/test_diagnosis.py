"""A language model as something to diagnose: its loss against a plain loop, its moments, its bad weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlspec.config.load import load_recipe
from rlspec.diagnostics.subject import Subject, load_weights
from rlspec.display import Display
from rlspec.errors import CheckpointError, DataError
from rlspec.rlvr import diagnosis
from rlspec.rlvr.diagnosis import language_subject


def subject(recipe: str, *overrides: str, **sizes: int) -> Subject:
    settings = load_recipe([f"recipe={recipe}", *overrides])
    return language_subject(settings, None, display=Display("plain", quiet=True), **({"parts": 4, "size": 4} | sizes))


@pytest.fixture(scope="module")
def grpo() -> Subject:
    return subject("grpo_math")


def plain_logps(policy: Any, batch: dict[str, Any], row: int) -> torch.Tensor:
    """Of the tokens of one answer, alone and without padding."""
    start, length = batch["prompt"], int(batch["mask"][row].sum())
    tokens = batch["input_ids"][row, : start + length]
    scores = policy(input_ids=tokens[None]).logits[0].log_softmax(-1)
    return torch.stack([scores[place - 1, tokens[place]] for place in range(start, start + length)])


def test_the_gradient_is_reinforce_over_all_tokens_by_a_plain_loop(grpo: Subject) -> None:
    tokens = sum(float(part.batch["mask"].sum()) for part in grpo.parts)
    loss = torch.zeros(())
    for part in grpo.parts:
        for row, advantage in enumerate(part.batch["advantages"].tolist()):
            loss = loss - advantage * plain_logps(grpo.model, part.batch, row).sum() / tokens
    params = grpo.parameters()
    wanted = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    found = grpo.mean_gradient("test")
    assert sum(float(value.square().sum()) for value in wanted.values()) > 0
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-3)


def test_gmpo_averages_over_each_answer_first() -> None:
    gmpo = subject("gmpo_math", parts=2)
    part = max(gmpo.parts, key=lambda each: float(each.batch["advantages"].abs().sum()))
    lengths = part.batch["mask"].sum(1)
    wanted = -(
        part.batch["advantages"] * torch.stack([plain_logps(gmpo.model, part.batch, row).mean() for row in range(4)])
    ).mean()
    (gradient,) = torch.autograd.grad(gmpo.loss(part.batch), [gmpo.model.lm_head.weight])
    (expected,) = torch.autograd.grad(wanted, [gmpo.model.lm_head.weight])
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-3)
    assert len(set(lengths.tolist())) > 1, "answers of one length could not tell the averages apart"


def test_the_same_subject_is_sampled_again(grpo: Subject) -> None:
    again = subject("grpo_math")
    for one, other in zip(grpo.parts, again.parts, strict=True):
        assert torch.equal(one.batch["input_ids"], other.batch["input_ids"])
        assert one.facts == other.facts


def test_examples_are_the_loss_of_supervised_recipes() -> None:
    sft = subject("debug_sft", parts=3, size=2)
    assert sft.unit == "micro-batches of 2 examples"
    batch = sft.parts[0].batch
    scores = sft.model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(scores, batch["labels"][:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(sft.loss(batch), wanted)
    states, labels = sft.represent(batch)
    assert labels.tolist() == [token for row in batch["labels"].tolist() for token in row if token != -100]
    torch.testing.assert_close(
        sft.model.lm_head(states).argmax(-1)[:3], scores[batch["labels"][:, 1:].flatten() != -100].argmax(-1)[:3]
    )


def test_weights_of_a_checkpoint_take_the_place_of_others_and_foreign_ones_are_named(
    grpo: Subject, tmp_path: Path
) -> None:
    before = {name: value.detach().clone() for name, value in grpo.model.named_parameters()}
    grpo.model.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        for value in grpo.model.parameters():
            value.add_(1.0)
    load_weights(grpo.model, tmp_path / "same")
    for name, value in grpo.model.named_parameters():
        assert torch.equal(value, before[name]), name
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="has no weights of this model"):
        load_weights(grpo.model, tmp_path / "none")
    smaller = subject("grpo_math", "model=debug", parts=2)
    with pytest.raises(CheckpointError, match="not the same model"):
        load_weights(smaller.model, tmp_path / "same")


def test_weights_that_are_no_numbers_are_named(grpo: Subject, tmp_path: Path) -> None:
    weight = grpo.model.model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3, 4] = torch.nan
    grpo.model.save_pretrained(tmp_path)
    with torch.no_grad():
        weight.copy_(kept)
    from rlspec.rlvr.models.tokenizer import build_byte_tokenizer

    build_byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN or Inf"):
        language_subject(load_recipe(["recipe=grpo_math"]), str(tmp_path), display=Display("plain", quiet=True))


def test_groups_that_are_all_wrong_are_no_gradient() -> None:
    short = "{name: length, weight: 1, options: {limit: 2}}"  # -1 for each, which is no rate
    none = subject("grpo_math", "trainer.max_completion_length=4", f"reward=[{{name: math, weight: 1}}, {short}]")
    assert {part.facts["pass_rate"] for part in none.parts} == {0.0}
    with pytest.raises(DataError, match="it is zero in every part; answers that are all right or all wrong"):
        none.mean_gradient("test")


def test_no_problems_are_no_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "read_problems", lambda data, **__: ([], []))
    with pytest.raises(DataError, match="data=arithmetic: it has no problems to train on"):
        subject("grpo_math")
