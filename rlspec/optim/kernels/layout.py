"""Which axes of a parameter form a matrix: views between a parameter and its (blocks, rows, cols) batch.

Five settings say it all. `num_heads=1` is the whole matrix. `head_axis=0` cuts the rows into heads (q, k, v: weight
(heads * head_dim, d)), `head_axis=1` the columns (o: weight (d, heads * head_dim)). `stacked=True` counts matrices on
the first axis (experts: (experts, rows, cols)), each of which is then cut in the same way. Without it everything after
the first axis is flattened: a convolution (out, in, ...) is a matrix (out, in * ...). `transposed=True` is stored
(in, out) and becomes a matrix (out, in) before anything is cut. `interleave` is for blocks whose lines alternate on the
cut axis: so many lines of one block lie together (1: a, b, a, b, ...; 0: all of them, one block after the other).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlspec.errors import ConfigError


def check_layout(
    shape: Sequence[int],
    num_heads: int,
    head_axis: int,
    name: str,
    stacked: bool = False,
    transposed: bool = False,
    interleave: int = 0,
) -> None:
    """Refuse a parameter that the layout cannot cut exactly.

    Raises:
        ConfigError: naming the parameter, if it is no matrix, the axis is not 0 or 1, or the heads do not divide it.
    """
    if len(shape) < 2:
        raise ConfigError(
            f"{name}: shape {tuple(shape)} is no matrix, which a spectral rule needs; give it rule adamw. If it was "
            "one, FSDP1 or DeepSpeed flattened it: use FSDP2 (fully_shard), DDP or one device"
        )
    if stacked and len(shape) < 3:
        raise ConfigError(f"{name}: shape {tuple(shape)} is no stack, which needs 3 axes; leave out stacked")
    if head_axis not in (0, 1) or num_heads < 1:
        raise ConfigError(
            f"{name}: num_heads={num_heads}, head_axis={head_axis}: need num_heads >= 1 and head_axis 0 or 1"
        )
    size = _matrix_shape(shape, stacked, transposed)[1 + head_axis]
    if size % num_heads or (interleave and size // num_heads % interleave):
        lines = f" in runs of {interleave}" if interleave else ""
        raise ConfigError(
            f"{name}: {num_heads} heads{lines} do not divide axis {(head_axis ^ transposed) + stacked} of shape "
            f"{tuple(shape)}; correct the head count or override the parameter with split: whole"
        )


def block_shape(
    shape: Sequence[int],
    num_heads: int = 1,
    head_axis: int = 0,
    stacked: bool = False,
    transposed: bool = False,
    interleave: int = 0,
) -> tuple[int, int, int]:
    """(blocks, rows, cols) of a parameter of that shape; blocks of one matrix of a stack are neighbours."""
    matrices, rows, cols = _matrix_shape(shape, stacked, transposed)
    blocks = matrices * num_heads
    return (blocks, rows // num_heads, cols) if head_axis == 0 else (blocks, rows, cols // num_heads)


def split_blocks(
    tensor: Tensor,
    num_heads: int = 1,
    head_axis: int = 0,
    stacked: bool = False,
    transposed: bool = False,
    interleave: int = 0,
) -> Tensor:
    """View a parameter-shaped tensor as its blocks; no copy for a contiguous tensor, but for a stack cut on columns."""
    if transposed or interleave:
        return _split_any(tensor, num_heads, head_axis, stacked, transposed, interleave)
    blocks, rows, cols = block_shape(tensor.shape, num_heads, head_axis, stacked)
    if head_axis == 0 or num_heads == 1:
        return tensor.reshape(blocks, rows, cols)
    if not stacked:  # 3 axes, so that it stays a view
        return tensor.reshape(rows, blocks, cols).permute(1, 0, 2)
    return tensor.reshape(blocks // num_heads, rows, num_heads, cols).transpose(1, 2).reshape(blocks, rows, cols)


def _split_any(
    tensor: Tensor, num_heads: int, head_axis: int, stacked: bool, transposed: bool, interleave: int
) -> Tensor:
    matrix = tensor.reshape(_matrix_shape(tensor.shape, stacked))
    matrix, axis = matrix.mT if transposed else matrix, 1 + head_axis
    size = matrix.shape[axis] // num_heads
    cut = matrix.unflatten(axis, (size // (interleave or size), num_heads, interleave or size))
    return cut.movedim(axis + 1, 1).flatten(axis + 1, axis + 2).flatten(0, 1)


def merge_blocks(
    blocks: Tensor,
    shape: Sequence[int],
    head_axis: int = 0,
    stacked: bool = False,
    transposed: bool = False,
    interleave: int = 0,
) -> Tensor:
    """Inverse of `split_blocks`: (blocks, rows, cols) back to `shape`."""
    matrices = _matrix_shape(shape, stacked)[0]
    cut = blocks.unflatten(0, (matrices, len(blocks) // max(matrices, 1)))
    if transposed or interleave:
        size = cut.shape[2 + head_axis]
        cut = cut.unflatten(2 + head_axis, (size // (interleave or size), interleave or size)).movedim(1, 2 + head_axis)
        matrix = cut.flatten(1 + head_axis, 3 + head_axis)
        return (matrix.mT if transposed else matrix).reshape(tuple(shape))
    return (cut.transpose(1, 2) if head_axis == 1 else blocks).reshape(tuple(shape))


def _matrix_shape(shape: Sequence[int], stacked: bool, transposed: bool = False) -> tuple[int, int, int]:
    """(matrices, rows, cols); axes after the rows' are flattened."""
    matrices, *rest = shape if stacked else (1, *shape)
    cols = 1
    for size in rest[1:]:
        cols *= size
    rows = rest[0] if rest else 1  # of a scalar, which elementwise rules have
    return (matrices, cols, rows) if transposed else (matrices, rows, cols)
