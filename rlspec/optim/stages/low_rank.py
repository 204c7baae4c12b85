"""Low rank without SVD: the strongest columns of a fixed cosine basis (arXiv 2505.17967).

Wide blocks are transposed, so that the basis acts on the shorter side. Because the basis D is orthogonal and the same
for all blocks, a subspace is a list of column numbers: moving state from one to the next is a selection, not a product.
What a step leaves out is kept as error feedback, so that nothing is lost.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Settings, Step, stage
from rlspec.optim.kernels.blocks import like, tall
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import NORMALISERS
from rlspec.optim.kernels.schedules import SCHEDULES
from rlspec.optim.stages.bases import BASIS_EPS, adam_ratio, check_eps
from rlspec.optim.stages.filters import check_schedule, pass_energy
from rlspec.optim.stages.scale import check_whole
from rlspec.optim.stages.second_moments import averaged_root


@lru_cache(maxsize=32)
def dct_basis(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthogonal DCT-III matrix (size, size): `D_ij = sqrt(2 / n) cos(i (2j + 1) pi / 2n)`, row 0 over sqrt(2).

    Shared by all blocks of a size; do not mutate it.
    """
    index = torch.arange(size, device="cpu")
    # Angles in units of pi / 2n, reduced to a quarter turn as integers: i (2j + 1) would cost four digits.
    angle = (index[:, None] * (2 * index + 1)) % (4 * size)
    angle = torch.minimum(angle, 4 * size - angle)
    sign = torch.where(angle > size, -1.0, 1.0)
    angle = torch.minimum(angle, 2 * size - angle)
    basis = sign * torch.cos(angle.double() * (torch.pi / (2 * size))) * (2 / size) ** 0.5
    basis[0] *= 0.5**0.5
    return basis.to(device=device, dtype=dtype)


def dct_columns(rank: float, short: int) -> int:
    """How many columns `dct_rank` means: an integer up to the shorter side, or a fraction of it (rounded up)."""
    return min(short, rank if isinstance(rank, int) else math.ceil(rank * short - 1e-9))


def strongest(coefficients: Tensor, count: int) -> Tensor:
    """Numbers of the columns with the largest sums of magnitudes, in ascending order: (batch, count)."""
    return coefficients.abs().sum(1).topk(count, dim=1).indices.sort(dim=1).values


def selected(coefficients: Tensor, columns: Tensor) -> Tensor:
    """Columns by number: (batch, rows, cols), (batch, count) -> (batch, rows, count)."""
    return coefficients.gather(2, columns[:, None, :].expand(-1, coefficients.shape[1], -1))


def _check_rank(dct_rank: float) -> None:
    integer = isinstance(dct_rank, int) and not isinstance(dct_rank, bool) and dct_rank >= 1
    if not integer and not (isinstance(dct_rank, float) and 0 < dct_rank <= 1):
        raise ConfigError(
            f"dct_rank={dct_rank!r}: must be an integer of at least 1, or a fraction of the shorter side up to 1.0"
        )


def _check_trion(*, dct_rank: float, schedule: str, **_: object) -> None:
    _check_rank(dct_rank)
    check_schedule(schedule)


def _trion_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {"undelivered": Buffer((rows, cols))}


@stage(buffers=_trion_buffers, check=_check_trion, bounded=True)
def trion(
    blocks: Tensor,
    step: Step,
    *,
    momentum: float,
    ns_steps: int,
    normalise: str,
    dct_rank: float = 0.25,
    schedule: str = "keller",
) -> Tensor:
    """Muon of the strongest `dct_rank` cosine columns of a momentum with error feedback (Dion without its QR).

    `M <- M + G`; of `S = M D` the columns `m` with the largest 1-norms go through Newton-Schulz and back, and
    `M <- M - (1 - momentum) m D_m^T`: what was applied decays, the rest waits. With every column it is Muon with
    heavy-ball momentum. The state is one buffer of the block's size; the iteration costs that of a block as narrow as
    the selection. Nesterov plays no part.

    Symmetry of tall blocks: signed permutations of rows, none of columns; of wide ones the other way round.
    """
    total = step.state["undelivered"] + blocks
    work = tall(total)
    basis = dct_basis(work.shape[2], work.dtype, work.device)
    coefficients = work @ basis
    columns = strongest(coefficients, dct_columns(dct_rank, work.shape[2]))
    narrow = selected(coefficients, columns)
    vectors = basis.T[columns]
    step.state["undelivered"] = total - (1 - momentum) * like(torch.bmm(narrow, vectors), blocks)
    step.normalised = NORMALISERS[normalise](narrow, step.compute_dtype)
    filtered = newton_schulz(step.normalised, SCHEDULES[schedule](ns_steps))
    step.energy = pass_energy(filtered)
    return like(torch.bmm(filtered.to(work.dtype), vectors), blocks)


