"""No product meets a subnormal number, which would take a CPU up to a hundred times longer, whatever a gradient is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from rlspec.optim import SpectralOptimizer
from rlspec.optim.kernels.blocks import flush_

ROWS, COLS = 64, 96


def drawn() -> Tensor:
    return torch.randn(ROWS, COLS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


GRADIENTS = {
    "gaussian": drawn(),
    "rows fade out": drawn() * torch.logspace(0, -40, ROWS, dtype=torch.float64)[:, None],
    "columns that are hardly there": drawn() * torch.tensor([1.0, 1e-41] * (COLS // 2), dtype=torch.float64),
    "tiny altogether": drawn() * 1e-42,
    "two blocks that hardly meet": torch.block_diag(drawn()[:32, :48], drawn()[:32, :48]) + 1e-20 * drawn(),
    "one direction and noise": torch.outer(drawn()[:, 0], drawn()[0]) + 1e-18 * drawn(),
}
RULES = {
    "muon": {"rule": "muon"},
    "a gate that shuts": {"rule": "pion", "promotion_steps": 0},
    "a gate for each block": {"rule": "pion", "promotion_steps": "auto", "num_heads": 4},
    "a gate between": {"rule": "pion", "promotion_steps": 1.5},
}


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("rule", RULES)
def test_hardly_a_factor_of_a_product_is_so_small_that_the_product_is_subnormal(
    rule: str, gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[Tensor] = []
    bmm, baddbmm = torch.bmm, torch.baddbmm
    monkeypatch.setattr(torch, "bmm", lambda *args, **kwargs: met.extend(args) or bmm(*args, **kwargs))
    monkeypatch.setattr(torch, "baddbmm", lambda *args, **kwargs: met.extend(args) or baddbmm(*args, **kwargs))
    for dtype in (torch.float32, torch.float64):
        met.clear()
        weight = nn.Parameter(torch.zeros(ROWS, COLS, dtype=dtype))
        weight.grad = GRADIENTS[gradient].to(dtype)
        SpectralOptimizer([weight], lr=1.0, compute_dtype=str(dtype).removeprefix("torch."), **RULES[rule]).step()
        bound = math.sqrt(torch.finfo(dtype).tiny / torch.finfo(dtype).eps)
        assert len(met) > 5
        small = [((factor != 0) & (factor.abs() < bound)).sum() for factor in met]
        assert sum(small) < 0.01 * sum(factor.numel() for factor in met)


def test_only_what_no_product_could_see_is_flushed() -> None:
    values = torch.tensor([1.0, -1e-3, 3.2e-16, 3.1e-16, -1e-30, 1e-42, 0.0, float("nan"), float("-inf")])
    expected = torch.tensor([1.0, -1e-3, 3.2e-16, 0.0, 0.0, 0.0, 0.0, float("nan"), float("-inf")])
    double, half = values.double(), values.bfloat16()
    assert flush_(values) is values
    assert torch.equal(values.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(flush_(double.clone())[:6], double[:6])
    assert torch.equal(flush_(half.clone())[:6], half[:6])  # matrix units take its subnormal numbers for 0
