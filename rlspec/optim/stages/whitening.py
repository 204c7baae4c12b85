"""FISMO: Muon in coordinates in which the Fisher information, as a Kronecker product, is the identity.

    P, Q: running covariances of rows and columns, tr P = rows, tr Q = cols
    M <- ema(P^{-1/2} G Q^{-1/2}),  update P^{-1/2} polar(M) Q^{-1/2}           (arXiv 2601.21750)

`whiten` comes before the momentum and keeps P, Q and their roots; `unwhiten` comes after the polar factor and reads the
roots. The paper leaves constants open; ours:

- The covariances are taken of the gradient over its own root mean square in the step, so that neither its scale (1e-6
  in RLVR) nor that of the damping matters and every step has the same weight. What is whitened is the gradient as it
  is: without covariances (`whitening_beta=1`) the rule is Muon exactly.
- `whitening_beta` 0.99 averages over about 100 steps, the polar factor's momentum over 20.
- `whitening_damping` 1.0, so that a covariance is half identity: with 0.1 or less the update leaves the gradient's own
  directions for its rounding (gradients of rank 8 with noise of 0.001: 95 % of the update stays in them, 50 % at 0.1).
- Roots are refreshed every ten steps, the first included; P and Q in every step, each with the other's newest root.
- The update has the Frobenius norm of its polar factor, hence Muon's length: the paper names none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlspec.errors import ConfigError
from rlspec.optim.composition import Buffer, Settings, Step, stage
from rlspec.optim.kernels.blocks import nonzero, norm
from rlspec.optim.kernels.normalisers import frobenius
from rlspec.optim.kernels.roots import inverse_sqrt
from rlspec.optim.stages.scale import check_whole


def _buffers(rows: int, cols: int, settings: Settings) -> dict[str, Buffer]:
    return {
        "row_covariance": Buffer((rows, rows), "eye"),
        "column_covariance": Buffer((cols, cols), "eye"),
        "row_root": Buffer((rows, rows), "eye"),
        "column_root": Buffer((cols, cols), "eye"),
    }


def _check(*, whitening_beta: float, whitening_damping: float, whitening_period: int) -> None:
    if not 0 <= whitening_beta <= 1:
        raise ConfigError(f"whitening_beta={whitening_beta!r}: must be from 0 to 1 (1: no whitening)")
    if not whitening_damping > 0:
        raise ConfigError(f"whitening_damping={whitening_damping!r}: must be positive; it is relative to the gradient")
    check_whole("whitening_period", whitening_period)


@stage(buffers=_buffers, check=_check)
def whiten(
    blocks: Tensor,
    step: Step,
    *,
    whitening_beta: float = 0.99,
    whitening_damping: float = 1.0,
    whitening_period: int = 10,
) -> Tensor:
    """Update both covariances by the gradient and return `P^{-1/2} G Q^{-1/2}`.

    Covariances of a block whose gradient is all zeros stay as they are.
    """
    rows, cols = blocks.shape[1:]
    unit = frobenius(blocks, blocks.dtype) * (rows * cols) ** 0.5
    refresh = (step.count - 1) % whitening_period == 0
    row_root, column_root = step.state["row_root"], step.state["column_root"]
    half = torch.bmm(unit, column_root) / cols**0.5
    row = _averaged(step.state["row_covariance"], half, whitening_beta, whitening_damping)
    row_root = inverse_sqrt(row) if refresh else row_root
    half = torch.bmm(row_root, unit).mT / rows**0.5
    column = _averaged(step.state["column_covariance"], half, whitening_beta, whitening_damping)
    column_root = inverse_sqrt(column) if refresh else column_root
    step.state |= {
        "row_covariance": row,
        "column_covariance": column,
        "row_root": row_root,
        "column_root": column_root,
    }
    return _between(row_root, blocks, column_root)


def _averaged(covariance: Tensor, half: Tensor, beta: float, damping: float) -> Tensor:
    """Average in `half half^T + damping I`; symmetric, with a trace of its size."""
    identity = torch.eye(covariance.shape[1], dtype=half.dtype, device=half.device)
    fresh = torch.bmm(half, half.mT) + damping * identity
    mixed = torch.lerp(fresh, covariance, beta)
    mixed = (mixed + mixed.mT) / 2
    mean = mixed.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    seen = half.abs().amax((1, 2))[:, None, None] > 0
    return torch.where(seen, mixed / mean, covariance)


def _between(left: Tensor, blocks: Tensor, right: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(left, blocks), right)


@stage()
def unwhiten(blocks: Tensor, step: Step) -> Tensor:
    """`P^{-1/2} X Q^{-1/2}`, at the Frobenius norm of X: the way back from the whitened polar factor."""
    roots = step.state["row_root"], step.state["column_root"]
    work = blocks.to(roots[0].dtype)
    back = _between(roots[0], work, roots[1])
    return back * (norm(work) / nonzero(norm(back)))
