"""Decoders and encoders whose queries, keys and values are one matrix, each in an order of its own."""

from __future__ import annotations

from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near
from rlspec.optim.map.families.language import FUSED_GATE, HEADS, ROTARY

_Q, _KV = "num_attention_heads", "num_key_value_heads"
_FREE = "S_heads, O(head) x O(d)"
_NO_SLOPES = "O(head) x O(d)"  # heads differ by their slope (ALiBi), so that they cannot change places


def _in_turns(config: Any, near: Near) -> str:
    """Query, key and value of one head, then those of the next: GPT-NeoX, BLOOM."""
    return "qkv" * config.num_attention_heads


def _falcon(config: Any, near: Near) -> str:
    heads = config.num_attention_heads
    if config.new_decoder_architecture:
        groups: int = config.num_kv_heads
        return ("q" * (heads // groups) + "kv") * groups
    return "q" * heads + "kv" if config.multi_query else "qkv" * heads


def _codegen(config: Any, near: Near) -> str:
    """Queries, values and keys of a quarter of the heads, then of the next."""
    each = config.num_attention_heads // 4
    return ("q" * each + "v" * each + "k" * each) * 4


def _bigcode(config: Any, near: Near) -> str:
    heads: int = config.num_attention_heads
    return "q" * heads + "kv" if config.multi_query else "qkv" * heads


def _layer(output: str, up: str, down: str) -> tuple[Entry, ...]:
    """The matrices beside a fused one, by their names in a layer with an MLP without a gate."""
    return (
        Entry(rf"{output}\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
        Entry(rf"{up}\.weight", "mlp.fc1", "S_ff x O(d)"),
        Entry(rf"{down}\.weight", "mlp.fc2", "O(d) x S_ff"),
        *HEADS,
    )


_DENSE = _layer(r"(?:self_)?att(?:entio)?n\.dense", r"mlp\.dense_h_to_4h", r"mlp\.dense_4h_to_h")

FUSED = (
    Family(
        "gpt_neox",
        ("gpt_neox", "gpt_neox_japanese"),
        (Entry(r"attention\.query_key_value\.weight", "attention.qkv", ROTARY, blocks=_in_turns), *_DENSE),
    ),
    Family(
        "bloom",
        ("bloom",),
        (Entry(r"self_attention\.query_key_value\.weight", "attention.qkv", _NO_SLOPES, blocks=_in_turns), *_DENSE),
    ),
    Family(
        "falcon",
        ("falcon",),
        (Entry(r"self_attention\.query_key_value\.weight", "attention.qkv", "SO(2) x O(d)", blocks=_falcon), *_DENSE),
    ),
    Family(
        "persimmon",  # norms of queries and keys with a mean and a bias
        ("persimmon",),
        (Entry(r"self_attn\.query_key_value\.weight", "attention.qkv", "S_heads x O(d)", blocks=_in_turns), *_DENSE),
    ),
    Family(
        "mpt",
        ("mpt",),
        (
            Entry(r"attn\.Wqkv\.weight", "attention.qkv", _NO_SLOPES, (_Q, _Q, _Q)),
            *_layer(r"attn\.out_proj", r"ffn\.up_proj", r"ffn\.down_proj"),
        ),
    ),
    Family(
        "gpt_bigcode",
        ("gpt_bigcode",),
        (
            Entry(r"attn\.c_attn\.weight", "attention.qkv", _FREE, blocks=_bigcode),
            *_layer(r"attn\.c_proj", r"mlp\.c_fc", r"mlp\.c_proj"),
        ),
    ),
    Family(
        "codegen",
        ("codegen",),
        (
            Entry(r"attn\.qkv_proj\.weight", "attention.qkv", ROTARY, blocks=_codegen),
            *_layer(r"attn\.out_proj", r"mlp\.fc_in", r"mlp\.fc_out"),
        ),
    ),
    Family(
        "phi3",
        ("phi3",),
        (
            Entry(r"self_attn\.qkv_proj\.weight", "attention.qkv", ROTARY, (_Q, _KV, _KV)),
            Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
            *FUSED_GATE,
            *HEADS,
        ),
    ),
    Family(
        "modernbert",
        ("modernbert", "modernbert-decoder"),
        (
            Entry(r"attn\.q_proj\.weight", "attention.q", ROTARY, _Q),
            Entry(r"attn\.k_proj\.weight", "attention.k", ROTARY, _Q),
            Entry(r"attn\.v_proj\.weight", "attention.v", "O(head) x O(d)", _Q),
            Entry(r"attn\.Wqkv\.weight", "attention.qkv", ROTARY, (_Q, _Q, _Q)),
            Entry(r"attn\.Wo\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
            Entry(r"mlp\.Wi\.weight", "mlp.gate_up", "S_ff x O(d)", parts=2),
            Entry(r"mlp\.Wo\.weight", "mlp.down", "O(d) x S_ff, signs"),
            Entry(r"(?:lm_)?head\.dense\.weight", "linear", "O(d) x O(d)"),
            *HEADS,
        ),
    ),
    Family(
        "gpt2",  # Conv1D: stored (in, out)
        ("gpt2",),
        (
            Entry(r"attn\.c_attn\.weight", "attention.qkv", _FREE, (_Q, _Q, _Q), transposed=True),
            Entry(r"attn\.c_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1, transposed=True),
            Entry(r"mlp\.c_fc\.weight", "mlp.fc1", "S_ff x O(d)", transposed=True),
            Entry(r"mlp\.c_proj\.weight", "mlp.fc2", "O(d) x S_ff", transposed=True),
            *HEADS,
        ),
    ),
)
