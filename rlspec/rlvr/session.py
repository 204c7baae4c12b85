"""The parts of one run, built from its recipe: problems, policy, optimizer, evaluations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlspec.checkpoint import read_manifest
from rlspec.config.load import load_group
from rlspec.config.optim import builder_settings, describe_rate
from rlspec.config.paths import resolve_path
from rlspec.config.rlvr_schema import Batch, Data, Grader, Model, ModelLora, Recipe, Reward
from rlspec.config.schema import Optim
from rlspec.diagnostics.alignment import live_probes
from rlspec.diagnostics.norm_test import NormTest
from rlspec.diagnostics.probes import PROBES, Probe
from rlspec.errors import ConfigError, DataError
from rlspec.optim import SpectralOptimizer, build_optimizer
from rlspec.rlvr.data.problems import Problem, read_for_training, read_problems
from rlspec.rlvr.evaluation.evaluator import HeldOutEvaluations, ProblemEvaluator, build_protocol
from rlspec.rlvr.models.adapters import apply_lora, continue_lora, freeze
from rlspec.rlvr.models.loading import build_config, build_model, load_tokenizer
from rlspec.rlvr.models.memory import LanguageModelMemory, estimate_memory
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.sampling.generation import Policy, Sampler, generate_tokens
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.tools.toolbox import Toolbox, build_toolbox, teach_calls
from rlspec.rlvr.training.arguments import completion_length, training_steps, uses_bf16
from rlspec.rlvr.training.batching import BatchPlan, plan_batches
from rlspec.rlvr.training.growth import BatchGrowth
from rlspec.rlvr.training.preflight import keep_checked
from rlspec.rlvr.training.rewards import VerifierReward
from rlspec.rlvr.verifiers.build import Circumstances, build_verifiers
from rlspec.rlvr.verifiers.verifier import Verifiers
from rlspec.runtime.devices import choose_device
from rlspec.runtime.memory import show_memory
from rlspec.runtime.provenance import describe_checkpoint
from rlspec.runtime.sharding import plain_weights
from rlspec.runtime.starting import Run

_PROMPT_TOKENS = 256  # stands for a prompt's length in the memory estimate


def prompt_style(model: Model, toolbox: Toolbox | None = None) -> PromptStyle:
    """What the recipe puts around a problem."""
    return PromptStyle(model.system_prompt, model.instruction, model.enable_thinking, toolbox or Toolbox())


def policy_tokenizer(model: Model, toolbox: Toolbox, folder: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of the recipe's model, or of a folder that holds one, able to read calls where there are tools."""
    source = folder or model.path
    if not toolbox:
        return load_tokenizer(source, revision=model.revision)
    tokenizer = build_byte_tokenizer(calls=True) if source is None else load_tokenizer(source, revision=model.revision)
    teach_calls(tokenizer, source or model.name)
    return tokenizer


def evaluation_sets(
    names: Sequence[str], limit: int | None, recipe: Recipe, held_out: list[Problem]
) -> dict[str, list[Problem]]:
    """Problems to measure on, by data set; without names the held-out part of the training data."""
    sets, rows = {recipe.data.name: held_out} if not names else {}, recipe.whole_rows
    for name in names:
        known = name == recipe.data.name
        sets[name] = held_out if known else read_problems(Data(**load_group("data", name)), whole_rows=rows)[1]
    for name, problems in sets.items():
        if not problems:
            raise DataError(f"data={name}: it has no held-out problems to evaluate on")
    return {name: problems[:limit] for name, problems in sets.items()}


@dataclass(frozen=True)
class ProblemSets:
    """What a run trains on (before the preflight) and what it is measured on, by data set."""

    train: list[Problem]
    measured: dict[str, list[Problem]]

    def verifiers(self, rewards: Sequence[Reward], grader: Grader, *, thinking: bool | None) -> Verifiers:
        """What judges their answers; the caller closes it."""
        problems = list(chain(self.train, *self.measured.values()))
        return build_verifiers(rewards, Circumstances(grader, problems, bool(thinking)))


def read_all_problems(recipe: Recipe) -> ProblemSets:
    """The problems of a recipe; none to measure on where it does not measure.

    Raises:
        DataError: There is nothing to train on.
    """
    train, held_out = read_for_training(recipe.data, whole_rows=recipe.whole_rows)
    evaluation = recipe.evaluation
    measures = evaluation.before or evaluation.after or evaluation.every
    sets = evaluation_sets(evaluation.data, evaluation.problems, recipe, held_out) if measures else {}
    return ProblemSets(train, sets)


def load_policy(model: Model, tokenizer: PreTrainedTokenizerBase, *, seed: int, attention: str | None = None) -> Policy:
    """The policy that a recipe starts from, with LoRA adapters where it asks for them.

    The recipe's `attn_implementation` is training's: who looks at a policy may be on a machine without it.
    """
    policy = build_model(
        path=model.path,
        architecture=model.architecture,
        init=str(resolve_path(model.init)) if model.init else None,
        tokenizer=tokenizer,
        revision=model.revision,
        weights_dtype=model.weights_dtype,
        attention=attention,
        seed=seed,
    )
    if model.lora is None:
        return freeze(policy, model.freeze)
    if model.lora.path is not None:
        return continue_lora(policy, model.lora.path, dropout=model.lora.dropout)
    return apply_lora(policy, **model.lora.model_dump(exclude={"path"}), seed=seed)


