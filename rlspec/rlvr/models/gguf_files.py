"""What transformers gets wrong of a GGUF file: its tokenizer, the width of a head, and tensors that it passes over.

transformers takes a class by the model's architecture (CodeLlama's for every Llama), whose vocabulary is another one;
here the tokenizer is built from the file's own tokens and merges.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlspec.config.gguf_header import gguf_fault, read_gguf_header
from rlspec.errors import CheckpointError
from rlspec.hub import one_line

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"add_prefix_space": False}
# How text is cut before merges, by tokenizer.ggml.pre, as the published tokenizers of these models do it.
CUTS: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(**_BYTES)],
    "gpt-2": [pre_tokenizers.ByteLevel(**_BYTES)],
    "qwen2": [
        pre_tokenizers.Split(Regex(_WORDS % r"\p{N}"), "isolated"),
        pre_tokenizers.ByteLevel(**_BYTES, use_regex=False),
    ],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_WORDS % r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.ByteLevel(**_BYTES, use_regex=False),
    ],
}


def open_gguf(path: str) -> Path:
    """The file, if a model can be trained from it.

    Raises:
        CheckpointError: It cannot, in one line.
    """
    if fault := gguf_fault(path):
        raise CheckpointError(f"model {path}: {fault}")
    return Path(path).expanduser().resolve()


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The byte-level BPE tokenizer in a GGUF file, with its chat template and special tokens.

    Raises:
        CheckpointError: The file holds a tokenizer of another kind, or cuts text in a way that is not known here.
    """
    metadata = read_gguf_header(file).metadata
    kind, cut = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in CUTS:
        named = f"tokenizer.ggml.model={kind}, tokenizer.ggml.pre={cut}"
        raise CheckpointError(
            f"the tokenizer of {file} is not read ({named}); byte-level BPE (gpt2) with {', '.join(CUTS)} is. Take the "
            "model's own folder: model=FOLDER or a hub id"
        )
    tokens, merges = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.ggml.merges", [])
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not tokens or not merges or len(kinds) != len(tokens):
        raise CheckpointError(
            f"the tokenizer of {file} is incomplete: {len(tokens)} tokens, {len(kinds)} types, {len(merges)} merges"
        )
    # Unused tokens fill the vocabulary up to the number of embeddings.
    vocabulary = {token: index for index, token in enumerate(tokens) if kinds[index] != UNUSED}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=cut == "llama-bpe"))
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"the tokenizer of {file} is corrupt: {one_line(error)}") from error
    if cut == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
    backend.decoder = decoders.ByteLevel()
    for index, token in enumerate(tokens):
        if kinds[index] in (CONTROL, USER_DEFINED):
            backend.add_tokens([AddedToken(token, normalized=False, special=kinds[index] == CONTROL)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **_named(metadata, tokens),
    )


def _named(metadata: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in IDS.items()}
    return {name: tokens[index] for name, index in ids.items() if index is not None and index < len(tokens)}


def complete_config(config: PretrainedConfig, file: Path) -> None:
    """Give a configuration the width of a head, which transformers leaves at the class's default: 128 for Qwen3."""
    width = read_gguf_header(file).of_model("attention.key_length")
    if width is not None and hasattr(config, "head_dim"):
        config.head_dim = width


def check_all_taken(model: PreTrainedModel, file: Path) -> None:
    """Compare how many numbers a file and its model hold: transformers passes over tensors that it does not know.

    Raises:
        CheckpointError: They differ.
    """
    header = read_gguf_header(file)
    stored = sum(tensor.numbers for tensor in header.tensors)
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if stored != loaded:
        raise CheckpointError(
            f"{file} holds {stored:,} numbers, and the {header.architecture} that transformers builds from it "
            f"{loaded:,}: some would be lost; take the model's own folder or hub id"
        )
