"""In which arithmetic forward passes run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlspec.config import resolvers
from rlspec.config.load import load_recipe
from rlspec.rlvr.training.arguments import common_arguments, uses_bf16


@pytest.mark.parametrize(
    ("trainer", "device", "used"),
    [
        ({}, "cpu", False),
        ({}, "cuda", True),
        ({"bf16": None}, "cpu", False),
        ({"bf16": None}, "cuda", True),
        ({"bf16": True}, "cpu", True),
        ({"bf16": False}, "cuda", False),
        ({"fp16": True}, "cuda", False),
    ],
)
def test_bfloat16_is_used_where_it_is_asked_for_or_on_cuda(trainer: dict[str, Any], device: str, *, used: bool) -> None:
    assert uses_bf16(trainer, device) is used


@pytest.mark.parametrize(("flags", "fast"), [("sse2 amx_tile", True), ("sse2 avx512_bf16", None)])
def test_only_a_profile_that_asks_for_it_uses_bfloat16_on_a_processor_with_amx(
    flags: str, *, fast: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(resolvers, "CPU", tmp_path / "cpuinfo")
    for name, asked in (("grpo_words", fast), ("grpo_math", False)):
        recipe = load_recipe([f"recipe={name}"])
        assert recipe.trainer.get("bf16") is asked
        assert common_arguments(recipe, checkpoints=tmp_path, device="cpu", steps=1)["bf16"] is bool(asked)
