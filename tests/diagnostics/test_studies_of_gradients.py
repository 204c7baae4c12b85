"""Spectra, noise and advice of gradients that were made to have known answers."""

from __future__ import annotations

import math

import pytest
import torch
from subjects import given_gradients, noisy, with_spectrum
from torch import nn

from rlspec.diagnostics.studies import advice, curvature, noise, spectra
from rlspec.errors import CheckpointError, ConfigError, DataError
from rlspec.optim import symmetry_map

ROWS, COLS = 24, 40


def test_the_spectrum_is_that_of_the_mean_gradient() -> None:
    gradients = noisy(with_spectrum([2.0, 1.0], ROWS, COLS), 1.0, 6)
    (found,) = spectra.study(given_gradients(gradients)).numbers["gradient"]
    values = torch.linalg.svdvals(torch.stack(gradients).mean(0))
    assert found["stable"] == pytest.approx(float(values.square().sum() / values[0] ** 2))
    assert found["norm"] == pytest.approx(float(values.norm()))
    share = values / values.sum()
    assert found["effective"] == pytest.approx(float((-(share * share.log()).sum()).exp()))


def test_adamw_goes_by_its_second_moment_where_that_is_stored() -> None:
    subject = given_gradients([torch.ones(3, 4)] * 4)
    subject.momenta = {"0.weight": torch.ones(3, 4)}
    subject.variances = {"0.weight": torch.tensor([1.0, 4.0, 9.0])[:, None].expand(3, 4)}
    result = spectra.study(subject)
    assert result.numbers["momentum"][0]["passes"]["adamw"] == pytest.approx(1.0, abs=1e-6)  # still of rank one
    subject.variances = {"0.weight": torch.rand(3, 4) + 0.1}
    update = 1 / (subject.variances["0.weight"].sqrt() + 1e-8)
    values = torch.linalg.svdvals(update)
    wanted = float(values.square().sum() / values[0] ** 2)
    assert spectra.study(subject).numbers["momentum"][0]["passes"]["adamw"] == pytest.approx(wanted, rel=1e-4)


def test_signal_to_noise_is_the_ratio_that_the_gradients_were_made_with() -> None:
    (found,) = noise.measure(given_gradients(noisy(with_spectrum([3.0, 1.0], ROWS, COLS), 40.0, 200)))
    assert found.snr == pytest.approx(10 / 40, rel=0.1)


def test_signal_to_noise_of_nothing_but_noise_is_zero_on_average() -> None:
    values = [noise.measure(given_gradients(noisy(torch.zeros(ROWS, COLS), 1.0, 8, seed)))[0].snr for seed in range(40)]
    spread = torch.tensor(values).std() / len(values) ** 0.5
    assert abs(sum(values) / len(values)) < 3 * spread < 0.01


def test_a_direction_has_the_signal_that_lies_along_it() -> None:
    """Noise of 40 is 40 / (rows cols) along any direction, signal 3^2 along the first and nothing along the third."""
    per_direction = 40 / (ROWS * COLS)
    subject = given_gradients(noisy(with_spectrum([3.0, 1.5], ROWS, COLS), 40.0, 400))
    (found,) = noise.measure(subject)
    assert found.directions[0] == pytest.approx(9 / per_direction, rel=0.15)
    assert found.directions[1] == pytest.approx(2.25 / per_direction, rel=0.25)
    assert abs(found.directions[2]) < 0.05 * found.directions[1]


def test_halves_agree_where_a_gate_keeps_the_signal_and_not_where_noise_passes() -> None:
    subject = given_gradients(noisy(with_spectrum([3.0], ROWS, COLS), 40.0, 32))
    (found,) = noise.measure(subject)
    assert found.agreement["k_p=0"] > 0.9 > 0.3 > found.agreement["muon"]
    assert found.gain["k_p=0"] > 1 > found.gain["muon"]
    closed = noise.measure(given_gradients(noisy(torch.zeros(ROWS, COLS), 40.0, 8)))[0]
    assert math.isnan(closed.agreement["k_p=0"])
    assert abs(closed.agreement["muon"]) < 0.15


