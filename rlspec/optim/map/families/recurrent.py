"""State-space models and linear attention.

Their mixers multiply channel by channel, so that nothing rotates inside: projections stay whole, or are cut into fused
parts of one size, and follow the optimizer's rule; kernels per channel and rates of decay get AdamW.
"""

from __future__ import annotations

from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near
from rlspec.optim.map.families.experts import SHARED
from rlspec.optim.map.families.language import EXPERTS, GATED_MLP, HEADS, NORMED

_Q, _KV = "num_attention_heads", "num_key_value_heads"


def _gated(config: Any, near: Near) -> str:
    """The query of a head, then the gate of its output."""
    return "qg" * config.num_attention_heads


# Gates multiply single channels of the values, so that within a head these can change places and signs only.
GATED_ATTENTION = (
    Entry(r"self_attn\.q_proj\.weight", "attention.q", NORMED, blocks=_gated),
    Entry(r"self_attn\.k_proj\.weight", "attention.k", NORMED, _KV),
    Entry(r"self_attn\.v_proj\.weight", "attention.v", "S_head, signs x O(d)", _KV),
    Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x S_head, signs", _Q, 1),
)

DELTA_NET = (
    Entry(r"linear_attn\.in_proj_\w+\.weight", "linear.mixer", "- x O(d)"),
    Entry(r"linear_attn\.out_proj\.weight", "linear.mixer", "O(d) x -"),
)

MAMBA = (
    Entry(r"mixer\.A_log", "state", "-"),
    Entry(r"mixer\.(?:x_proj|dt_proj)\.weight", "linear.mixer", "-"),
    Entry(r"mixer\.out_proj\.weight", "linear.mixer", "O(d) x -"),
    *HEADS,
)

RECURRENT = (
    Family("mamba", ("mamba",), (Entry(r"mixer\.in_proj\.weight", "linear.mixer", "- x O(d)", parts=2), *MAMBA)),
    Family("mamba2", ("mamba2",), (Entry(r"mixer\.in_proj\.weight", "linear.mixer", "- x O(d)"), *MAMBA)),
    Family(
        "qwen3_next",
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        (*GATED_ATTENTION, *DELTA_NET, *EXPERTS, *SHARED, *GATED_MLP, *HEADS),
    ),
)
