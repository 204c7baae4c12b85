"""Newton-Schulz iterations on batches of matrices, by the cheapest accurate method.

`newton_schulz` runs a schedule; schedules, normalisers and the iterations themselves are in the modules beside.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlspec.optim.kernels.blocks import multiplies_slowly, product_dtype
from rlspec.optim.kernels.gram import (
    AnyCoefficients,
    cuts,
    gram_iteration,
    multiply_adds,
    restart_steps,
    standard_iteration,
)


def newton_schulz(
    blocks: Tensor, schedule: Sequence[AnyCoefficients], *, method: str = "auto", gram: Tensor | None = None
) -> Tensor:
    """Run a schedule on matrices whose singular values lie in [0, 1].

    Where bfloat16 products are slower than float32's, factors are widened for them and the results rounded.

    Args:
        blocks: (batch, rows, cols), normalised, of the dtype to compute in; never mutated.
        schedule: coefficients per step; a coefficient may be a tensor (batch, 1, 1) that differs between blocks.
        method: `standard` goes through X in every step, `gram` through the Gram matrix of the short side, with restarts
            where accuracy needs them (`restart_steps` states the errors); `auto` takes the one with fewer operations.
            `torch` is `standard` with the bits of torch.optim.Muon.
        gram: `short_gram(blocks)`, if it is known already.

    Returns:
        (batch, rows, cols): the same singular vectors, every singular value mapped by the schedule.
    """
    rounding = blocks.dtype if method != "torch" and multiplies_slowly(blocks) else None
    work, gram = (x if rounding is None or x is None else x.float() for x in (blocks, gram))
    assert work is not None
    if method == "gram" or (method == "auto" and choose_method(blocks, schedule) == "gram"):
        restarts = restart_steps(schedule, product_dtype(blocks))
        result = gram_iteration(work, schedule, restarts, gram, rounding)
    else:
        result = standard_iteration(work, schedule, gram, rounding)
    return result.to(blocks.dtype)


def choose_method(blocks: Tensor, schedule: Sequence[AnyCoefficients]) -> str:
    """`standard` or `gram`, whichever multiplies less.

    For Muon's schedules in bfloat16 it is always `standard`: they would need a restart after every step.
    """
    rows, cols = blocks.shape[-2:]
    restarts, cut = len(restart_steps(schedule, product_dtype(blocks))), cuts(blocks)
    standard = multiply_adds(rows, cols, len(schedule), "standard", cut=cut)
    return "gram" if multiply_adds(rows, cols, len(schedule), "gram", restarts, cut=cut) < standard else "standard"
