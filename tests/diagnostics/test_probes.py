"""What probes read off a model and its optimizer, and what the line of a step says of it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.diagnostics.idle import EVERY, IdleRoles
from rlspec.diagnostics.probes import PROBES, Reading, gates, read_probes, updates
from rlspec.display import Display
from rlspec.optim import build_optimizer


def telling(**roles: dict[str, float]) -> Any:
    """Stands in for an optimizer."""
    told = {name.replace("_", "."): numbers for name, numbers in roles.items()}
    return SimpleNamespace(telemetry=lambda: told, zero_steps=lambda: 0)


def test_a_panel_has_the_mean_of_each_kind_of_role_and_of_the_gate() -> None:
    optimizer = telling(
        attention_q={"update_rms": 0.2, "gated_share": 0.5},
        attention_o={"update_rms": 0.1, "gated_share": 0.0},
        embed={"update_rms": 9.0},
    )
    reading = updates(nn.Linear(1, 1), optimizer)
    assert reading.panel == "update/lr attention 0.150  gated 25%"
    assert reading.numbers["optim/attention.q/gated_share"] == 0.5
    assert updates(nn.Linear(1, 1), telling()) == Reading({})


def test_numbers_are_those_of_the_step_that_was_taken() -> None:
    model = nn.Linear(6, 4, bias=False)
    optimizer = build_optimizer(model, rule="muon", lr=0.1)
    optimizer.collect_telemetry = True
    before = model.weight.detach().clone()
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    numbers = read_probes(model, optimizer).numbers
    (moved,) = [value for key, value in numbers.items() if key.endswith("/update_rms")]
    assert moved == pytest.approx(float((model.weight.detach() - before).square().mean().sqrt()) / 0.1, rel=1e-4)


def test_gates_are_read_as_the_mean_of_their_tanh() -> None:
    model = nn.Module()
    model.add_module("head", nn.Module())
    model.head.gating_factor = nn.Parameter(torch.tensor([0.0, 2.0]))
    assert gates(model, telling()).numbers == {"gate/head": pytest.approx(math.tanh(2) / 2)}


def test_all_probes_are_one_reading_and_silent_ones_leave_no_gap() -> None:
    assert (gates, updates) == PROBES
    said = [Reading({"a": 1.0}, "one"), Reading({"b": 2.0}), Reading({"c": 3.0}, "two")]
    together = read_probes(nn.Linear(1, 1), telling(), [lambda *_, each=each: each for each in said])
    assert together == Reading({"a": 1.0, "b": 2.0, "c": 3.0}, "one  two")


def test_roles_that_stand_still_are_named_once_and_not_those_that_are_frozen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    idle: Any = SimpleNamespace(inactive_spectral_groups=lambda: ["mlp", "vision:mlp"])
    roles = IdleRoles(Display("plain"))
    roles.look(EVERY - 1, idle)
    assert capsys.readouterr().out == ""
    roles.look(EVERY, idle, frozen=lambda: ["vision:mlp"])
    assert "no update reached mlp in the last steps" in capsys.readouterr().out
    roles.look(2 * EVERY, idle)
    assert "no update reached vision:mlp in the last steps" in capsys.readouterr().out
