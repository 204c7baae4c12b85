"""What is known of the parameters of a model: one by one, and together."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from rlspec.optim.kernels.layout import block_shape
from rlspec.optim.map.groups import BlockLayout, broken, rule_group
from rlspec.optim.map.overrides import Override
from rlspec.optim.rules import get_rule


@dataclass(frozen=True)
class ParameterSpec:
    """What the optimizer needs to know of one parameter.

    Attributes:
        name: its first name in the model.
        role: what it does, for example attention.q; LoRA factors are lora.A.<role of the layer>.
        group: symmetry group, rows x columns.
        rule: name in `RULES`.
        shape: of the parameter.
        num_heads: blocks that the matrix is cut into, 1: the whole matrix.
        head_axis: axis that is cut, of one matrix where they are stacked.
        dtype: of the parameter.
        override: the user's settings for it, of its role and of the pattern that matched.
        stacked: the first axis counts matrices.
        transposed: stored (in, out).
        interleave: lines of a block that lie together where blocks alternate; 0: they do not.
        parts: matrices fused into one, which `num_heads` counts even where heads are not cut.
        blocks: a letter for each head of fused projections in their order; "" where there is one projection.
        modality: language, vision, connector or action; "" where nothing tells.
        partner: of a LoRA factor, the name of the other factor of its layer.
        scaling: of a LoRA factor's layer, as in W + scaling B A.
        settings: the optimizer's, as `symmetry_map` was given them.
    """

    name: str
    role: str
    group: str
    rule: str
    shape: tuple[int, ...]
    num_heads: int = 1
    head_axis: int = 0
    dtype: torch.dtype = torch.float32
    override: Override | None = None
    stacked: bool = False
    transposed: bool = False
    interleave: int = 0
    parts: int = 1
    blocks: str = ""
    modality: str = ""
    partner: str | None = None
    scaling: float = 1.0
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def label(self) -> str:
        """The role with its part of the model, as a key of `roles`; language goes without saying."""
        return self.role if self.modality in ("", "language") else f"{self.modality}:{self.role}"

    @property
    def split(self) -> str:
        """`whole`, or what is cut: stacked matrices, parts or heads, and the axis."""
        words = [f"{self.shape[0]} stacked"] if self.stacked else []
        if self.num_heads > 1:
            kind = "parts" if self.num_heads == self.parts else "heads"
            words.append(f"{self.num_heads} {kind} on {('rows', 'columns')[self.head_axis]}")
        return ", ".join(words) or "whole"

    @property
    def rule_group(self) -> str:
        """The group that the rule bears, rows x columns of a block."""
        return rule_group(get_rule(self.rule), self._cut)

    @property
    def broken(self) -> tuple[str, ...]:
        """What of `group` the rule breaks: words of it, none where the rule's group contains it."""
        return broken(self.group, get_rule(self.rule), self._cut)

    @property
    def lr_scale(self) -> float:
        """Factor of the optimizer's learning rate."""
        return 1.0 if self.override is None else self.override.lr_scale

    @property
    def decays(self) -> bool:
        """Whether weight decay acts on it: not on vectors, biases, positions, single tokens and rates of decay."""
        return len(self.shape) > 1 and self.role not in ("vector", "bias", "position", "token", "state")

    @property
    def numel(self) -> int:
        """Number of values."""
        return int(torch.Size(self.shape).numel())

    @property
    def matrices(self) -> int:
        """Blocks that are updated as one matrix each; 0 for elementwise rules."""
        return self._blocks[0] if get_rule(self.rule).spectral else 0

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of what is updated as one matrix; of a vector 1 and its size."""
        return self._blocks[1:]

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state, master weights included; options that nobody set are at their defaults."""
        rule = get_rule(self.rule)
        settings = {key: value for key, value in rule.options.items() if value is not inspect.Parameter.empty}
        settings |= self.settings
        settings |= self.override.changes if self.override is not None else {}
        factor: Literal["", "a", "b"] = ""
        if rule.kind == "pair":
            factor = "a" if self.role.startswith("lora.A") else "b"
        width = 8 if self.dtype == torch.float64 else 4
        master = 4 * self.numel if self.dtype in (torch.bfloat16, torch.float16) else 0
        rounded = rule.momentum is not None and settings.get("state_dtype") == "bfloat16"
        saved = (width - 2) * self.numel if rounded else 0
        return width * rule.state_values(*self._blocks, settings, factor) - saved + master

    @property
    def _cut(self) -> BlockLayout:
        _, rows, cols = self._blocks if len(self.shape) > 1 else (1, 0, self.numel)
        heads = self.head_axis if self.num_heads not in (1, self.parts) else None
        return BlockLayout(rows, cols, heads, self.stacked)

    @property
    def _blocks(self) -> tuple[int, int, int]:
        if len(self.shape) < 2:
            return 1, 1, self.numel
        return block_shape(self.shape, self.num_heads, self.head_axis, self.stacked, self.transposed)


@dataclass(frozen=True)
class SymmetryMap:
    """Every trainable parameter of a model, claimed once, and the frozen ones as (name, values).

    `notes` say of what has no structure, or is not cut as was asked, what it gets and why.
    """

    specs: tuple[ParameterSpec, ...]
    frozen: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[ParameterSpec]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    @property
    def roles(self) -> tuple[str, ...]:
        """Labels that occur, in the model's order."""
        return tuple(dict.fromkeys(spec.label for spec in self.specs))
