"""The parts of one run, built from its recipe: policy, optimizer, schedule, averages, batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlspec.checkpoint import write_text_atomically
from rlspec.config.optim import builder_settings, map_settings
from rlspec.config.vla_schema import VlaRecipe
from rlspec.contract.features import camera_of, is_image
from rlspec.display import Display
from rlspec.optim import SpectralOptimizer, build_optimizer, symmetry_map
from rlspec.optim.map.render import RENDERERS, render_text
from rlspec.run_directory import ResumePoint, RunDirectory
from rlspec.runtime.devices import device_memory
from rlspec.vla.training.augmentation import build_transform
from rlspec.vla.training.ema import Ema
from rlspec.vla.training.freezing import FreezeSchedule, plan_freezing
from rlspec.vla.training.memory import activation_bytes, check_memory, estimate_memory
from rlspec.vla.training.order import BatchShape, SampleOrder
from rlspec.vla.training.policy import load_policy
from rlspec.vla.training.samples import Augmentation, Batches, Samples
from rlspec.vla.training.schedule import build_scheduler
from rlspec.vla.training.state import TrainingState
from rlspec.vla.training.step import StepRunner


@dataclass(frozen=True)
class Parts:
    """What a loop runs with."""

    state: TrainingState
    batches: Batches
    runner: StepRunner
    freezing: FreezeSchedule


def describe(recipe: VlaRecipe, device: str, processes: int) -> str:
    """What is easily overlooked and decides a run's numbers, in two lines."""
    training, policy = recipe.training, recipe.policy
    arithmetic = "bf16 autocast" if training.bf16 else "float32"
    adapted = f"LoRA of rank {policy.lora.r}" if policy.lora else "all weights that its config trains"
    if policy.freeze:
        adapted += f", {len(policy.freeze)} entries of policy.freeze"
    shape = batch_shape(recipe, processes)
    averaged = f"averaged weights (EMA {training.ema_decay:g})" if training.ema_decay else "the newest weights"
    return (
        f"policy {policy.type} from {policy.path or 'random weights'}: {arithmetic} on {device}, {adapted}\n"
        f"{training.steps} steps of {shape.samples} samples ({shape.size} x {shape.passes} passes x {shape.processes} "
        f"processes), learning rate {recipe.optim.lr:g} ({training.scheduler.get('type')}); {averaged} are kept"
    )


def batch_shape(recipe: VlaRecipe, processes: int, process: int = 0) -> BatchShape:
    """How the recipe's batch is cut."""
    return BatchShape(recipe.training.batch_size, recipe.training.gradient_accumulation, processes, process)


def build_parts(
    recipe: VlaRecipe,
    run: RunDirectory,
    point: ResumePoint | None,
    accelerator: Accelerator,
    samples: Samples,
    display: Display,
) -> Parts:
    """Build everything, and go on from `point` where there is one; shows the symmetry map and the memory estimate.

    Raises:
        UserError: Something does not fit together, in one line.
    """
    training = recipe.training
    loaded = load_policy(
        recipe.policy,
        samples,
        device=accelerator.device.type,  # the current one of several; LeRobot knows no cpu:0
        seed=recipe.seed,
        resume=point.checkpoint if point else None,
        dataset=recipe.dataset.name,
    )
    freezing, optimizer = _optimizer(recipe, loaded.policy)
    _show_symmetry(optimizer, run, display, main=accelerator.is_main_process)
    trained = {name: value for name, value in loaded.policy.named_parameters() if value.requires_grad}
    state = TrainingState(
        loaded=loaded,
        optimizer=optimizer,
        scheduler=build_scheduler(training.scheduler, optimizer, training.steps),
        ema=Ema(trained, training.ema_decay) if training.ema_decay else None,
        trained=trained,
    )
    shape = batch_shape(recipe, accelerator.num_processes, accelerator.process_index)
    batches = Batches(
        samples,
        SampleOrder(len(samples), shape.samples, recipe.seed),
        shape,
        Augmentation(training.random_shift, build_transform(training.augmentation), recipe.seed),
    )
    runner = StepRunner(accelerator, loaded.preprocessor, shape, recipe.seed, training.grad_clip_norm)
    display.line(_describe_data(recipe, samples, batches))
    _show_memory(state, batches, runner, display)
    if point is not None:
        state.restore(point.checkpoint)
    return Parts(state, batches, runner, freezing)


def _optimizer(recipe: VlaRecipe, policy: nn.Module) -> tuple[FreezeSchedule, SpectralOptimizer]:
    """Parameters that are frozen for good are none of the optimizer's; those that wait are, and have no gradient."""
    freezing = FreezeSchedule(frozenset(), {})
    if recipe.policy.freeze:
        freezing = plan_freezing(recipe.policy.freeze, symmetry_map(policy, **map_settings(recipe.optim)))
        for name, parameter in policy.named_parameters():
            if name in freezing.never:
                parameter.requires_grad_(False)
    return freezing, build_optimizer(policy, **builder_settings(recipe.optim))


def _show_symmetry(optimizer: SpectralOptimizer, run: RunDirectory, display: Display, *, main: bool) -> None:
    mapping = optimizer.symmetry
    assert mapping is not None
    display.line(render_text(mapping))
    if main:
        for suffix in (".md", ".json"):
            write_text_atomically(run.path / f"symmetry{suffix}", RENDERERS[suffix](mapping))


def _describe_data(recipe: VlaRecipe, samples: Samples, batches: Batches) -> str:
    cameras = [camera_of(key) for key in samples.meta.features if is_image(key)]
    epochs = batches.order.epochs(recipe.training.steps)
    return f"data: {len(samples):,} frames of {recipe.dataset.name}, cameras {', '.join(cameras)}; {epochs:.1f} passes"


def _show_memory(state: TrainingState, batches: Batches, runner: StepRunner, display: Display) -> None:
    """Measured on one sample, whose random numbers no step sees."""
    policy: nn.Module = state.loaded.policy
    one = batches.samples.take(np.zeros(1, np.int64))

    def forward() -> Tensor:
        return runner.forward(policy, dict(one), step=0, number=0)[0]

    mapping = state.optimizer.symmetry
    assert mapping is not None
    activations = activation_bytes(policy, forward) * batches.shape.size
    estimate = estimate_memory(policy, mapping, ema=state.ema is not None, activations=activations)
    display.line(estimate.table())
    warning = check_memory(estimate, device_memory(torch.device(runner.accelerator.device)))
    if warning:
        display.warn(warning)
