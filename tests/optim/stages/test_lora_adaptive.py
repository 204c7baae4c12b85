"""Adam's relatives on LoRA pairs: against pytorch-optimizer's LoRA-RITE and Adafactor on W."""

from __future__ import annotations

import math

import torch
from lora_cases import (
    IN,
    OUT,
    RANK,
    SCALING,
    change,
    draw,
    make_pair,
    make_step,
    polar,
    relative,
    run,
)
from torch import Tensor

from rlspec.optim.composition import Pair
from rlspec.optim.stages.lora_adaptive import ADAPRE_LORA, LORA_RITE


class TestRite:
    def test_it_follows_pytorch_optimizer_over_changing_bases(self) -> None:
        from pytorch_optimizer import LoRARite

        a, b = make_pair(batch=1).a, make_pair(batch=1).b
        theirs = torch.nn.Parameter(a[0].clone()), torch.nn.Parameter(b[0].clone())
        oracle = LoRARite(theirs, lr=0.05, betas=(0.9, 0.99), eps=0.0, clip_unmagnified_grad=0.0, update_skipping=0.0)
        step = make_step(lr=0.05, betas=(0.9, 0.99), rite_escape=False, rite_damping=0.0)
        target = draw(OUT, IN, seed=7)
        for count in range(1, 11):
            gradient = theirs[1].detach() @ theirs[0].detach() - target * count
            theirs[0].grad, theirs[1].grad = theirs[1].detach().mT @ gradient, gradient @ theirs[0].detach().mT
            oracle.step()
            gradient = b @ a - target * count
            g_a, g_b = b.mT @ gradient, gradient @ a.mT
            step.count = count
            d_a, d_b = run(LORA_RITE, Pair(a, b, g_a, g_b, g_a, g_b, 1.0), step)
            a, b = a - 0.05 * d_a, b - 0.05 * d_b
            assert relative(b[0] @ a[0], theirs[1].detach() @ theirs[0].detach()) < 1e-9

    def test_the_first_step_has_the_length_of_adam(self) -> None:
        pair = make_pair()
        d_a, d_b = run(LORA_RITE, pair, make_step(rite_damping=0.0))
        for half, length in ((SCALING * pair.b @ d_a, IN), (SCALING * d_b @ pair.a, OUT)):
            values = torch.linalg.svdvals(half)[:, :RANK]
            assert torch.allclose(values, torch.tensor(math.sqrt(length), dtype=torch.float64), rtol=1e-8)

    def test_a_second_moment_that_leaves_the_basis_shortens_the_step(self) -> None:
        first, second = make_pair(), make_pair(seed=50)
        sizes = []
        for escape in (False, True):
            step = make_step(rite_escape=escape)
            run(LORA_RITE, first, step)
            step.count = 2
            sizes.append(float(change(second, run(LORA_RITE, second, step)).norm()))
            assert bool((step.state["rite_escaped_a"] > 0).all()) == escape
        assert sizes[1] < 0.98 * sizes[0]

    def test_nothing_escapes_from_a_basis_that_stays(self) -> None:
        pair, step = make_pair(), make_step()
        for count in (1, 2, 3):
            step.count = count
            run(LORA_RITE, pair, step)
        assert float(step.state["rite_escaped_a"].max() / step.state["rite_size_a"].min()) < 1e-6


class TestAdaPre:
    def weights(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """L and R as the factors see them, from the whole of G."""
        gradient = SCALING * draw(3, OUT, IN, seed=2)
        basis_b, basis_a = polar(pair.b), polar(pair.a)
        rows = (gradient @ basis_a.mT).square().mean(2, keepdim=True)
        cols = (basis_b.mT @ gradient).square().mean(1, keepdim=True)
        return rows, cols

    def test_the_step_is_adafactor_s_projected_to_what_the_factors_reach(self) -> None:
        pair = make_pair()
        rows, cols = self.weights(pair)
        common = (rows.mean((1, 2), keepdim=True) * cols.mean((1, 2), keepdim=True)).sqrt()
        x = SCALING * draw(3, OUT, IN, seed=2) / (rows * cols / common).sqrt()
        a, b, root_l, root_r = pair.a, pair.b, rows.sqrt(), cols.sqrt()
        p = b @ torch.linalg.inv(b.mT @ (root_l * b)) @ (root_l * b).mT
        q = (a * root_r).mT @ torch.linalg.inv((a * root_r) @ a.mT) @ a
        moved = change(pair, run(ADAPRE_LORA, pair, make_step(adapre_damping=0.0)))
        assert relative(moved, p @ x + x @ q - p @ x @ q) < 1e-10

    def test_at_full_rank_it_is_adafactor_on_w(self) -> None:
        gradient = draw(1, 12, 12, seed=2)
        a, b = draw(1, 12, 12, seed=0), draw(1, 12, 12, seed=1)
        g_a, g_b = SCALING * b.mT @ gradient, SCALING * gradient @ a.mT
        pair = Pair(a, b, g_a, g_b, g_a, g_b, SCALING)
        squares = gradient.square()
        second = squares.mean(2, keepdim=True) * squares.mean(1, keepdim=True) / squares.mean()
        moved = change(pair, run(ADAPRE_LORA, pair, make_step(adapre_damping=0.0)))
        assert relative(moved, gradient / second.sqrt()) < 1e-9

    def test_second_moments_are_averages_with_bias_correction(self) -> None:
        pair, step = make_pair(), make_step(betas=(0.9, 0.95))
        expected = 0.0
        for count, scale in ((1, 1.0), (2, 3.0), (3, 0.1)):
            scaled = make_pair(gradient_a=scale * pair.gradient_a, gradient_b=scale * pair.gradient_b)
            step.count = count
            run(ADAPRE_LORA, scaled, step)
            expected = 0.95 * expected + 0.05 * scale**2 * self.weights(pair)[1]
            want = (expected / (1 - 0.95**count)).sqrt().flatten(1)
            assert relative(step.state["adapre_cols_a"], want) < 1e-10

    def test_signs_and_order_of_rows_and_columns_do_not_matter_but_rotations_do(self) -> None:
        def turned(q: Tensor, p: Tensor) -> float:
            pair = make_pair()
            other = Pair(
                pair.a @ p, q @ pair.b, pair.direction_a @ p, q @ pair.direction_b, pair.gradient_a @ p,
                q @ pair.gradient_b, SCALING,
            )  # fmt: skip
            moved = change(pair, run(ADAPRE_LORA, pair, make_step()))
            return relative(change(other, run(ADAPRE_LORA, other, make_step())), q @ moved @ p)

        def shuffle(size: int, seed: int) -> Tensor:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            return torch.diag(draw(size, seed=seed).sign())[order]

        assert turned(shuffle(OUT, 1), shuffle(IN, 2)) < 1e-12
        assert turned(polar(draw(OUT, OUT, seed=5)), polar(draw(IN, IN, seed=6))) > 0.05
