"""From a recipe to the keyword arguments of TRL's configuration: the knobs that the user gave, and those we derive."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from rlspec.config.rlvr_schema import Evaluation, Recipe, Rollout
from rlspec.errors import ConfigError
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.training.batching import BatchPlan
from rlspec.run_directory import RunDirectory

_COMPLETION_TOKENS = 512  # where the recipe gives no length
_NEVER = 10**9  # optimizer steps: the trainer still saves at the end of training


def training_steps(trainer: Mapping[str, Any], *, num_prompts: int, prompts_per_step: int, supervised: bool) -> int:
    """Optimizer steps of the run: `trainer.max_steps`, else `trainer.num_train_epochs` passes over the prompts.

    Raises:
        ConfigError: Neither is given.
    """
    steps = trainer.get("max_steps", -1)
    if steps > 0:
        return int(steps)
    epochs = trainer.get("num_train_epochs")
    passes = 1 if supervised else trainer.get("num_iterations", 1)
    if epochs is None:
        raise ConfigError("trainer.max_steps: give the number of optimizer steps, or trainer.num_train_epochs")
    return max(1, round(epochs * passes * num_prompts / prompts_per_step))


def stretched_schedule(trainer: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """The schedule of the learning rate, if it spans the run and the run's length has changed."""
    schedule = str(trainer.get("lr_scheduler_type", "linear"))
    same = all(stored.get(key) == trainer.get(key) for key in ("max_steps", "num_train_epochs"))
    return None if same or schedule.startswith("constant") else schedule


def uses_bf16(trainer: Mapping[str, Any], device: str) -> bool:
    """Whether forward passes run under autocast to bfloat16: where nothing is said, on CUDA unless in float16."""
    asked = trainer.get("bf16")
    return device == "cuda" and not trainer.get("fp16") if asked is None else bool(asked)


def completion_length(trainer: Mapping[str, Any], evaluation: Evaluation) -> int:
    """Longest completion, in tokens, in training and (unless it says otherwise) in evaluation."""
    return trainer.get("max_completion_length") or evaluation.max_new_tokens or _COMPLETION_TOKENS


def common_arguments(recipe: Recipe, *, checkpoints: Path, device: str, steps: int) -> dict[str, Any]:
    """Arguments of any Hugging Face trainer; the recipe's own knobs come last and win where both are allowed."""
    report_to = [name for name in ("tensorboard", "wandb") if getattr(recipe.report, name)]
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(checkpoints.parent / "tensorboard")
    if recipe.report.wandb and PartialState().is_main_process:
        os.environ.setdefault("WANDB_RUN_ID", RunDirectory(checkpoints.parent).tracker_id)
        os.environ.setdefault("WANDB_RESUME", "allow")
    arguments = {
        "output_dir": str(checkpoints),
        "run_name": checkpoints.parent.name,
        "seed": recipe.seed,
        "learning_rate": recipe.optim.lr,
        "weight_decay": 0.0,  # the optimizer's own, per group
        "save_strategy": "steps",
        "save_steps": recipe.checkpoints.every or _NEVER,
        "eval_strategy": "no",  # evaluations are rlspec's
        "report_to": report_to,
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": device == "cpu",
        "ddp_find_unused_parameters": False,  # every trainable parameter takes part in every pass
        **recipe.trainer,
        "bf16": uses_bf16(recipe.trainer, device),
        "max_steps": steps,
    }
    arguments.pop("num_train_epochs", None)  # it is in `steps`
    return arguments


def grpo_arguments(rollout: Rollout, plan: BatchPlan, style: PromptStyle) -> dict[str, Any]:
    """Arguments of `trl.GRPOConfig` beyond `common_arguments`."""
    arguments: dict[str, Any] = {**plan.trl_arguments(), "chat_template_kwargs": style.template_kwargs or None}
    if rollout.engine == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "rollout.engine=vllm: vllm is not installed; install it, or use rollout.engine=transformers"
            )
        arguments["use_vllm"] = True
    return arguments


def sft_arguments(plan: BatchPlan) -> dict[str, Any]:
    """Arguments of `trl.SFTConfig` beyond `common_arguments`."""
    return {
        "per_device_train_batch_size": plan.micro_batch,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "max_length": None,  # TRL would cut examples at 1,024 tokens without a word
        "dataset_kwargs": {"skip_prepare_dataset": True},  # the examples are tokens already
    }


def build_arguments(config_class: type, arguments: dict[str, Any]) -> Any:
    """Instantiate TRL's configuration; its complaints are about the recipe's section `trainer`.

    Raises:
        ConfigError: One line with TRL's reason.
    """
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
