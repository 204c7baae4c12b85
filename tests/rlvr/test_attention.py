"""`model.attn_implementation`: what it chooses, that all give the same logits, and what cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from rlspec.errors import ConfigError
from rlspec.rlvr.models import apply_lora, build_model, set_attention
from rlspec.rlvr.tokenizer import build_byte_tokenizer
from rlspec.train import main

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}


def tiny() -> PreTrainedModel:
    return build_model(architecture=TINY, tokenizer=build_byte_tokenizer(), seed=0)


TRAIN = ["recipe=grpo_math", "model=debug", "model.init=null", "evaluation.before=false", "evaluation.after=false"]


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_all_give_the_same_logits(name: str) -> None:
    plain, model = tiny(), apply_lora(tiny(), r=2, alpha=4, target_modules=["q_proj"], seed=0)
    set_attention(model, name)
    assert model.config._attn_implementation == name
    tokens = torch.arange(3, 35).reshape(2, 16)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # padding on the left
    with torch.no_grad():
        expected, found = (m(input_ids=tokens, attention_mask=mask).logits[mask.bool()] for m in (plain, model))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["flash", "flash_attention_2"])
def test_what_cannot_be_had_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model.attn_implementation={name}: .+") as error:
        set_attention(tiny(), name)
    assert "\n" not in str(error.value)


def test_a_run_names_a_wrong_one_before_its_first_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*TRAIN, f"output_dir={tmp_path}", "run=run", "model.attn_implementation=flash_attention_9"]) == 2
    assert "model.attn_implementation=flash_attention_9: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "fused_in_training"),
    [([], {True}), (["trainer.bf16=true"], {False}), (["model.attn_implementation=eager"], set())],
)
def test_what_a_run_computes_with(
    said: list[str], fused_in_training: set[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's fused attention; not in bfloat16 on a CPU, and only where gradients are wanted; or another one."""
    attend, seen = F.scaled_dot_product_attention, set()

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.add((torch.is_grad_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert main([*TRAIN, *said, "trainer.max_steps=1", f"output_dir={tmp_path}", "run=run"]) == 0
    assert {fused for gradients, fused in seen if gradients} == fused_in_training
    assert {fused for gradients, fused in seen if not gradients} <= {True}
    assert torch.backends.cuda.flash_sdp_enabled()
