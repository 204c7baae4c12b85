r"""A byte-level tokenizer, built without a download: any text passes through it unchanged.

The 256 byte tokens come first, in byte order, so that token id = byte value. After them come three special tokens and a
few ordinary ones that only save decoding steps (``\boxed{`` and the role names of the chat template).
"""

from __future__ import annotations

import json
from typing import Any

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

# The same for a model that calls tools, in few bytes, since a tiny model pays for every one: a tool is introduced by
# its name and parameters, and a call is `@name` with its arguments as JSON.
CALL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system' }}"
    "{% for tool in tools %}"
    "{{ '\n' + tool.function.name + '(' + tool.function.parameters.properties | join(', ') + ')' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '@' + call.function.name + ' ' + call.function.arguments | tojson }}"
    "{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CALL = r"@\w+ \{[^{}]*\}"
CALL_SCHEMA: dict[str, Any] = {
    "x-regex": rf"^(?P<content>.*?)(?P<tool_calls>(?:{_CALL})+)?(?:<\|im_end\|>|$)",
    "type": "object",
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": "string"},
        "tool_calls": {
            "type": "array",
            "x-regex-iterator": f"({_CALL})",
            "items": {
                "type": "object",
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "type": "object",
                        "x-regex": r"@(?P<name>\w+) (?P<arguments>\{.*\})",
                        "properties": {
                            "name": {"type": "string"},
                            "arguments": {"type": "object", "x-parser": "json", "additionalProperties": {}},
                        },
                    },
                },
            },
        },
    },
}
"""How transformers reads calls off an answer in that form."""


def call_text(name: str, **arguments: Any) -> str:
    """A call as `CALL_TEMPLATE` writes it."""
    return f"@{name} {json.dumps(arguments, ensure_ascii=False)}"


def byte_alphabet() -> list[str]:
    """The printable stand-in of every byte, in byte order, as in GPT-2's byte-level encoding.

    Printable Latin-1 characters stand for themselves; the other bytes take the code points from 256 on, in order.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def build_byte_tokenizer(*, calls: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 263 tokens with a ChatML template, padding on the left.

    Args:
        calls: of a model that calls tools: the template knows calls and their results.

    Returns:
        A tokenizer whose ids 0..255 are the bytes; ``<|endoftext|>`` pads and ``<|im_end|>`` ends a turn.
    """
    backend = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(byte_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (PAD, START, END)])
    backend.add_tokens([AddedToken(token, normalized=False) for token in SHORTCUTS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=CALL_TEMPLATE if calls else CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    if calls:
        tokenizer.response_schema = CALL_SCHEMA
    return tokenizer
