"""Which axes of a parameter form a matrix: views between a parameter and its (batch, rows, cols) blocks.

`num_heads=1` is the whole matrix. `head_axis=0` cuts the rows into heads (q, k, v: weight (heads * head_dim, d)),
`head_axis=1` the columns (o: weight (d, heads * head_dim)). Convolutions (out, in, ...) flatten to (out, in * ...).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlspec.errors import ConfigError


def check_layout(shape: Sequence[int], num_heads: int, head_axis: int, name: str) -> None:
    """Refuse a parameter that the layout cannot cut exactly.

    Raises:
        ConfigError: naming the parameter, if it is no matrix, the axis is not 0 or 1, or the heads do not divide it.
    """
    if len(shape) < 2:
        raise ConfigError(
            f"{name}: shape {tuple(shape)} is no matrix, which a spectral rule needs; give it rule adamw. If it was "
            "one, FSDP or DeepSpeed flattened it: build the optimizer on an unsharded model (DDP or one device)"
        )
    if head_axis not in (0, 1) or num_heads < 1:
        raise ConfigError(
            f"{name}: num_heads={num_heads}, head_axis={head_axis}: need num_heads >= 1 and head_axis 0 or 1"
        )
    size = _matrix_shape(shape)[head_axis]
    if size % num_heads:
        raise ConfigError(
            f"{name}: {num_heads} heads do not divide axis {head_axis} of shape {tuple(shape)}; correct the head count "
            "or override the parameter with split: whole"
        )


def block_shape(shape: Sequence[int], num_heads: int = 1, head_axis: int = 0) -> tuple[int, int, int]:
    """(blocks, rows, cols) of a parameter of that shape."""
    rows, cols = _matrix_shape(shape)
    return (num_heads, rows // num_heads, cols) if head_axis == 0 else (num_heads, rows, cols // num_heads)


def split_blocks(tensor: Tensor, num_heads: int = 1, head_axis: int = 0) -> Tensor:
    """View a parameter-shaped tensor as (num_heads, rows, cols); no copy for a contiguous tensor."""
    blocks, rows, cols = block_shape(tensor.shape, num_heads, head_axis)
    if head_axis == 0:
        return tensor.reshape(blocks, rows, cols)
    return tensor.reshape(rows, blocks, cols).permute(1, 0, 2)


def merge_blocks(blocks: Tensor, shape: Sequence[int], head_axis: int = 0) -> Tensor:
    """Inverse of `split_blocks`: (num_heads, rows, cols) back to `shape`."""
    if head_axis == 1:
        blocks = blocks.permute(1, 0, 2)
    return blocks.reshape(tuple(shape))


def _matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    cols = 1
    for size in shape[1:]:
        cols *= size
    return shape[0], cols
