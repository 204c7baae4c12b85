"""What the stages share: small functions on batches of matrices (batch, rows, cols), none of which waits for CUDA."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def widened(blocks: Tensor) -> Tensor:
    """The same in float32 or wider."""
    return blocks.to(torch.promote_types(blocks.dtype, torch.float32))


def tall(blocks: Tensor) -> Tensor:
    """A view with rows >= cols: transposed where the block is wide."""
    return blocks.mT if blocks.shape[-2] < blocks.shape[-1] else blocks


def wide(blocks: Tensor) -> Tensor:
    """A view with rows <= cols: transposed where the block is tall."""
    return blocks.mT if blocks.shape[-2] > blocks.shape[-1] else blocks


def like(result: Tensor, blocks: Tensor) -> Tensor:
    """Undo `tall` or `wide`: a result as `blocks` has it."""
    return result if result.shape == blocks.shape else result.mT


def norm(blocks: Tensor) -> Tensor:
    """Frobenius norm per block, in float32 or wider: (batch, 1, 1)."""
    wider = torch.promote_types(blocks.dtype, torch.float32)
    return torch.linalg.vector_norm(blocks, dim=(1, 2), keepdim=True, dtype=wider)


def nonzero(sizes: Tensor) -> Tensor:
    """1 where a size is 0, to divide by."""
    return torch.where(sizes > 0, sizes, 1.0)


def per_block(value: float | Tensor, blocks: Tensor) -> Tensor:
    """A number, or one for each block, as (1, 1, 1) or (batch, 1, 1) in the dtype and on the device of the blocks.

    A number is filled in on the device; `torch.as_tensor` would copy it there, for which CUDA waits.
    """
    if isinstance(value, Tensor):
        return value.to(blocks).reshape(-1, 1, 1)
    return blocks.new_full((1, 1, 1), value)


def product_dtype(blocks: Tensor) -> torch.dtype:
    """The dtype with the rounding of matrix products of such tensors.

    That of float32 products is float16's or bfloat16's where the user has allowed TF32 or bfloat16 for them
    (`torch.set_float32_matmul_precision`, `torch.backends.cuda.matmul.fp32_precision`): TF32 has as many bits as
    float16.
    """
    if blocks.dtype != torch.float32:
        return blocks.dtype
    backend = torch.backends.cuda if blocks.device.type == "cuda" else torch.backends.mkldnn
    allowed = {"tf32": torch.float16, "bf16": torch.bfloat16}
    return allowed.get(backend.matmul.fp32_precision, torch.float32)


def flush_(values: Tensor) -> Tensor:
    """In place: entries too small for products of two, and sums of such products, to be normal numbers become 0.

    For values of size 1 and below, in which 3e-16 (float32) is far under rounding: sqrt(tiny / eps), so that sums that
    cancel as far as rounding lets them are still normal. Subnormal numbers take a CPU up to a hundred times longer, and
    Pion's gate makes them of every block. CUDA computes with them at no cost, and matrix units for half precision take
    them for 0.
    """
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values
    limits = torch.finfo(values.dtype)
    return torch.hardshrink(values, math.sqrt(limits.tiny / limits.eps), out=values)


def multiplies_slowly(blocks: Tensor) -> bool:
    """Whether such tensors are multiplied faster as float32: bfloat16 on CPUs without matrix units for it."""
    return blocks.dtype == torch.bfloat16 and blocks.device.type == "cpu" and not _has_bfloat16_units()


@cache
def _has_bfloat16_units() -> bool:
    """Not those Intel processors that have AVX-512's dot products alone: there bfloat16 has half of float32's rate."""
    known = torch.cpu.get_capabilities()
    if known.get("architecture") != "x86_64":
        return True  # not measured
    return bool(known.get("amx_bf16") or (known.get("avx512_bf16") and "Intel" not in known.get("cpu_name", "")))
