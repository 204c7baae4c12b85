"""The trainer of one run, from its parts: TRL's for the recipe's algorithm."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from datasets import Dataset
from pyarrow import ArrowInvalid, ArrowTypeError
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback

from rlspec.errors import DataError
from rlspec.hub import one_line
from rlspec.rlvr.session import TrainerParts, optimizer_factory
from rlspec.rlvr.training.arguments import build_arguments, common_arguments, grpo_arguments, sft_arguments
from rlspec.rlvr.training.callbacks import events_after
from rlspec.rlvr.training.trainers import RlspecTrainerMixin, SpectralGMPOTrainer, SpectralGRPOTrainer


def build_trainer(parts: TrainerParts) -> RlspecTrainerMixin:
    """The trainer of the recipe's algorithm, with its own callbacks removed: rlspec shows and writes by itself."""
    trainer = _build_sft(parts) if parts.recipe.algorithm == "sft" else _build_grpo(parts)
    trainer.remove_callback(PrinterCallback)
    run = parts.run
    if parts.recipe.report.tensorboard and run.start and run.process.is_main_process:
        trainer.remove_callback(TensorBoardCallback)
        trainer.add_callback(events_after(run.start, run.directory.path / "tensorboard"))
    return trainer


def _shared(parts: TrainerParts) -> dict[str, Any]:
    return {
        "optimizer_factory": optimizer_factory(parts.recipe.optim, parts.recipe.batch.prompts_per_step),
        "checkpoint_extras": parts.checkpoint_extras,
        "keep_last": parts.recipe.checkpoints.keep_last,
        "sharding": parts.recipe.sharding,
        "probes": parts.probes,
        "processing_class": parts.tokenizer,
    }


def _arguments(parts: TrainerParts) -> dict[str, Any]:
    return common_arguments(
        parts.recipe, checkpoints=parts.run.directory.checkpoints, device=parts.device, steps=parts.steps
    )


def _build_grpo(parts: TrainerParts) -> RlspecTrainerMixin:
    from trl import GRPOConfig

    from rlspec.rlvr.sampling.vllm import check_engine, explained

    style = parts.style
    arguments = {**_arguments(parts), **grpo_arguments(parts.recipe.rollout, parts.plan, style)}
    arguments["reward_weights"] = list(parts.verifiers.weights)
    trainer_class = SpectralGMPOTrainer if parts.recipe.algorithm == "gmpo" else SpectralGRPOTrainer
    args = build_arguments(GRPOConfig, arguments)
    with explained(args) if args.use_vllm else nullcontext():
        trainer = trainer_class(
            model=parts.policy,
            reward_funcs=list(parts.rewards),
            args=args,
            train_dataset=_prompt_table(parts),
            tools=list(parts.toolbox.tools) or None,
            environment_factory=parts.toolbox.environment_factory,
            skip_zero_advantages=parts.recipe.batch.skip_zero_advantages,
            **_shared(parts),
        )
        if args.use_vllm:
            check_engine(trainer)
    if parts.growth is not None:
        trainer.change_batch(parts.growth.plan.trl_arguments(), parts.growth.origin)
        trainer.add_callback(parts.growth)
    return trainer


def _prompt_table(parts: TrainerParts) -> Dataset:
    try:
        return Dataset.from_list([parts.style.row(problem) for problem in parts.problems])
    except (ArrowInvalid, ArrowTypeError) as error:
        reason = f"an environment is told whole rows, and a column holds several types: {one_line(error)}"
        raise DataError(f"data={parts.recipe.data.name}: {reason}") from error


def _build_sft(parts: TrainerParts) -> RlspecTrainerMixin:
    from trl import SFTConfig

    from rlspec.rlvr.training.sft import SpectralSFTTrainer, sft_dataset

    recipe = parts.recipe
    table = sft_dataset(
        parts.problems,
        parts.tokenizer,
        examples=parts.steps * parts.plan.completions_per_step,
        seed=recipe.seed,
        corruption=recipe.corruption,
        style=parts.style,
        box_answers=recipe.box_answers,
    )
    arguments = {**_arguments(parts), **sft_arguments(parts.plan)}
    return SpectralSFTTrainer(
        model=parts.policy, args=build_arguments(SFTConfig, arguments), train_dataset=table, **_shared(parts)
    )
