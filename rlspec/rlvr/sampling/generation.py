"""Sampling completions for an evaluation, by transformers' `generate` or another engine, in any state of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

Sampler = Callable[..., Iterable[tuple[int, list[int]]]]
"""Takes what `generate_tokens` takes, and gives what it gives."""

Policy = Any
"""A causal language model of transformers, or a PEFT model around one, which forwards to it what it has not itself."""


@dataclass(frozen=True)
class Completion:
    """One answer of the policy."""

    text: str  # special tokens left out
    length: int  # new tokens, the end token included
    truncated: bool  # the length limit came before an end token
    tokens: tuple[int, ...] = field(default=(), repr=False)
    messages: tuple[Mapping[str, Any], ...] = ()  # of an answer with calls: its turns, and what the tools said


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature None: greedily."""

    max_new_tokens: int
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    bf16: bool = False  # autocast, as in training


@contextmanager
def inference_mode_of(model: Policy, seed: int, *, bf16: bool) -> Iterator[None]:
    """Evaluation mode with its own random numbers; the training's mode and random state come back unchanged.

    Autocast is set here because accelerate puts it around the model for good once training begins: a policy would be
    measured in one arithmetic before and in another after.
    """
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)
    with torch.random.fork_rng(devices=devices), torch.no_grad(), autocast:
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def generate_tokens(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, list[int]]]:
    """Position of a prompt and the new tokens, whatever stands behind an end token among them; batch by batch."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with inference_mode_of(model, seed, bf16=sampling.bf16):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield from zip(
                chosen, _generate_batch(model, tokenizer, [prompts[i] for i in chosen], sampling), strict=True
            )


def generate(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
    sampler: Sampler = generate_tokens,
) -> list[Completion]:
    """Complete templated prompts, in the order given.

    By `generate_tokens` prompts of similar length share a batch, so that little is spent on padding. The result depends
    on `batch_size` where numbers do (sampling draws per batch), and on nothing else outside the arguments.
    """
    ends = set(end_token_ids(model, tokenizer))
    found = sampler(model, tokenizer, prompts, sampling, batch_size=batch_size, seed=seed)
    completions = {index: to_completion(tokenizer, row, ends) for index, row in found}
    return [completions[index] for index in range(len(prompts))]


def _generate_batch(
    model: Policy, tokenizer: PreTrainedTokenizerBase, texts: list[str], sampling: Sampling
) -> list[list[int]]:
    return continue_ids(model, tokenizer, tokenizer(texts, add_special_tokens=False)["input_ids"], sampling)


def continue_ids(
    model: Policy, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> list[list[int]]:
    """New tokens behind each prompt, whatever stands behind an end token among them; all in one batch."""
    encoded = tokenizer.pad(
        {"input_ids": [list(prompt) for prompt in prompts]}, return_tensors="pt", padding=True, padding_side="left"
    )
    inputs = {key: encoded[key].to(model.device) for key in ("input_ids", "attention_mask")}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=sampling.temperature is not None,
        # The neutral values: a checkpoint's own generation_config must not change what is measured.
        temperature=sampling.temperature or 1.0,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end_token_ids(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
    )
    output = model.generate(**inputs, generation_config=config)
    new: list[list[int]] = output[:, inputs["input_ids"].shape[1] :].tolist()
    return new


def end_token_ids(model: Policy, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: of the model's own configuration and of its tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({*(index for index in ids if index is not None), tokenizer.eos_token_id})


def until_end(row: list[int], end_ids: set[int]) -> list[int]:
    """A row of tokens up to its first end token, which belongs to it."""
    end = next((position for position, token in enumerate(row) if token in end_ids), len(row))
    return row[: end + 1]


def to_completion(tokenizer: PreTrainedTokenizerBase, row: list[int], end_ids: set[int]) -> Completion:
    """New tokens up to the first that ends an answer."""
    tokens = until_end(row, end_ids)
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    return Completion(text=text, length=len(tokens), truncated=tokens[-1] not in end_ids, tokens=tuple(tokens))
