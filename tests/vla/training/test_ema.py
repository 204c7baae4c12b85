"""The average of weights against a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlspec.errors import CheckpointError
from rlspec.vla.training.ema import Ema, replaced


def test_averages_equal_a_plain_loop_over_the_same_weights() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64).float())
    ema = Ema({"weight": parameter}, 0.9)
    expected = [0.0, 0.0, 0.0]
    for step in range(1, 101):
        values = [float(step), float(step**2 % 17), -1.0]
        with torch.no_grad():
            parameter.copy_(torch.tensor(values))
        ema.update()
        decay = 0.9 if step >= 80 else (1 + step) / (10 + step)  # (1 + 80) / (10 + 80) = 0.9
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values, strict=True)]
    assert ema.averages["weight"].tolist() == pytest.approx(expected, rel=1e-5)


def test_bf16_weights_are_averaged_in_float32() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = Ema({"weight": parameter}, 0.999)
    ema.steps = 10**6
    with torch.no_grad():
        parameter.mul_(2)
    for _ in range(100):
        ema.update()
    assert float(ema.averages["weight"]) == pytest.approx(2 - 0.999**100, rel=1e-4)
    with replaced({"weight": parameter}, ema.averages):
        assert parameter.dtype == torch.bfloat16
        assert parameter.item() == pytest.approx(2 - 0.999**100, rel=1e-2)


def test_weights_come_back_after_the_averages_even_after_an_error() -> None:
    parameter = nn.Parameter(torch.tensor([5.0]))
    ema = Ema({"weight": parameter}, 0.5)
    ema.averages["weight"].fill_(1.0)
    with pytest.raises(ZeroDivisionError), replaced({"weight": parameter}, ema.averages):
        assert parameter.item() == 1.0
        raise ZeroDivisionError
    assert parameter.item() == 5.0


def test_a_state_goes_on_and_a_foreign_one_is_named() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    first, second = Ema({"weight": parameter}, 0.9), Ema({"weight": parameter}, 0.9)
    with torch.no_grad():
        parameter.fill_(3.0)
    first.update()
    second.load_state_dict(first.state_dict())
    assert (second.steps, second.averages) == (1, first.averages)
    with pytest.raises(CheckpointError, match="bias"):
        Ema({"bias": parameter}, 0.9).load_state_dict(first.state_dict())
