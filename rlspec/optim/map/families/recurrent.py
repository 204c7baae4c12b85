"""State-space models and linear attention.

Their mixers multiply channel by channel, so that nothing rotates inside: projections stay whole, or are cut into fused
parts of one size, or, where it has heads as attention has, into these (MiniMax), and follow the optimizer's rule;
kernels per channel and rates of decay get AdamW.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near
from rlspec.optim.map.families.experts import SHARED
from rlspec.optim.map.families.language import (
    EXPERTS,
    GATED_MLP,
    GATED_VALUES,
    HEADS,
    JOINTLY_NORMED,
    NORMED,
    ROTARY,
    decoder_attention,
)
from rlspec.optim.map.families.vision import FREE

_Q, _KV = "num_attention_heads", "num_key_value_heads"


def _gated(config: Any, near: Near) -> str:
    """The query of a head, then the gate of its output."""
    return "qg" * config.num_attention_heads


GATED_ATTENTION = (Entry(r"self_attn\.q_proj\.weight", "attention.q", NORMED, blocks=_gated), *GATED_VALUES)

MIXERS = (
    Entry(r"(?:mamba|mixer|conv)\.in_proj\.weight", "linear.mixer", "- x O(d)"),
    Entry(r"(?:mamba|mixer)\.(?:x_proj|dt_proj)\.weight", "linear.mixer", "-"),
    Entry(r"(?:mamba|mixer|conv)\.out_proj\.weight", "linear.mixer", "O(d) x -"),
    Entry(r"linear_attn\.o(?:ut)?_proj\.weight", "linear.mixer", "O(d) x -"),
    Entry(r"linear_attn\.(?:\w+_proj|in_proj_\w+)\.weight", "linear.mixer", "- x O(d)"),
)

STATES = Entry(r"(?:mixer|mamba)\.A_log", "state", "-")

JAMBA = (  # without positions
    *decoder_attention(FREE),
    *(replace(entry, suffix=entry.suffix.replace("mlp", "feed_forward", 1)) for entry in GATED_MLP),
    Entry(r"feed_forward\.router\.weight", "mlp.router", "S_experts, shift x O(d)"),
)


def _lightning(config: Any, near: Near) -> str:
    return "qkv" * config.num_attention_heads


# A nonlinearity after queries, keys and values, and heads of different decay.
MINIMAX = (
    Entry(r"self_attn\.qkv_proj\.weight", "linear.mixer", "- x O(d)", blocks=_lightning),
    Entry(r"self_attn\.output_gate\.weight", "linear.mixer", "- x O(d)"),
    Entry(r"self_attn\.out_proj\.weight", "linear.mixer", "O(d) x -"),
)

RECURRENT = (
    Family(
        "mamba",
        ("mamba", "falcon_mamba"),
        (Entry(r"mixer\.in_proj\.weight", "linear.mixer", "- x O(d)", parts=2), STATES, *MIXERS, *HEADS),
    ),
    Family(
        "jamba",
        ("jamba",),
        (
            *JAMBA,
            Entry(r"mamba\.in_proj\.weight", "linear.mixer", "- x O(d)", parts=2),
            STATES,
            *MIXERS,
            *EXPERTS,
            *HEADS,
        ),
    ),
    Family("minimax", ("minimax",), (*decoder_attention(ROTARY), *MINIMAX, *EXPERTS, *HEADS)),
    Family("mamba2", ("mamba2",), (STATES, *MIXERS, *HEADS)),
    Family("olmo_hybrid", ("olmo_hybrid",), (*decoder_attention(JOINTLY_NORMED), *MIXERS, *GATED_MLP, *HEADS)),
    Family(
        "qwen3_next",
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        (*GATED_ATTENTION, *MIXERS, *EXPERTS, *SHARED, *GATED_MLP, *HEADS),
    ),
)