def _adapted(lora: ModelLora | None, frozen: Sequence[str]) -> str:
    if lora is None:
        return f"trained: all but {', '.join(frozen)}" if frozen else "all weights trained"
    what = f"LoRA of rank {lora.r}" if lora.method == "lora" else lora.method
    if lora.path is not None:
        what += f", continuing {lora.path}"
    return ", ".join([what, *(f"{name}={value}" for name, value in lora.options.items())])


def describe_profile(recipe: Recipe, device: str) -> str:
    """What a model's profile has set, in two lines: what is easily overlooked and decides a run's numbers."""
    model, trainer, evaluation = recipe.model, recipe.trainer, recipe.evaluation
    thinking = {None: "no thinking switch", True: "thinking on", False: "thinking off"}[model.enable_thinking]
    arithmetic = f"bf16 autocast over {model.weights_dtype}" if uses_bf16(trainer, device) else model.weights_dtype
    arithmetic += f" weights on {device}" + (
        f", attention by {model.attn_implementation}" if model.attn_implementation else ""
    )
    adapted = _adapted(model.lora, model.freeze)
    measured = ", ".join(evaluation.data) or f"held-out {recipe.data.name}"
    start = model.init or model.path or "from random weights"
    sampling = f"{completion_length(trainer, evaluation)} new tokens at temperature {trainer.get('temperature', 1.0):g}"
    return (
        f"model {start}: {thinking}, {arithmetic}, {adapted}\n"
        f"{describe_rate(recipe.optim)} ({trainer.get('lr_scheduler_type', 'linear')}), at most {sampling} by "
        f"{recipe.rollout.engine}, measured on {measured}"
    )


def batch_plan(batch: Batch, world_size: int, *, supervised: bool) -> BatchPlan:
    """The recipe's batch; supervised fine-tuning has one example per prompt."""
    sizes = batch.model_dump(
        include={"prompts_per_step", "samples_per_prompt", "updates_per_generation", "micro_batch"}
    )
    if supervised:
        sizes |= {"samples_per_prompt": 1, "updates_per_generation": 1}
    plan = plan_batches(**sizes, world_size=world_size)
    if (batch.norm_test or batch.grow) and plan.gradient_accumulation_steps < 2:
        key = "grow" if batch.grow else "norm_test"
        raise ConfigError(
            f"batch.{key}=true: compares the micro-batches of a step, which has one; set batch.micro_batch to "
            f"{max(1, plan.micro_batch // 2)} or less"
        )
    if batch.skip_zero_advantages and world_size > 1:
        raise ConfigError(
            "batch.skip_zero_advantages=true: for one process; others would wait for the passes that it leaves out"
        )
    return plan


