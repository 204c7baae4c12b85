"""Which parameters an entry of policy.freeze means, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.config.vla_schema import Freeze
from rlspec.errors import ConfigError
from rlspec.vla.training.freezing import FreezeSchedule, plan_freezing

PARTS = {"eye.weight": "vision", "eye.bias": "vision", "words.weight": "language", "hand.weight": "action"}


def mapping(parts: dict[str, str] = PARTS) -> Any:
    class Map(list[Any]):
        pass

    return Map([SimpleNamespace(name=name, modality=part) for name, part in parts.items()])


def test_entries_name_parts_or_patterns_and_the_last_one_counts() -> None:
    entries = [Freeze(part="vision"), Freeze(part="language", until=5), Freeze(pattern=r"eye\.bias$", until=3)]
    schedule = plan_freezing(entries, mapping())
    assert schedule.never == {"eye.weight"}
    assert schedule.until == {"words.weight": 5, "eye.bias": 3}
    assert schedule.frozen_at(2) == {"eye.weight", "words.weight", "eye.bias"}
    assert schedule.frozen_at(3) == {"eye.weight", "words.weight"}
    assert schedule.frozen_at(5) == {"eye.weight"}
    assert [step for step in range(1, 8) if schedule.changes_at(step)] == [3, 5]


def test_only_parameters_of_the_schedule_are_touched() -> None:
    model = nn.ModuleDict({"eye": nn.Linear(1, 1), "hand": nn.Linear(1, 1)})
    model["hand"].weight.requires_grad_(False)
    schedule = FreezeSchedule(frozenset(), {"eye.weight": 3})
    model["eye"].weight.grad = torch.ones(1, 1)
    schedule.apply(model, 2)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert wanted == {"eye.weight": False, "eye.bias": True, "hand.weight": False, "hand.bias": True}
    assert model["eye"].weight.grad is None
    schedule.apply(model, 3)
    assert model["eye"].weight.requires_grad
    assert not model["hand"].weight.requires_grad


@pytest.mark.parametrize(
    ("entry", "parts", "said"),
    [
        (Freeze(part="connector"), PARTS, "part=connector.*its parts are action, language, vision"),
        (Freeze(part="vision"), {"a": ""}, "no known parts: use pattern"),
        (Freeze(pattern="feet"), PARTS, "pattern=feet.*eye.weight"),
        (Freeze(pattern="."), PARTS, "nothing is left to train"),
    ],
)
def test_entries_that_mean_nothing_or_all_are_refused(entry: Freeze, parts: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_freezing([entry], mapping(parts))
