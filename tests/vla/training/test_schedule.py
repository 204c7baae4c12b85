"""Learning rates are LeRobot's, group by group."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from torch import nn

from rlspec.config.vla_schema import Training
from rlspec.errors import ConfigError
from rlspec.vla.training.schedule import build_scheduler, describe_schedule


def optimizer() -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    groups[1]["lr"] = 0.2
    return torch.optim.SGD(groups, lr=0.1)


def rates(settings: dict[str, Any], steps: int) -> list[list[float]]:
    sgd = optimizer()
    scheduler = build_scheduler(settings, sgd, steps)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        scheduler.step()
    return found


def test_cosine_annealing_follows_its_formula_for_every_group() -> None:
    found = rates({"type": "cosine_annealing_with_warmup", "num_warmup_steps": 4}, 12)
    shape = [step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 8)) for step in range(12)]
    assert found == [pytest.approx([0.1 * value, 0.2 * value]) for value in shape]


def test_cosine_decay_equals_lerobots_own() -> None:
    settings: dict[str, Any] = {"num_warmup_steps": 2, "num_decay_steps": 40, "peak_lr": 0.1, "decay_lr": 0.01}
    theirs = optimizer()
    scheduler = CosineDecayWithWarmupSchedulerConfig(**settings).build(theirs, 10)
    expected = []
    for _ in range(10):
        expected.append([group["lr"] for group in theirs.param_groups])
        theirs.step()
        scheduler.step()
    assert rates({"type": "cosine_decay_with_warmup", **settings}, 10) == expected


def test_a_run_that_is_longer_than_its_schedule_is_told_so() -> None:
    def said(**changes: Any) -> str:
        settings = {"type": "cosine_decay_with_warmup", "num_warmup_steps": 2, "peak_lr": 1e-4, "decay_lr": 2.5e-6}
        return describe_schedule(Training(steps=60_000, scheduler=settings | {"num_decay_steps": 20_000} | changes))

    assert said() == (
        "cosine_decay_with_warmup, at its floor of 2.5e-06 from step 20000 on: "
        "training.scheduler.num_decay_steps=60000 spans the run"
    )
    quiet = "cosine_decay_with_warmup"
    assert said(num_decay_steps=60_000) == said(decay_lr=1e-4) == quiet
    assert said(type="constant_with_warmup") == "constant_with_warmup"
    assert describe_schedule(Training(scheduler={"type": quiet})) == quiet, "what is missing is said by the scheduler"


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="cosine_annealing_with_warmup.*num_warmup_steps"):
        build_scheduler({"type": "cosine_annealing_with_warmup"}, optimizer(), 10)