def _adam_buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    long, short = max(rows, cols), min(rows, cols)
    count = dct_columns(settings.get("dct_rank", 0.25), short)
    kept = {
        "exp_avg": Buffer((long, count)),
        "exp_avg_rms": Buffer((long, count)),
        "columns": Buffer((count,)),
        "ages": Buffer((count,)),
    }
    return kept | ({"undelivered": Buffer((rows, cols))} if settings.get("dct_error_feedback", True) else {})


def _check_adam(*, dct_rank: float, dct_period: int, basis_eps: float, **_: object) -> None:
    _check_rank(dct_rank)
    check_eps(basis_eps)
    check_whole("dct_period", dct_period)


@stage(buffers=_adam_buffers, check=_check_adam)
def dct_adamw(
    blocks: Tensor,
    step: Step,
    *,
    betas: tuple[float, float],
    dct_rank: float = 0.25,
    dct_period: int = 1,
    dct_error_feedback: bool = True,
    basis_eps: float = BASIS_EPS,
) -> Tensor:
    """Adam on the strongest `dct_rank` cosine columns of the gradient, with error feedback.

    Every `dct_period` steps, the first included, columns of `G D` are selected by their 1-norms; moments of columns
    that stay are kept and those of new ones start from zero (`m (Q_old^T Q_new)`, which selects). What is left out is
    added to the next gradient; `dct_error_feedback=False` drops it, and with it the buffer of the block's size: then
    the state is 2 long rank + 2 rank values for a block whose longer side is `long`.

    Not as published: bias is corrected by the age of each column. The common step count makes a column that is selected
    late overshoot, by up to 6.5 times at betas of 0.9 and 0.999. `basis_eps` is relative, see `conda`.

    Symmetry of tall blocks: signed permutations of rows, none of columns; of wide ones the other way round.
    """
    total = step.state["undelivered"] + blocks if dct_error_feedback else blocks
    work = tall(total)
    basis = dct_basis(work.shape[2], work.dtype, work.device)
    coefficients = work @ basis
    _select(step, coefficients, dct_period)
    columns = step.state["columns"].long()
    narrow, vectors = selected(coefficients, columns), basis.T[columns]
    if dct_error_feedback:
        step.state["undelivered"] = total - like(torch.bmm(narrow, vectors), blocks)
    ages = step.state["ages"] + 1
    average = torch.lerp(step.state["exp_avg"], narrow, 1 - betas[0])
    rms = averaged_root(step.state["exp_avg_rms"], narrow, betas[1])
    step.state |= {"exp_avg": average, "exp_avg_rms": rms, "ages": ages}
    first, second = ((1 - beta**ages)[:, None, :] for beta in betas)
    return like(torch.bmm(adam_ratio(average / first, rms / second.sqrt(), basis_eps), vectors), blocks)


def _select(step: Step, coefficients: Tensor, period: int) -> None:
    """Choose columns anew where it is time or none were chosen yet, and carry the moments of those that stay."""
    state, old = step.state, step.state["columns"]
    new = strongest(coefficients, old.shape[1]).to(old.dtype)
    if (step.count - 1) % period:
        new = torch.where(state["ages"].amax(1, keepdim=True) > 0, old, new)
    stays = (old[:, :, None] == new[:, None, :]).to(old.dtype)
    for name in ("exp_avg", "exp_avg_rms"):
        state[name] = torch.bmm(state[name], stays)
    state |= {"ages": torch.bmm(state["ages"][:, None, :], stays)[:, 0], "columns": new}
