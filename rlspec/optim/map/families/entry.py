"""What a family of models declares: one `Entry` for each kind of parameter."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MODALITIES = ("language", "vision", "connector", "action")
"""Parts of a model that users route as one: `roles={"action": "pion"}`."""


Near = Callable[[str], Any]
"""Attribute -> its value in the nearest module around a parameter that has it."""


@dataclass(frozen=True)
class Entry:
    """One kind of parameter.

    Attributes:
        suffix: regular expression for the end of the parameter's name, from a dot on.
        role: what the parameter does, in dotted words from general to special. `SPECTRAL_ROLES` of
            `rlspec.optim.map.symmetry` follow the optimizer's rule, `mlp.router` a centered one, all others AdamW.
        symmetry: the group under which the function of the network is invariant, rows x columns: O(d) or O(head)
            rotations, SO(2) those of planes, S_name permutations, signs, shift (one row added to all), - none.
        heads: attribute of the model's config with the number of heads; several for projections fused into one
            matrix, whose heads add up, for example `("num_heads",) * 3` for qkv; None: no heads.
        head_axis: the axis that heads (or `parts`) cut, 0 rows (outputs), 1 columns; of one matrix where they are
            stacked.
        head_dim: attribute of the config with the size of a head, checked where the config has it; "": none.
        parts: projections of equal size fused on that axis, which are different matrices even where heads are not cut.
        stacked: the first axis counts matrices, as of experts.
        transposed: stored (in, out).
        interleaved: lines of the parts alternate: gate, up, gate, up, ...
        blocks: (config, near) -> a letter for each head in their order, where `heads` cannot say it: "qkvqkv" for two
            heads, each with its query, key and value. Equal letters are one projection.
        modality: one of `MODALITIES`, over the family's; "": the family's.
    """

    suffix: str
    role: str
    symmetry: str
    heads: str | tuple[str, ...] | None = None
    head_axis: int = 0
    head_dim: str = "head_dim"
    parts: int = 1
    stacked: bool = False
    transposed: bool = False
    interleaved: bool = False
    blocks: Callable[[Any, Near], str] | None = None
    modality: str = ""

    def claims(self, name: str) -> bool:
        """Whether a parameter of that name is of this kind."""
        return re.search(rf"(?:^|\.)(?:{self.suffix})$", name) is not None

    @property
    def head_counts(self) -> tuple[str, ...]:
        """Attributes whose numbers add up to the number of heads."""
        return (self.heads,) if isinstance(self.heads, str) else self.heads or ()


@dataclass(frozen=True)
class Family:
    """Models, or parts of models, whose config has one of these `model_type`s.

    Attributes:
        name: of the family.
        model_types: of the configs nearest to its parameters.
        entries: its matrices, first match wins.
        modality: of its parameters, where neither the entry nor the path says otherwise.
    """

    name: str
    model_types: tuple[str, ...]
    entries: tuple[Entry, ...]
    modality: str = "language"
