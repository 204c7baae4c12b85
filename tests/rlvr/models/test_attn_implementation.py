"""`model.attn_implementation`: training computes with it, all give the same logits, and what cannot be had is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedModel

from rlspec.errors import CheckpointError, ConfigError
from rlspec.rlvr.models.loading import build_model
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.train import main

TOKENIZER = build_byte_tokenizer()
TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
}
TRAIN = ["recipe=grpo_math", "model=debug", "model.init=null", "evaluation.before=false", "evaluation.after=false"]


def saved(folder: Path) -> str:
    build_model(architecture=TINY, tokenizer=TOKENIZER, seed=0).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def test_all_give_the_same_logits(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    models: list[PreTrainedModel] = [
        build_model(architecture=TINY, tokenizer=TOKENIZER, seed=0),
        build_model(architecture=TINY, tokenizer=TOKENIZER, seed=0, attention="eager"),
        build_model(path=folder, tokenizer=TOKENIZER, attention="eager"),
        build_model(path=folder, init=folder, tokenizer=TOKENIZER, attention="eager"),
    ]
    assert [model.config._attn_implementation for model in models] == ["sdpa", "eager", "eager", "eager"]
    tokens = torch.arange(3, 35).reshape(2, 16)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0  # padding on the left
    with torch.no_grad():
        first, *others = (model(input_ids=tokens, attention_mask=mask).logits[mask.bool()] for model in models)
    assert all(torch.allclose(logits, first, atol=1e-5) and not torch.equal(logits, first) for logits in others)


@pytest.mark.parametrize("name", ["flash", "flash_attention_2"])
def test_what_cannot_be_had_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^model.attn_implementation={name}: .+") as error:
        build_model(architecture=TINY, tokenizer=TOKENIZER, attention=name)
    assert "\n" not in str(error.value)
    folder = saved(tmp_path)
    with pytest.raises(CheckpointError, match=f"with model.attn_implementation={name}: .+") as error:
        build_model(path=folder, tokenizer=TOKENIZER, attention=name)
    assert "\n" not in str(error.value)


def test_an_architecture_without_sdpa_is_loaded_all_the_same(tmp_path: Path) -> None:
    sizes = {**TINY, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
    GptOssForCausalLM(GptOssConfig(**sizes, vocab_size=len(TOKENIZER))).save_pretrained(tmp_path)
    assert build_model(path=str(tmp_path), tokenizer=TOKENIZER).config._attn_implementation == "eager"
    with pytest.raises(CheckpointError, match="with model.attn_implementation=sdpa: GptOss"):
        build_model(path=str(tmp_path), tokenizer=TOKENIZER, attention="sdpa")


@pytest.mark.parametrize(("said", "fused"), [([], {True, False}), (["model.attn_implementation=eager"], set())])
def test_what_a_run_computes_with(
    said: list[str],
    fused: set[bool],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    attend, seen = F.scaled_dot_product_attention, set()

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.add(torch.is_grad_enabled())
        return attend(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    assert main([*TRAIN, *said, "trainer.max_steps=1", f"output_dir={tmp_path}", "run=run"]) == 0
    assert seen == fused  # with gradients, and without in sampling
    assert ("attention by eager" in capsys.readouterr().out) is bool(said)
