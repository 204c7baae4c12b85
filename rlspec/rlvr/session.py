"""The parts of one run, built from its recipe: problems, policy, optimizer, trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from rlspec.config.load import load_group
from rlspec.config.optim import builder_settings, map_settings
from rlspec.config.paths import resolve_path
from rlspec.config.schema import Data, Grader, Model, Optim, Recipe
from rlspec.errors import DataError
from rlspec.optim import SpectralOptimizer, build_optimizer, symmetry_map
from rlspec.rlvr.arguments import (
    build_arguments,
    common_arguments,
    grpo_arguments,
    sft_arguments,
    uses_bf16,
)
from rlspec.rlvr.batching import BatchPlan, plan_batches
from rlspec.rlvr.data import Problem, load_problems, prompt_rows
from rlspec.rlvr.evaluation import PromptStyle
from rlspec.rlvr.generation import Policy
from rlspec.rlvr.grading import GraderPool, only_plain
from rlspec.rlvr.memory import MemoryEstimate, estimate_memory
from rlspec.rlvr.models import apply_lora, build_config, build_model
from rlspec.rlvr.rewards import MathReward
from rlspec.rlvr.trainers import RlspecTrainerMixin, SpectralGMPOTrainer, SpectralGRPOTrainer
from rlspec.run_directory import RECIPE, RunDirectory
from rlspec.runtime.devices import choose_device
from rlspec.runtime.starting import stored_recipe
from rlspec.versions import library_versions

_COMPLETION_TOKENS = 512  # where the recipe gives no length
_PROMPT_TOKENS = 256  # stands for a prompt's length in the memory estimate


def prompt_style(model: Model) -> PromptStyle:
    """What the recipe puts around a problem."""
    return PromptStyle(model.system_prompt, model.instruction, model.enable_thinking)


def read_problems(data: Data) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems of a recipe's section `data`."""
    settings = data.model_dump(exclude={"limit", "columns"})
    for key in ("path", "test_path"):
        if settings[key] is not None:
            settings[key] = str(resolve_path(settings[key]))
    return load_problems(columns=data.columns, **settings)


def evaluation_sets(
    names: Sequence[str], limit: int | None, data: Data, held_out: list[Problem]
) -> dict[str, list[Problem]]:
    """Problems to measure on, by data set; without names the held-out part of the training data."""
    sets = {data.name: held_out} if not names else {}
    for name in names:
        sets[name] = held_out if name == data.name else read_problems(Data(**load_group("data", name)))[1]
    for name, problems in sets.items():
        if not problems:
            raise DataError(f"data={name}: it has no held-out problems to evaluate on")
    return {name: problems[:limit] for name, problems in sets.items()}


@dataclass(frozen=True)
class Problems:
    """What a run trains on (before the preflight) and what it is measured on, by data set."""

    train: list[Problem]
    measured: dict[str, list[Problem]]

    def grader(self, settings: Grader) -> GraderPool:
        """Grading processes, started in the background; without computer algebra where no gold can need it."""
        golds = [problem.answer for problem in chain(self.train, *self.measured.values())]
        return GraderPool(**settings.model_dump(), warm=not only_plain(golds))


def read_all_problems(recipe: Recipe) -> Problems:
    """The problems of a recipe.

    Raises:
        DataError: There is nothing to train on.
    """
    train, held_out = read_problems(recipe.data)
    if not train:
        raise DataError(f"data={recipe.data.name} is for evaluation only: it has no training part")
    settings = recipe.evaluation
    return Problems(train, evaluation_sets(settings.data, settings.problems, recipe.data, held_out))


