"""Learning rates that do the same elsewhere, measured on real steps: float64 SVD of what the weights did."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.transfer import (
    ADAMW_RMS,
    adamw_weight_decay,
    batch_lr,
    equivalent_lr,
    transfer_lr,
    transfer_weight_decay,
    update_rms,
)

MODES = ("match_rms_adamw", "match_spectral_adamw", "original", "spectral", "paper", "none")
WIDTHS = (32, 64, 128, 256)
EXACT = {"schedule": "polar_express", "ns_steps": 12, "momentum": 0.0}
"""Twelve steps put every singular value of these gradients on 1."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_step(gradient: Tensor, **settings: Any) -> Tensor:
    """Minus the change of a weight that starts at zero."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    SpectralOptimizer([weight], **settings).step()
    return -weight.detach()


def rms_to_rms(update: Tensor) -> float:
    rows, cols = update.shape
    return float(torch.linalg.matrix_norm(update, 2)) * math.sqrt(cols / rows)


def rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def norms(mode: str, aspect: float, lr: Any) -> list[float]:
    """Of the first Muon step of layers of four widths."""
    found = []
    for width in WIDTHS:
        shape = int(aspect * width), width
        found.append(rms_to_rms(one_step(draw(*shape), lr=lr(shape), adjust_lr=mode, **EXACT)))
    return found


class TestWidth:
    @pytest.mark.parametrize("aspect", [0.25, 1.0, 2.0])
    def test_under_spectral_the_same_lr_moves_features_equally_at_every_width(self, aspect: float) -> None:
        assert norms("spectral", aspect, lambda _: 0.02) == pytest.approx([0.02] * 4, rel=1e-6)

    def test_under_match_rms_the_same_lr_moves_features_more_in_wider_layers(self) -> None:
        found = norms("match_rms_adamw", 1.0, lambda _: 0.02)
        assert [value / found[0] for value in found] == pytest.approx([1, 2**0.5, 2, 8**0.5], rel=1e-6)

    @pytest.mark.parametrize("mode", MODES)
    def test_transferred_lr_moves_features_equally_under_every_length(self, mode: str) -> None:
        base = 64, 64
        found = norms(mode, 2.0, lambda shape: transfer_lr(0.02, base, shape, mode))
        square = rms_to_rms(one_step(draw(*base), lr=0.02, adjust_lr=mode, **EXACT))
        assert found == pytest.approx([square] * 4, rel=1e-6)

    def test_the_factors_are_those_of_the_literature(self) -> None:
        assert transfer_lr(1e-3, (64, 64), (1024, 1024), "spectral") == 1e-3
        assert transfer_lr(1e-3, (64, 64), (1024, 1024), "match_rms_adamw") == pytest.approx(1e-3 / 4)
        assert transfer_lr(1e-3, (64, 64), (1024, 1024), "none") == pytest.approx(1e-3)
        assert transfer_lr(1e-3, (64, 64), (256, 1024), "match_rms_adamw", rule="adamw") == pytest.approx(1e-3 / 16)

    def test_one_passing_direction_of_pion_transfers_as_one_over_width(self) -> None:
        settings = {"rule": "pion", "promotion_steps": 0, "adjust_lr": "match_rms_adamw"}
        found = []
        for width in WIDTHS:
            gradient = torch.outer(draw(width), draw(width, seed=1))
            lr = transfer_lr(0.02, (64, 64), (width, width), "match_rms_adamw", rule="pion")
            assert lr == pytest.approx(0.02 * 64 / width)
            found.append(rms_to_rms(one_step(gradient, lr=lr, momentum=0.0, **settings)))
        assert found == pytest.approx([found[0]] * 4, rel=1e-6)

    @pytest.mark.parametrize(
        ("rule", "mode", "growth"),
        [("muon", "spectral", 0.0), ("muon", "match_rms_adamw", 0.5), ("adamw", "match_rms_adamw", 1.0)],
    )
    def test_features_of_a_training_example_change_as_the_norm_says(self, rule: str, mode: str, growth: float) -> None:
        """|dW x| / |x| (RMS) after one step on x itself, whose gradient has rank one; then with the lr transferred."""
        plain, corrected = [], []
        for width in WIDTHS:
            x = draw(width, seed=width).sign()
            gradient = torch.outer(draw(width, seed=1), x)
            base, shape = (WIDTHS[0], WIDTHS[0]), (width, width)
            for found, lr in ((plain, 0.02), (corrected, transfer_lr(0.02, base, shape, mode, rule=rule))):
                settings: dict[str, Any] = {"rule": rule, "lr": lr}
                settings |= EXACT | {"adjust_lr": mode} if rule == "muon" else {}
                found.append(rms(one_step(gradient, **settings) @ x) / rms(x))
        slope = math.log(plain[-1] / plain[0]) / math.log(WIDTHS[-1] / WIDTHS[0])
        assert slope == pytest.approx(growth, abs=1e-4)
        assert corrected == pytest.approx([corrected[0]] * 4, rel=1e-4)


class TestRootMeanSquare:
    @pytest.mark.parametrize("shape", [(64, 64), (48, 128), (128, 48)])
    @pytest.mark.parametrize("mode", MODES)
    def test_an_lr_of_adamw_moves_weights_equally_far_under_muon(self, mode: str, shape: tuple[int, int]) -> None:
        lr = equivalent_lr(1e-3, "muon", shape, "adamw", mode)
        assert rms(one_step(draw(*shape), lr=lr, adjust_lr=mode, **EXACT)) == pytest.approx(1e-3 * ADAMW_RMS, rel=1e-6)

    @pytest.mark.parametrize("mode", MODES)
    def test_with_the_directions_that_passed_it_holds_for_pion(self, mode: str) -> None:
        shape = 48, 128
        lr = equivalent_lr(1e-3, "pion", shape, "adamw", mode, energy=1.0)
        gradient = torch.outer(draw(48), draw(128, seed=1))
        update = one_step(gradient, rule="pion", promotion_steps=0, lr=lr, adjust_lr=mode, momentum=0.0)
        assert rms(update) == pytest.approx(1e-3 * ADAMW_RMS, rel=1e-6)

    @pytest.mark.parametrize("rule", ["row_norm", "centered_row_norm", "polar_then_row", "column_norm", "right_polar"])
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("shape", [(48, 12), (12, 48)])
    def test_the_rms_of_an_update_is_as_said(self, rule: str, mode: str, shape: tuple[int, int]) -> None:
        options = {"nuclear_exponent": 0.0} if rule == "right_polar" else {"stale_eps": 0.0}
        if mode == "match_spectral_adamw" and rule != "right_polar":
            with pytest.raises(ConfigError, match=f"rule {rule}: .* singular values"):
                update_rms(rule, shape, mode)
            return
        update = one_step(draw(*shape), rule=rule, lr=1.0, momentum=0.0, adjust_lr=mode, **options)
        assert rms(update) == pytest.approx(update_rms(rule, shape, mode), rel=1e-2)  # centering shortens rows a little

    @pytest.mark.parametrize(("rule", "rank"), [("trion", 5), ("low_rank_muon", 5), ("dion", 5)])
    def test_rules_of_a_rank_ask_for_it_where_it_matters(self, rule: str, rank: int) -> None:
        option = {"trion": {"dct_rank": 5, "ns_steps": 20, "schedule": "quintic"}, "dion": {"dion_rank": 5 / 12}}
        settings = option.get(rule, {"rank": 5})
        update = one_step(draw(48, 12), rule=rule, lr=1.0, momentum=0.0, adjust_lr="none", **settings)
        assert rms(update) == pytest.approx(update_rms(rule, (48, 12), "none", energy=rank), rel=0.1)
        assert update_rms(rule, (48, 12), "match_rms_adamw") == pytest.approx(ADAMW_RMS)
        with pytest.raises(ConfigError, match="rank"):
            update_rms(rule, (48, 12), "none")

    def test_lengths_that_nobody_knows_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="gradient"):
            update_rms("auon", (8, 8), "none")
        with pytest.raises(ConfigError, match="row_norm"):
            transfer_lr(1.0, (8, 8), (16, 16), "none", rule="row_norm")

    def test_under_match_rms_the_lr_of_adamw_is_taken_as_it_is(self) -> None:
        for rule in ("muon", "pion", "adamw"):
            assert equivalent_lr(1e-3, rule, (48, 128), "adamw", "match_rms_adamw") == pytest.approx(1e-3)

    def test_pion_s_own_length_is_25_times_that_of_adamw_for_muon(self) -> None:
        assert equivalent_lr(1e-6, "muon", (2048, 6144), "paper", "match_rms_adamw") == pytest.approx(25e-6)

    def test_a_lora_pair_of_rank_r_moves_half_its_directions(self) -> None:
        found = update_rms("lora_muon", (2048, 2048), "match_rms_adamw", energy=16 / 2)
        assert found == pytest.approx(ADAMW_RMS * math.sqrt(16 / (2 * 2048)))

    def test_rules_with_adamw_s_own_length_move_as_adamw(self) -> None:
        assert update_rms("lora_rite", (64, 64), "match_rms_adamw") == ADAMW_RMS
        with pytest.raises(ConfigError, match="lora_rite"):
            transfer_lr(1e-3, (64, 64), (128, 128), "spectral", rule="lora_rite")

    @pytest.mark.parametrize("rule", ["auon", "scion", "scion_sign", "scion_row"])
    def test_rules_that_are_as_long_as_something_else_says_are_refused(self, rule: str) -> None:
        with pytest.raises(ConfigError, match=f"{rule}: its updates are as long as"):
            equivalent_lr(1e-3, rule, (64, 64), "adamw", "match_rms_adamw")

    def test_there_and_back_is_the_same(self) -> None:
        there = equivalent_lr(3e-4, "muon", (96, 256), "original", "spectral")
        assert equivalent_lr(there, "muon", (96, 256), "spectral", "original") == pytest.approx(3e-4, rel=1e-12)


class TestWeightDecay:
    def settle(self, width: int, lr: float, weight_decay: float) -> float:
        """RMS-to-RMS norm where steps in one constant direction and the decay balance."""
        weight = torch.nn.Parameter(torch.zeros(width, width, dtype=torch.float64))
        optimizer = SpectralOptimizer([weight], lr=lr, weight_decay=weight_decay, adjust_lr="match_rms_adamw", **EXACT)
        weight.grad = draw(width, width)
        for _ in range(120):
            optimizer.step()
        return rms_to_rms(weight.detach())

    def test_it_keeps_the_norm_that_muon_settles_at(self) -> None:
        lr, weight_decay = 0.1, 2.0
        base = self.settle(8, lr, weight_decay)
        wide = transfer_lr(lr, (8, 8), (32, 32), "match_rms_adamw")
        assert base == pytest.approx(0.2 * math.sqrt(8) / weight_decay, rel=1e-6)
        assert self.settle(32, wide, transfer_weight_decay(weight_decay, lr, wide)) == pytest.approx(base, rel=1e-6)
        assert self.settle(32, wide, weight_decay) > 1.5 * base

    @pytest.mark.parametrize("start", [0.2, 5.0])
    def test_decay_bounds_weights_by_their_start_or_the_step_over_the_decay(self, start: float) -> None:
        decay, step = 0.5, 1.0
        weight = torch.nn.Parameter(torch.linalg.qr(draw(6, 6)).Q * start)
        optimizer = SpectralOptimizer([weight], lr=0.3, weight_decay=decay, adjust_lr="none", **EXACT)
        norms = [start]
        for seed in range(60):
            weight.grad = draw(6, 6, seed=seed) + 3 * draw(6, 6)  # a drift, so that the bound is nearly reached
            optimizer.step()
            norms.append(float(torch.linalg.matrix_norm(weight.detach(), 2)))
        assert max(norms) <= max(start, step / decay) * (1 + 1e-9)
        assert norms[-1] > 0.8 * step / decay

    def test_adamw_s_keeps_the_published_steady_state(self) -> None:
        for width in (64, 256, 1024):
            lr = transfer_lr(1e-3, (64, 64), (width, width), "none", rule="adamw")
            decay = adamw_weight_decay(0.1, 64, width)
            assert math.sqrt(lr / decay) * width**0.75 == pytest.approx(math.sqrt(1e-3 / 0.1) * 64**0.75, rel=1e-12)


class TestBatch:
    def test_four_times_the_batch_takes_twice_the_lr_and_sgd_four_times(self) -> None:
        assert batch_lr(1e-3, 64, 256) == pytest.approx(2e-3)
        assert batch_lr(1e-3, 64, 256, exponent=1.0) == pytest.approx(4e-3)
        assert batch_lr(batch_lr(1e-3, 64, 256), 256, 64) == pytest.approx(1e-3)

    def test_muon_on_pure_noise_diffuses_alike_over_the_same_samples(self) -> None:
        """Variance of the sum of normalised steps, per sample seen: the argument behind the square root."""
        spread = []
        for batch in (1, 4, 16):
            lr, steps = batch_lr(0.01, 1, batch), 64 // batch
            total = torch.zeros(4, 24, 24, dtype=torch.float64)
            for index in range(steps):
                noise = torch.linalg.svd(draw(4, 24, 24, seed=1000 * batch + index), full_matrices=False)
                total += lr * noise.U @ noise.Vh
            spread.append(rms(total))
        assert spread == pytest.approx([spread[0]] * 3, rel=0.1)


class TestMistakes:
    @pytest.mark.parametrize(
        ("call", "named"),
        [
            (lambda: transfer_lr(1e-3, (64, 64), (128, 128), "spectrel"), "spectral"),
            (lambda: equivalent_lr(1e-3, "muo", (64, 64), "adamw", "none"), "muon"),
            (lambda: update_rms("muon", (0, 64), "none"), "shape"),
            (lambda: transfer_weight_decay(0.1, 1e-3, 0.0), "new_lr"),
            (lambda: batch_lr(1e-3, 0, 4), "base_batch"),
            (lambda: adamw_weight_decay(0.1, 64, -1), "width"),
        ],
    )
    def test_are_named(self, call: Any, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            call()
