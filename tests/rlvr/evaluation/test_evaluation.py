"""What an evaluation says, computed by hand on a few answers; and that it leaves a training alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.evaluation.accuracy import (
    GradedAnswer,
    ProblemAnswers,
    summarize,
    write_outcomes,
)
from rlspec.rlvr.evaluation.evaluator import format_metrics
from rlspec.rlvr.grading.verdict import Verdict
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.sampling.generation import Completion, Sampling, generate
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.verifiers.answers import BoxJudgement, MathVerifier, majority_correct

MATH = MathVerifier(None, thinking=False)  # whose processes are not asked here


def answer(text: str | None, right: bool | None, length: int = 4) -> GradedAnswer:
    reason = "grader_error" if right is None else "exact" if right else "different" if text else "no_box"
    judgement = BoxJudgement.of(Verdict.of(reason, text, int(bool(text))))
    return GradedAnswer(Completion(text or "", length, truncated=text is None), judgement, right)


def outcome(*samples: tuple[str | None, bool | None], greedy: bool | None = True) -> ProblemAnswers:
    problem = Problem("1+1=?", "2", None, 1, "id")
    return ProblemAnswers(problem, answer("2", greedy), [answer(*sample) for sample in samples])


def test_rates_are_means_over_problems_of_shares_of_samples() -> None:
    outcomes = [
        outcome(("2", True), ("3", False), ("2", True), ("2", True)),
        outcome((None, False), ("3", False), ("3", False), ("2", True), greedy=False),
    ]
    metrics = summarize(outcomes, [1, 2, 4, 8], MATH)
    assert (metrics.n, metrics.correct, metrics.pass_at_1) == (2, 1, 0.5)
    assert metrics.sampled_pass_at_1 == (0.75 + 0.25) / 2
    assert metrics.pass_at_k == {1: 0.5, 2: pytest.approx((1 + 0.5) / 2), 4: 1.0}  # 8 samples were not drawn
    assert metrics.own["maj_at_k"][4] == 0.5
    assert metrics.truncation_rate == 1 / 8
    assert metrics.own["box_rate"] == 7 / 8
    assert metrics.reasons == {"exact": 5, "different": 4, "no_box": 1}


def test_answers_that_the_grader_could_not_judge_are_counted_and_left_out() -> None:
    metrics = summarize(
        [outcome(("2", True), ("?", None)), outcome(("?", None), ("?", None), greedy=None)], [1, 2], MATH
    )
    assert (metrics.n, metrics.pass_at_1, metrics.sampled_pass_at_1) == (1, 1.0, 1.0)
    assert metrics.excluded == 4
    assert metrics.pass_at_k == {1: 1.0}


@pytest.mark.parametrize(
    ("answers", "credit"),
    [
        ([("2", True), ("3", False), ("2", True)], 1.0),
        ([("2", True), ("3", False), ("3", False)], 0.0),
        ([("2", True), ("3", False)], 0.5),
        ([(None, False), (None, False), ("2", True)], 1.0),
        ([(None, False)], 0.0),
    ],
)
def test_the_majority_decides_and_ties_share_the_credit(answers: list, credit: float) -> None:
    assert majority_correct([answer(*each).judgement for each in answers], len(answers)) == credit


def test_every_reward_is_measured_beside_the_first_which_decides_what_is_right(tmp_path: Path) -> None:
    def scored(text: str, correct: bool, **scores: float | None) -> GradedAnswer:
        return replace(answer(text, correct), scores={"math": float(correct), **scores})

    samples = [scored("2", True, format=0.5, length=-1.0), scored("3", False, format=None, length=0.0)]
    each = ProblemAnswers(outcome(("2", True)).problem, samples[0], samples)
    metrics = summarize([each, each], [1], MATH)
    assert metrics.rewards == {"math": 0.5, "format": 0.5, "length": -0.5}  # what could not be judged is no 0
    assert metrics.sampled_pass_at_1 == 0.5 and metrics.to_json()["rewards"]["format"] == 0.5
    assert "mean rewards: math 0.500, format 0.500, length -0.500" in " ".join(format_metrics("x", metrics, MATH))
    assert summarize([outcome(("2", True))], [1], MATH).rewards == {}
    write_outcomes(tmp_path / "file.jsonl", [each])
    assert json.loads((tmp_path / "file.jsonl").read_text().splitlines()[2])["scores"]["format"] is None


def test_every_completion_is_written_with_verdict_and_reason(tmp_path: Path) -> None:
    write_outcomes(tmp_path / "new" / "file.jsonl", [outcome(("2", True), (None, False))])
    rows = [json.loads(line) for line in (tmp_path / "new" / "file.jsonl").read_text().splitlines()]
    assert [row["mode"] for row in rows] == ["greedy", 0, 1]
    assert [(row["correct"], row["reason"]) for row in rows] == [(True, "exact"), (True, "exact"), (False, "no_box")]


def test_the_terminal_shows_each_rate_with_its_interval() -> None:
    metrics = summarize([outcome(("2", True), ("3", False))] * 50, [1, 2], MATH)
    lines = format_metrics("after: arithmetic", metrics, MATH)
    assert lines[0].startswith("after: arithmetic, 50 problems: greedy pass@1 100.0% [92.9%, 100.0%]")
    assert lines[1].strip() == "sampled pass@1 50.0% [36.6%, 63.4%]"
    assert lines[3].strip().startswith("maj@2 50.0%") and "boxed 100.0%" in lines[4]
    assert metrics.to_json()["maj_at_k"]["2"] == 0.5 and "own" not in metrics.to_json()


@pytest.fixture(scope="module")
def policy() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16, intermediate_size=64, vocab_size=263))


def test_generation_leaves_the_mode_and_the_random_state_of_a_training_alone(policy: Qwen3ForCausalLM) -> None:
    policy.train()
    state = torch.get_rng_state()
    prompts = ["a", "bb", "a longer prompt"]
    ask = {"batch_size": 2, "seed": 7}
    first = generate(policy, build_byte_tokenizer(), prompts, Sampling(5, temperature=1.0), **ask)
    assert policy.training
    assert torch.equal(torch.get_rng_state(), state)
    assert generate(policy, build_byte_tokenizer(), prompts, Sampling(5, temperature=1.0), **ask) == first


def test_greedy_answers_do_not_depend_on_company_or_order(policy: Qwen3ForCausalLM) -> None:
    prompts = ["a", "bb", "a longer prompt"]
    together = generate(policy, build_byte_tokenizer(), prompts, Sampling(6), batch_size=3, seed=0)
    alone = [generate(policy, build_byte_tokenizer(), [p], Sampling(6), batch_size=1, seed=1)[0] for p in prompts]
    assert together == alone
    assert generate(policy, build_byte_tokenizer(), prompts[::-1], Sampling(6), batch_size=2, seed=0) == together[::-1]


def test_length_counts_the_end_token_and_a_cut_answer_is_truncated(policy: Qwen3ForCausalLM) -> None:
    tokenizer = build_byte_tokenizer()
    with torch.no_grad():
        policy.lm_head.weight.requires_grad_(False)
    (cut,) = generate(policy, tokenizer, ["a"], Sampling(6), batch_size=1, seed=0)
    assert (cut.length, cut.truncated) == (6, True)

    # A policy whose every next token is the end token.
    head = policy.lm_head.weight.detach().clone()
    try:
        policy.lm_head.weight.data.zero_()
        policy.generation_config.eos_token_id = 0
        (ended,) = generate(policy, tokenizer, ["a"], Sampling(6), batch_size=1, seed=0)
    finally:
        policy.lm_head.weight.data.copy_(head)
        policy.generation_config.eos_token_id = tokenizer.eos_token_id
    assert (ended.length, ended.truncated) == (1, False)


def test_the_prompt_is_the_chat_template_with_instruction_and_thinking_switch() -> None:
    style = PromptStyle(system_prompt="Be brief.", instruction="Box it.", enable_thinking=False)
    assert style.template_kwargs == {"enable_thinking": False}
    text = style.text(Problem("1+1=?", "2", None, None, "id"), build_byte_tokenizer())
    assert "Be brief." in text
    assert text.index("1+1=?") < text.index("Box it.")
    assert text.rstrip().endswith("assistant")
