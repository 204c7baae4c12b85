"""Batch sizes in prompts and TRL's numbers."""

from __future__ import annotations

import pytest

from rlspec.errors import ConfigError
from rlspec.rlvr.training.batching import plan_batches


def test_the_papers_gmpo_batch_becomes_trls_numbers() -> None:
    plan = plan_batches(
        prompts_per_step=16, samples_per_prompt=8, updates_per_generation=8, micro_batch=32, world_size=2
    )
    assert plan.trl_arguments() == {
        "per_device_train_batch_size": 32,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 16,
        "num_generations": 8,
    }
    assert plan.prompts_per_generation * plan.samples_per_prompt == 1024


def test_trl_accepts_the_numbers_and_derives_the_same_block() -> None:
    from trl import GRPOConfig

    plan = plan_batches(prompts_per_step=6, samples_per_prompt=4, updates_per_generation=3, micro_batch=8)
    config = GRPOConfig(output_dir="unused", use_cpu=True, bf16=False, report_to=[], **plan.trl_arguments())
    assert config.generation_batch_size == plan.prompts_per_generation * plan.samples_per_prompt == 72


def test_the_default_micro_batch_is_the_largest_divisor_up_to_64() -> None:
    plan = plan_batches(prompts_per_step=13, samples_per_prompt=10, updates_per_generation=1, micro_batch=None)
    assert plan.micro_batch == 26


def test_a_micro_batch_that_does_not_divide_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(ConfigError, match=r"micro_batch=7 .* 128 completions .* is 8"):
        plan_batches(prompts_per_step=16, samples_per_prompt=8, updates_per_generation=1, micro_batch=7)


def test_completions_that_cannot_be_divided_among_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 processes"):
        plan_batches(prompts_per_step=2, samples_per_prompt=2, updates_per_generation=1, micro_batch=None, world_size=3)


def test_the_norm_test_needs_micro_batches_to_compare() -> None:
    from rlspec.config.rlvr_schema import Batch
    from rlspec.rlvr.session import batch_plan

    sizes = {"prompts_per_step": 4, "samples_per_prompt": 4, "norm_test": True}
    assert batch_plan(Batch(**sizes, micro_batch=8), 1, supervised=False).gradient_accumulation_steps == 2
    with pytest.raises(ConfigError, match=r"batch.norm_test=true: .* set batch.micro_batch to 8 or less"):
        batch_plan(Batch(**sizes, micro_batch=16), 1, supervised=False)


def test_completions_are_passed_over_where_nothing_but_their_advantage_speaks() -> None:
    from rlspec.config.load import load_recipe
    from rlspec.config.rlvr_schema import Batch
    from rlspec.rlvr.session import batch_plan

    with pytest.raises(ConfigError, match=r"batch.skip_zero_advantages=true: for one process"):
        batch_plan(Batch(skip_zero_advantages=True), 2, supervised=False)
    for more in ("trainer.beta=0.1", "trainer.entropy_coef=0.01", "trainer.loss_type=bnpo", "batch.norm_test=true",
                 "trainer.top_entropy_quantile=0.2", "trainer.use_adaptive_entropy=true"):  # fmt: skip
        key = more.partition("=")[0]
        with pytest.raises(ConfigError, match=rf"batch.skip_zero_advantages=true: not with {key}"):
            load_recipe(["recipe=grpo_math", "batch.skip_zero_advantages=true", more])
    assert load_recipe(["recipe=gmpo_math", "batch.skip_zero_advantages=true"]).batch.skip_zero_advantages


def test_a_batch_that_grows_needs_them_too_and_a_limit_that_can_be_reached() -> None:
    from rlspec.config.load import load_recipe
    from rlspec.config.rlvr_schema import Batch
    from rlspec.rlvr.session import batch_plan

    with pytest.raises(ConfigError, match=r"batch.grow=true: compares .* set batch.micro_batch to 8 or less"):
        batch_plan(Batch(prompts_per_step=4, samples_per_prompt=4, grow=True, micro_batch=16), 1, supervised=False)
    for overrides, said in (
        (["recipe=sft_arithmetic", "batch.grow=true"], "batch.grow=true: only where prompts are sampled"),
        (["recipe=grpo_math", "batch.norm_test_eta=0.5"], "batch.norm_test_eta=0.5: has no effect without"),
        (["recipe=grpo_math", "batch.grow_limit=64"], "batch.grow_limit=64: has no effect without batch.grow=true"),
        (
            ["recipe=grpo_math", "batch.grow=true", "batch.prompts_per_step=8", "batch.grow_limit=15"],
            "batch.grow_limit=15: the batch could never double; must be at least twice batch.prompts_per_step=8",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            load_recipe(overrides)


def test_the_batch_waits_for_five_steps_and_for_the_end_of_a_block() -> None:
    from transformers import TrainerControl, TrainerState

    from rlspec.diagnostics.norm_test import NormTest
    from rlspec.display import Display
    from rlspec.rlvr.training.growth import BatchGrowth

    class Known(NormTest):
        now: tuple[float, float] | None = (2.0, 1.0)

        def noise(self) -> tuple[float, float] | None:
            return self.now

    plan = plan_batches(prompts_per_step=3, samples_per_prompt=4, updates_per_generation=2, micro_batch=4)
    test, control = Known(), TrainerControl()
    growth = BatchGrowth(test, plan, Display("plain", quiet=True), limit=12, steps_per_block=4)
    doubled = {}
    for step in range(1, 41):
        test.now = None if step == 3 else (0.9, 1.0) if 9 <= step < 14 else (2.0, 1.0)
        growth.on_step_end(None, TrainerState(global_step=step, max_steps=99), control)
        if growth.take():
            assert control.should_save and control.should_training_stop
            doubled[step] = (growth.plan.prompts_per_step, growth.origin)
    # A step without a number counts for nothing; after 12 most of the five were quiet, after 16 no longer.
    assert doubled == {8: (6, (8, 12)), 16: (12, (16, 36))}
