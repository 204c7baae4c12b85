"""Tiny models as GGUF files, written by gguf's own writer as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: uv sync")

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = (
    "How many apples does Ana have? 12 + 7 = 19, it's 20-1. We'll see, don't we? Größe, 数学, naïve\n\n  two  spaces "
)
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}


def trained_tokenizer() -> Tokenizer:
    """As SmolLM2's tokenizer.json states it: single digits, then byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def build(architecture: str, *, vocab_size: int, tied: bool = True) -> PreTrainedModel:
    """A model of random weights; another base of rotation and other ids than the class's defaults."""
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[architecture]
    config = config_class(**SHAPE, vocab_size=vocab_size, tie_word_embeddings=tied, rope_theta=5e4)
    torch.manual_seed(0)
    return model_class(config).eval()


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    pre: str = "smollm",
    fields: Mapping[str, Any] | None = None,
    without: Iterable[str] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
    kinds: Mapping[int, int] | None = None,
    architecture: str | None = None,
) -> Path:
    """The model and its tokenizer in one file.

    Args:
        fields: further metadata, or other values.
        without: tensors to leave out.
        tensors: further ones.
        kinds: types of tokens by id, where they are not 3 for `SPECIALS` and 1 for the others.
        architecture: what the file calls itself.
    """
    config, kind = model.config, model.config.model_type
    tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    values: dict[str, Any] = {
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.context_length": config.max_position_embeddings,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.feed_forward_length": config.intermediate_size,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
        f"{kind}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{kind}.attention.key_length": config.head_dim,
        f"{kind}.rope.freq_base": 5e4,
        f"{kind}.vocab_size": config.vocab_size,
        "general.name": "tiny",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            (kinds or {}).get(index, 3 if token in SPECIALS else 1) for index, token in enumerate(tokens)
        ],
        "tokenizer.ggml.merges": merges_of(tokenizer),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": TEMPLATE,
        **(fields or {}),
    }
    if kind == "llama":
        values.setdefault("llama.rope.dimension_count", config.head_dim)
    writer = gguf.GGUFWriter(path, architecture or kind)
    for key, value in values.items():
        _add(writer, key, value)
    for name, value in {**_tensors(model, kind), **(tensors or {})}.items():
        if name not in without:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif value is not None:
        writer.add_uint32(key, value)


def _tensors(model: PreTrainedModel, kind: str) -> dict[str, np.ndarray]:
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    found = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp rotates neighbours, transformers halves of a head.
            array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        stem = names.get_name(name.removesuffix(".weight"))
        assert stem is not None, name
        found[f"{stem}.weight"] = np.ascontiguousarray(array)
    return found
