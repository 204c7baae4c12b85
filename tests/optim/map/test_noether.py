"""The symmetry map against the gradients of real models of every family: Noether's identities.

A symmetry of the network's function makes inner products of weights and gradients vanish or agree, block by block. That
holds only if the blocks are the true heads, so it checks layouts in a way that shapes cannot. Biases belong to the
matrices of their layers and are taken along as one more column.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from family_cases import CASES, build
from torch import Tensor, nn

from rlspec.optim.kernels.layout import split_blocks
from rlspec.optim.map.spec import ParameterSpec
from rlspec.optim.map.symmetry import symmetry_map

EXACT = 1e-12  # measured 1e-15
TOLERANCE = 1e-6  # norms of heads, and rotations and softmax of some, compute in float32 in every dtype; measured 7e-8
BROKEN = 3e-3  # wrong heads give more than this; measured 1e-2 and, in decoders, 0.4

_LAYER = re.compile(r"^(?:.*\.)?(?:layers?|blocks)\.\d+\.|^.*\bhead\.|^")
# SmolVLA attends in layer 0 jointly with tokens of model and expert: one symmetry acts on the heads of both. In layer 1
# the expert reads the model's keys and values, which have no symmetry of their own then.
_JOINT = re.compile(r"(?:vlm\.model\.text_model|lm_expert)\.(?=layers\.0\.)")
_READ = re.compile(r"vlm\.model\.text_model\.layers\.1\.self_attn")


@dataclass(frozen=True)
class Part:
    """A matrix, its bias as one more column, and their gradients, in the blocks of its spec."""

    spec: ParameterSpec
    weight: Tensor
    gradient: Tensor
    bias: tuple[Tensor, Tensor] | None = None

    def blocks(self, *, augmented: bool = True, **changes: int) -> tuple[Tensor, Tensor]:
        spec = replace(self.spec, **changes)
        cut = (spec.num_heads, spec.head_axis, spec.stacked)
        pair = split_blocks(self.weight, *cut), split_blocks(self.gradient, *cut)
        if self.bias is None or not augmented:
            return pair
        columns = (vector.reshape(len(pair[0]), -1, 1) for vector in self.bias)
        return tuple(torch.cat([block, column], 2) for block, column in zip(pair, columns, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Qkvo:
    """Weights and gradients of one attention in heads: (heads, head_dim, d) each, o transposed to that."""

    group: str
    q: tuple[Tensor, Tensor]
    k: tuple[Tensor, Tensor]
    v: tuple[Tensor, Tensor]
    o: tuple[Tensor, Tensor]


@cache
def model_of(name: str) -> tuple[nn.Module, dict[str, dict[str, list[Part]]]]:
    """A model after backward, and its parts by layer and role; parts of joint layers together."""
    case = next(case for case in CASES if case.name == name)
    model = build(case)
    case.loss(model).backward()
    params = dict(model.named_parameters())
    layers: dict[str, dict[str, list[Part]]] = defaultdict(lambda: defaultdict(list))
    for spec in symmetry_map(model, rule="muon"):
        param = params[spec.name]
        if spec.matrices and param.grad is not None:
            bias = params.get(re.sub(r"weight$", "bias", spec.name))
            pair = None if bias is None or bias is param or bias.grad is None else (bias.detach(), bias.grad)
            key = _JOINT.sub("", _LAYER.match(spec.name).group())  # type: ignore[union-attr]
            layers[key][spec.role].append(Part(spec, param.detach(), param.grad, pair))
    return model, layers


def attentions(
    layer: dict[str, list[Part]], halve: int = 1, double: int = 1, flip: bool = False, rows: bool = False
) -> Iterator[Qkvo]:
    """Every attention of a layer; wrong on purpose with half or twice the heads, another order, or o cut on rows."""
    for index, o in enumerate(layer.get("attention.o", ())):
        if _READ.search(o.spec.name):
            continue
        heads = o.spec.num_heads * double // halve
        axis = 0 if rows else o.spec.head_axis
        blocks = o.blocks(augmented=False, num_heads=heads, head_axis=axis)
        blocks = (blocks[0].mT, blocks[1].mT) if axis else blocks
        output = (blocks[0].flip(0), blocks[1].flip(0)) if flip else blocks
        if "attention.qkv" in layer:
            part = layer["attention.qkv"][index]
            fused = part.blocks(num_heads=part.spec.num_heads * double // halve)
            q, k, v = zip(*(block.chunk(3) for block in fused), strict=True)
            yield Qkvo(part.spec.group, q, k, v, output)  # type: ignore[arg-type]
            continue
        parts = [layer[f"attention.{key}"][index] for key in "qkv"]
        q, k, v = (part.blocks(num_heads=part.spec.num_heads * double // halve) for part in parts)
        yield Qkvo(parts[0].spec.group, (q[0].flip(0), q[1].flip(0)) if flip else q, k, v, output)  # type: ignore[arg-type]


def moment(pair: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Sums of G W^T over the query heads of each key-value head: (heads, head_dim, head_dim)."""
    weight, gradient = pair
    return (gradient @ weight.mT).unflatten(0, (heads, -1)).sum(1)


