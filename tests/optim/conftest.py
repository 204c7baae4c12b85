"""A real, tiny Qwen3 with grouped-query attention, one batch for it, and the arithmetic that `auto` finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlspec.optim.engine.updates import AUTO_DTYPES

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


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["in_float32", "in_bfloat16"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What `compute_dtype="auto"` finds, whatever the processor: a test that asks for it runs in both.

    Two computations of one matrix that differ in the order of their sums differ by a few `torch.finfo(dtype).eps`
    relative to the matrix, times what the iteration makes of a direction that small: 3.4^5 in Muon's case. So where
    orders differ, gradients are well conditioned and the tolerance is in units of eps; where every block goes through
    the same operations, it stays that of float32.
    """
    monkeypatch.setitem(AUTO_DTYPES, "cpu", request.param)
    return request.param


@pytest.fixture
def nothing_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that ask for float32 whatever the dtype (norms, rotations, softmax) get the float64 that they have."""
    cast, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        keeps = self.dtype == torch.float64 and (torch.float32 in args or kwargs.get("dtype") == torch.float32)
        return self if keeps else cast(self, *args, **kwargs)

    def wide(
        values: torch.Tensor, dim: int | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> torch.Tensor:
        return softmax(values, dim=dim, dtype=None if values.dtype == torch.float64 else dtype, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.nn.functional, "softmax", wide)
    monkeypatch.setattr(torch, "softmax", wide)
