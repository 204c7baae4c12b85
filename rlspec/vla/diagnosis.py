"""A robot's policy as something to diagnose: its loss on micro-batches of demonstrations."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlspec.config.optim import builder_settings, map_settings
from rlspec.config.vla_schema import Dataset, Env, VlaRecipe
from rlspec.diagnostics.subject import Part, Subject, check_finite, stored_moments
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.optim import build_optimizer, symmetry_map
from rlspec.optim.map.spec import SymmetryMap
from rlspec.runtime.devices import choose_device
from rlspec.runtime.quiet import quiet_libraries
from rlspec.vla.training.data import OpenSamples, open_samples
from rlspec.vla.training.order import BatchShape, SampleOrder
from rlspec.vla.training.policy import load_policy
from rlspec.vla.training.samples import Samples
from rlspec.vla.training.session import freeze_for_good
from rlspec.vla.training.state import STATE
from rlspec.vla.training.step import StepRunner

_MICRO_BATCH = 4  # frames
_MOST_PARTS = 64
_EPISODES = 12  # demonstrations per task


def robot_subject(
    recipe: VlaRecipe,
    folder: str | None,
    *,
    display: Display,
    parts: int | None = None,
    size: int | None = None,
    samples: OpenSamples = open_samples,
) -> Subject:
    """The policy in `folder`, or the one that the recipe starts from, with parts of its loss.

    Args:
        recipe: says data, policy and optimizer.
        folder: of a checkpoint of a run; None: the recipe's own start.
        display: shows what happens.
        parts: micro-batches; None: two steps' worth, at most 64.
        size: frames of a micro-batch; None: 4.
        samples: opens the recipe's data.

    Raises:
        DataError: There is nothing to train on.
        CheckpointError: It cannot be loaded, or has weights that are no numbers.
    """
    quiet_libraries()
    dataset = _with_few_demonstrations(recipe.dataset, recipe.env, display)
    data = samples(recipe.policy, dataset, recipe.env, display)
    if not len(data):
        raise DataError(f"dataset={recipe.dataset.name}: it has no frames; choose another data set")
    accelerator = Accelerator(cpu=choose_device(recipe.device) == "cpu")
    display.line(f"loading {folder or recipe.policy.name}")
    loaded = load_policy(
        recipe.policy,
        data,
        device=accelerator.device.type,
        seed=recipe.seed,
        resume=Path(folder) if folder else None,
        dataset=recipe.dataset.name,
    )
    check_finite(loaded.policy, folder or f"policy={recipe.policy.name}")
    freeze_for_good(recipe.policy.freeze, recipe.optim, loaded.policy)
    mapping = symmetry_map(loaded.policy, **map_settings(recipe.optim))
    training = recipe.training
    step_samples = training.batch_size * training.gradient_accumulation
    size = min(size or _MICRO_BATCH, step_samples)
    count = parts or min(_MOST_PARTS, 2 * step_samples // size)
    runner = StepRunner(accelerator, loaded.preprocessor, BatchShape(size, count), recipe.seed, 0.0)
    build = partial(build_optimizer, **builder_settings(recipe.optim, step_samples))
    momenta, variances = stored_moments(folder, STATE, loaded.policy, build)
    return Subject(
        title=f"{Path(folder).name if folder else recipe.policy.name}, {recipe.recipe}",
        model=loaded.policy,
        mapping=mapping,
        parts=_parts(data, count, size, recipe.seed),
        unit=f"micro-batches of {size} frames",
        step_parts=max(1, step_samples // size),
        loss=partial(_loss, runner, loaded.policy, data),
        represent=partial(_represent, runner, loaded.policy, data, _output_layer(loaded.policy, mapping)),
        optimizer=build,
        display=display,
        momenta=momenta,
        variances=variances,
    )


def _with_few_demonstrations(dataset: Dataset, env: Env | None, display: Display) -> Dataset:
    """Where the recipe's demonstrations are not generated yet, as many as a diagnosis needs will do."""
    from rlspec.vla.data.demonstrations import demonstrations_root

    wanted = dataset.demonstrations
    if wanted is None or env is None or wanted.episodes <= _EPISODES or demonstrations_root(dataset, env).is_dir():
        return dataset
    display.line(f"the recipe's {wanted.episodes} demonstrations are not there: {_EPISODES} stand for them")
    return dataset.model_copy(update={"demonstrations": wanted.model_copy(update={"episodes": _EPISODES})})


def _parts(data: Samples, count: int, size: int, seed: int) -> list[Part]:
    order = SampleOrder(len(data), count * size, seed).step(0)
    chosen = [order[number * size : (number + 1) * size] for number in range(count)]
    labels = [", ".join(dict.fromkeys(data.take(rows[:1])["task"])) for rows in chosen]
    return [
        Part((number, rows), f"frames {', '.join(map(str, rows[:3]))}...: {label}")
        for number, (rows, label) in enumerate(zip(chosen, labels, strict=True))
    ]


def _loss(runner: StepRunner, policy: nn.Module, data: Samples, batch: tuple[int, Any]) -> Tensor:
    number, rows = batch
    return runner.forward(policy, data.take(rows), step=0, number=number)[0]


def _output_layer(policy: nn.Module, mapping: SymmetryMap) -> str:
    names = [spec.name for spec in mapping if spec.role in ("output", "lm_head")]
    action = [spec.name for spec in mapping if spec.label == "action:output"]
    if not names:
        raise ConfigError("the policy has no trainable output layer; train it, or leave policy.freeze out")
    return (action or names)[-1].rpartition(".")[0]


def _represent(
    runner: StepRunner, policy: nn.Module, data: Samples, layer: str, batch: tuple[int, Any]
) -> tuple[Tensor, Tensor]:
    """What the output layer reads, and the number of each one's task."""
    with _inputs_of(policy.get_submodule(layer)) as seen:
        _loss(runner, policy, data, batch)
    tasks = data.take(batch[1])["task"]
    states = seen[0].float().reshape(-1, *seen[0].shape[-2:])[: len(tasks)]  # a flow draws several times for a sample
    labels = torch.tensor([zlib.crc32(task.encode()) for task in tasks], device=states.device)
    return states.flatten(0, 1), labels.repeat_interleave(states.shape[1])


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()
