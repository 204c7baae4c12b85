"""LoRA pairs: what a step does to W = W_0 + s B A, whatever the factors, against iMuon by SVD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_cases import (
    IN,
    OUT,
    RANK,
    ROTATING,
    RULES,
    SCALING,
    SETTINGS,
    change,
    conditioned,
    draw,
    gauge,
    inverse_root,
    make_pair,
    make_step,
    polar,
    relative,
    run,
    with_state,
)
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Pair, PairStage, Step
from rlspec.optim.kernels.schedules import high_pass_schedule, transfer
from rlspec.optim.stages.filters import gate_threshold
from rlspec.optim.stages.lora import LORA_MUON, LORA_PION
from rlspec.optim.stages.lora_adaptive import LORA_RITE


class TestGauge:
    @pytest.mark.parametrize("product_floor", [0.0, 1.0, 1e4])
    @pytest.mark.parametrize("condition", [1.0, 100.0])
    @pytest.mark.parametrize("name", RULES)
    def test_the_step_of_w_does_not_depend_on_how_b_a_is_factored(
        self, name: str, condition: float, product_floor: float
    ) -> None:
        pair, stage = make_pair(), RULES[name]
        other = gauge(pair, conditioned(condition, seed=9))
        moved = change(pair, run(stage, pair, make_step(product_floor=product_floor)))
        assert moved.norm() > 1e-3
        again = change(other, run(stage, other, make_step(product_floor=product_floor)))
        assert relative(again, moved) < 1e-10

    def test_muon_per_factor_is_invariant_under_rotations_only(self) -> None:
        def per_factor(pair: Pair, _: Step) -> tuple[Tensor, Tensor]:
            return polar(pair.direction_a), polar(pair.direction_b)

        pair, stage = make_pair(), PairStage(per_factor)
        moved = change(pair, stage(pair, make_step()))
        turned, stretched = gauge(pair, polar(conditioned(1, seed=9))), gauge(pair, conditioned(100, seed=9))
        assert relative(change(turned, stage(turned, make_step())), moved) < 1e-12
        assert relative(change(stretched, stage(stretched, make_step())), moved) > 0.5

    def test_lora_rite_stays_invariant_when_the_gauge_changes_between_steps(self) -> None:
        pair, step = make_pair(), make_step()
        other_step = make_step()
        for count in (1, 2, 3):
            pair = make_pair(seed=10 * count)
            other = gauge(pair, conditioned(30, seed=count))
            step.count = other_step.count = count
            moved = change(pair, run(LORA_RITE, pair, step))
            assert relative(change(other, run(LORA_RITE, other, other_step)), moved) < 1e-10

    @pytest.mark.parametrize("name", ROTATING)
    def test_rotations_of_rows_and_columns_rotate_the_step(self, name: str) -> None:
        q, p = polar(draw(OUT, OUT, seed=5)), polar(draw(IN, IN, seed=6))
        pair = make_pair()
        turned = Pair(
            pair.a @ p, q @ pair.b, pair.direction_a @ p, q @ pair.direction_b, pair.gradient_a @ p,
            q @ pair.gradient_b, SCALING,
        )  # fmt: skip
        moved = change(pair, run(RULES[name], pair, make_step()))
        assert relative(change(turned, run(RULES[name], turned, make_step())), q @ moved @ p) < 1e-10


class TestMuon:
    def test_each_half_moves_w_by_half_in_every_direction(self) -> None:
        pair = make_pair()
        d_a, d_b = run(LORA_MUON, pair, make_step())
        for half in (SCALING * pair.b @ d_a, SCALING * d_b @ pair.a):
            values = torch.linalg.svdvals(half)
            assert torch.allclose(values[:, :RANK], torch.tensor(0.5, dtype=torch.float64), atol=1e-8)
            assert float(values[:, RANK:].abs().max()) < 1e-12
        together = torch.linalg.matrix_norm(change(pair, (d_a, d_b)), 2)
        assert float(together.max()) <= 1 + 1e-8

    def test_its_halves_are_those_of_imuon(self) -> None:
        pair = make_pair()
        d_a, d_b = run(LORA_MUON, pair, make_step())
        root_b, root_a = inverse_root(pair.b.mT @ pair.b), inverse_root(pair.a @ pair.a.mT)
        assert relative(2 * SCALING * d_a, root_b @ polar(root_b @ pair.direction_a)) < 1e-8
        assert relative(2 * SCALING * d_b, polar(pair.direction_b @ root_a) @ root_a) < 1e-8

    def test_with_full_rank_and_orthogonal_a_the_half_of_b_is_muon_on_w(self) -> None:
        gradient = draw(3, OUT, OUT, seed=2)
        a, b = polar(draw(3, OUT, OUT, seed=1)), draw(3, OUT, OUT, seed=3)
        pair = make_pair(OUT, OUT, OUT, a=a, b=b, direction_a=b.mT @ gradient, direction_b=gradient @ a.mT)
        updates = run(LORA_MUON, pair, make_step())
        assert relative(2 * SCALING * updates[1] @ a, polar(gradient)) < 1e-6
        assert relative(change(pair, updates), polar(gradient)) < 1e-6

    def test_the_product_decays_as_a_weight_would(self) -> None:
        pair = make_pair()
        for lr in (1e-3, 1e-4):
            decay = lr * 0.1
            d_a, d_b = run(LORA_MUON, pair, make_step(lr=lr, weight_decay=0.1))
            root = math.sqrt(1 - decay)
            b, a = root * pair.b - lr * d_b, root * pair.a - lr * d_a
            plain = change(pair, run(LORA_MUON, pair, make_step(lr=lr)))
            expected = (1 - decay) * SCALING * pair.b @ pair.a - lr * plain
            second_order = lr**2 * SCALING * (d_b @ d_a).norm()
            assert abs(float((SCALING * b @ a - expected).norm()) - second_order) < 1e-10
            assert second_order < 10 * lr**2

    def test_bfloat16_factors_are_treated_in_float32(self) -> None:
        half = make_pair()
        rounded = [tensor.bfloat16() for tensor in (half.a, half.b, half.direction_a, half.direction_b)]
        wide = [tensor.double() for tensor in rounded]
        low = Pair(*rounded, *rounded[2:], SCALING)
        high = Pair(*wide, *wide[2:], SCALING)
        d_a, d_b = run(LORA_MUON, low, make_step(dtype=torch.float32))
        assert d_a.dtype == d_b.dtype == torch.float32
        assert relative(d_a.double(), run(LORA_MUON, high, make_step())[0]) < 1e-4


class TestPion:
    @pytest.mark.parametrize("promotion_steps", [0, 1, 2])
    def test_it_gates_the_spectrum_of_the_whitened_halves(self, promotion_steps: int) -> None:
        pair = make_pair()
        d_a, _ = run(LORA_PION, pair, make_step(promotion_steps=promotion_steps))
        basis = pair.b @ inverse_root(pair.b.mT @ pair.b)
        whitened = inverse_root(pair.b.mT @ pair.b) @ pair.direction_a
        values = torch.linalg.svdvals(whitened / torch.linalg.matrix_norm(whitened, keepdim=True))
        expected = transfer(values, high_pass_schedule(promotion_steps))
        found = torch.linalg.svdvals(2 * SCALING * basis.mT @ pair.b @ d_a)
        assert torch.allclose(found, expected.sort(descending=True).values, atol=1e-10)

    def test_open_gate_is_polar_and_shut_gate_is_no_step(self) -> None:
        flat = polar(draw(3, RANK, IN, seed=1))
        pair = make_pair(direction_a=flat, b=polar(draw(3, OUT, RANK, seed=4)))
        assert 1 / gate_threshold(0) ** 2 < RANK < 1 / gate_threshold(2) ** 2
        shut, d_a = make_step(promotion_steps=0), None
        assert float(run(LORA_PION, pair, shut)[0].abs().max()) < 1e-6
        opened = make_step(promotion_steps="auto")
        d_a = run(LORA_PION, pair, opened)[0]
        assert relative(2 * SCALING * pair.b @ d_a, pair.b @ flat) < 1e-2
        assert opened.energy is not None and shut.energy is not None
        assert torch.all(opened.energy > shut.energy + RANK / 2 - 0.1)

    def test_per_pair_choice_of_k_p_equals_choosing_it_alone(self) -> None:
        pair = make_pair()
        together = run(LORA_PION, pair, make_step(promotion_steps="auto"))
        for index in range(3):
            one = Pair(*(getattr(pair, key)[index : index + 1] for key in (
                "a", "b", "direction_a", "direction_b", "gradient_a", "gradient_b")), SCALING)  # fmt: skip
            alone = run(LORA_PION, one, make_step(promotion_steps="auto"))
            assert relative(alone[0][0], together[0][index]) < 1e-12


class TestStart:
    """B = 0, where every LoRA run begins."""

    def pair(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Pair]]:
        target = draw(1, OUT, IN, seed=5).to(dtype)

        def at(a: Tensor, b: Tensor) -> Pair:
            gradient = SCALING * b @ a - target
            g_a, g_b = SCALING * b.mT @ gradient, SCALING * gradient @ a.mT
            return Pair(a, b, g_a, g_b, g_a, g_b, SCALING)

        a = (draw(1, RANK, IN, seed=6) / math.sqrt(IN)).to(dtype)
        return a, torch.zeros(1, OUT, RANK, dtype=dtype), at

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("name", RULES)
    def test_b_moves_first_then_a_which_grows_by_half_a_step_at_most(self, name: str, dtype: torch.dtype) -> None:
        a, b, at = self.pair(dtype)
        step = make_step(lr=0.02, product_floor=1.0, promotion_steps="auto", dtype=dtype)
        losses, sizes = [], []
        for count in range(1, 41):
            pair, step.count = at(a, b), count
            losses.append(float((SCALING * b @ a - draw(1, OUT, IN, seed=5)).norm()))
            d_a, d_b = (step.lr * update for update in run(RULES[name], pair, step))
            sizes.append((float(torch.linalg.matrix_norm(d_a, 2)), float(d_b.norm())))
            assert sizes[-1][0] < (0.5 + 1e-6 if name in ("muon", "pion") else 1.0) * float(
                torch.linalg.matrix_norm(a, 2)
            )
            a, b = a - d_a, b - d_b
        assert sizes[0][0] == 0.0 and sizes[0][1] > 0
        assert all(moved_a > 0 and moved_b > 0 for moved_a, moved_b in sizes[1:])
        assert losses[-1] < 0.99 * losses[0]
        assert b.isfinite().all()

    @pytest.mark.parametrize("lr", [1e-8, 1e-3, 1.0])
    def test_no_step_exceeds_its_radius_by_more_than_the_floor_allows(self, lr: float) -> None:
        a, b, at = self.pair()
        step = make_step(lr=lr, product_floor=1.0)
        for _ in range(5):
            before = SCALING * b @ a
            d_a, d_b = run(LORA_MUON, at(a, b), step)
            a, b = a - lr * d_a, b - lr * d_b
            moved = torch.linalg.matrix_norm(SCALING * b @ a - before, 2)
            assert lr / 4 < float(moved) <= lr * 1.25 * (1 + 1e-8)

    @pytest.mark.parametrize(
        ("name", "radius"),
        [("muon", 1.0), ("rite", math.sqrt(IN) + math.sqrt(OUT)), ("adapre", 2 * (math.sqrt(IN) + math.sqrt(OUT)))],
    )
    def test_the_floor_bounds_the_second_order_and_nothing_else_does(self, name: str, radius: float) -> None:
        a, b, at = self.pair()
        sizes = {}
        for floor in (0.0, 1.0):
            step = make_step(lr=1e-3, product_floor=floor)
            tiny = 1e-9 * draw(1, OUT, RANK, seed=3)
            d_a, d_b = run(RULES[name], at(a, tiny), step)
            sizes[floor] = float(torch.linalg.matrix_norm(SCALING * step.lr**2 * d_b @ d_a, 2))
        assert sizes[1.0] <= radius * 1e-3 / 4 < sizes[0.0]

    @pytest.mark.parametrize("scale", [1e-12, 1e12])
    @pytest.mark.parametrize("name", RULES)
    def test_factors_of_very_different_sizes_move_w_as_balanced_ones(self, name: str, scale: float) -> None:
        single = [
            draw(3, *shape, seed=seed, dtype=torch.float32) for seed, shape in ((1, (RANK, IN)), (2, (OUT, RANK)))
        ]
        balanced = Pair(*single, *single, *single, SCALING)
        moved = change(balanced, run(RULES[name], balanced, make_step(dtype=torch.float32, product_floor=1.0)))
        other = gauge(balanced, scale * torch.eye(RANK))
        again = change(other, run(RULES[name], other, make_step(dtype=torch.float32, product_floor=1.0)))
        assert relative(again, moved) < 1e-4

    @pytest.mark.parametrize("name", RULES)
    def test_a_that_is_zero_gives_finite_updates(self, name: str) -> None:
        a, _, at = self.pair()
        pair = at(torch.zeros_like(a), draw(1, OUT, RANK, seed=3))
        d_a, d_b = run(RULES[name], pair, make_step(product_floor=1.0, promotion_steps="auto"))
        assert d_a.isfinite().all() and float(d_a.norm()) > 0
        assert float(d_b.norm()) == 0


class TestScales:
    @pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e4, 1e20])
    @pytest.mark.parametrize("name", RULES)
    def test_the_size_of_gradients_does_not_matter(self, name: str, scale: float) -> None:
        single = [draw(3, *shape, seed=seed, dtype=torch.float32) for seed, shape in (
            (1, (RANK, IN)), (2, (OUT, RANK)), (3, (RANK, IN)), (4, (OUT, RANK)))]  # fmt: skip
        pair = Pair(*single, *single[2:], SCALING)
        scaled = Pair(*single[:2], *(scale * tensor for tensor in single[2:] * 2), SCALING)
        expected = run(RULES[name], pair, make_step(dtype=torch.float32))
        for got, want in zip(run(RULES[name], scaled, make_step(dtype=torch.float32)), expected, strict=True):
            assert float(want.norm()) > 0
            assert relative(got, want) < 1e-5

    @pytest.mark.parametrize("name", RULES)
    def test_zero_gradients_give_zero_updates(self, name: str) -> None:
        pair = make_pair()
        zeros = {key: torch.zeros_like(getattr(pair, key)) for key in (
            "direction_a", "direction_b", "gradient_a", "gradient_b")}  # fmt: skip
        for update in run(RULES[name], make_pair(**zeros), make_step()):
            assert update.abs().max() == 0

    @pytest.mark.parametrize("name", RULES)
    def test_rank_deficient_factors_in_float32_stay_finite(self, name: str) -> None:
        b = draw(1, 256, 1, seed=1) @ draw(1, 1, 64, seed=2)
        a = draw(1, 64, 3, seed=3) @ draw(1, 3, 300, seed=4)
        g_a, g_b = draw(1, 64, 300, seed=5), draw(1, 256, 64, seed=6)
        pair = Pair(*(tensor.float() for tensor in (a, b, g_a, g_b, g_a, g_b)), SCALING)
        d_a, d_b = run(RULES[name], pair, make_step(dtype=torch.float32, promotion_steps="auto"))
        assert d_a.isfinite().all() and d_b.isfinite().all()
        assert float(torch.linalg.matrix_norm(SCALING * pair.b @ d_a, 2)) < 20

    @pytest.mark.parametrize("name", RULES)
    def test_nothing_handed_in_is_changed(self, name: str) -> None:
        pair, step = make_pair(), make_step()
        with_state(RULES[name], pair, step)
        held = [pair.a, pair.b, pair.direction_a, pair.direction_b, pair.gradient_a, pair.gradient_b]
        held += step.state.values()
        before = [tensor.clone() for tensor in held]
        RULES[name](pair, step)
        assert all(torch.equal(old, new) for old, new in zip(before, held, strict=True))


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "settings", "named"),
        [
            ("muon", {"schedule": "kellr"}, "keller"),
            ("muon", {"extra_ns_steps": -1}, "extra_ns_steps"),
            ("muon", {"product_floor": -1.0}, "product_floor"),
            ("pion", {"promotion_steps": 6}, "promotion_steps"),
            ("pion", {"product_floor": float("nan")}, "product_floor"),
            ("rite", {"rite_damping": 1.0}, "rite_damping"),
            ("adapre", {"adapre_damping": -1e-3}, "adapre_damping"),
        ],
    )
    def test_what_cannot_work_is_named(self, name: str, settings: dict[str, Any], named: str) -> None:
        stage = RULES[name]
        assert stage.check is not None
        with pytest.raises(ConfigError, match=named):
            stage.check(**stage.arguments(SETTINGS | settings))
        stage.check(**stage.arguments(SETTINGS))

    def test_buffers_of_the_two_factors_have_names_of_their_own(self) -> None:
        assert LORA_RITE.buffers_a is not None and LORA_RITE.buffers_b is not None
        names_a, names_b = LORA_RITE.buffers_a(4, 24, SETTINGS), LORA_RITE.buffers_b(16, 4, SETTINGS)
        assert not names_a.keys() & names_b.keys()
        assert names_b["rite_basis_b"].shape == (4, 16)