def planes(matrix: Tensor) -> Tensor:
    """What rotations and scales of the planes (i, i + head_dim / 2) see of it."""
    half = matrix.shape[-1] // 2
    quarters = matrix.unflatten(-1, (2, half)).unflatten(-3, (2, half))
    a, b, c, d = (quarters[..., i, :, j, :].diagonal(dim1=-2, dim2=-1) for i in (0, 1) for j in (0, 1))
    return torch.stack([a + d, b - c])


def key_misfit(attention: list[Qkvo]) -> Tensor:
    """How far queries and keys are from the identity of their group, relative to its two sides."""
    if "signs" in attention[0].group:  # q_h -> c q_h alone, for the norm takes it back: <W_h, G_h> = 0
        pairs = [pair for entry in attention for pair in (entry.q, entry.k)]
        return torch.cat([(w * g).sum((1, 2)).abs() / (w.norm(dim=(1, 2)) * g.norm(dim=(1, 2))) for w, g in pairs])
    queries = torch.stack([moment(entry.q, len(entry.k[0])) for entry in attention]).sum(0)
    keys = torch.stack([moment(entry.k, len(entry.k[0])) for entry in attention]).sum(0).mT
    seen = planes if "SO(2)" in attention[0].group else (lambda matrix: matrix)
    left, right = seen(queries), seen(keys)
    return (left - right).norm() / (left.norm() + right.norm())


def value_misfit(attention: list[Qkvo]) -> Tensor:
    """v -> A v, o -> o A^-1 for any A: G_v W_v^T = sum over the group's heads of W_o^T G_o."""
    values = torch.stack([moment(entry.v, len(entry.v[0])) for entry in attention]).sum(0)
    outputs = torch.stack([moment(entry.o, len(entry.v[0])) for entry in attention]).sum(0).mT
    return (values - outputs).norm() / (values.norm() + outputs.norm())


def neurons(layer: dict[str, list[Part]]) -> Iterator[tuple[Tensor, Tensor]]:
    """<up_j, G_j> and <down_j, G_j> for every neuron j of gated MLPs, of every expert."""
    for up, down, step in (
        ("mlp.up", "mlp.down", 1),
        ("mlp.gate_up", "mlp.down", 2),
        ("mlp.expert.gate_up", "mlp.expert.down", 2),
    ):
        for above, below in zip(layer.get(up, ()), layer.get(down, ()), strict=up in layer):
            rows = [block[step - 1 :: step] for block in above.blocks()]
            columns = below.blocks(augmented=False)
            yield (rows[0] * rows[1]).sum(2), (columns[0] * columns[1]).sum(1)


NAMES = [case.name for case in CASES]
PLAIN = ["smolvlm", "paligemma", "qwen3_vl", "siglip", "siglip2", "dinov2", "fused_qkv", "torch_encoder"]
GATED = [name for name in NAMES if name not in ("siglip", "siglip2", "dinov2", "fused_qkv", "torch_encoder")]


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_head_obeys_the_symmetry_of_its_group(name: str) -> None:
    checked = 0
    for layer in model_of(name)[1].values():
        attention = list(attentions(layer))
        if attention:
            assert key_misfit(attention).max() < TOLERANCE
            assert value_misfit(attention) < EXACT
            checked += len(attention)
    assert checked >= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [{"halve": 2}, {"flip": True}, {"rows": True}], ids=["half", "reordered", "rows"])
