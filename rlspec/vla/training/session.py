"""The parts of one run, built from its recipe: policy, optimizer, schedule, averages, batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlspec.checkpoint import read_manifest
from rlspec.config.optim import builder_settings, describe_rate, map_settings
from rlspec.config.schema import Optim
from rlspec.config.vla_schema import Freeze, Policy, Training, VlaRecipe
from rlspec.contract.features import camera_of, is_image
from rlspec.diagnostics.probes import Probe
from rlspec.optim import SpectralOptimizer, build_optimizer, symmetry_map
from rlspec.runtime.memory import show_memory
from rlspec.runtime.provenance import show_symmetry
from rlspec.runtime.sharding import shard_model, watch_calls
from rlspec.runtime.starting import Run
from rlspec.vla.policies.adapters import BASE
from rlspec.vla.policies.recompute import enable_checkpointing
from rlspec.vla.training.augmentation import build_transform
from rlspec.vla.training.ema import Ema
from rlspec.vla.training.freezing import FreezeSchedule, plan_freezing
from rlspec.vla.training.held_out import HeldOutLoss, hold_out
from rlspec.vla.training.memory import RobotPolicyMemory, estimate_memory
from rlspec.vla.training.order import BatchShape, SampleOrder
from rlspec.vla.training.policy import LoadedPolicy, load_policy
from rlspec.vla.training.samples import Augmentation, Batches, Samples
from rlspec.vla.training.saved import Activations
from rlspec.vla.training.schedule import build_scheduler, describe_schedule
from rlspec.vla.training.state import TrainingState
from rlspec.vla.training.step import StepRunner


class BatchSource(Protocol):
    """What each step learns from."""

    def from_step(self, start: int, stop: int, *, workers: int, pin_memory: bool) -> Iterator[Any]:
        """For the steps `start` to `stop` - 1, counted from 0."""

    def progress(self, step: int, seconds: float) -> dict[str, float]:
        """How far and how fast, for a log line of a step that took so many seconds."""


class UpdateRunner(Protocol):
    """Gradients of a step's updates."""

    updates: int  # in a step

    def backward(self, model: nn.Module, batches: Any, *, step: int) -> dict[str, float]:
        """Leave the gradient of the next update in the parameters; returns numbers to log, `loss` and `grad_norm`."""


@dataclass(frozen=True)
class TrainingParts:
    """What a loop runs with."""

    state: TrainingState
    batches: BatchSource
    samples: int  # of all processes in a step
    runner: UpdateRunner
    freezing: FreezeSchedule
    probes: Sequence[Probe] = ()  # beside those of every run
    held_out: HeldOutLoss | None = None


def describe(policy: Policy, training: Training, optim: Optim, device: str, processes: int) -> str:
    """What is easily overlooked and decides a run's numbers, in two lines."""
    arithmetic = "bf16 autocast" if training.bf16 else "float32"
    adapted = "all weights that its config trains"
    if policy.lora:
        adapted = " and all of ".join([f"LoRA of rank {policy.lora.r}", *policy.lora.full_training])
    if policy.freeze:
        adapted += f", {len(policy.freeze)} entries of policy.freeze"
    shape = batch_shape(training, processes)
    averaged = f"averaged weights (EMA {training.ema_decay:g})" if training.ema_decay else "the newest weights"
    return (
        f"policy {policy.type} from {policy.path or 'random weights'}: {arithmetic} on {device}, {adapted}\n"
        f"{training.steps} steps of {shape.samples} samples ({shape.size} x {shape.passes} passes x {shape.processes} "
        f"processes), {describe_rate(optim)} ({describe_schedule(training)}); {averaged} are kept"
    )


def batch_shape(training: Training, processes: int, process: int = 0) -> BatchShape:
    """How the recipe's batch is cut."""
    return BatchShape(training.batch_size, training.gradient_accumulation, processes, process)


