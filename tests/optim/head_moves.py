"""Moves of weights that the symmetry map says are symmetries: they turn what its rows name as heads, and nothing else.

If the map is right the loss stays; if it took other numbers of rows for a head, or a query's for a value's, it changes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from family_cases import seeded
from torch import Tensor, nn

from rlspec.optim.kernels.layout import merge_blocks, split_blocks
from rlspec.optim.map.spec import ParameterSpec

Turn = Callable[[Tensor, int], Tensor]
"""(head (size, columns), its number) -> the head that takes its place."""

PROJECTIONS = ("q", "k", "v", "gate", "qkv", "q_b", "kv_b")


@dataclass(frozen=True)
class Attention:
    """The matrices of one attention, by the letters of their heads: "qkv" may be of one matrix or of three."""

    specs: tuple[ParameterSpec, ...]
    output: ParameterSpec

    def group(self, letter: str) -> str:
        """Of the rows of that letter's matrix."""
        return next((spec.group for spec in self.specs if letter in letters(spec)), "").partition(" x ")[0]

    def heads(self, letter: str) -> int:
        return sum(letters(spec).count(letter) for spec in self.specs)


def letters(spec: ParameterSpec) -> str:
    """One for each head of a matrix."""
    kind = spec.role.removeprefix("attention.")
    return spec.blocks or (kind[0] if len(kind) == 1 or kind in ("q_b", "gate") else "b") * spec.num_heads


def attentions(specs: list[ParameterSpec]) -> Iterator[Attention]:
    """Every attention, found from its output: the names of the others begin alike for longest."""
    for output in (spec for spec in specs if spec.role == "attention.o"):
        found = {}
        for kind in PROJECTIONS:
            near = [spec for spec in specs if spec.role == f"attention.{kind}"]
            if near:
                found[kind] = max(near, key=lambda spec: len(os.path.commonprefix([spec.name, output.name])))
        longest = max(len(os.path.commonprefix([spec.name, output.name])) for spec in found.values())
        same = (spec for spec in found.values() if len(os.path.commonprefix([spec.name, output.name])) > longest - 3)
        yield Attention(tuple(same), output)


def resized(spec: ParameterSpec, factor: float) -> ParameterSpec:
    """The same with another number of heads: wrong on purpose."""
    kinds = letters(spec)
    wrong = "".join(letter * int(factor) for letter in kinds) if factor >= 1 else kinds[:: round(1 / factor)]
    return replace(spec, num_heads=len(wrong), blocks=wrong if spec.blocks else "")


def with_heads(attention: Attention, factor: float) -> Attention:
    """Wrong on purpose: other numbers of heads, or where letters cannot be halved the order of heads turned round."""
    kinds = [spec.blocks for spec in attention.specs]
    runs = [len("".join(run)) for blocks in kinds for _, run in groupby(blocks)]
    if factor < 1 and any(length % 2 for length in runs):
        return replace(attention, specs=tuple(replace(spec, blocks=spec.blocks[::-1]) for spec in attention.specs))
    return Attention(tuple(resized(spec, factor) for spec in attention.specs), resized(attention.output, factor))


@torch.no_grad()
def move_rows(model: nn.Module, spec: ParameterSpec, turns: dict[str, Turn]) -> None:
    """Heads of a projection, and those of its bias."""
    weight = model.get_parameter(spec.name)
    kinds, seen = letters(spec), dict.fromkeys(turns, 0)
    cut = (spec.stacked, spec.transposed, spec.interleave)
    blocks = split_blocks(weight, spec.num_heads, spec.head_axis, *cut).clone()
    bias = bias_of(model, spec.name)
    vector = None if bias is None else bias.reshape(len(blocks), -1, 1).clone()
    for place, letter in enumerate(kinds):
        if letter in turns:
            blocks[place] = turns[letter](blocks[place], seen[letter])
            if vector is not None:
                vector[place] = turns[letter](vector[place], seen[letter])
            seen[letter] += 1
    weight.copy_(merge_blocks(blocks, weight.shape, spec.head_axis, *cut))
    if bias is not None and vector is not None:
        bias.copy_(vector.reshape(bias.shape))


@torch.no_grad()
def move_columns(model: nn.Module, spec: ParameterSpec, turn: Turn) -> None:
    """Heads of the output projection; `turn` gets them transposed, so that the turn of its values is its inverse."""
    weight = model.get_parameter(spec.name)
    cut = (spec.stacked, spec.transposed, spec.interleave)
    blocks = split_blocks(weight, spec.num_heads, spec.head_axis, *cut).clone()
    for place in range(len(blocks)):
        blocks[place] = turn(blocks[place].mT, place).mT
    weight.copy_(merge_blocks(blocks, weight.shape, spec.head_axis, *cut))