def model_config(model: Model, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration of the recipe's model, without its weights."""
    return build_config(path=model.path, architecture=model.architecture, tokenizer=tokenizer, revision=model.revision)


def rollouts_are_used_once(batch: Batch, trainer: Mapping[str, Any]) -> bool:
    """Whether no update leaves the policy that sampled its rollouts."""
    return batch.updates_per_generation * trainer.get("num_iterations", 1) == 1


def estimate_run_memory(recipe: Recipe, plan: BatchPlan, config: PretrainedConfig) -> LanguageModelMemory:
    """Memory of one process, from the model's configuration alone."""
    model, completion = recipe.model, completion_length(recipe.trainer, recipe.evaluation)
    build = optimizer_factory(recipe.optim, recipe.batch.prompts_per_step)

    def optimizer_bytes(meta: nn.Module) -> int:
        # Built in full: what is wrong with its settings is said before any weight is loaded.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapping = build(meta).symmetry
        return sum(spec.state_bytes for spec in mapping or ())

    return estimate_memory(
        config,
        micro_batch=plan.micro_batch,
        sequence_length=completion + _PROMPT_TOKENS,
        completion_length=completion,
        rollout_sequences=0 if recipe.algorithm == "sft" else plan.rollouts_per_process,
        weights_dtype=model.weights_dtype,
        autocast=uses_bf16(recipe.trainer, choose_device(recipe.device)),
        gradient_checkpointing=bool(recipe.trainer.get("gradient_checkpointing", False)),
        eager=model.attn_implementation == "eager",
        reference=recipe.algorithm != "sft" and recipe.trainer.get("beta", 0.0) > 0 and model.lora is None,
        # FourierFT trains less than adapters of rank 1 do.
        lora_r=None if model.lora is None else model.lora.r if model.lora.method == "lora" else 1,
        lora_targets=model.lora.target_modules if model.lora else (),
        frozen=model.freeze,
        optimizer_bytes=optimizer_bytes,
    )


def optimizer_factory(optim: Optim, prompts: int = 1) -> Callable[[nn.Module], SpectralOptimizer]:
    """Build the recipe's optimizer for a model; `prompts` is how many a step has."""
    settings = builder_settings(optim, prompts)
    return lambda model: build_optimizer(model, **settings)


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer is made of."""

    recipe: Recipe
    run: Run
    plan: BatchPlan
    device: str
    steps: int
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    verifiers: Verifiers
    probes: Sequence[Probe] = PROBES
    growth: BatchGrowth | None = None
    toolbox: Toolbox = Toolbox()

    @property
    def style(self) -> PromptStyle:
        """What stands around a problem."""
        return prompt_style(self.recipe.model, self.toolbox)

    @cached_property
    def rewards(self) -> list[VerifierReward]:
        """TRL's reward functions."""
        return [VerifierReward(verifier, self.problems) for verifier in self.verifiers.members]

    def checkpoint_extras(self, folder: Path) -> dict[str, Any]:
        """Describe a checkpoint in its folder; returns values for its manifest."""
        grown = {} if self.growth is None else {"batch": self.growth.record()}
        return describe_checkpoint(folder, self.run) | grown

    def write_weights(self, folder: Path) -> None:
        """The policy without what a resume needs."""
        self.policy.save_pretrained(folder, state_dict=plain_weights(self.policy))
        self.tokenizer.save_pretrained(folder)


def build_parts(recipe: Recipe, run: Run, plan: BatchPlan, problems: ProblemSets, verifiers: Verifiers) -> TrainerParts:
    """Check the problems, then load the policy; shows what is trained on, and the memory that it takes.

    Raises:
        UserError: Something does not fit together, in one line.
    """
    toolbox = build_toolbox(recipe)
    tokenizer = policy_tokenizer(recipe.model, toolbox)
    config = model_config(recipe.model, tokenizer)
    train = keep_checked(
        problems.train,
        run,
        verifiers=verifiers,
        prompt_length=partial(prompt_style(recipe.model, toolbox).length, tokenizer=tokenizer),
        longest=config.max_position_embeddings - completion_length(recipe.trainer, recipe.evaluation),
        limit=recipe.data.limit,
    )
    sizes = ", ".join(f"{len(held_out)} of {name}" for name, held_out in problems.measured.items())
    run.display.line(
        f"problems: {len(train)} of {recipe.data.name} to train on; {sizes or 'none'} held out to measure on"
    )
    device = choose_device(recipe.device)
    test = NormTest(recipe.batch.norm_test_eta)
    growth = _growth(recipe.batch, recipe.trainer, run, plan, test) if recipe.batch.grow else None
    largest = replace(plan, prompts_per_step=growth.limit) if growth is not None else plan
    show_memory(estimate_run_memory(recipe, largest, config), device, run.display)
    steps = training_steps(
        recipe.trainer,
        num_prompts=len(train),
        prompts_per_step=recipe.batch.prompts_per_step,
        supervised=recipe.algorithm == "sft",
    )
    start = _start_of(recipe, run)
    policy = load_policy(start, tokenizer, seed=recipe.seed, attention=start.attn_implementation)
    policy.to(device)
    probes = live_probes()
    if recipe.batch.norm_test or growth is not None:
        probes.append(test)
    if growth is not None:
        probes.append(growth)
    return TrainerParts(recipe, run, plan, device, steps, policy, tokenizer, train, verifiers, probes, growth, toolbox)


def _start_of(recipe: Recipe, run: Run) -> Model:
    """What is loaded before a checkpoint is: its own adapters where those that it went on with are gone."""
    model, lora = recipe.model, recipe.model.lora
    gone = lora is not None and lora.path is not None and not Path(lora.path).is_dir()
    if lora is None or not gone or run.point is None or recipe.trainer.get("beta"):  # TRL's reference copies the start
        return model
    return model.model_copy(update={"lora": lora.model_copy(update={"path": str(run.point.checkpoint)})})


def _growth(batch: Batch, trainer: Mapping[str, Any], run: Run, plan: BatchPlan, test: NormTest) -> BatchGrowth:
    """The growing batch, as large as the checkpoint says that a resumed run goes on from."""
    limit = batch.grow_limit or 8 * plan.prompts_per_step
    per_block = plan.updates_per_generation * trainer.get("num_iterations", 1)
    growth = BatchGrowth(test, plan, run.display, limit=limit, steps_per_block=per_block)
    if run.point is not None:
        growth.restore(read_manifest(run.point.checkpoint)["batch"])
    return growth


def build_evaluations(
    parts: TrainerParts, measured: Mapping[str, list[Problem]], sampler: Sampler = generate_tokens
) -> HeldOutEvaluations:
    """The evaluations of a run, on `measured` problems by data set."""
    recipe, settings = parts.recipe, parts.recipe.evaluation
    protocol = build_protocol(settings, recipe.trainer, parts.device)
    main, *others = parts.verifiers.members
    folder = parts.run.directory.evaluations
    return HeldOutEvaluations(
        settings=settings,
        evaluator=ProblemEvaluator(measured, parts.style, protocol, main, folder, others, sampler),
        policy=parts.policy,
        tokenizer=parts.tokenizer,
        run=parts.run,
        write_best=parts.write_weights if recipe.checkpoints.keep_best else None,
    )
