"""Which axes of a parameter form a matrix: views between a parameter and its (blocks, rows, cols) batch.

Three settings say it all. `num_heads=1` is the whole matrix. `head_axis=0` cuts the rows into heads (q, k, v: weight
(heads * head_dim, d)), `head_axis=1` the columns (o: weight (d, heads * head_dim)). `stacked=True` counts matrices on
the first axis (experts: (experts, rows, cols)), each of which is then cut in the same way. Without it everything after
the first axis is flattened: a convolution (out, in, ...) is a matrix (out, in * ...).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlspec.errors import ConfigError


def check_layout(shape: Sequence[int], num_heads: int, head_axis: int, name: str, stacked: bool = False) -> None:
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
    size = _matrix_shape(shape, stacked)[1 + head_axis]
    if size % num_heads:
        raise ConfigError(
            f"{name}: {num_heads} heads do not divide axis {head_axis + stacked} of shape {tuple(shape)}; correct the "
            "head count or override the parameter with split: whole"
        )


def block_shape(
    shape: Sequence[int], num_heads: int = 1, head_axis: int = 0, stacked: bool = False
) -> tuple[int, int, int]:
    """(blocks, rows, cols) of a parameter of that shape; blocks of one matrix of a stack are neighbours."""
    matrices, rows, cols = _matrix_shape(shape, stacked)
    blocks = matrices * num_heads
    return (blocks, rows // num_heads, cols) if head_axis == 0 else (blocks, rows, cols // num_heads)


def split_blocks(tensor: Tensor, num_heads: int = 1, head_axis: int = 0, stacked: bool = False) -> Tensor:
    """View a parameter-shaped tensor as its blocks; no copy for a contiguous tensor, but for a stack cut on columns."""
    blocks, rows, cols = block_shape(tensor.shape, num_heads, head_axis, stacked)
    if head_axis == 0 or num_heads == 1:
        return tensor.reshape(blocks, rows, cols)
    if not stacked:  # 3 axes, so that it stays a view
        return tensor.reshape(rows, blocks, cols).permute(1, 0, 2)
    return tensor.reshape(blocks // num_heads, rows, num_heads, cols).transpose(1, 2).reshape(blocks, rows, cols)


def merge_blocks(blocks: Tensor, shape: Sequence[int], head_axis: int = 0, stacked: bool = False) -> Tensor:
    """Inverse of `split_blocks`: (blocks, rows, cols) back to `shape`."""
    if head_axis == 1:
        matrices = _matrix_shape(shape, stacked)[0]
        blocks = blocks.unflatten(0, (matrices, len(blocks) // max(matrices, 1))).transpose(1, 2)
    return blocks.reshape(tuple(shape))


def _matrix_shape(shape: Sequence[int], stacked: bool) -> tuple[int, int, int]:
    """(matrices, rows, cols); axes after the rows' are flattened."""
    matrices, *rest = shape if stacked else (1, *shape)
    cols = 1
    for size in rest[1:]:
        cols *= size
    return matrices, rest[0] if rest else 1, cols  # of a scalar, which elementwise rules have
