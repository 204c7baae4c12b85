"""Conda and ARO against plain loops, peers, and the limits in which they become Adam and Muon."""

from __future__ import annotations

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer
from rlspec.optim.composition import Stage, Step
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.schedules import keller
from rlspec.optim.stages.bases import aro, conda, orthogonal_factor, sinkgd

SHAPES = [(9, 5), (5, 9), (6, 6)]
BETAS = (0.9, 0.99)
EXACT = {"rule": "conda", "betas": BETAS, "basis_eps": 0.0}


def random_blocks(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(random_blocks(size, size, seed=seed))[0]


def signed_permutation(size: int, seed: int) -> torch.Tensor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return torch.eye(size, dtype=torch.float64)[order] * random_blocks(size, seed=seed).sign()


def updates(gradients: torch.Tensor, **settings: object) -> torch.Tensor:
    """What an optimizer with lr 1 and adjust_lr none subtracts in every step: (steps, rows, cols)."""
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = SpectralOptimizer([param], lr=1.0, **{"adjust_lr": "none"} | settings)  # type: ignore[arg-type]
    taken = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        taken.append(before - param.detach())
    return torch.stack(taken)


def run(function: Stage, blocks: torch.Tensor, count: int = 1, **settings: object) -> tuple[torch.Tensor, Step]:
    """One step of a stage from its first state."""
    rows, cols = blocks.shape[1:]
    values = {"ns_steps": 5, "betas": BETAS} | settings
    assert function.buffers is not None
    buffers = function.buffers(rows, cols, values)
    state = {name: buffer.new(len(blocks), blocks.dtype, blocks.device) for name, buffer in buffers.items()}
    step = Step(values, 1.0, 1.0, count, blocks.dtype, state=state)
    return function(blocks, step), step


def adam(gradients: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    param = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.Adam([param], lr=1.0, betas=BETAS, eps=1e-300)
    taken = []
    for gradient in gradients:
        before = param.detach().clone()
        param.grad = gradient.clone()
        optimizer.step()
        taken.append(scale * (before - param.detach()))
    return torch.stack(taken)


def conda_loop(gradients: torch.Tensor, period: int) -> torch.Tensor:
    """The paper's formulas on one matrix, with numpy's order of things and the SVD of the whole average."""
    rows, cols = gradients.shape[1:]
    average, second, taken = torch.zeros(rows, cols).double(), torch.zeros(rows, cols).double(), []
    for count, gradient in enumerate(gradients, start=1):
        average = BETAS[0] * average + (1 - BETAS[0]) * gradient
        if count % period == 1 or period == 1:
            u, _, vh = torch.linalg.svd(average, full_matrices=False)
        right = rows >= cols
        projected, numerator = (gradient @ vh.T, average @ vh.T) if right else (u.T @ gradient, u.T @ average)
        second = BETAS[1] * second + (1 - BETAS[1]) * projected**2
        ratio = numerator / second.sqrt()
        back = ratio @ vh if right else u @ ratio
        taken.append(0.25 * (1 - BETAS[1] ** count) ** 0.5 / (1 - BETAS[0] ** count) * back)
    return torch.stack(taken)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("period", [1, 3, 100])
def test_conda_equals_the_papers_formulas_over_several_refreshes(shape: tuple[int, int], period: int) -> None:
    gradients = random_blocks(8, *shape)
    ours = updates(gradients, **EXACT | {"basis_period": period})
    assert (ours - conda_loop(gradients, period)).abs().max() < 1e-11


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_conda_equals_an_independent_implementation(shape: tuple[int, int]) -> None:
    peers = pytest.importorskip("pytorch_optimizer")
    gradients = random_blocks(6, *shape)
    param = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    # Its default scale of 1 is not the paper's, its second refresh comes one step early, and its SVD is in float32.
    theirs = peers.Conda([param], lr=1.0, betas=BETAS, scale=0.25, update_proj_gap=1000, eps=1e-300)
    for gradient in gradients:
        param.grad = gradient.clone()
        theirs.step()
    assert (updates(gradients, **EXACT).sum(0) + param.detach()).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(9, 5), (5, 9)])
def test_conda_is_adam_when_its_basis_is_a_signed_permutation(shape: tuple[int, int]) -> None:
    # The first gradient has orthogonal columns (rows) of different norms, which are then its singular vectors.
    first = torch.zeros(shape, dtype=torch.float64)
    for index in range(5):
        first[index, 4 - index] = (-1) ** index * (1 + index)
    gradients = torch.cat([first[None], random_blocks(6, *shape)])
    # Entries of zero gradient are 0 / 0 for Adam without eps in the first step; Conda leaves them alone.
    ours, theirs = updates(gradients, **EXACT, conda_scale=1.0), adam(gradients).nan_to_num(0.0)
    assert (ours[1:] - theirs[1:]).abs().max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_conda_commutes_with_rotations_of_the_shorter_side_and_not_of_the_longer(shape: tuple[int, int]) -> None:
    gradients = random_blocks(6, *shape)
    left, right = orthogonal(shape[0], 1), orthogonal(shape[1], 2)
    plain = updates(gradients, **EXACT, basis_period=2)
    on_left = (updates(left @ gradients, **EXACT, basis_period=2) - left @ plain).abs().max()
    on_right = (updates(gradients @ right, **EXACT, basis_period=2) - plain @ right).abs().max()
    short, long = (on_right, on_left) if shape[0] >= shape[1] else (on_left, on_right)
    assert short < 1e-10
    assert long > 0.05


