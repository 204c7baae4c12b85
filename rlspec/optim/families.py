"""Which role each parameter of a known architecture plays: one short declarative entry per family.

To add a family, add a `Family` to `FAMILIES`: the `model_type` of its config, and for each kind of parameter the end of
its name, its role, its symmetry group and, where heads are cut, the config's attribute with their number and the axis.
Embeddings, norms, biases and LoRA factors are recognised by module type in every family and need no entry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One kind of parameter.

    Attributes:
        suffix: regular expression for the end of the parameter's name, from a dot on.
        role: what the parameter does, in dotted words from general to special.
        symmetry: the group under which the function of the network is invariant, rows x columns.
        heads: attribute of the model's config with the number of heads; None: no heads.
        head_axis: the axis that heads cut, 0 rows, 1 columns.
        head_dim: attribute of the config with the size of a head, checked where the config has it.
    """

    suffix: str
    role: str
    symmetry: str
    heads: str | None = None
    head_axis: int = 0
    head_dim: str = "head_dim"

    def claims(self, name: str) -> bool:
        """Whether a parameter of that name is of this kind."""
        return re.search(rf"(?:^|\.){self.suffix}$", name) is not None


@dataclass(frozen=True)
class Family:
    """Models whose config has one of these `model_type`s."""

    name: str
    model_types: tuple[str, ...]
    entries: tuple[Entry, ...]


FAMILIES: tuple[Family, ...] = (
    Family(
        "qwen3",
        ("qwen3",),
        (
            Entry(r"self_attn\.q_proj\.weight", "attention.q", "S_heads, signs x O(d)", "num_attention_heads", 0),
            Entry(r"self_attn\.k_proj\.weight", "attention.k", "S_heads, signs x O(d)", "num_key_value_heads", 0),
            Entry(r"self_attn\.v_proj\.weight", "attention.v", "O(head) x O(d)", "num_key_value_heads", 0),
            Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x O(head)", "num_attention_heads", 1),
            Entry(r"mlp\.gate_proj\.weight", "mlp.gate", "S_ff x O(d)"),
            Entry(r"mlp\.up_proj\.weight", "mlp.up", "S_ff, signs x O(d)"),
            Entry(r"mlp\.down_proj\.weight", "mlp.down", "O(d) x S_ff, signs"),
            Entry(r"lm_head\.weight", "lm_head", "S_V, shift x O(d)"),
        ),
    ),
)


def find_family(model_type: str | None) -> Family | None:
    """The family of a config's `model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
