"""Encoders, and encoders with decoders: BERT, ViT, Swin, T5."""

from __future__ import annotations

from typing import Any

from rlspec.optim.map.families.entry import Entry, Family, Near
from rlspec.optim.map.families.vision import FREE, PATCHES, POSITIONS

_H = "num_attention_heads"

_FEED_FORWARD = (  # after attention.output.dense, which ends alike
    Entry(r"intermediate\.dense\.weight", "mlp.fc1", "S_ff x O(d)"),
    Entry(r"output\.dense\.weight", "mlp.fc2", "O(d) x S_ff"),
    Entry(r"pooler\.dense\.weight", "linear", "O(d) x O(d)"),
)


def _attention(words: str) -> tuple[Entry, ...]:
    return (
        Entry(rf"{words}\.query\.weight", "attention.q", FREE, _H),
        Entry(rf"{words}\.key\.weight", "attention.k", FREE, _H),
        Entry(rf"{words}\.value\.weight", "attention.v", FREE, _H),
        Entry(r"(?:cross)?attention\.output\.dense\.weight", "attention.o", "O(d) x O(head)", _H, 1),
    )


def _stage(config: Any, near: Near) -> str:
    return "q" * near("num_attention_heads")


def _stage_out(config: Any, near: Near) -> str:
    return "o" * near("self").num_attention_heads


_SWIN = (  # every stage has heads of its own number
    Entry(r"attention\.self\.query\.weight", "attention.q", FREE, blocks=_stage),
    Entry(r"attention\.self\.key\.weight", "attention.k", FREE, blocks=_stage),
    Entry(r"attention\.self\.value\.weight", "attention.v", FREE, blocks=_stage),
    Entry(r"attention\.output\.dense\.weight", "attention.o", "O(d) x O(head)", head_axis=1, blocks=_stage_out),
    Entry(r"downsample\.reduction\.weight", "linear", "O(d) x -"),
)

_T5 = (
    Entry(r"(?:Self|EncDec)Attention\.q\.weight", "attention.q", FREE, _H, head_dim="d_kv"),
    Entry(r"(?:Self|EncDec)Attention\.k\.weight", "attention.k", FREE, _H, head_dim="d_kv"),
    Entry(r"(?:Self|EncDec)Attention\.v\.weight", "attention.v", FREE, _H, head_dim="d_kv"),
    Entry(r"(?:Self|EncDec)Attention\.o\.weight", "attention.o", "O(d) x O(head)", _H, 1, head_dim="d_kv"),
    Entry(r"DenseReluDense\.wi_0\.weight", "mlp.gate", "S_ff x O(d)"),
    Entry(r"DenseReluDense\.wi_1\.weight", "mlp.up", "S_ff, signs x O(d)"),
    Entry(r"DenseReluDense\.wi\.weight", "mlp.fc1", "S_ff x O(d)"),
    Entry(r"DenseReluDense\.wo\.weight", "mlp.fc2", "O(d) x S_ff"),
)

ENCODERS = (
    Family(
        "bert",
        ("bert", "roberta", "xlm-roberta", "camembert", "electra"),
        (
            *_attention(r"(?:cross)?attention\.self"),
            *_FEED_FORWARD,
            Entry(r"(?:transform|lm_head|\w+_predictions)\.dense\.weight", "linear", "O(d) x O(d)"),
            Entry(r"embeddings_project\.weight", "linear", "O(d) x O(d)"),
            Entry(r"cls\.seq_relationship\.weight", "output", "- x O(d)"),
        ),
    ),
    Family(
        "distilbert",
        ("distilbert",),
        (
            Entry(r"attention\.q_lin\.weight", "attention.q", FREE, _H),
            Entry(r"attention\.k_lin\.weight", "attention.k", FREE, _H),
            Entry(r"attention\.v_lin\.weight", "attention.v", FREE, _H),
            Entry(r"attention\.out_lin\.weight", "attention.o", "O(d) x O(head)", _H, 1),
            Entry(r"ffn\.lin1\.weight", "mlp.fc1", "S_ff x O(d)"),
            Entry(r"ffn\.lin2\.weight", "mlp.fc2", "O(d) x S_ff"),
            Entry(r"(?:vocab_transform|pre_classifier)\.weight", "linear", "O(d) x O(d)"),
        ),
    ),
    Family("t5", ("t5", "mt5", "umt5"), _T5),
    Family("vit", ("vit", "deit"), (*_attention(r"attention\.attention"), *_FEED_FORWARD, *PATCHES, *POSITIONS),
           "vision"),
    Family("swin", ("swin",), (*_SWIN, *_FEED_FORWARD, *PATCHES, *POSITIONS), "vision"),
)  # fmt: skip
