"""Views between parameters and blocks: exact, invertible, refused when heads do not divide."""

from __future__ import annotations

import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.optim.kernels.layout import block_shape, check_layout, merge_blocks, split_blocks


def test_heads_on_rows_are_consecutive_rows() -> None:
    weight = torch.arange(48.0).reshape(8, 6)
    blocks = split_blocks(weight, 4, 0)
    assert blocks.data_ptr() == weight.data_ptr()  # a view
    for head in range(4):
        assert torch.equal(blocks[head], weight[2 * head : 2 * head + 2])


def test_heads_on_columns_are_consecutive_columns() -> None:
    weight = torch.arange(48.0).reshape(6, 8)
    blocks = split_blocks(weight, 4, 1)
    assert blocks.data_ptr() == weight.data_ptr()
    for head in range(4):
        assert torch.equal(blocks[head], weight[:, 2 * head : 2 * head + 2])


@pytest.mark.parametrize(
    ("shape", "heads", "axis"), [((8, 6), 4, 0), ((6, 8), 2, 1), ((5, 7), 1, 0), ((4, 3, 2, 2), 1, 0), ((4, 6), 1, 1)]
)
def test_merge_inverts_split(shape: tuple[int, ...], heads: int, axis: int) -> None:
    weight = torch.randn(shape)
    blocks = split_blocks(weight, heads, axis)
    assert tuple(blocks.shape) == block_shape(shape, heads, axis)
    assert torch.equal(merge_blocks(blocks, shape, axis), weight)


@pytest.mark.parametrize(
    ("shape", "heads", "axis"),
    [
        ((3, 8, 6), 1, 0),
        ((3, 8, 6), 4, 0),
        ((3, 6, 8), 2, 1),
        ((1, 6, 8), 2, 1),
        ((0, 6, 8), 2, 1),
        ((3, 4, 2, 3), 2, 0),
    ],
)
def test_a_stack_is_its_matrices_cut_one_by_one(shape: tuple[int, ...], heads: int, axis: int) -> None:
    weight = torch.randn(shape)
    blocks = split_blocks(weight, heads, axis, stacked=True)
    assert tuple(blocks.shape) == block_shape(shape, heads, axis, stacked=True)
    assert torch.equal(blocks, torch.cat([blocks[:0], *(split_blocks(matrix, heads, axis) for matrix in weight)]))
    assert torch.equal(merge_blocks(blocks, shape, axis, stacked=True), weight)


def test_blocks_are_views_but_for_a_stack_cut_on_columns() -> None:
    stack = torch.randn(3, 6, 8)
    for heads, axis in ((1, 0), (2, 0), (1, 1)):
        assert split_blocks(stack, heads, axis, stacked=True).data_ptr() == stack.data_ptr()
    assert split_blocks(stack, 2, 1, stacked=True).data_ptr() != stack.data_ptr()


def test_splitting_columns_is_splitting_rows_of_the_transpose() -> None:
    weight = torch.randn(6, 8)
    assert torch.equal(split_blocks(weight, 4, 1), split_blocks(weight.T, 4, 0).mT)


def test_a_convolution_is_a_matrix_of_its_output_channels() -> None:
    weight = torch.randn(4, 3, 2, 2)
    assert torch.equal(split_blocks(weight)[0], weight.reshape(4, 12))


def test_what_is_stored_the_other_way_round_is_cut_as_its_transpose() -> None:
    stack = torch.randn(3, 6, 8)
    for heads, axis in ((1, 0), (2, 0), (4, 0), (3, 1)):
        blocks = split_blocks(stack, heads, axis, True, transposed=True)
        assert torch.equal(blocks, split_blocks(stack.mT.contiguous(), heads, axis, True))
        assert tuple(blocks.shape) == block_shape(stack.shape, heads, axis, True, transposed=True)
        assert torch.equal(merge_blocks(blocks, stack.shape, axis, True, transposed=True), stack)
    kernel = torch.randn(4, 3, 2, 2)  # of a transposed convolution, (in, out, ...)
    assert torch.equal(split_blocks(kernel, transposed=True)[0], kernel.flatten(1).T)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("axis", "heads", "interleave", "first"),
    [(0, 2, 1, (0, 2, 4, 6, 8, 10)), (0, 3, 2, (0, 1, 6, 7)), (1, 2, 2, (0, 1, 4, 5)), (0, 3, 4, (0, 1, 2, 3))],
)
def test_interleaved_blocks_take_their_lines_in_turns(
    axis: int, heads: int, interleave: int, first: tuple[int, ...], transposed: bool
) -> None:
    matrix = torch.randn(12, 8)
    stored = matrix.T.contiguous() if transposed else matrix
    blocks = split_blocks(stored, heads, axis, False, transposed, interleave)
    assert tuple(blocks.shape) == block_shape(stored.shape, heads, axis, False, transposed, interleave)
    for number, block in enumerate(blocks):
        lines = torch.tensor(first) + number * interleave
        assert torch.equal(block, matrix.index_select(axis, lines))
    assert torch.equal(merge_blocks(blocks, stored.shape, axis, False, transposed, interleave), stored)
    stack = torch.stack([stored, -stored])
    both = split_blocks(stack, heads, axis, True, transposed, interleave)
    assert torch.equal(both, torch.cat([blocks, -blocks]))
    assert torch.equal(merge_blocks(both, stack.shape, axis, True, transposed, interleave), stack)


def test_lines_that_do_not_alternate_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"qkv: 3 heads in runs of 3 do not divide axis 0 of shape \(12, 8\)"):
        check_layout((12, 8), 3, 0, "qkv", interleave=3)
    with pytest.raises(ConfigError, match=r"c_attn: 3 heads do not divide axis 1 of shape \(12, 8\)"):
        check_layout((12, 8), 3, 0, "c_attn", transposed=True)


@pytest.mark.parametrize(
    ("shape", "heads", "axis", "words"),
    [
        ((10, 6), 4, 0, "4 heads do not divide axis 0"),
        ((6, 10), 4, 1, "split: whole"),
        ((60,), 1, 0, "FSDP"),
        ((6, 6), 2, 2, "head_axis"),
    ],
)
def test_refusals_name_the_parameter_and_the_remedy(shape, heads: int, axis: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refusal:
        check_layout(shape, heads, axis, "layers.0.q_proj.weight")
    assert "layers.0.q_proj.weight" in str(refusal.value)


def test_stacks_are_refused_by_their_own_axes() -> None:
    with pytest.raises(ConfigError, match=r"experts.*\(6, 6\) is no stack"):
        check_layout((6, 6), 1, 0, "experts", stacked=True)
    with pytest.raises(ConfigError, match=r"experts: 4 heads do not divide axis 1 of shape \(4, 6, 8\)"):
        check_layout((4, 6, 8), 4, 0, "experts", stacked=True)
    check_layout((5, 8, 6), 4, 0, "experts", stacked=True)
