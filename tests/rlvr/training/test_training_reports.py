"""Public reports on training by GRPO (TRL, ms-swift, NeMo-RL, verl, unsloth and their users), tried here."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig
from trl.chat_template_utils import qwen3_chat_template

from rlspec.config.load import load_recipe
from rlspec.config.rlvr_schema import Grader, Reward
from rlspec.display import Display
from rlspec.errors import ConfigError, UserError
from rlspec.optim import build_optimizer
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.tools.toolbox import teach_calls
from rlspec.rlvr.training.rewards import VerifierReward
from rlspec.rlvr.training.spread import SpreadGuard
from rlspec.rlvr.training.trainers import SpectralGRPOTrainer
from rlspec.rlvr.verifiers.build import Circumstances, build_verifiers
from rlspec.rlvr.verifiers.foreign import judgement_of

PROMPT = [{"role": "user", "content": "1+1=?"}]


def advantages(folder: Path, *scores: Sequence[float | None], **knobs: Any) -> list[float]:
    """Of two groups of two answers, by rewards that give these scores."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3Config(**sizes, head_dim=16, intermediate_size=64, vocab_size=263, pad_token_id=0)
    arguments = {"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 1, "max_completion_length": 4}
    functions = [lambda completions, given=given, **_: list(given) for given in scores]
    for number, function in enumerate(functions):
        function.__name__ = f"reward{number}"
    trainer = SpectralGRPOTrainer(
        model=Qwen3ForCausalLM(config),
        reward_funcs=functions,
        args=GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **{**arguments, **knobs}),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 4),
        processing_class=build_byte_tokenizer(),
        optimizer_factory=build_optimizer,
        checkpoint_extras=lambda _: {},
        keep_last=1,
    )
    found = trainer._generate_and_score_completions([{"prompt": PROMPT}] * 4)["advantages"].tolist()
    return [round(value, 2) for value in found]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_an_answer_that_one_of_several_rewards_could_not_judge_is_left_out_of_its_group(
    aggregation: str, tmp_path: Path
) -> None:
    """ms-swift#8123: NaN everywhere; trl#5773: the unjudged answer counts as if that reward were 0."""
    found = advantages(tmp_path, [1.0, 1.0, 1.0, 0.0], [0.5, None, 0.5, 0.5], multi_objective_aggregation=aggregation)
    assert all(map(math.isfinite, found))
    assert found[:2] == [0.0, 0.0] or aggregation == "normalize_then_sum"
    assert found[1] == 0.0 and found[2] > 0 > found[3]


def test_a_reward_that_does_not_apply_to_a_whole_group_leaves_the_others_their_say(tmp_path: Path) -> None:
    """TRL's way to mix tasks: None for all answers to a problem of another task."""
    assert advantages(tmp_path, [1.0, 0.0, None, None], [None, None, 0.0, 1.0]) == [0.71, -0.71, -0.71, 0.71]


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e400])
def test_a_reward_without_end_is_refused_because_its_group_would_have_no_numbers(value: float) -> None:
    with pytest.raises(UserError, match="returned -?inf"):
        judgement_of(value, "reward mine")


def test_two_functions_of_one_name_keep_metrics_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}_of_report.py").write_text("def score(completions, **_):\n    return [0.0]\n")
    rewards = [Reward(name=f"{tmp_path / f'{name}_of_report.py'}:score") for name in "ab"]
    members = build_verifiers(rewards, Circumstances(Grader(), [], False)).members
    assert [VerifierReward(member, []).__name__ for member in members] == ["score", "score_2"]


def test_answers_that_are_all_cut_off_are_named_as_the_cause_that_nothing_is_learnt(tmp_path: Path) -> None:
    """autocontext#1067: a limit below every answer's length, and a reward of 0 for hundreds of steps."""
    reward = SimpleNamespace(recent=[], recent_scores=[], verifier=SimpleNamespace(name="math", passes=1.0))
    guard = SpreadGuard([reward], Display("plain"), 2)  # type: ignore[list-item]
    logs = {"frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0}
    guard.on_log(SimpleNamespace(logging_steps=1), SimpleNamespace(), SimpleNamespace(), logs)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="100% of the answers are cut off at their limit; raise trainer.max_comp"):
        guard.on_log(SimpleNamespace(logging_steps=1), SimpleNamespace(), SimpleNamespace(), logs)  # type: ignore[arg-type]


def test_dropout_that_would_make_ratios_noise_is_refused_with_rollouts_and_not_with_examples() -> None:
    """unsloth-zoo#832: log-probabilities of the loss come from another subnetwork than those of the rollout."""
    lora = ["model.lora.r=4", "model.lora.dropout=0.1", "optim=adamw"]
    with pytest.raises(ConfigError, match="dropout=0.1: not with grpo"):
        load_recipe(["recipe=debug_grpo", *lora])
    assert load_recipe(["recipe=debug_sft", *lora]).model.lora is not None


def test_a_thought_without_an_end_is_read_in_a_time_that_grows_with_its_length_alone() -> None:
    """TRL's own pattern for Qwen3's answers takes a second for 8,000 characters, and four for twice as many."""
    tokenizer = build_byte_tokenizer(calls=True)
    tokenizer.chat_template, tokenizer.response_schema = qwen3_chat_template, None
    teach_calls(tokenizer, "qwen3")
    pattern, call = tokenizer.response_schema["x-regex"], '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    started = time.process_time()
    found = re.search(pattern, "<think>\n" + "a b " * 15_000, flags=re.DOTALL)
    assert found is not None and time.process_time() - started < 20  # a minute or more with TRL's
    whole = tokenizer.parse_response(f"<think>\nsum\n</think>\n\nso\n{call}<|im_end|>")
    assert whole["reasoning_content"] == "sum" and whole["tool_calls"][0]["function"]["name"] == "f"
