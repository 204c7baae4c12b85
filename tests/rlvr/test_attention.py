"""`model.attn_implementation`: what it chooses, that all give the same logits, and what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rlspec.errors import ConfigError
from rlspec.rlvr import session
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


@pytest.mark.parametrize(
    ("name", "bf16", "used"),
    [(None, False, "sdpa"), (None, True, "eager"), ("sdpa", True, "sdpa"), ("eager", False, "eager")],
)
def test_all_give_the_same_logits(name: str | None, used: str, *, bf16: bool) -> None:
    plain, model = tiny(), apply_lora(tiny(), r=2, alpha=4, target_modules=["q_proj"], seed=0)
    set_attention(model, name, bf16=bf16)
    assert model.config._attn_implementation == used
    tokens = torch.arange(3, 35).reshape(2, 16)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # padding on the left
    with torch.no_grad():
        expected, found = (m(input_ids=tokens, attention_mask=mask).logits[mask.bool()] for m in (plain, model))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["flash", "flash_attention_2"])
def test_what_cannot_be_had_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model.attn_implementation={name}: .+") as error:
        set_attention(tiny(), name, bf16=False)
    assert "\n" not in str(error.value)


def test_a_run_names_a_wrong_one_before_its_first_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [
        "recipe=grpo_math",
        "model=debug",
        "model.init=null",
        "evaluation.before=false",
        f"output_dir={tmp_path}",
        "run=run",
    ]
    assert main([*arguments, "model.attn_implementation=flash_attention_9"]) == 2
    assert "model.attn_implementation=flash_attention_9: " in capsys.readouterr().err


def test_a_run_computes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(session, "set_attention", lambda model, name, *, bf16: used.append((name, bf16)))
    arguments = ["recipe=grpo_math", "model=debug", "model.init=null", "evaluation.before=false", "trainer.bf16=true"]
    arguments += ["evaluation.after=false", "trainer.max_steps=1", f"output_dir={tmp_path}", "run=run"]
    assert main([*arguments, "model.attn_implementation=eager"]) == 0
    assert used == [("eager", True)]
