"""The memory account agrees with the published sizes of Qwen3 and with models that really exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec.errors import ConfigError
from rlspec.optim import symmetry_map
from rlspec.rlvr.models.adapters import apply_lora
from rlspec.rlvr.models.memory import (
    count_parameters,
    estimate_memory,
    meta_model,
)
from rlspec.runtime.devices import GIB, device_memory
from rlspec.runtime.memory import check_memory


def qwen3(hidden: int, heads: int, ffn: int, layers: int, tied: bool, vocab: int = 151936) -> Qwen3Config:
    return Qwen3Config(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        tie_word_embeddings=tied,
        vocab_size=vocab,
    )


SIZES = {
    "0.6B": qwen3(1024, 16, 3072, 28, True),
    "1.7B": qwen3(2048, 16, 6144, 28, True),
    "4B": qwen3(2560, 32, 9728, 36, True),
    "8B": qwen3(4096, 32, 12288, 36, False),
}
SMALL = qwen3(64, 16, 96, 2, True, vocab=100)
BATCH: dict[str, Any] = {
    "micro_batch": 4,
    "sequence_length": 1000,
    "completion_length": 800,
    "rollout_sequences": 32,
}


@pytest.mark.parametrize(
    ("size", "total", "without_embeddings"),
    # The model cards: total billions, and billions without embeddings.
    [("0.6B", 0.596, 0.44), ("1.7B", 1.72, 1.4), ("4B", 4.02, 3.6), ("8B", 8.19, 6.95)],
)
def test_parameter_counts_are_the_published_ones(size: str, total: float, without_embeddings: float) -> None:
    model = meta_model(SIZES[size])
    embeddings = SIZES[size].vocab_size * SIZES[size].hidden_size * (1 if SIZES[size].tie_word_embeddings else 2)
    assert count_parameters(model) / 1e9 == pytest.approx(total, rel=3e-3)
    assert (count_parameters(model) - embeddings) / 1e9 == pytest.approx(without_embeddings, rel=0.012)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_static_part_of_qwen3_1_7b_is_sixteen_bytes_per_parameter_with_adamw() -> None:
    estimate = estimate_memory(SIZES["1.7B"], **BATCH)
    static = estimate.weights + estimate.gradients + estimate.optimizer
    assert static == 16 * estimate.parameters
    assert static / GIB == pytest.approx(25.6, abs=0.2)


def test_weights_and_gradients_are_those_of_the_real_model() -> None:
    model = Qwen3ForCausalLM(SMALL)
    estimate = estimate_memory(SMALL, **BATCH)
    assert estimate.weights == sum(parameter.nbytes for parameter in model.parameters())
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert estimate.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def test_adapters_are_those_that_peft_makes() -> None:
    model = apply_lora(Qwen3ForCausalLM(SMALL), r=4, alpha=8, target_modules=["q_proj", "down_proj"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    estimate = estimate_memory(SMALL, **BATCH, lora_r=4, lora_targets=["q_proj", "down_proj"])
    assert estimate.trainable == sum(parameter.numel() for parameter in trained)
    assert estimate.gradients == sum(parameter.nbytes for parameter in trained)


def test_frozen_parameters_need_neither_gradients_nor_state() -> None:
    whole, part = estimate_memory(SMALL, **BATCH), estimate_memory(SMALL, **BATCH, frozen=["embed_tokens"])
    embeddings = SMALL.vocab_size * SMALL.hidden_size
    assert whole.trainable - part.trainable == embeddings and part.weights == whole.weights
    assert (whole.gradients - part.gradients, whole.optimizer - part.optimizer) == (4 * embeddings, 8 * embeddings)


def test_the_state_of_adapters_is_that_of_their_rule() -> None:
    def state(roles: dict[str, str]) -> int:
        lora = {"lora_r": 4, "lora_targets": ["q_proj", "down_proj"]}
        count = lambda meta: sum(spec.state_bytes for spec in symmetry_map(meta, rule="pion", roles=roles))  # noqa: E731
        return estimate_memory(SMALL, **BATCH, **lora, optimizer_bytes=count).optimizer

    trainable = estimate_memory(SMALL, **BATCH, lora_r=4, lora_targets=["q_proj", "down_proj"]).trainable
    assert (state({}), state({"lora": "pion"})) == (8 * trainable, 4 * trainable)


def test_a_reference_model_takes_the_weights_once_more() -> None:
    without, with_one = estimate_memory(SMALL, **BATCH), estimate_memory(SMALL, **BATCH, reference=True)
    assert with_one.reference == without.weights and without.reference == 0
    assert with_one.total == without.total + without.weights
    big = {flag: estimate_memory(SIZES["0.6B"], **BATCH, reference=flag).table() for flag in (True, False)}
    assert "reference" in big[True] and "reference" not in big[False], "items of 0 bytes are not shown"
    adapted = estimate_memory(SMALL, **BATCH, lora_r=4, lora_targets=["q_proj"], reference=True)
    assert adapted.reference == 0  # the policy without its adapters


def test_the_cache_is_the_size_of_a_real_one() -> None:
    model = Qwen3ForCausalLM(SMALL)
    with torch.no_grad():
        cache = model(torch.ones(3, 11, dtype=torch.long), use_cache=True).past_key_values
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    batch = {**BATCH, "rollout_sequences": 3, "sequence_length": 11}
    assert estimate_memory(SMALL, **batch).kv_cache == real


@pytest.mark.parametrize(("eager", "length"), [(False, 64), (True, 64), (True, 768)])
def test_kept_activations_are_within_a_factor_of_two_of_what_autograd_saves(*, eager: bool, length: int) -> None:
    config = qwen3(256, 16, 768, 4, True, vocab=50)
    config._attn_implementation = "eager" if eager else "sdpa"
    model = Qwen3ForCausalLM(config)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(torch.ones(2, length, dtype=torch.long)).logits
    batch = {**BATCH, "micro_batch": 2, "sequence_length": length}
    estimate = estimate_memory(config, **batch, eager=eager).activations
    assert logits.requires_grad
    assert 0.5 < estimate / sum(saved.values()) < 2


def test_knobs_move_the_estimate_the_right_way() -> None:
    base = estimate_memory(SIZES["0.6B"], **BATCH)
    assert estimate_memory(SIZES["0.6B"], **BATCH, gradient_checkpointing=True).activations < base.activations / 5
    cast = estimate_memory(SIZES["0.6B"], **BATCH, autocast=True)
    assert (cast.kv_cache, cast.casts, base.casts) == (base.kv_cache // 2, base.weights // 2, 0)
    assert estimate_memory(SIZES["0.6B"], **BATCH, autocast=True, weights_dtype="bfloat16").casts == 0
    assert estimate_memory(SIZES["0.6B"], **BATCH, weights_dtype="bfloat16").weights == base.weights // 2
    assert estimate_memory(SIZES["0.6B"], **BATCH, optimizer_bytes=lambda model: 7).optimizer == 7


def test_the_table_names_every_item_in_gib() -> None:
    lines = estimate_memory(SIZES["0.6B"], **BATCH).table().splitlines()
    assert [line.split()[0] for line in lines] == [
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "rollouts",
        "peak",
    ]
    assert lines[0].split()[1:4] == ["2.22", "GiB", "596,049,920"]


def test_of_a_small_run_the_peak_alone_is_shown() -> None:
    assert estimate_memory(SMALL, **BATCH).table().startswith("memory: about ")


def test_too_little_memory_is_a_warning_and_for_the_weights_alone_an_error() -> None:
    estimate = estimate_memory(SIZES["0.6B"], **BATCH)
    assert check_memory(estimate, estimate.total) is None
    assert "batch.prompts_per_step" in (
        check_memory(estimate_memory(SIZES["0.6B"], **{**BATCH, "rollout_sequences": 1024}), 40 * GIB) or ""
    )
    assert "batch.micro_batch" in (check_memory(estimate, estimate.total - 1) or "")
    assert "model.lora" in (check_memory(estimate, estimate.weights + 1) or "")
    with pytest.raises(ConfigError, match=r"weights take 2\.2 GiB and the device has 2\.0 GiB"):
        check_memory(estimate, 2 * GIB)


def test_this_machine_has_memory() -> None:
    assert device_memory(torch.device("cpu")) > GIB