def load_policy(model: Model, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Policy:
    """The policy that a recipe starts from, with LoRA adapters where it asks for them."""
    policy = build_model(
        path=model.path,
        architecture=model.architecture,
        init=str(resolve_path(model.init)) if model.init else None,
        tokenizer=tokenizer,
        revision=model.revision,
        weights_dtype=model.weights_dtype,
        seed=seed,
    )
    return apply_lora(policy, **model.lora.model_dump(), seed=seed) if model.lora else policy


def describe_profile(recipe: Recipe, device: str) -> str:
    """What a model's profile has set, in two lines: what is easily overlooked and decides a run's numbers."""
    model, trainer, evaluation = recipe.model, recipe.trainer, recipe.evaluation
    thinking = {None: "no thinking switch", True: "thinking on", False: "thinking off"}[model.enable_thinking]
    arithmetic = f"bf16 autocast over {model.weights_dtype}" if uses_bf16(recipe, device) else model.weights_dtype
    adapted = f"LoRA of rank {model.lora.r}" if model.lora else "all weights trained"
    measured = ", ".join(evaluation.data) or f"held-out {recipe.data.name}"
    start = model.path or model.init or "from random weights"
    sampling = f"{completion_length(recipe)} new tokens at temperature {trainer.get('temperature', 1.0):g}"
    return (
        f"model {start}: {thinking}, {arithmetic} weights on {device}, {adapted}\n"
        f"learning rate {recipe.optim.lr:g} ({trainer.get('lr_scheduler_type', 'linear')}), at most {sampling} by "
        f"{recipe.rollout.engine}, measured on {measured}"
    )


def batch_plan(recipe: Recipe, world_size: int) -> BatchPlan:
    """The recipe's batch; supervised fine-tuning has one example per prompt."""
    sizes = recipe.batch.model_dump()
    if recipe.algorithm == "sft":
        sizes |= {"samples_per_prompt": 1, "updates_per_generation": 1}
    return plan_batches(**sizes, world_size=world_size)


def model_config(model: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of the recipe's model, without its weights."""
    return build_config(path=model.path, architecture=model.architecture, tokenizer=tokenizer, revision=model.revision)


def completion_length(recipe: Recipe) -> int:
    """Longest completion, in tokens, in training and (unless it says otherwise) in evaluation."""
    longest = recipe.trainer.get("max_completion_length") or recipe.evaluation.max_new_tokens
    return longest or _COMPLETION_TOKENS


def longest_prompt(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that the model's positions leave for a prompt."""
    return model_config(recipe.model, tokenizer).max_position_embeddings - completion_length(recipe)


def identical_to_grpo(recipe: Recipe) -> bool:
    """Whether the recipe's GMPO never leaves the policy that sampled its rollouts."""
    reuse = recipe.batch.updates_per_generation * recipe.trainer.get("num_iterations", 1)
    return recipe.algorithm == "gmpo" and reuse == 1


def estimate_run_memory(recipe: Recipe, plan: BatchPlan, tokenizer: PreTrainedTokenizerBase) -> MemoryEstimate:
    """Memory of one process, from the model's configuration alone."""
    model, completion = recipe.model, completion_length(recipe)
    settings = map_settings(recipe.optim)
    return estimate_memory(
        model_config(model, tokenizer),
        micro_batch=plan.micro_batch,
        sequence_length=completion + _PROMPT_TOKENS,
        completion_length=completion,
        rollout_sequences=0 if recipe.algorithm == "sft" else plan.rollouts_per_process,
        weights_dtype=model.weights_dtype,
        autocast=uses_bf16(recipe, choose_device(recipe.device)),
        gradient_checkpointing=bool(recipe.trainer.get("gradient_checkpointing", False)),
        reference=recipe.algorithm != "sft" and recipe.trainer.get("beta", 0.0) > 0 and model.lora is None,
        lora_r=model.lora.r if model.lora else None,
        lora_targets=model.lora.target_modules if model.lora else (),
        optimizer_bytes=lambda meta: sum(spec.state_bytes for spec in symmetry_map(meta, **settings)),
    )


def optimizer_factory(optim: Optim) -> Callable[[nn.Module], SpectralOptimizer]:
    """Build the recipe's optimizer for a model."""
    settings = builder_settings(optim)
    return lambda model: build_optimizer(model, **settings)


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of."""

    recipe: Recipe
    run: RunDirectory
    plan: BatchPlan
    device: str
    steps: int
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    pool: GraderPool

    def checkpoint_extras(self, folder: Path) -> dict[str, Any]:
        """Recipe and symmetry map beside the weights: a checkpoint explains itself. Versions for its manifest."""
        (folder / RECIPE).write_text(stored_recipe(self.recipe), encoding="utf-8")
        for table in self.run.path.glob("symmetry.*"):
            shutil.copyfile(table, folder / table.name)
        return {"recipe": self.recipe.recipe, "versions": library_versions()}


def build_trainer(parts: Parts) -> RlspecTrainerMixin:
    """The trainer of the recipe's algorithm, with its own callbacks removed: rlspec shows and writes by itself."""
    trainer = _build_sft(parts) if parts.recipe.algorithm == "sft" else _build_grpo(parts)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _shared(parts: Parts) -> dict[str, Any]:
    return {
        "optimizer_factory": optimizer_factory(parts.recipe.optim),
        "checkpoint_extras": parts.checkpoint_extras,
        "keep_last": parts.recipe.checkpoints.keep_last,
        "processing_class": parts.tokenizer,
    }


def _arguments(parts: Parts) -> dict[str, Any]:
    return common_arguments(parts.recipe, checkpoints=parts.run.checkpoints, device=parts.device, steps=parts.steps)


def _build_grpo(parts: Parts) -> RlspecTrainerMixin:
    from trl import GRPOConfig

    style = prompt_style(parts.recipe.model)
    arguments = {**_arguments(parts), **grpo_arguments(parts.recipe, parts.plan, style)}
    rows = prompt_rows(parts.problems, system_prompt=style.system_prompt, instruction=style.instruction)
    trainer_class = SpectralGMPOTrainer if parts.recipe.algorithm == "gmpo" else SpectralGRPOTrainer
    return trainer_class(
        model=parts.policy,
        reward_funcs=MathReward(parts.pool, thinking=bool(style.enable_thinking)),
        args=build_arguments(GRPOConfig, arguments),
        train_dataset=Dataset.from_list(rows),
        **_shared(parts),
    )


def _build_sft(parts: Parts) -> RlspecTrainerMixin:
    from trl import SFTConfig

    from rlspec.rlvr.sft import SpectralSFTTrainer, sft_dataset

    recipe, style = parts.recipe, prompt_style(parts.recipe.model)
    table = sft_dataset(
        parts.problems,
        parts.tokenizer,
        examples=parts.steps * parts.plan.completions_per_step,
        seed=recipe.seed,
        corruption=recipe.corruption,
        system_prompt=style.system_prompt,
        instruction=style.instruction,
        chat_template_kwargs=style.template_kwargs,
    )
    arguments = {**_arguments(parts), **sft_arguments(parts.plan)}
    return SpectralSFTTrainer(
        model=parts.policy, args=build_arguments(SFTConfig, arguments), train_dataset=table, **_shared(parts)
    )
