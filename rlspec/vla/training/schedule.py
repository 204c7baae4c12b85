"""The learning rate over a run: LeRobot's schedulers by their own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot.optim.schedulers import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlspec.config.vla_schema import Training
from rlspec.errors import ConfigError


def build_scheduler(settings: Mapping[str, Any], optimizer: Optimizer, steps: int) -> LRScheduler:
    """LeRobot's scheduler of that `type` over all `steps` of a run; it multiplies every group's learning rate.

    Raises:
        ConfigError: A setting is missing or impossible.
    """
    fields = dict(settings)
    kind = fields.pop("type")
    try:
        scheduler = LRSchedulerConfig.get_choice_class(kind)(**fields).build(optimizer, steps)
    except (TypeError, ValueError, ImportError, ZeroDivisionError) as error:
        raise ConfigError(f"training.scheduler: {kind}: {' '.join(str(error).split())}") from error
    assert scheduler is not None
    return scheduler


def describe_schedule(training: Training) -> str:
    """Its type, and from where on a longer run stands at its floor: LeRobot shortens a schedule and stretches none."""
    settings, steps = training.scheduler, training.steps
    kind, end = str(settings.get("type")), settings.get("num_decay_steps", steps)
    floor, peak = settings.get("decay_lr"), settings.get("peak_lr")
    if kind != "cosine_decay_with_warmup" or floor is None or floor == peak or end >= steps:
        return kind
    words = f"{kind}, at its floor of {floor:g} from step {end} on"
    return f"{words}: training.scheduler.num_decay_steps={steps} spans the run"


def stretched_schedule(training: Training, stored: Mapping[str, Any]) -> str | None:
    """The scheduler's type, if it spans the run and the run's length has changed."""
    kind = str(training.scheduler.get("type"))
    return None if stored["steps"] == training.steps or kind.startswith("constant") else kind
