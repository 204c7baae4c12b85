"""Decoders with separate projections: Qwen, Llama, Gemma and those that are written like them."""

from __future__ import annotations

from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near

_Q, _KV = "num_attention_heads", "num_key_value_heads"

# Norms of queries and keys with their own gains leave plane signs and the scale of a head; without them, rotary
# positions leave a rotation and a scale to each plane (i, i + head_dim / 2), queries against keys.
NORMED, ROTARY = "S_heads, signs x O(d)", "S_heads, SO(2) x O(d)"
JOINTLY_NORMED = "signs x O(d)"  # one norm over all heads, with a gain for every channel


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

UNGATED_MLP = (
    Entry(r"mlp\.up_proj\.weight", "mlp.fc1", "S_ff x O(d)"),
    Entry(r"mlp\.down_proj\.weight", "mlp.fc2", "O(d) x S_ff"),
)

FUSED_GATE = (
    Entry(r"mlp\.gate_up_proj\.weight", "mlp.gate_up", "S_ff x O(d)", parts=2),
    Entry(r"mlp\.down_proj\.weight", "mlp.down", "O(d) x S_ff, signs"),
)

# Gates multiply single channels of the values, so that within a head these can change places and signs only.
GATED_VALUES = (
    Entry(r"self_attn\.k_proj\.weight", "attention.k", NORMED, _KV),
    Entry(r"self_attn\.v_proj\.weight", "attention.v", "S_head, signs x O(d)", _KV),
    Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x S_head, signs", _Q, 1),
)

STACKED_EXPERTS = (
    Entry(r"experts\.gate_up_proj", "mlp.expert.gate_up", "S_experts, S_ff x O(d)", parts=2, stacked=True),
    Entry(r"experts\.down_proj", "mlp.expert.down", "S_experts, O(d) x S_ff, signs", stacked=True),
)

EXPERTS = (*STACKED_EXPERTS, Entry(r"mlp\.gate\.weight", "mlp.router", "S_experts, shift x O(d)"))

HEADS = (
    Entry(r"lm_head\.weight", "lm_head", "S_V, shift x O(d)"),
    Entry(r"score\.weight", "output", "- x O(d)"),
)

PER_LAYER = (  # Gemma's inputs of each layer
    Entry(r"per_layer_input_gate\.weight", "mlp.gate", "S_ff x O(d)"),
    Entry(r"per_layer_projection\.weight", "mlp.down", "O(d) x S_ff"),
    Entry(r"per_layer_model_projection\.weight", "linear", "- x O(d)"),
)


def _gemma4_keys(config: Any, near: Near) -> str:
    """Its global layers may have other numbers of heads than the config's first."""
    return "k" * (config.num_attention_heads // near("num_key_value_groups"))


GEMMA4 = (
    Entry(r"self_attn\.q_proj\.weight", "attention.q", NORMED, _Q, head_dim=""),
    Entry(r"self_attn\.k_proj\.weight", "attention.k", NORMED, blocks=_gemma4_keys),
    Entry(r"self_attn\.v_proj\.weight", "attention.v", "O(head) x O(d)", blocks=_gemma4_keys),
    Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1, head_dim=""),
    *STACKED_EXPERTS,
    Entry(r"router\.proj\.weight", "mlp.router", "S_experts, shift x O(d)"),
)

GEMMA3N = (
    Entry(r"laurel\.linear_left\.weight", "linear", "- x O(d)"),
    Entry(r"laurel\.linear_right\.weight", "linear", "O(d) x -"),
    Entry(r"altup_(?:unembed_)?projections\.\d+\.weight", "linear", "O(d) x O(d)"),
    Entry(r"altup\.\w+\.weight", "coefficients", "-"),
)


