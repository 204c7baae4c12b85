"""Decoders with experts, and DeepSeek's attention through low-rank pairs (MLA)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near
from rlspec.optim.map.families.language import (
    EXPERTS,
    GATED_MLP,
    GATED_VALUES,
    HEADS,
    JOINTLY_NORMED,
    LFM2,
    NORMED,
    ROTARY,
    decoder_attention,
)

_Q = "num_attention_heads"


def _shared(words: str) -> tuple[Entry, ...]:
    """An expert that every token has, written as a gated MLP of that name."""
    return tuple(replace(entry, suffix=entry.suffix.replace("mlp", words, 1)) for entry in GATED_MLP)


SHARED = (
    *_shared(r"shared_(?:experts?|mlp)"),
    Entry(r"shared_expert_gate\.weight", "scalar_gate", "- x O(d)"),
)

# Adding a row to all rows of a router changes a sigmoid, where a softmax does not see it.
SIGMOID_ROUTER = Entry(
    r"(?:mlp\.(?:router\.)?gate|feed_forward\.(?:router|gate))\.weight", "mlp.sigmoid_router", "S_experts x O(d)"
)


_SELF_ATTENTION = r"self_attn\.(?:\d\.)?"  # LongCat-Flash has two in a layer


def _latent(config: Any, near: Near) -> str:
    """Key and value of each head in turns; where their sizes differ, both of a head are one block."""
    return ("kv" if config.qk_nope_head_dim == config.v_head_dim else "b") * config.num_attention_heads


MLA = (  # latents have a norm between their two matrices, whose gains leave signs
    Entry(rf"{_SELF_ATTENTION}q_proj\.weight", "attention.q", "S_heads x O(d)", _Q, head_dim=""),
    Entry(rf"{_SELF_ATTENTION}q_a_proj\.weight", "attention.q_a", "signs x O(d)"),
    Entry(rf"{_SELF_ATTENTION}q_b_proj\.weight", "attention.q_b", "S_heads x signs", _Q, head_dim=""),
    Entry(rf"{_SELF_ATTENTION}kv_a_proj_with_mqa\.weight", "attention.kv_a", "- x O(d)"),
    Entry(rf"{_SELF_ATTENTION}kv_b_proj\.weight", "attention.kv_b", "S_heads, O(head) x signs", blocks=_latent),
    Entry(rf"{_SELF_ATTENTION}o_proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1, head_dim=""),
)

# Which positions a token may look at; transformers passes no gradient through the choice.
INDEXER = (Entry(r"indexer\.(?:wq_b|wk|weights_proj)\.weight", "linear", "- x -"),)

LONGCAT = (  # two attentions and two MLPs in a layer
    *(replace(entry, suffix=entry.suffix.replace("mlp", r"mlps\.\d", 1)) for entry in GATED_MLP),
    Entry(r"mlp\.router\.classifier\.weight", "mlp.router", "S_experts, shift x O(d)"),
)

AFMOE = (  # as with Qwen3-Next, but the gate is a matrix of its own
    Entry(r"self_attn\.q_proj\.weight", "attention.q", NORMED, _Q),
    Entry(r"self_attn\.gate_proj\.weight", "attention.gate", "S_heads, S_head x O(d)", _Q),
    *GATED_VALUES,
)

GPT_OSS = (
    Entry(
        r"mlp\.experts\.gate_up_proj", "mlp.expert.gate_up", "S_experts, S_ff x O(d)",
        parts=2, stacked=True, transposed=True, interleaved=True,
    ),
    Entry(
        r"mlp\.experts\.down_proj", "mlp.expert.down", "S_experts, O(d) x S_ff", stacked=True, transposed=True
    ),
    Entry(r"mlp\.router\.weight", "mlp.router", "S_experts, shift x O(d)"),
)  # fmt: skip

LLAMA4 = (
    Entry(
        r"feed_forward\.experts\.gate_up_proj", "mlp.expert.gate_up", "S_experts, S_ff x O(d)",
        parts=2, stacked=True, transposed=True,
    ),
    Entry(
        r"feed_forward\.experts\.down_proj", "mlp.expert.down", "S_experts, O(d) x S_ff, signs",
        stacked=True, transposed=True,
    ),
    *_shared("feed_forward"),
)  # fmt: skip

GRANITE_EXPERTS = (
    Entry(r"block_sparse_moe\.input_linear\.weight", "mlp.expert.gate_up", "S_experts, S_ff x O(d)",
          parts=2, stacked=True),
    Entry(r"block_sparse_moe\.output_linear\.weight", "mlp.expert.down", "S_experts, O(d) x S_ff, signs",
          stacked=True),
)  # fmt: skip

GRANITE = (
    *GRANITE_EXPERTS,
    Entry(r"block_sparse_moe\.router\.layer\.weight", "mlp.router", "S_experts, shift x O(d)"),
    Entry(r"shared_mlp\.input_linear\.weight", "mlp.gate_up", "S_ff x O(d)", parts=2),
    Entry(r"shared_mlp\.output_linear\.weight", "mlp.down", "O(d) x S_ff, signs"),
)

WITH_EXPERTS = (
    Family("olmoe", ("olmoe",), (*decoder_attention(JOINTLY_NORMED), *EXPERTS, *HEADS)),
    Family("qwen2_moe", ("qwen2_moe",), (*decoder_attention(ROTARY), *EXPERTS, *SHARED, *GATED_MLP, *HEADS)),
    Family("deepseek_v2", ("deepseek_v2",), (*MLA, *EXPERTS, *SHARED, *GATED_MLP, *HEADS)),
    Family(
        "deepseek_v3",
        ("deepseek_v3", "glm4_moe_lite", "youtu", "glm_moe_dsa"),
        (*MLA, *INDEXER, SIGMOID_ROUTER, *EXPERTS, *SHARED, *GATED_MLP, *HEADS),
    ),
    Family(
        "glm4_moe",
        ("glm4_moe", "dots1"),
        (*decoder_attention(NORMED), SIGMOID_ROUTER, *EXPERTS, *SHARED, *GATED_MLP, *HEADS),
    ),
    Family("longcat_flash", ("longcat_flash",), (*MLA, *LONGCAT, *EXPERTS, *HEADS)),
    Family("afmoe", ("afmoe",), (*AFMOE, SIGMOID_ROUTER, *EXPERTS, *SHARED, *GATED_MLP, *HEADS)),
    Family(
        "hunyuan_v1_moe",
        ("hunyuan_v1_moe",),
        (
            *decoder_attention(NORMED),
            Entry(r"mlp\.gate\.wg\.weight", "mlp.router", "S_experts, shift x O(d)"),
            *EXPERTS,
            *SHARED,
            *HEADS,
        ),
    ),
    Family("ernie4_5_moe", ("ernie4_5_moe",), (*decoder_attention(ROTARY), *EXPERTS, *SHARED, *GATED_MLP, *HEADS)),
    Family(
        "solar_open",
        ("solar_open",),
        (*decoder_attention(ROTARY), SIGMOID_ROUTER, *EXPERTS, *SHARED, *GATED_MLP, *HEADS),
    ),
    Family("gpt_oss", ("gpt_oss",), (*decoder_attention("SO(2) x O(d)"), *GPT_OSS, *HEADS)),
    Family("llama4", ("llama4_text",), (*decoder_attention(ROTARY), SIGMOID_ROUTER, *LLAMA4, *SHARED, *HEADS)),
    Family("lfm2_moe", ("lfm2_moe",), (*decoder_attention(NORMED), SIGMOID_ROUTER, *LFM2, *EXPERTS, *HEADS)),
    Family("granitemoe", ("granitemoe", "granitemoeshared"), (*decoder_attention(ROTARY), *GRANITE, *HEADS)),
)
