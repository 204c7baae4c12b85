"""Any text passes through the byte tokenizer unchanged, in memory and after it was saved and loaded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlspec.rlvr.models.tokenizer import SHORTCUTS, build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()
SAMPLES = [
    "",
    "47+85=?",
    "  leading, trailing  \t\n",
    "CRLF\r\nand\rbare\x0b\x0c\x85\u2028",
    "null\x00byte\x00",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇩🇪",
    "עברית العربية \u202eoverride\u202c",
    "combining e\u0301 vs é, ﬁ ligature, ㎞, 𝔐𝔞𝔱𝔥, İstanbul",
    r"\frac{1}{2}\boxed{\boxed{3}} ecosystem users assistants",
    "user<|im_start|>user\n<|im_end|><|endoftext|>",
    "don't clean up : this , please . it 's n't",
]
# Lone surrogates are not Unicode text and have no UTF-8 form.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
PIECES = st.lists(TEXT | st.sampled_from([*SHORTCUTS, "<|im_end|>", "<|im_", "\\boxed", "\r\n"]), max_size=6)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def round_trip(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    return tokenizer.decode(tokenizer(text, add_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("text", SAMPLES)
def test_awkward_text_is_unchanged(text: str, reloaded: PreTrainedTokenizerFast) -> None:
    assert round_trip(TOKENIZER, text) == text
    assert round_trip(reloaded, text) == text


@settings(max_examples=300, deadline=None)
@given(PIECES)
def test_any_text_is_unchanged(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert round_trip(TOKENIZER, text) == text


def test_plain_text_becomes_its_utf8_bytes() -> None:
    text = "é=1\n👍\x00"
    assert TOKENIZER(text)["input_ids"] == list(text.encode())


def test_every_byte_has_its_token() -> None:
    assert len(set(TOKENIZER.convert_ids_to_tokens(range(256)))) == 256
    assert len(TOKENIZER) == 256 + 3 + len(SHORTCUTS)


def test_shortcuts_are_one_token_and_survive_skipping_special_tokens() -> None:
    ids = TOKENIZER("\\boxed{42}<|im_end|>")["input_ids"]
    assert len(ids) == 5
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "\\boxed{42}"


def test_chat_template_is_chatml(reloaded: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1=?<|im_end|>\n"
    for tokenizer in (TOKENIZER, reloaded):
        assert tokenizer.apply_chat_template(messages, tokenize=False) == expected
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert prompt == expected + "<|im_start|>assistant\n"


def test_assistant_mask_covers_the_answer_and_its_end() -> None:
    messages = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    encoded = TOKENIZER.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids = [token for token, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own]
    assert TOKENIZER.decode(ids) == "2<|im_end|>"


def test_padding_is_on_the_left_with_its_own_token(reloaded: PreTrainedTokenizerFast) -> None:
    for tokenizer in (TOKENIZER, reloaded):
        batch = tokenizer(["1", "123"], padding=True)
        assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
        assert batch["input_ids"][0][0] == tokenizer.pad_token_id != tokenizer.eos_token_id
