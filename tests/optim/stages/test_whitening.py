"""FISMO against a plain loop with eigendecompositions, its invariants, Muon as its limit, and the constants chosen."""

from __future__ import annotations

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.kernels import roots

SHAPES = [(5, 9), (9, 5), (6, 6), (1, 7), (7, 1)]


def random_blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random_blocks(size, size, seed=seed))[0]


def run(gradients: torch.Tensor, **settings: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What FISMO with lr 1 and adjust_lr none subtracts in every step (steps, rows, cols), and its last state."""
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], lr=1.0, **{"rule": "fismo", "adjust_lr": "none"} | settings)  # type: ignore[arg-type]
    taken = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        taken.append(before - param.detach())
    return torch.stack(taken), optimizer.state[param]


def power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def muon_polar(matrix: torch.Tensor) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    x = s / s.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return u @ torch.diag(x) @ vh


def loop(gradients: torch.Tensor, beta: float, gamma: float, damping: float, period: int) -> torch.Tensor:
    """The paper's formulas on one matrix, of gradients with unit root mean square; `period` delays both roots."""
    rows, cols = gradients.shape[1:]
    p, q, average, taken = torch.eye(rows).double(), torch.eye(cols).double(), torch.zeros(rows, cols).double(), []
    known_p, known_q = p, q
    for count, gradient in enumerate(gradients):
        unit = gradient / gradient.square().mean().sqrt()
        left = unit @ power(known_q, -1.0) @ unit.T / cols + damping * torch.trace(p) / rows * torch.eye(rows).double()
        p = gamma * p + (1 - gamma) * left
        p = p * rows / torch.trace(p)
        known_p = p if count % period == 0 else known_p
        right = unit.T @ power(known_p, -1.0) @ unit / rows + damping * torch.trace(q) / cols * torch.eye(cols).double()
        q = gamma * q + (1 - gamma) * right
        q = q * cols / torch.trace(q)
        known_q = q if count % period == 0 else known_q
        left_root, right_root = power(known_p, -0.5), power(known_q, -0.5)
        average = beta * average + (1 - beta) * left_root @ gradient @ right_root
        whitened = muon_polar(average)
        update = left_root @ whitened @ right_root
        taken.append(update / update.norm() * whitened.norm())
    return torch.stack(taken)


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("damping", [0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_fismo_equals_the_papers_formulas(shape: tuple[int, int], damping: float, period: int) -> None:
    gradients = random_blocks(7, *shape) * torch.logspace(-3, 3, 7).double()[:, None, None]
    ours, _ = run(gradients, momentum=0.9, whitening_beta=0.8, whitening_damping=damping, whitening_period=period)
    assert (ours - loop(gradients, 0.9, 0.8, damping, period)).abs().max() < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
def test_covariances_keep_their_trace_and_are_symmetric_positive_definite(shape: tuple[int, int]) -> None:
    _, state = run(random_blocks(12, *shape), whitening_beta=0.5, whitening_damping=0.1)
    for name, size in zip(("row_covariance", "column_covariance"), shape, strict=True):
        covariance = state[name][0]
        assert torch.trace(covariance).item() == pytest.approx(size, rel=1e-13)
        assert torch.equal(covariance, covariance.T)
        assert torch.linalg.eigvalsh(covariance)[0] > 0.01


@pytest.mark.parametrize("adjust_lr", ["none", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_fismo_that_never_averages_covariances_is_muon(nesterov: bool, adjust_lr: str) -> None:
    # Gradients of very different size: a normalised gradient in the momentum would show.
    gradients = random_blocks(6, 5, 9) * torch.logspace(-3, 3, 6).double()[:, None, None]
    settings: dict[str, object] = {"nesterov": nesterov, "adjust_lr": adjust_lr}
    ours, _ = run(gradients, whitening_beta=1.0, **settings)
    muon, _ = run(gradients, rule="muon", **settings)
    assert (ours - muon).abs().max() < 1e-11 * muon.abs().max()


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_fismo_commutes_with_rotations_of_both_sides_and_so_do_its_covariances(shape: tuple[int, int]) -> None:
    gradients, left, right = random_blocks(12, *shape), orthogonal(shape[0], 1), orthogonal(shape[1], 2)
    plain, state = run(gradients, whitening_beta=0.8)
    turned, turned_state = run(left @ gradients @ right, whitening_beta=0.8)
    assert (turned - left @ plain @ right).abs().max() < 1e-10
    assert (turned_state["row_covariance"] - left @ state["row_covariance"] @ left.T).abs().max() < 1e-10
    assert (turned_state["column_covariance"] - right.T @ state["column_covariance"] @ right).abs().max() < 1e-10


def test_whitening_evens_out_what_muon_leaves_uneven() -> None:
    # Rows of gradients with sizes over two decades: the whitened rows have nearly equal second moments.
    gradients = random_blocks(200, 6, 9) * torch.logspace(0, -2, 6).double()[:, None]
    _, state = run(gradients, whitening_beta=0.95, whitening_damping=1e-4, whitening_period=1)
    whitened = state["row_root"] @ gradients @ state["column_root"]
    sizes = whitened[-50:].square().mean((0, 2))
    assert sizes.max() / sizes.min() < 2
    assert gradients.square().mean((0, 2)).amax() / gradients.square().mean((0, 2)).amin() > 5e3


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e4, 1e20])
def test_fismo_takes_the_same_steps_at_every_scale_of_the_gradient(scale: float) -> None:
    gradients = random_blocks(12, 5, 9).float()
    plain, _ = run(gradients, compute_dtype="float32")
    scaled, _ = run(gradients * scale, compute_dtype="float32")
    assert (scaled - plain).abs().max() < 1e-4


def test_gradients_of_zeros_leave_the_covariances_and_take_no_step() -> None:
    gradients = random_blocks(3, 5, 9)
    _, state = run(gradients, whitening_beta=0.5)
    _, later = run(torch.cat([gradients, torch.zeros(9, 5, 9).double()]), whitening_beta=0.5)
    assert torch.equal(state["row_covariance"], later["row_covariance"])
    taken, _ = run(torch.zeros(3, 5, 9).double())
    assert not taken.any()


def test_roots_by_eigendecomposition_as_of_large_blocks_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = random_blocks(6, 5, 9)
    settings: dict[str, object] = {"whitening_beta": 0.5, "whitening_damping": 0.1, "whitening_period": 1}
    iterated, _ = run(gradients, **settings)
    monkeypatch.setattr(roots, "DECOMPOSED_ON_CPU", 1)
    decomposed, _ = run(gradients, **settings)
    assert not torch.equal(decomposed, iterated)
    assert (decomposed - iterated).abs().max() < 1e-10


def test_roots_are_refreshed_in_the_first_step_and_then_every_period() -> None:
    gradients = random_blocks(7, 5, 9)
    roots = [run(gradients[:count], whitening_period=3)[1]["row_root"] for count in range(1, 8)]
    changed = [not torch.equal(a, b) for a, b in zip(roots, roots[1:], strict=False)]
    assert changed == [False, False, True, False, False, True]
    assert not torch.allclose(roots[0], torch.eye(5).double())


def test_the_default_damping_keeps_the_update_in_the_directions_of_a_low_rank_gradient() -> None:
    rows, columns = random_blocks(64, 4, seed=1), random_blocks(4, 96, seed=2)
    gradients = rows @ columns + 1e-3 * random_blocks(150, 64, 96)
    left, right = torch.linalg.qr(rows)[0], torch.linalg.qr(columns.T)[0]

    def share(taken: torch.Tensor) -> torch.Tensor:
        return (left.T @ taken[-1] @ right).norm() / taken[-1].norm()

    assert share(run(gradients)[0]) > 0.8
    assert share(run(gradients, whitening_damping=0.01)[0]) < 0.6


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_state_is_both_covariances_both_roots_and_the_momentum(shape: tuple[int, int]) -> None:
    _, state = run(random_blocks(1, *shape))
    rows, cols = shape
    values = sum(tensor.numel() for name, tensor in state.items() if name != "step")
    assert values == rows * cols + 2 * rows**2 + 2 * cols**2


@pytest.mark.parametrize(
    ("settings", "offender"),
    [
        ({"whitening_beta": 1.1}, "whitening_beta"),
        ({"whitening_damping": 0.0}, "whitening_damping"),
        ({"whitening_period": 0}, "whitening_period"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(settings: dict[str, object], offender: str) -> None:
    with pytest.raises(ConfigError, match=offender):
        run(random_blocks(1, 4, 4), **settings)
