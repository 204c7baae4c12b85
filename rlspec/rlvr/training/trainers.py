"""Thin subclasses of TRL's trainers: optimizer by symmetry, whole checkpoints, exact resume, GMPO's loss."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from rlspec.checkpoint import checkpoint_name, rotate_checkpoints, staged_folder, staging_path
from rlspec.diagnostics.probes import PROBES, Probe, read_probes
from rlspec.errors import CheckpointError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.mixin import SpectralTrainerMixin
from rlspec.optim.sharding.shards import full
from rlspec.optim.sharding.state import whole_state
from rlspec.policy_gradient import approx_kl
from rlspec.rlvr.sampling.vllm import explained
from rlspec.rlvr.training.losses import gmpo_loss
from rlspec.rlvr.training.sampler import PromptSampler
from rlspec.rlvr.training.spread import GROUPS_ALIKE
from rlspec.rlvr.training.zero_advantages import informative_first, nothing_to_learn
from rlspec.runtime.sharding import giving, plain_weights, shard_model, unsharded

OptimizerFactory = Callable[[nn.Module], SpectralOptimizer]
CheckpointExtras = Callable[[Path], dict[str, Any]]


if TYPE_CHECKING:  # for the type checker the mixin is a trainer; at run time it stands before one
    _Trainer = Trainer
else:
    _Trainer = object


class RlspecTrainerMixin(SpectralTrainerMixin, _Trainer):
    """What rlspec adds to a Hugging Face trainer, whatever it trains.

    Args (keyword-only, the rest goes to the trainer):
        optimizer_factory: Builds the optimizer from the model. Called in `create_optimizer` and not passed as
            `optimizers=`, because the model may still be wrapped (PEFT) or loaded inside the trainer's constructor.
        checkpoint_extras: Writes further files into a checkpoint's folder and returns values for its manifest.
        keep_last: Number of checkpoints kept.
        sharding: `fsdp2` cuts the weights over all processes; `ddp` leaves them whole.
        probes: What is looked at in every logged step.
    """

    args: Any  # TRL's configuration
    model: Any
    state: Any
    optimizer: Any

    def __init__(
        self,
        *args: Any,
        optimizer_factory: OptimizerFactory,
        checkpoint_extras: CheckpointExtras,
        keep_last: int,
        sharding: str = "ddp",
        probes: Sequence[Probe] = PROBES,
        **kwargs: Any,
    ) -> None:
        self._sharding = sharding
        self._optimizer_factory = optimizer_factory
        self._checkpoint_extras = checkpoint_extras
        self._keep_last = keep_last
        self._probes = probes
        self._staging: Path | None = None
        self.panel = ""  # what the probes say of the step that was logged last
        super().__init__(*args, **kwargs)

    def build_spectral_optimizer(self, model: nn.Module) -> SpectralOptimizer:
        """The recipe's."""
        return self._optimizer_factory(model)

    def step_numbers(self) -> dict[str, float]:
        """What the probes read."""
        reading = read_probes(self.model, self.spectral_optimizer, self._probes)
        self.panel = reading.panel
        return reading.numbers

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """After a restart transformers keeps the stored intervals of logging and saving; the recipe's are meant."""
        result = super()._init_training_state(max_steps, *args, **kwargs)
        self.state.compute_steps(self.args, max_steps)
        return result

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a run describes itself in its recipe and summary."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or super()._get_output_dir(trial))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Cut the weights, which a checkpoint has filled by now; accelerate then has no copies to keep alike."""
        if self._sharding == "fsdp2":
            shard_model(self.model, self.spectral_optimizer, self.accelerator.device.type)
            self.accelerator.prepare_model = partial(self.accelerator.prepare_model, evaluation_mode=True)
        return super()._prepare_for_training(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return full(super()._clip_grad_norm(model))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the trainer write into a staged folder, add what it forgets, and put the whole in place at once."""
        with unsharded(self.model):
            self._save_whole(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, plain_weights(self.model) if state_dict is None else state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The state as one process has it, so that any number of processes can go on from it."""
        optimizer = self.spectral_optimizer
        with giving(optimizer, whole_state(optimizer, kept=self.accelerator.is_main_process)):
            super()._save_optimizer_and_scheduler(output_dir)

    def _save_whole(self, model: nn.Module, trial: Any) -> None:
        target = Path(self.args.output_dir) / checkpoint_name(self.state.global_step)
        with self._staged(target) as staging:
            self._staging = staging
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            self.accelerator.wait_for_everyone()
            self._write_extras(staging / target.name)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                _move_up(staging / target.name)
        if self.accelerator.is_main_process:
            rotate_checkpoints(target.parent, keep_last=self._keep_last)

    @contextmanager
    def _staged(self, target: Path) -> Iterator[Path]:
        """The main process owns the staged folder; the others write into it between two barriers."""
        if self.accelerator.is_main_process:
            metadata: dict[str, Any] = {"step": self.state.global_step}
            with staged_folder(target, metadata=metadata) as staging:
                self.accelerator.wait_for_everyone()
                yield staging
                metadata.update(self._checkpoint_extras(staging))
        else:
            self.accelerator.wait_for_everyone()
            yield staging_path(target)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        _let_torch_load_to_numbered_cpus()
        super()._load_optimizer_and_scheduler(checkpoint)

    def _write_extras(self, folder: Path) -> None:
        """State that a subclass needs for an exact resume; called on every process."""


@cache
def _let_torch_load_to_numbered_cpus() -> None:
    """With several CPU processes accelerate calls the device `cpu:0`, to which torch.load refuses to map tensors."""
    torch.serialization.register_package(
        5, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
    )


def _move_up(folder: Path) -> None:
    for path in folder.iterdir():
        os.replace(path, folder.parent / path.name)
    folder.rmdir()


@contextmanager
def _reference_copied_from(model: nn.Module) -> Iterator[None]:
    """TRL loads the model of the KL penalty anew, from a path that a model built here does not have."""

    def copied(*_: Any, **__: Any) -> nn.Module:
        return copy.deepcopy(model).eval().requires_grad_(False)

    with mock.patch.object(grpo_trainer, "create_model_from_path", copied):
        yield


_REFERENCE = "reference.pt"  # weights of the model of the KL penalty, where they move


class SpectralGRPOTrainer(RlspecTrainerMixin, GRPOTrainer):
    """GRPO with prompts in an order that survives a restart, and rollouts that are saved with the weights.

    TRL repeats the order of epoch 0 after a restart and samples a half-used block of rollouts again.

    With `skip_zero_advantages` completions with an advantage of 0 come together, and micro-batches of them alone are
    passed over: the same gradient in less time. For one process, and a loss that advantages multiply.
    """

    args: Any
    model: Any
    num_generations: int
    ref_model: Any
    reward_funcs: list[Any]
    reward_func_names: list[str]
    reward_processing_classes: list[Any]
    reward_weights: Tensor
    shuffle_dataset: bool
    train_dataset: Any

    def __init__(self, *args: Any, model: Any, skip_zero_advantages: bool = False, **kwargs: Any) -> None:
        rewards = kwargs["reward_funcs"]
        count = len(rewards) if isinstance(rewards, list) else 1  # before TRL appends to this very list
        with _reference_copied_from(model):
            super().__init__(*args, model=model, **kwargs)
        # Experts have a loss of their own, whatever an answer earned.
        self._skips_zero = skip_zero_advantages and not self.aux_loss_enabled
        self._keep_rewards(count)

    def _keep_rewards(self, count: int) -> None:
        """TRL adds an environment's `get_reward` on its own; the recipe's `reward=environment` asks it already."""
        for several in (self.reward_funcs, self.reward_func_names, self.reward_processing_classes):
            del several[count:]
        self.reward_weights = self.reward_weights[:count]

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Leave an answer out of its group that some reward could judge of others of the group and not of it.

        TRL adds up what is left, as if that reward were 0. Where a reward judges nothing of a group it does not apply.
        """
        rewards: Tensor = super()._calculate_rewards(*args, **kwargs)
        groups = rewards.view(-1, self.num_generations, rewards.shape[-1])
        missing = groups.isnan()
        left_out = (missing & ~missing.all(1, keepdim=True)).any(-1, keepdim=True)
        groups = groups.masked_fill(left_out, float("nan"))
        if self.args.scale_rewards == "batch":  # TRL's own share is then that of the batch
            totals = (groups * self.reward_weights.to(groups)).nansum(-1)
            alike = (totals == totals[:, :1]).all(1).float().mean().item()
            self._metrics["train" if self.model.training else "eval"][GROUPS_ALIKE].append(alike)
        return groups.view_as(rewards)

    origin = (0, 0)  # optimizer step from which on the batch has its size, and the prompts drawn before

    def change_batch(self, sizes: Mapping[str, int], origin: tuple[int, int]) -> None:
        """Give the steps after `origin` other sizes (TRL's own arguments): `train` goes on from that checkpoint."""
        for name, value in sizes.items():
            setattr(self.args, name, value)
        args, self.origin = self.args, origin
        args.generation_batch_size = args.per_device_train_batch_size * args.world_size * args.steps_per_generation

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
        """Sample with whole weights: where they are cut, processes whose answers end earlier would be waited for."""
        with unsharded(self.model):
            return super()._generate_and_score_completions(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if not self._skips_zero or self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = informative_first(self._buffered_inputs, self.args.gradient_accumulation_steps)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's, which is 0 with its gradient where every advantage is."""
        if self._skips_zero and model.training and not inputs["advantages"].any():
            return nothing_to_learn(model)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Weights are cast for mixed precision once: accelerate's autocast ends with a forward pass, hence a token."""
        with explained(self.args) if self.use_vllm else self.accelerator.autocast():
            return super()._generate_single_turn(*args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        args = self.args
        repeats = args.steps_per_generation * self.num_iterations
        micro_steps = args.max_steps * args.gradient_accumulation_steps
        return PromptSampler(
            num_prompts=len(self.train_dataset if dataset is None else dataset),
            prompts_per_block=args.generation_batch_size // self.num_generations,
            samples_per_prompt=self.num_generations,
            block_repeats=repeats,
            num_blocks=-(-micro_steps // repeats),
            seed=args.seed,
            shuffle=self.shuffle_dataset,
            origin=(self.origin[0] * args.gradient_accumulation_steps // repeats, self.origin[1]),
        )

    @property
    def _inside_block(self) -> bool:
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    def _rollouts_file(self, folder: Path) -> Path:
        return folder / f"rollouts_{self.accelerator.process_index}.pt"

    def _write_extras(self, folder: Path) -> None:
        if self.args.sync_ref_model and self.accelerator.is_main_process:
            torch.save(self.ref_model.state_dict(), folder / _REFERENCE)
        if self._inside_block:
            content = {
                "step": self._step,
                "processes": self.accelerator.num_processes,
                "rollouts": self._buffered_inputs,
            }
            torch.save(content, self._rollouts_file(folder))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self.args.sync_ref_model:
            self._load_reference(Path(checkpoint) / _REFERENCE)
        self._step = self.state.global_step * self.args.gradient_accumulation_steps
        if self._inside_block:
            path = self._rollouts_file(Path(checkpoint))
            if not path.is_file():
                raise CheckpointError(
                    f"{checkpoint}: {path.name} is missing, and the step is inside a block of rollouts"
                )
            saved = torch.load(path, map_location=self.accelerator.device, weights_only=True)
            if (written := saved.get("processes", self.accelerator.num_processes)) != self.accelerator.num_processes:
                raise CheckpointError(
                    f"{checkpoint}: {written} processes wrote it inside a block of rollouts, of which each has a part; "
                    f"resume with launch.processes={written}, or from a checkpoint at a block's end"
                )
            self._buffered_inputs = saved["rollouts"]

    def _load_reference(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing: the run's reference has moved with trainer.sync_ref_model=true; start a new run"
            )
        self.ref_model.load_state_dict(torch.load(path, map_location=self.accelerator.device, weights_only=True))


class SpectralGMPOTrainer(SpectralGRPOTrainer):
    """Geometric-mean policy optimization (arXiv:2507.20673): only the loss differs from GRPO.

    `epsilon` and `epsilon_high` clip log ratios. Unlike TRL's own GMPO it applies the correction for a separate rollout
    engine (`importance_sampling_ratio`); the knobs of GRPO that its loss cannot honour are refused with the recipe.
    """

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"]
        input_ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention_mask = torch.cat([inputs["prompt_mask"], mask], dim=1)
        if "tool_mask" in inputs:  # what tools said is read, and has no loss
            mask = mask * inputs["tool_mask"]
        logps, entropies, _ = self._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, inputs["completion_ids"].size(1), compute_entropy=True
        )
        # On-policy blocks carry no old log-probabilities: there they are the current ones.
        old_logps = inputs.get("old_per_token_logps", logps.detach())
        terms = gmpo_loss(
            logps,
            old_logps,
            inputs["advantages"],
            mask,
            epsilon_low=self.epsilon_low,
            epsilon_high=self.epsilon_high,
            sampling_ratio=inputs.get("importance_sampling_ratio"),
        )
        self._record("entropy", entropies, mask)
        positive = inputs["advantages"].unsqueeze(-1) > 0
        self._record("clip_ratio/high_mean", (terms.clipped & positive).float(), mask)
        self._record("clip_ratio/low_mean", (terms.clipped & ~positive).float(), mask)
        self._record("clip_ratio/region_mean", terms.clipped.float(), mask)
        self._record("approx_kl", approx_kl(terms.log_ratio), mask)
        loss = terms.loss
        if self.beta != 0.0:
            # k3 estimator of KL(pi || ref), mean over tokens of a sequence, then over sequences.
            each = approx_kl(inputs["ref_per_token_logps"] - logps)
            kl = (each * mask).sum(-1) / mask.sum(-1).clamp(min=1)
            self._record("kl", each, mask)
            loss = loss + self.beta * kl.mean()
        return loss / (self.current_gradient_accumulation_steps if self.model.training else 1.0)

    def _record(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Log the mean over counted tokens of all processes."""
        totals = torch.stack([(values.detach() * mask).sum().float(), mask.sum().float()])
        total, count = self.accelerator.reduce(totals, reduction="sum")
        self._metrics["train" if self.model.training else "eval"][name].append((total / count.clamp(min=1)).item())
