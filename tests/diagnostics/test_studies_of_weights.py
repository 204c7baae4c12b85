"""The study of weights: numbers of known matrices, and activations against their covariance."""

from __future__ import annotations

import pytest
import torch
from subjects import given_gradients, with_spectrum
from torch import nn

from rlspec.diagnostics.measures.ranks import utilisation
from rlspec.diagnostics.studies import weights
from rlspec.diagnostics.studies.weights import covariances
from rlspec.diagnostics.subject import Part
from rlspec.optim import symmetry_map


def test_ranks_and_norms_are_those_of_the_weights() -> None:
    subject = given_gradients([torch.ones(12, 9)])
    with torch.no_grad():
        subject.model[0].weight.copy_(with_spectrum([4.0, 2.0, 2.0], 12, 9))
    (found,) = weights.study(subject).numbers["matrices"]
    assert found["spectral"] == pytest.approx(4)
    assert found["stable"] == pytest.approx(24 / 16)
    assert found["effective"] == pytest.approx(2 * 2**0.5)  # entropy of 1/2, 1/4, 1/4
    assert found["rms"] == pytest.approx((24 / 108) ** 0.5)


def test_the_covariance_is_that_of_all_rows_that_a_module_reads() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    rows = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    with covariances(model, ["0", "1"]) as found:
        for part in rows:
            model[0](part)
    wanted = torch.cov(rows.flatten(0, 1).double().T, correction=0)
    assert found["0"] is not None
    torch.testing.assert_close(found["0"], wanted)
    assert found["1"] is None
    assert not model[0]._forward_pre_hooks


def test_utilisation_is_that_of_the_hidden_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            return self.fc2(self.fc1(rows).relu())

    subject = given_gradients([torch.ones(2, 2)])
    subject.model = model = nn.ModuleDict({"mlp": Block()}).double()
    subject.mapping = symmetry_map(model, rule="muon")
    rows = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    subject.parts = [Part(rows, "rows")]
    subject.represent = lambda batch: (model["mlp"](batch), torch.zeros(50))
    (found,) = weights.study(subject).numbers["utilisation"]
    hidden = model["mlp"].fc1(rows).relu().detach()
    wanted = utilisation(torch.linalg.eigvalsh(torch.cov(hidden.T, correction=0)).clamp(min=0))
    assert [found["hard"], found["soft"], found["both"]] == pytest.approx([float(each) for each in wanted])
