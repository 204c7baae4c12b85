"""What a recipe leaves open follows from the machine."""

from __future__ import annotations

import pytest
import torch

from rlspec.rlvr.arguments import uses_bf16


@pytest.mark.parametrize("amx", [True, False])
def test_bf16_is_on_where_the_processor_is_fast_at_it_and_otherwise_by_the_recipe(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert uses_bf16({}, "cpu") is amx
    assert uses_bf16({}, "cuda")
    assert uses_bf16({"bf16": True}, "cpu") and not uses_bf16({"bf16": False}, "cuda")
