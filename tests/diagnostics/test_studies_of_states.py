"""Geometry, data and basis of made-up subjects."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from subjects import given_gradients, noisy, with_spectrum

from rlspec.diagnostics.studies import basis, data, geometry
from rlspec.errors import ConfigError


def test_problems_are_ordered_by_how_far_they_agree_with_the_others() -> None:
    signal = with_spectrum([1.0], 12, 9)
    gradients = [*noisy(signal, 0.01, 5), -signal, torch.zeros(12, 9), noisy(torch.zeros(12, 9), 4.0, 1)[0]]
    rows = data.study(given_gradients(gradients)).numbers["parts"]
    order = [int(row["label"].split()[1]) for row in rows]
    assert set(order[:5]) == {0, 1, 2, 3, 4} and order[6] == 5 and order[7] == 6
    assert math.isnan(rows[-1]["agreement"]) and rows[-1]["norm"] == 0
    by_label = {row["label"]: row for row in rows}
    others = sum(each for index, each in enumerate(gradients) if index != 2)
    wanted = float((gradients[2] * others).sum() / (gradients[2].norm() * others.norm()))
    assert by_label["part 2"]["agreement"] == pytest.approx(wanted)
    values = torch.linalg.svdvals(gradients[7])
    assert by_label["part 7"]["stable"] == pytest.approx(float(values.square().sum() / values[0] ** 2))


def test_geometry_is_measured_at_every_checkpoint_on_the_same_parts(tmp_path: Path) -> None:
    subject = given_gradients([torch.randn(60, 9, generator=torch.Generator().manual_seed(0))])
    model = subject.model
    points = torch.randn(60, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    subject.represent = lambda _: (points @ model[0].weight.T, torch.arange(60) % 3)
    for step, values in ((5, [1.0] * 9), (7, [1.0] + [1e-6] * 8)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"0.weight": with_spectrum(values, 60, 9)}, folder / "model.safetensors")
        subject.checkpoints = {**subject.checkpoints, step: folder}
    rows = geometry.study(subject).numbers["steps"]
    assert [row["step"] for row in rows] == ["5", "7"]
    assert rows[0]["RankMe"] > 8 > 1.1 > rows[1]["RankMe"]
    assert rows[0]["diffusion entropy"] > rows[1]["diffusion entropy"]


def test_states_on_a_curve_are_caught_by_learnt_functions_and_not_by_linear_ones() -> None:
    subject = given_gradients([torch.ones(3, 4)])
    angle = torch.linspace(0, 18, 800)[:, None]
    curve = torch.cat([angle.cos(), angle.sin(), 0.2 * angle], 1)
    subject.represent = lambda _: (curve, torch.zeros(800, dtype=torch.long))
    rows = basis.study(subject).numbers["basis"]
    assert rows[-1]["captured"] > 0.8 > rows[-1]["linear"]
    subject.represent = lambda _: (curve[:20], torch.zeros(20, dtype=torch.long))
    with pytest.raises(ConfigError, match="20 states are too few for 12 functions"):
        basis.study(subject)
