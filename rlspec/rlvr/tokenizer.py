r"""A byte-level tokenizer, built without a download: any text passes through it unchanged.

The 256 byte tokens come first, in byte order, so that token id = byte value. After them come three special tokens and a
few ordinary ones that only save decoding steps (``\boxed{`` and the role names of the chat template).
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SHORTCUTS = ("\\boxed{", "system", "user", "assistant")

# ChatML as Qwen3 writes it. `generation` marks the assistant's tokens for a loss on completions only.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The printable stand-in of every byte, in byte order, as in GPT-2's byte-level encoding.

    Printable Latin-1 characters stand for themselves; the other bytes take the code points from 256 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 263 tokens with a ChatML template, padding on the left.

    Returns:
        A tokenizer whose ids 0..255 are the bytes; ``<|endoftext|>`` pads and ``<|im_end|>`` ends a turn.
    """
    backend = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(byte_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (PAD, START, END)])
    backend.add_tokens([AddedToken(token, normalized=False) for token in SHORTCUTS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