def bias_of(model: nn.Module, name: str) -> Tensor | None:
    """The bias of a weight, if it has one."""
    path, _, key = name.rpartition(".")
    module = model.get_submodule(path)
    bias = getattr(module, re.sub("weight$", "bias", key), None) if key.endswith("weight") else None
    return bias if bias is not None else getattr(module, f"{key}_bias", None)


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(seeded((size, size), seed))[0]


def planar(size: int, seed: int, group: str, planes: str, rotary: int | None) -> Tensor:
    """What commutes with rotary positions: one angle, or one sign, for each plane; the other channels are free.

    With norms of queries and keys, whose gains are their own, only signs; without rotary positions any rotation.
    """
    signs = "signs" in group
    turned = (rotary or size) if planes else 0
    matrix = torch.zeros(size, size, dtype=torch.float64)
    rest = size - turned
    matrix[turned:, turned:] = torch.diag(seeded((rest,), seed).sign()) if signs else rotation(rest, seed)
    half = turned // 2
    first = torch.arange(half) if planes == "half" else torch.arange(half) * 2
    second = first + half if planes == "half" else first + 1
    angle = seeded((half,), seed + 1) * 3
    cos, sin = (angle.sign(), 0 * angle) if signs else (angle.cos(), angle.sin())
    matrix[first, first], matrix[second, second], matrix[first, second], matrix[second, first] = cos, cos, -sin, sin
    return matrix


def turn_values(model: nn.Module, attention: Attention) -> None:
    """v_h -> A_h v_h and o_h -> o_h A_h^T: any rotation, or where gates multiply single channels their signed order."""
    count, outputs = attention.heads("v"), attention.output.num_heads
    each = outputs // count
    signed = "O(head)" not in attention.group("v")

    def order(size: int, head: int) -> Tensor:
        if "S_head" not in attention.group("v"):
            return torch.eye(size, dtype=torch.float64)
        return torch.eye(size, dtype=torch.float64)[
            torch.randperm(size, generator=torch.Generator().manual_seed(head + 5))
        ]

    def of(head: int, size: int) -> Tensor:
        return seeded((size,), head).sign()[:, None] * order(size, head) if signed else rotation(size, head + 11)

    turns: dict[str, Turn] = {"v": lambda block, head: of(head, len(block)) @ block}
    if signed:  # of the values' sign no gate knows, of their order it does
        turns["g"] = lambda block, head: order(len(block), head // each) @ block
    for spec in attention.specs:
        move_rows(model, spec, turns)
    move_columns(model, attention.output, lambda block, head: of(head // each, len(block)) @ block)


def turn_keys(model: nn.Module, attention: Attention, planes: str, rotary: int | None) -> None:
    """k_h -> R_h k_h and the same for every query of its group."""
    group = attention.group("k")
    each = attention.heads("q") // attention.heads("k")

    def of(head: int, size: int) -> Tensor:
        return planar(size, head + 21, group, planes, rotary)

    turns: dict[str, Turn] = {
        "q": lambda block, head: of(head // each, len(block)) @ block,
        "k": lambda block, head: of(head, len(block)) @ block,
    }
    for spec in attention.specs:
        move_rows(model, spec, turns)


@torch.no_grad()
def exchange_heads(model: nn.Module, attention: Attention) -> None:
    """Every key and value takes the place of the next, with its queries and its part of the output."""
    count = attention.heads("k") or attention.heads("b") or attention.heads("v")

    def shifted(blocks: Tensor) -> Tensor:
        return blocks.unflatten(0, (count, -1)).roll(1, 0).flatten(0, 1)

    for spec in attention.specs:
        weight, bias = model.get_parameter(spec.name), bias_of(model, spec.name)
        cut = (spec.stacked, spec.transposed, spec.interleave)
        kinds = torch.tensor([ord(letter) for letter in letters(spec)])
        blocks = split_blocks(weight, spec.num_heads, spec.head_axis, *cut).clone()
        vector = None if bias is None else bias.reshape(len(blocks), -1).clone()
        for kind in kinds.unique():
            blocks[kinds == kind] = shifted(blocks[kinds == kind])
            if vector is not None:
                vector[kinds == kind] = shifted(vector[kinds == kind])
        weight.copy_(merge_blocks(blocks, weight.shape, spec.head_axis, *cut))
        if bias is not None and vector is not None:
            bias.copy_(vector.reshape(bias.shape))
    weight, spec = model.get_parameter(attention.output.name), attention.output
    cut = (spec.stacked, spec.transposed, spec.interleave)
    blocks = shifted(split_blocks(weight, spec.num_heads, spec.head_axis, *cut))
    weight.copy_(merge_blocks(blocks, weight.shape, spec.head_axis, *cut))