@pytest.mark.parametrize("scale", [1e-20, 1e-8, 1e4, 1e20])
def test_conda_takes_the_same_steps_at_every_scale_of_the_gradient(scale: float) -> None:
    gradients = random_blocks(4, 8, 5).float()
    reference, scaled = (updates(gradients * factor, rule="conda", betas=BETAS) for factor in (1.0, scale))
    assert (reference - scaled).abs().max() < 1e-3 * reference.abs().max()


def test_conda_does_not_amplify_rounding_in_directions_without_gradient() -> None:
    gradients = (random_blocks(3, 40, 1, seed=1) @ random_blocks(1, 1, 30, seed=2)).float()
    taken = updates(gradients, rule="conda", betas=BETAS)
    assert torch.linalg.svdvals(taken)[:, 1].max() < 0.05 * torch.linalg.svdvals(taken)[:, 0].min()


@pytest.mark.parametrize("shape", SHAPES)
def test_condas_update_has_a_quarter_of_adams_size(shape: tuple[int, int]) -> None:
    first = updates(random_blocks(1, *shape), **EXACT)
    assert first.square().mean().sqrt().item() == pytest.approx(0.25, abs=1e-9)


def aro_loop(gradients: torch.Tensor, momentum: float, base_function: str) -> torch.Tensor:
    """The paper's formulas on one matrix; the base functions written anew, at ||X||_F^2 = shorter side."""
    rows, cols = gradients.shape[1:]
    flip = rows > cols
    short, long = min(rows, cols), max(rows, cols)
    rotation, average = torch.eye(short).double(), torch.zeros(short, long).double()

    def base(x: torch.Tensor) -> torch.Tensor:
        if base_function == "row_norm":
            return x / x.norm(dim=1, keepdim=True)
        if base_function == "sign":
            return torch.sign(x) / long**0.5
        for _ in range(5):
            x = x / x.norm(dim=1, keepdim=True) * long**0.5
            x = x / x.norm(dim=0, keepdim=True) * short**0.5
        return x / long**0.5

    taken = []
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * (gradient.T if flip else gradient)
        factor, triangle = torch.linalg.qr(average @ base(rotation.T @ average).T)
        rotation = factor @ torch.diag(torch.sign(torch.diag(triangle)))
        update = rotation @ base(rotation.T @ average)
        taken.append(update.T if flip else update)
    return torch.stack(taken)


# Signs of few columns are so often linearly dependent that exact zeros decide: that is why the longer side is long.
@pytest.mark.parametrize("base_function", ["sinkgd", "row_norm", "sign"])
@pytest.mark.parametrize("shape", [(40, 5), (5, 40)])
def test_aro_equals_the_papers_formulas(shape: tuple[int, int], base_function: str) -> None:
    gradients = random_blocks(6, *shape)
    ours = updates(gradients, rule="aro", momentum=0.9, base_function=base_function)
    assert (ours - aro_loop(gradients, 0.9, base_function)).abs().max() < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_aro_with_the_identity_is_the_momentum_over_its_norm(shape: tuple[int, int]) -> None:
    gradients = random_blocks(5, *shape)
    average = torch.zeros(shape).double()
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient
    ours = updates(gradients, rule="aro", base_function="identity")[-1]
    assert (ours - average / average.norm()).abs().max() < 1e-14


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_aro_with_the_polar_factor_is_muon_in_any_frame(shape: tuple[int, int], nesterov: bool) -> None:
    gradients = random_blocks(5, *shape)
    ours = updates(gradients, rule="aro", base_function="polar", nesterov=nesterov)
    assert (ours - updates(gradients, rule="muon", nesterov=nesterov)).abs().max() < 1e-12


def rotated_start(blocks: torch.Tensor, rotation: torch.Tensor, base_function: str) -> torch.Tensor:
    step = Step({"ns_steps": 5, "base_function": base_function}, 1.0, 1.0, 1, blocks.dtype)
    step.state["rotation"] = rotation[None]
    return aro(blocks, step)


@pytest.mark.parametrize("base_function", ["sinkgd", "row_norm", "sign"])
def test_aro_commutes_with_rotations_of_the_shorter_side_if_its_frame_is_rotated_along(base_function: str) -> None:
    blocks, frame, turn = random_blocks(1, 5, 9), orthogonal(5, 3), orthogonal(5, 4)
    plain = rotated_start(blocks, frame, base_function)
    assert (rotated_start(turn @ blocks, turn @ frame, base_function) - turn @ plain).abs().max() < 1e-12
    assert (rotated_start(turn @ blocks, frame, base_function) - turn @ plain).abs().max() > 0.05
    tall = rotated_start(blocks.mT @ turn.T, turn @ frame, base_function)
    assert (tall - plain.mT @ turn.T).abs().max() < 1e-12