def test_halves_that_are_alike_agree_and_win_what_the_gradient_wins_by_its_own_direction() -> None:
    (found,) = noise.measure(given_gradients([with_spectrum([1.0], ROWS, COLS)] * 4))
    assert list(found.agreement.values()) == pytest.approx([1.0] * len(noise.FILTERS), abs=1e-6)
    assert found.gain["k_p=0"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("signal", "strength", "rule", "steps"),
    [
        (with_spectrum([1.0] * ROWS, ROWS, COLS), 0.1, "muon", None),
        (with_spectrum([3.0], ROWS, COLS), 40.0, "pion", 2),
        (torch.zeros(ROWS, COLS), 40.0, "adamw or muon", None),
    ],
    ids=["no noise", "one direction in noise", "noise alone"],
)
def test_advice_opens_as_far_as_there_is_signal(
    signal: torch.Tensor, strength: float, rule: str, steps: int | None
) -> None:
    result = advice.study(given_gradients(noisy(signal, strength, 32)))
    (said,) = result.numbers["roles"].values()
    assert said["rule"] in rule
    assert said.get("promotion_steps") == steps
    assert said["reason"]


def test_the_advised_override_is_one_that_a_recipe_takes() -> None:
    import shlex

    from rlspec.config.load import load_recipe

    said = [
        advice.Advice("attention.q", "pion", 1, ""), advice.Advice("mlp.down", "muon", None, ""),
        advice.Advice("action:attention", "pion", 0, ""), advice.Advice("attention.k", "adamw", None, ""),
        advice.Advice("embed", "adamw", None, ""),
    ]  # fmt: skip
    roles = load_recipe(["recipe=grpo_math", *shlex.split(advice.override(said))]).optim.roles
    assert isinstance(roles, dict)
    assert set(roles) == {"attention.q", "mlp.down", "action:attention", "attention.k"}
    assert (roles["attention.q"].rule, roles["attention.q"].promotion_steps) == ("pion", 1)


def test_what_cannot_be_looked_at_is_said_in_a_line() -> None:
    with pytest.raises(ConfigError, match="parts=2: halves need two each"):
        noise.measure(given_gradients([torch.ones(3, 4)] * 2))
    with pytest.raises(ConfigError, match="role=mlp: no matrix has it; there are linear"):
        given_gradients([torch.ones(3, 4)], role="mlp").specs()
    with pytest.raises(CheckpointError, match=r"gradient of 0.weight has NaN or Inf \(part 1\)"):
        spectra.study(given_gradients([torch.ones(3, 4), torch.full((3, 4), torch.nan)]))


def test_directions_of_nothing_but_noise_have_no_signal_on_average() -> None:
    """The ratio's expectation is not that of its parts: without a correction it is 0.05 here."""
    nothing, found = torch.zeros(ROWS, COLS), []
    for seed in range(40):
        (block,) = noise.measure(given_gradients(noisy(nothing, 1.0, 16, seed=seed)))
        found += block.directions
    assert abs(sum(found) / len(found)) < 0.02


def test_of_few_parts_nothing_is_said_of_one_direction() -> None:
    (block,) = noise.measure(given_gradients(noisy(torch.zeros(ROWS, COLS), 1.0, 6)))
    assert all(map(math.isnan, block.directions))


def test_advice_is_given_for_what_was_looked_at_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = noisy(with_spectrum([1.0], ROWS, COLS), 0.1, 8)
    whole = given_gradients(gradients)
    model = nn.Sequential(whole.model[0], nn.LayerNorm(ROWS), nn.Linear(ROWS, 5)).double()
    whole.model, whole.mapping = model, symmetry_map(model, rule="muon")
    whole.loss = lambda gradient: (model[0].weight * gradient).sum()
    roles = advice.study(whole).numbers["roles"]
    role = whole.mapping.specs[0].label
    assert {"norm", "bias", role} <= roles.keys() and roles["norm"]["reason"].startswith("no matrix")
    whole.role = role
    result = advice.study(whole)
    assert result.numbers["roles"].keys() == {role} and not any("norm" in note for note in result.notes)
    monkeypatch.setattr("rlspec.diagnostics.subject.LARGEST", 100)
    with pytest.raises(ConfigError, match=rf"{role}.*: matrices of more than 100 values are not looked at"):
        advice.study(whole)


def test_the_curvature_of_no_gradient_is_no_result() -> None:
    with pytest.raises(DataError, match="no gradient"):
        curvature.study(given_gradients([torch.zeros(ROWS, COLS)] * 4))