def test_the_identities_of_values_fail_with_other_heads(name: str, wrong: dict) -> None:
    if name == "smolvla" and "rows" in wrong:
        pytest.skip("the expert's width is not that of its heads together, so that its o cannot be cut on rows")
    for layer in model_of(name)[1].values():
        attention = list(attentions(layer, **wrong))
        if attention:
            assert value_misfit(attention) > BROKEN


@pytest.mark.parametrize("name", NAMES)
def test_the_identities_of_keys_fail_with_other_heads(name: str) -> None:
    for layer in model_of(name)[1].values():
        right = list(attentions(layer))
        if right:
            # Each head that keeps its scale is one identity, so larger heads keep it too; elsewhere smaller ones do.
            normed = "signs" in right[0].group
            wrong = list(attentions(layer, double=2 if normed else 1, halve=1 if normed else 2))
            assert key_misfit(wrong).max() > BROKEN


@pytest.mark.parametrize("name", GATED)
def test_up_rows_and_down_columns_of_every_neuron_scale_against_each_other(name: str) -> None:
    checked = 0
    for layer in model_of(name)[1].values():
        for rows, columns in neurons(layer):
            scale = rows.norm() + columns.norm()
            assert (rows - columns).norm() < EXACT * scale
            assert (rows.flip(-1) - columns).norm() > 0.1 * scale
            checked += 1
    assert checked >= 1


def test_gate_and_up_are_told_apart_in_a_fused_matrix() -> None:
    for name, up, down in (
        ("qwen3_moe", "mlp.expert.gate_up", "mlp.expert.down"),
        ("dinov2_swiglu", "mlp.gate_up", "mlp.down"),
    ):
        for layer in model_of(name)[1].values():
            for above, below in zip(layer[up], layer[down], strict=True):
                gates, columns = [block[::2] for block in above.blocks()], below.blocks(augmented=False)
                rows, sums = (gates[0] * gates[1]).sum(2), (columns[0] * columns[1]).sum(1)
                assert (rows - sums).norm() > 0.1 * sums.norm()


@pytest.mark.parametrize("name", PLAIN)
def test_neurons_of_plain_mlps_may_change_places(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model, layers = model_of(name)
    before, checked = case.loss(model), 0
    for layer in layers.values():
        for above, below in zip(layer.get("mlp.fc1", ()), layer.get("mlp.fc2", ()), strict=True):
            order = torch.randperm(len(above.weight), generator=torch.Generator().manual_seed(0))
            above.weight.copy_(above.weight[order])
            if above.bias is not None:
                above.bias[0].copy_(above.bias[0][order])
            moved = case.loss(model)
            below.weight.copy_(below.weight[:, order])
            assert abs(moved - before) > 1e-6 * abs(before)
            assert abs(case.loss(model) - before) < TOLERANCE * abs(before)
            checked += 1
    assert checked >= 1


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_an_untied_output_head_has_gradients_that_sum_to_zero_over_tokens(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    model = build(case)
    logits = model(input_ids=torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(1))).logits
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.arange(46) % 50).backward()
    specs = {spec.role: spec for spec in symmetry_map(model)}
    params = dict(model.named_parameters())
    head, embed = params[specs["lm_head"].name].grad, params[specs["embed"].name].grad
    assert head.sum(0).norm() < EXACT * head.norm()
    assert embed.sum(0).norm() > 0.1 * embed.norm()


def test_only_what_a_router_adds_alike_to_every_expert_is_lost() -> None:
    case = next(case for case in CASES if case.name == "qwen3_moe")
    model = build(case)
    before = case.loss(model).detach()
    specs = [spec for spec in symmetry_map(model) if spec.role == "mlp.router"]
    assert len(specs) == 2
    for spec in specs:
        assert "shift" in spec.group
        with torch.no_grad():
            model.get_parameter(spec.name).add_(torch.randn(spec.shape[1], dtype=torch.float64))
    assert abs(case.loss(model) - before) < 1e-5 * abs(before)
    with torch.no_grad():
        model.get_parameter(specs[0].name)[0].add_(1.0)
    assert abs(case.loss(model) - before) > 1e-4 * abs(before)