def test_aro_commutes_with_signed_permutations_of_the_longer_side_and_with_no_rotation_of_it() -> None:
    gradients = random_blocks(4, 5, 9)
    plain = updates(gradients, rule="aro")
    permuted = signed_permutation(9, 3)
    assert (updates(gradients @ permuted, rule="aro") - plain @ permuted).abs().max() < 1e-12
    rotated = orthogonal(9, 3)
    assert (updates(gradients @ rotated, rule="aro") - plain @ rotated).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_aros_rotation_stays_orthogonal(dtype: torch.dtype) -> None:
    param = torch.nn.Parameter(torch.zeros(2 * 6, 9, dtype=dtype))
    optimizer = SpectralOptimizer([param], rule="aro", num_heads=2)
    for gradient in random_blocks(10, 12, 9):
        param.grad = gradient.to(dtype)
        optimizer.step()
    rotation = optimizer.state[param]["rotation"]
    assert rotation.shape == (2, 6, 6)
    error = (rotation @ rotation.mT - torch.eye(6, dtype=dtype)).abs().max()
    assert error < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("base_function", ["sinkgd", "row_norm", "sign", "identity"])
@pytest.mark.parametrize("shape", SHAPES)
def test_aros_update_has_the_root_mean_square_of_adamw(shape: tuple[int, int], base_function: str) -> None:
    taken = updates(
        1e-6 * random_blocks(3, *shape), rule="aro", base_function=base_function, adjust_lr="match_rms_adamw"
    )
    assert torch.allclose(taken.square().mean((1, 2)).sqrt(), torch.tensor(0.2).double(), atol=1e-9)


@pytest.mark.parametrize("base_function", ["sinkgd", "row_norm", "sign", "identity", "polar"])
def test_aro_leaves_zero_blocks_alone_and_keeps_their_frame(base_function: str) -> None:
    frame = orthogonal(5, 3)
    step = Step({"ns_steps": 5, "base_function": base_function}, 1.0, 1.0, 1, torch.float64)
    step.state["rotation"] = frame[None]
    assert not aro(torch.zeros(1, 5, 9).double(), step).any()
    assert torch.equal(step.state["rotation"][0], frame)


@pytest.mark.parametrize("base_function", ["sinkgd", "row_norm", "sign"])
def test_aro_adds_no_directions_to_a_momentum_of_rank_one(base_function: str) -> None:
    gradients = (random_blocks(4, 20, 1, seed=1) @ random_blocks(1, 1, 30, seed=2)).float()
    taken = updates(gradients, rule="aro", base_function=base_function)[-1]
    values = torch.linalg.svdvals(taken)
    assert values[0] > 0.5
    assert values[1] < 1e-4 * values[0]


def test_sinkgd_ends_with_columns_of_equal_norm_and_nearly_so_rows() -> None:
    balanced = sinkgd(random_blocks(2, 12, 30))
    columns, rows = balanced.square().sum(1), balanced.square().sum(2)
    assert (columns - 12 / 30).abs().max() < 1e-12
    assert (rows - 1).abs().max() < 1e-2


def test_the_sign_fix_makes_the_orthogonal_factor_commute_with_rotations() -> None:
    blocks, turn = random_blocks(3, 6, 6), orthogonal(6, 1)
    assert (orthogonal_factor(turn @ blocks) - turn @ orthogonal_factor(blocks)).abs().max() < 1e-12


def test_aro_with_the_polar_factor_uses_the_schedule_asked_for() -> None:
    blocks = random_blocks(1, 5, 9)
    expected = newton_schulz(frobenius(blocks, torch.float64), keller(3))
    assert (run(aro, blocks, base_function="polar", ns_steps=3)[0] - expected).abs().max() < 1e-12


def test_stages_mutate_neither_blocks_nor_the_state_that_they_find() -> None:
    for function in (conda, aro):
        blocks = random_blocks(2, 5, 9)
        kept = blocks.clone()
        values = {"ns_steps": 5, "betas": BETAS}
        assert function.buffers is not None
        found = {n: b.new(2, torch.float64, blocks.device) for n, b in function.buffers(5, 9, values).items()}
        before = {name: value.clone() for name, value in found.items()}
        function(blocks, Step(values, 1.0, 1.0, 1, torch.float64, state=dict(found)))
        assert torch.equal(blocks, kept)
        assert all(torch.equal(found[name], before[name]) for name in found)


@pytest.mark.parametrize(
    ("settings", "offender"),
    [
        ({"rule": "conda", "basis_period": 0}, "basis_period"),
        ({"rule": "conda", "conda_scale": 0.0}, "conda_scale"),
        ({"rule": "conda", "basis_eps": -1e-8}, "basis_eps"),
        ({"rule": "aro", "base_function": "sinkdg"}, "did you mean sinkgd"),
        ({"rule": "aro", "schedule": "kellr"}, "did you mean keller"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(settings: dict[str, object], offender: str) -> None:
    with pytest.raises(ConfigError, match=offender):
        updates(random_blocks(1, 4, 4), **settings)
