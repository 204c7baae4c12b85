"""A real, tiny Qwen3 with grouped-query attention, and one batch for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

TINY = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "vocab_size": 262,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tiny_qwen3() -> Callable[..., torch.nn.Module]:
    def build(**changes: Any) -> torch.nn.Module:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(0)
        return Qwen3ForCausalLM(Qwen3Config(**(TINY | changes)))

    return build


@pytest.fixture
def backward() -> Callable[[torch.nn.Module], torch.Tensor]:
    def run(model: torch.nn.Module) -> torch.Tensor:
        tokens = torch.randint(0, 262, (4, 24), generator=torch.Generator().manual_seed(1))
        model.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return loss.detach()

    return run
