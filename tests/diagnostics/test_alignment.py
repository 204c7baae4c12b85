"""The live warning: shares of inputs that are known, when it speaks, and when it is silent."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from rlspec.diagnostics.alignment import SpectralAlignment
from rlspec.optim import SpectralOptimizer, build_optimizer


class Model(nn.Module):
    """A linear layer whose strongest direction is the first axis, and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.lm_head = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.diag_embed(torch.tensor([5.0, 1.0, 0.5, 0.1]), 0, -2, -1).new_zeros(6, 4))
            self.linear.weight[:4] = torch.diag(torch.tensor([5.0, 1.0, 0.5, 0.1]))

    def forward(self, rows: Tensor) -> Tensor:
        return self.lm_head(self.linear(rows))


def inputs(positive: int, negative: int) -> Tensor:
    """Rows on either side of the first axis."""
    sides = torch.tensor([1.0] * positive + [-1.0] * negative)
    return torch.cat([sides[:, None], torch.randn(len(sides), 3, generator=torch.Generator().manual_seed(0))], 1)


def course(shares: list[tuple[int, int]], *, every: int = 1) -> tuple[list[dict[str, float]], SpectralAlignment]:
    """What the probe says after each step of these inputs; the weights stand still."""
    model = Model()
    optimizer: SpectralOptimizer = build_optimizer(model, rule="muon", lr=0.0)
    probe = SpectralAlignment(every=every)
    probe(model, optimizer)
    found = []
    for positive, negative in [shares[0], *shares]:  # the first step is what a layer begins with
        model(inputs(positive, negative)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(probe(model, optimizer).numbers)
    assert found[0] == {}
    return found[1:], probe


def test_the_share_is_that_of_inputs_on_the_larger_side() -> None:
    found, _ = course([(5, 5), (2, 8), (9, 1)])
    assert [each["alignment/largest"] for each in found] == pytest.approx([0.5, 0.8, 0.9])


def test_the_output_is_measured_by_its_root_mean_square() -> None:
    torch.manual_seed(0)
    model = Model()
    optimizer = build_optimizer(model, rule="muon", lr=0.0)
    probe = SpectralAlignment(every=1)
    probe(model, optimizer)
    for _ in range(2):
        result = model(inputs(3, 3))
        result.sum().backward()
        optimizer.step()
    assert probe(model, optimizer).numbers["output/rms"] == pytest.approx(
        float(result.detach().square().mean().sqrt()), rel=1e-5
    )


def test_a_reading_tells_of_the_newest_measurement_and_of_each_one_once() -> None:
    model = Model()
    optimizer = build_optimizer(model, rule="muon", lr=0.0)
    probe = SpectralAlignment(every=1)
    probe(model, optimizer)
    for positive, negative in [(1, 1), (5, 5), (8, 2)]:
        model(inputs(positive, negative)).sum().backward()
        optimizer.step()
    assert probe(model, optimizer).numbers["alignment/largest"] == pytest.approx(0.8)
    assert probe(model, optimizer).numbers == {}


def test_it_warns_once_after_three_measurements_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        course([(5, 5), (20, 0), (20, 0), (5, 5), (20, 0), (20, 0)])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        course([(5, 5), *[(20, 0)] * 6])
    (said,) = caplog.messages
    assert said.startswith("all inputs of 1 of 1 layers (linear, ...) lie on one side")
    assert "95% or more in 3 measurements" in said


@pytest.mark.parametrize(("aligned", "warned"), [(1, False), (2, True), (3, True)])
def test_it_warns_of_half_of_the_layers_not_of_one(
    aligned: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A policy that reached 100% had seven such layers for 2,000 steps."""
    model = nn.ModuleList(Model() for _ in range(4))
    optimizer = build_optimizer(model, rule="muon", lr=0.0, roles={"linear": "muon"})
    probe = SpectralAlignment(every=1)
    with caplog.at_level(logging.WARNING):
        probe(model, optimizer)
        for step in range(6):
            for number, part in enumerate(model):
                part(inputs(20, 0) if step and number < aligned else inputs(5, 5)).sum().backward()
            optimizer.step()
            reading = probe(model, optimizer)
    assert bool(caplog.records) == warned
    assert reading.panel == f"aligned layers {aligned} of 4"


def test_a_layer_that_begins_aligned_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, _ = course([(20, 0)] * 6)
    assert not caplog.records
    assert "alignment/largest" not in found[-1]


def test_only_training_passes_of_every_tenth_step_are_measured() -> None:
    found, probe = course([(5, 5)] * 21, every=10)
    assert [bool(each) for each in found].count(True) == 2
    model = Model()
    optimizer = build_optimizer(model, rule="muon", lr=0.0)
    other = SpectralAlignment(every=1)
    other(model, optimizer)
    model(inputs(1, 1)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model(inputs(9, 0))  # a rollout
    optimizer.step()
    assert other(model, optimizer).numbers == {}
