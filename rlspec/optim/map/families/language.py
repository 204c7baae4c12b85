"""Decoders: Qwen, Llama, Gemma, dense and with experts."""

from __future__ import annotations

from rlspec.optim.map.families.entry import Entry, Family

_Q, _KV = "num_attention_heads", "num_key_value_heads"

# Norms of queries and keys with their own gains leave plane signs and the scale of a head; without them, rotary
# positions leave a rotation and a scale to each plane (i, i + head_dim / 2), queries against keys.
NORMED, ROTARY = "S_heads, signs x O(d)", "S_heads, SO(2) x O(d)"


def decoder_attention(symmetry: str) -> tuple[Entry, ...]:
    """Separate projections with grouped-query heads; `symmetry` of queries and keys."""
    return (
        Entry(r"self_attn\.q_proj\.weight", "attention.q", symmetry, _Q),
        Entry(r"self_attn\.k_proj\.weight", "attention.k", symmetry, _KV),
        Entry(r"self_attn\.v_proj\.weight", "attention.v", "O(head) x O(d)", _KV),
        Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
    )


GATED_MLP = (
    Entry(r"mlp\.gate_proj\.weight", "mlp.gate", "S_ff x O(d)"),
    Entry(r"mlp\.up_proj\.weight", "mlp.up", "S_ff, signs x O(d)"),
    Entry(r"mlp\.down_proj\.weight", "mlp.down", "O(d) x S_ff, signs"),
)

EXPERTS = (
    Entry(r"mlp\.experts\.gate_up_proj", "mlp.expert.gate_up", "S_experts, S_ff x O(d)", parts=2, stacked=True),
    Entry(r"mlp\.experts\.down_proj", "mlp.expert.down", "S_experts, O(d) x S_ff, signs", stacked=True),
    Entry(r"mlp\.gate\.weight", "mlp.router", "S_experts, shift x O(d)"),
)

HEADS = (
    Entry(r"lm_head\.weight", "lm_head", "S_V, shift x O(d)"),
    Entry(r"score\.weight", "output", "- x O(d)"),
)

LANGUAGE = (
    Family(
        "qwen3",
        ("qwen3", "qwen3_vl_text", "gemma3_text"),
        (*decoder_attention(NORMED), *GATED_MLP, *HEADS),
    ),
    Family("qwen3_moe", ("qwen3_moe",), (*decoder_attention(NORMED), *EXPERTS, *GATED_MLP, *HEADS)),
    Family("mixtral", ("mixtral",), (*decoder_attention(ROTARY), *EXPERTS, *HEADS)),
    Family(
        "llama",
        ("llama", "qwen2", "mistral", "smollm3", "gemma", "gemma2"),
        (*decoder_attention(ROTARY), *GATED_MLP, *HEADS),
    ),
)
