"""Attention entropies of weights that are known, and of a real model against its own weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec.diagnostics.measures.attention import attention_entropies, attention_entropy

CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 40,
}  # fmt: skip


def test_even_weights_have_one_and_a_single_key_none() -> None:
    query, key = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4)
    assert attention_entropy(query, key).tolist() == pytest.approx([1, 1])
    assert attention_entropy(query, key, causal=True).tolist() == pytest.approx([1, 1])
    query[:, 1], key[:, 1, 2] = 100.0, 100.0
    even, narrow = attention_entropy(query, key).tolist()
    assert (even, narrow) == (pytest.approx(1), pytest.approx(0, abs=1e-6))


def test_masks_of_both_kinds_leave_out_what_is_not_seen() -> None:
    query, key = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 6, 4)
    seen = torch.tensor([True, True, False, True, True, False])
    wanted = attention_entropy(query, key[:, :, seen])
    torch.testing.assert_close(attention_entropy(query, key, mask=seen), wanted)
    added = torch.where(seen, 0.0, -math.inf)
    torch.testing.assert_close(attention_entropy(query, key, mask=added), wanted)
    lowest = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    torch.testing.assert_close(attention_entropy(query, key, mask=lowest), wanted)
    half = torch.where(seen, 0.0, torch.finfo(torch.float16).min).half()
    torch.testing.assert_close(attention_entropy(query, key, mask=half), wanted)
    assert attention_entropy(query, key[:, :, :1]).isnan().all()


def test_a_models_entropies_are_those_of_the_weights_that_it_can_be_made_to_show() -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG, attn_implementation="sdpa")).eval()
    tokens = torch.randint(0, 40, (1, 9))
    with torch.no_grad(), attention_entropies(model) as found:
        logits = model(input_ids=tokens).logits
    torch.testing.assert_close(logits, model(input_ids=tokens).logits)
    model.set_attn_implementation("eager")
    shown = model(input_ids=tokens, output_attentions=True).attentions
    assert list(found) == [f"model.layers.{layer}.self_attn" for layer in range(2)]
    for (entropy,), weights in zip(found.values(), shown, strict=True):
        wanted = torch.special.entr(weights[0, :, 1:]).sum(-1) / torch.arange(2, 10).log()
        torch.testing.assert_close(entropy, wanted.mean(1), atol=1e-5, rtol=1e-5)


def test_nothing_is_left_behind_even_after_an_error() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError), attention_entropies(model) as found:
        F.scaled_dot_product_attention(torch.ones(3, 4, 2), torch.ones(3, 4, 2), torch.ones(3, 4, 2))
        model(torch.ones(1, 3))
    assert [value.tolist() for value in found[""]] == [[pytest.approx(1)]]
    assert not model._forward_hooks and not model[0]._forward_pre_hooks
    F.scaled_dot_product_attention(torch.ones(3, 4, 2), torch.ones(3, 4, 2), torch.ones(3, 4, 2))
    assert len(found[""]) == 1