def build_parts(recipe: VlaRecipe, run: Run, accelerator: Accelerator, samples: Samples) -> TrainingParts:
    """Build everything, and go on where the run is resumed; shows the symmetry map and the memory estimate.

    Raises:
        UserError: Something does not fit together, in one line.
    """
    training = recipe.training
    loaded = load_policy(
        recipe.policy,
        samples,
        device=accelerator.device.type,  # the current one of several; LeRobot knows no cpu:0
        seed=recipe.seed,
        resume=run.point.checkpoint if run.point else None,
        dataset=recipe.dataset.name,
        base=run.directory.path / BASE,
    )
    if training.gradient_checkpointing:
        enable_checkpointing(loaded.policy)
    shape = _shape(training, run, accelerator)
    freezing, optimizer = freeze_and_optimize(recipe.policy.freeze, recipe.optim, loaded.policy, shape.samples)
    show_symmetry(optimizer, run)
    trained, held = hold_out(samples, training.held_out)
    batches = Batches(
        trained,
        SampleOrder(len(trained), shape.samples, recipe.seed),
        shape,
        Augmentation(training.random_shift, build_transform(training.augmentation), recipe.seed),
    )
    runner = StepRunner(accelerator, loaded.preprocessor, shape, recipe.seed, training.grad_clip_norm)
    held_out = None if held is None else HeldOutLoss(held, runner, training.held_out_every)
    about = _describe_data(recipe.dataset.name, batches, training.steps)
    run.display.line(about if held_out is None else f"{about}; {held_out.describe}")
    with watch_calls(loaded.policy) as called:
        memory = _estimate(loaded.policy, optimizer, batches, runner, ema=bool(training.ema_decay))
    show_memory(memory, accelerator.device, run.display)
    share_weights(recipe, accelerator, loaded.policy, optimizer, called)
    state = build_state(training, loaded, optimizer)
    if run.point is not None:
        state.restore(run.point.checkpoint)
    return TrainingParts(state, batches, shape.samples, runner, freezing, held_out=held_out)


def _shape(training: Training, run: Run, accelerator: Accelerator) -> BatchShape:
    """The recipe's, but as many samples in a step as the checkpoint's had: other processes have other passes."""
    shape = batch_shape(training, accelerator.num_processes, accelerator.process_index)
    samples = shape.samples if run.point is None else read_manifest(run.point.checkpoint).get("samples", shape.samples)
    if samples == shape.samples:
        return shape
    adapted = shape.with_samples(samples)
    run.display.warn(
        f"the checkpoint's steps have {samples} samples: {adapted.processes} process(es) make them in "
        f"{adapted.passes} passes each"
    )
    return adapted


def share_weights(
    recipe: VlaRecipe,
    accelerator: Accelerator,
    policy: nn.Module,
    optimizer: SpectralOptimizer,
    called: Collection[nn.Module],
) -> None:
    """Let several processes share the weights (FSDP2), or the optimizer's work on copies of them (DDP)."""
    if accelerator.num_processes == 1:
        return
    if recipe.sharding == "fsdp2":
        shard_model(policy, optimizer, accelerator.device.type, called)
    else:
        optimizer.process_group = torch.distributed.group.WORLD


def build_state(training: Training, loaded: LoadedPolicy, optimizer: SpectralOptimizer) -> TrainingState:
    """The state before the first step."""
    trained = {name: value for name, value in loaded.policy.named_parameters() if value.requires_grad}
    return TrainingState(
        loaded=loaded,
        optimizer=optimizer,
        scheduler=build_scheduler(training.scheduler, optimizer, training.steps),
        ema=Ema(trained, training.ema_decay) if training.ema_decay else None,
        trained=trained,
    )


def freeze_and_optimize(
    freeze: Sequence[Freeze], optim: Optim, policy: nn.Module, samples: int
) -> tuple[FreezeSchedule, SpectralOptimizer]:
    """Parameters that are frozen for good are none of the optimizer's; those that wait are, and have no gradient."""
    freezing = freeze_for_good(freeze, optim, policy)
    return freezing, build_optimizer(policy, **builder_settings(optim, samples))


def freeze_for_good(freeze: Sequence[Freeze], optim: Optim, policy: nn.Module) -> FreezeSchedule:
    """Freeze what is never trained; returns the plan of the rest."""
    if not freeze:
        return FreezeSchedule(frozenset(), {})
    freezing = plan_freezing(freeze, symmetry_map(policy, **map_settings(optim)))
    for name, parameter in policy.named_parameters():
        if name in freezing.never:
            parameter.requires_grad_(False)
    return freezing


def _describe_data(name: str, batches: Batches, steps: int) -> str:
    samples, epochs = batches.samples, batches.order.epochs(steps)
    cameras = [camera_of(key) for key in samples.meta.features if is_image(key)]
    return f"data: {len(samples):,} frames of {name}, cameras {', '.join(cameras)}; {epochs:.1f} passes"


def _estimate(
    policy: nn.Module, optimizer: SpectralOptimizer, batches: Batches, runner: StepRunner, *, ema: bool
) -> RobotPolicyMemory:
    """Measured on one sample and on two, whose random numbers no step sees."""
    two = batches.samples.take(np.zeros(2, np.int64))

    def forward(size: int) -> Tensor:
        return runner.forward(policy, {key: value[:size] for key, value in two.items()}, step=0, number=0)[0]

    mapping = optimizer.symmetry
    assert mapping is not None
    activations = Activations.measure(policy, forward).of(batches.shape.size)
    return estimate_memory(policy, mapping, ema=ema, activations=activations)