def _pairs_of_outputs(config: Any, near: Near) -> str:
    return "o" * (config.num_attention_heads // 2)


# The difference of two attentions, to values of two heads that do not lie side by side, so that values stay whole.
DIFFERENTIAL = (
    Entry(r"self_attn\.v_proj\.weight", "attention.v", "- x O(d)"),
    Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x -", head_axis=1, blocks=_pairs_of_outputs),
    *decoder_attention(ROTARY),
)

LFM2 = (
    Entry(r"self_attn\.out_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
    Entry(r"feed_forward\.w1\.weight", "mlp.gate", "S_ff x O(d)"),
    Entry(r"feed_forward\.w3\.weight", "mlp.up", "S_ff, signs x O(d)"),
    Entry(r"feed_forward\.w2\.weight", "mlp.down", "O(d) x S_ff, signs"),
    Entry(r"conv\.in_proj\.weight", "linear.mixer", "- x O(d)", parts=3),
    Entry(r"conv\.out_proj\.weight", "linear.mixer", "O(d) x -"),
)

BITNET = (  # norms with gains of their own before the outputs of attention and MLP leave signs
    Entry(r"self_attn\.q_proj\.weight", "attention.q", "SO(2) x O(d)", _Q),
    Entry(r"self_attn\.k_proj\.weight", "attention.k", "SO(2) x O(d)", _KV),
    Entry(r"self_attn\.v_proj\.weight", "attention.v", "signs x O(d)", _KV),
    Entry(r"self_attn\.o_proj\.weight", "attention.o", "O(d) x signs", _Q, 1),
    Entry(r"mlp\.gate_proj\.weight", "mlp.gate", "- x O(d)"),
    Entry(r"mlp\.up_proj\.weight", "mlp.up", "signs x O(d)"),
    Entry(r"mlp\.down_proj\.weight", "mlp.down", "O(d) x signs"),
)

LANGUAGE = (
    Family(
        "qwen3",
        ("qwen3", "qwen3_vl_text", "gemma3_text", "exaone4", "hunyuan_v1_dense"),
        (*decoder_attention(NORMED), *GATED_MLP, *HEADS),
    ),
    Family("qwen3_moe", ("qwen3_moe",), (*decoder_attention(NORMED), *EXPERTS, *GATED_MLP, *HEADS)),
    Family("mixtral", ("mixtral",), (*decoder_attention(ROTARY), *EXPERTS, *HEADS)),
    Family(
        "llama",
        (
            *("llama", "qwen2", "mistral", "smollm3", "gemma", "gemma2", "vaultgemma"),
            *(
                "cohere",
                "cohere2",
                "ernie4_5",
                "granite",
                "helium",
                "ministral",
                "ministral3",
                "olmo",
                "seed_oss",
                "cwm",
            ),
        ),
        (*decoder_attention(ROTARY), *GATED_MLP, *HEADS),
    ),
    Family("arcee", ("arcee", "jais2", "nemotron"), (*decoder_attention(ROTARY), *UNGATED_MLP, *HEADS)),
    Family("apertus", ("apertus",), (*decoder_attention(NORMED), *UNGATED_MLP, *HEADS)),
    Family("olmo2", ("olmo2", "olmo3"), (*decoder_attention(JOINTLY_NORMED), *GATED_MLP, *HEADS)),
    Family("glm4", ("glm", "glm4"), (*decoder_attention(ROTARY), *FUSED_GATE, *HEADS)),
    Family(
        "phi",
        ("phi", "starcoder2"),
        (
            *decoder_attention(ROTARY),
            Entry(r"self_attn\.dense\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
            Entry(r"mlp\.(?:fc1|c_fc)\.weight", "mlp.fc1", "S_ff x O(d)"),
            Entry(r"mlp\.(?:fc2|c_proj)\.weight", "mlp.fc2", "O(d) x S_ff"),
            *HEADS,
        ),
    ),
    Family("gemma3n", ("gemma3n_text",), (*decoder_attention(NORMED), *GATED_MLP, *PER_LAYER, *GEMMA3N, *HEADS)),
    Family("gemma4", ("gemma4_text",), (*GEMMA4, *GATED_MLP, *PER_LAYER, *HEADS)),
    Family("diffllama", ("diffllama",), (*DIFFERENTIAL, *GATED_MLP, *HEADS)),
    Family("bitnet", ("bitnet",), (*BITNET, *HEADS)),
    Family("lfm2", ("lfm2",), (*decoder_attention(NORMED), *LFM2, *HEADS)),
)
