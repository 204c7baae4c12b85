"""The parts of a run of reinforcement learning, for the loop that imitation has as well."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from rlspec.config.optim import describe_rate, map_settings
from rlspec.config.vla_schema import Freeze, VlaRecipe
from rlspec.errors import ConfigError
from rlspec.optim import symmetry_map
from rlspec.runtime.provenance import show_symmetry
from rlspec.runtime.starting import Run
from rlspec.vla.evaluation.pool import WorkerPool
from rlspec.vla.evaluation.protocol import build_protocol
from rlspec.vla.policies.likelihood import distribution_of
from rlspec.vla.reinforcement.rollouts import Rollouts
from rlspec.vla.reinforcement.start import load_start
from rlspec.vla.reinforcement.telemetry import GroupGradients
from rlspec.vla.reinforcement.update import GrpoRunner
from rlspec.vla.training.session import TrainingParts, build_state, freeze_and_optimize


def describe_reinforcement(recipe: VlaRecipe, device: str) -> str:
    """What decides a run's numbers, in two lines."""
    grpo, training = recipe.grpo, recipe.training
    updates = grpo.update_epochs * grpo.mini_batches
    parts = " and ".join(grpo.train) if grpo.train else "everything"
    return (
        f"policy {recipe.policy.type} from {recipe.policy.path}: {'bf16 autocast' if training.bf16 else 'float32'} on "
        f"{device}; trained: {parts}; noise level {recipe.noise_level:g}\n"
        f"{training.steps} steps of {grpo.groups_per_step} groups of {grpo.group_size} episodes, {updates} updates "
        f"each (clip {grpo.clip_low:g}, {grpo.clip_high:g}), {describe_rate(recipe.optim)}"
    )


@contextmanager
def reinforcement_parts(recipe: VlaRecipe, run: Run, accelerator: Accelerator) -> Iterator[TrainingParts]:
    """Build everything, keep the workers while the body runs, and go on where the run is resumed.

    Raises:
        UserError: Something does not fit together, in one line.
    """
    if accelerator.num_processes > 1:
        raise ConfigError("grpo: runs in one process, whose workers run the episodes; start it without a launcher")
    assert recipe.env is not None, "checked with the recipe"
    grpo, training = recipe.grpo, recipe.training
    resume: Path | None = run.point.checkpoint if run.point else None
    loaded = load_start(
        recipe.policy,
        device=accelerator.device.type,
        seed=recipe.seed,
        resume=resume,
        action_std=recipe.noise_level,
    )
    distribution = distribution_of(loaded.policy, recipe.noise_level)
    mapping = symmetry_map(loaded.policy, **map_settings(recipe.optim))
    frozen = [*recipe.policy.freeze, *untrained(grpo.train, {spec.name: spec.modality for spec in mapping})]
    episodes = grpo.group_size * grpo.groups_per_step
    freezing, optimizer = freeze_and_optimize(frozen, recipe.optim, loaded.policy, episodes)
    show_symmetry(optimizer, run)
    state = build_state(training, loaded, optimizer)
    gradients = GroupGradients(loaded.policy, mapping)
    runner = GrpoRunner(
        accelerator,
        loaded.preprocessor,
        distribution,
        grpo,
        batch_size=training.batch_size,
        seed=recipe.seed,
        clip=training.grad_clip_norm,
        optimizer=optimizer,
        gradients=gradients,
    )
    if resume is not None:
        state.restore(resume)
    protocol = build_protocol(recipe.env, recipe.evaluation)
    pool = WorkerPool(protocol.simulator, grpo.workers, run.display.warn, stopped=lambda: run.interrupt.requested)
    try:
        rollouts = Rollouts(recipe, run, loaded, protocol, pool)
        yield TrainingParts(state, rollouts, training.batch_size, runner, freezing, (gradients,))
    finally:
        pool.close()


def untrained(wanted: Sequence[str], part_of: Mapping[str, str]) -> list[Freeze]:
    """Entries that freeze all that belongs to no wanted part of a policy; none where nothing is named.

    Args:
        wanted: `grpo.train`.
        part_of: parameter -> part; "" where it belongs to none.

    Raises:
        ConfigError: It has no such part.
    """
    known = sorted({*part_of.values()} - {""})
    for part in wanted:
        if part not in known:
            raise ConfigError(f"grpo.train={part}: the policy has no such part; it has {', '.join(known) or 'none'}")
    if not wanted:
        return []
    return [Freeze(pattern=f"^{re.escape(name)}$") for name, part in part_of.items() if part not in wanted]
