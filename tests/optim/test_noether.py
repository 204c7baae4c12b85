"""The symmetry map against the gradients of a real Qwen3 with grouped-query attention: Noether's identities.

A symmetry of the network's function makes an inner product of weights and gradients vanish or agree, block by block.
That holds only if the blocks are the true heads, so it checks layouts in a way that shapes cannot.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlspec.optim.layout import split_blocks
from rlspec.optim.symmetry import ParameterSpec, symmetry_map

TOLERANCE = 1e-7  # the norm of q and k computes in float32 in every dtype; measured 1e-8
EXACT = 1e-12  # measured 1e-15
BROKEN = 1e-3  # wrong heads give 5e-3 and more
LAYERS = range(2)


class Gradients:
    """Weights and gradients of a model by role, cut into blocks as the symmetry map says."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.params = dict(model.named_parameters())
        self.specs: dict[tuple[int, str], ParameterSpec] = {}
        for spec in symmetry_map(model):
            if ".layers." in spec.name:
                self.specs[int(spec.name.split(".layers.")[1].split(".")[0]), spec.role] = spec

    def blocks(self, layer: int, role: str, **changes: int) -> tuple[Tensor, Tensor]:
        spec = replace(self.specs[layer, role], **changes)
        param = self.params[spec.name]
        assert param.grad is not None
        cut = (spec.num_heads, spec.head_axis)
        return split_blocks(param.detach(), *cut), split_blocks(param.grad, *cut)


@pytest.fixture(params=[(4, 2), (4, 1), (4, 4)], ids=lambda heads: f"{heads[0]}q{heads[1]}kv")
def gradients(request, tiny_qwen3, backward) -> Gradients:
    heads, kv_heads = request.param
    model = tiny_qwen3(num_attention_heads=heads, num_key_value_heads=kv_heads, rms_norm_eps=1e-30).double()
    backward(model)
    return Gradients(model)


def scale_residual(weight: Tensor, gradient: Tensor) -> Tensor:
    """|<W_h, G_h>| / (|W_h| |G_h|) per block; zero where scaling the block leaves the function as it is."""
    product = (weight * gradient).sum((1, 2)).abs()
    return product / (weight.flatten(1).norm(dim=1) * gradient.flatten(1).norm(dim=1))


def value_residual(v: tuple[Tensor, Tensor], o: tuple[Tensor, Tensor]) -> Tensor:
    """Misfit of G_v W_v^T = sum over the group's heads of W_o^T G_o, per key-value head: v -> A v, o -> o A^-1."""
    left = v[1] @ v[0].mT
    right = (o[0].mT @ o[1]).unflatten(0, (left.shape[0], -1)).sum(1)
    return (left - right).flatten(1).norm(dim=1) / left.flatten(1).norm(dim=1)


@pytest.mark.parametrize("role", ["attention.q", "attention.k"])
def test_scaling_a_query_or_key_head_changes_nothing(gradients: Gradients, role: str) -> None:
    for layer in LAYERS:
        assert scale_residual(*gradients.blocks(layer, role)).max() < TOLERANCE


@pytest.mark.parametrize("role", ["attention.q", "attention.k"])
def test_half_heads_and_column_heads_break_the_scaling_identity(gradients: Gradients, role: str) -> None:
    heads = gradients.specs[0, role].num_heads
    assert scale_residual(*gradients.blocks(0, role, num_heads=2 * heads)).max() > BROKEN
    assert scale_residual(*gradients.blocks(0, role, num_heads=max(heads, 2), head_axis=1)).max() > BROKEN


def test_value_and_output_heads_transform_into_each_other(gradients: Gradients) -> None:
    for layer in LAYERS:
        v, o = gradients.blocks(layer, "attention.v"), gradients.blocks(layer, "attention.o")
        assert value_residual(v, o).max() < EXACT


def test_output_heads_on_rows_or_of_another_group_break_the_identity(gradients: Gradients) -> None:
    v, o = gradients.blocks(0, "attention.v"), gradients.blocks(0, "attention.o")
    rows = gradients.blocks(0, "attention.o", head_axis=0)
    assert value_residual(v, (rows[0].mT, rows[1].mT)).max() > 0.1
    if len(v[0]) > 1:
        assert value_residual(v, (o[0].flip(0), o[1].flip(0))).max() > 0.1


def test_up_rows_and_down_columns_scale_against_each_other(gradients: Gradients) -> None:
    for layer in LAYERS:
        (up,), (up_gradient,) = gradients.blocks(layer, "mlp.up")
        (down,), (down_gradient,) = gradients.blocks(layer, "mlp.down")
        rows, columns = (up * up_gradient).sum(1), (down * down_gradient).sum(0)
        assert (rows - columns).norm() < EXACT * rows.norm()
        (gate,), (gate_gradient,) = gradients.blocks(layer, "mlp.gate")
        assert ((gate * gate_gradient).sum(1) - columns).norm() > 0.1 * rows.norm()


def test_an_untied_output_head_has_gradients_that_sum_to_zero_over_tokens(tiny_qwen3, backward) -> None:
    model = tiny_qwen3(tie_word_embeddings=False).double()
    backward(model)
    roles = {spec.role: spec for spec in symmetry_map(model)}
    params = dict(model.named_parameters())
    head, embed = params[roles["lm_head"].name].grad, params[roles["embed"].name].grad
    assert head.sum(0).norm() < 1e-6 * head.norm()  # the loss is computed in float32
    assert embed.sum(0).norm() > 0.1 * embed.norm()
