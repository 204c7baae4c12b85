"""The snippets of the README run as they stand."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import rlspec.optim
from rlspec.optim import SpectralOptimizer
from rlspec.optim.map.families import FAMILIES, find_family

README = Path(rlspec.optim.__file__).with_name("README.md")
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Module()
        self.experts.w1 = nn.Parameter(torch.randn(4, 8, 6))


@pytest.fixture
def names(tiny_qwen3, backward):
    peft = pytest.importorskip("peft")
    model, conv = tiny_qwen3(), nn.Conv2d(3, 8, 3)
    backward(model)
    conv.weight.grad = torch.randn_like(conv.weight)
    adapted = peft.get_peft_model(tiny_qwen3(), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    families = list(FAMILIES)
    yield {"model": model, "adapted": adapted, "conv": conv, "mixture": Mixture()}
    FAMILIES[:] = families


def test_every_snippet_runs_and_does_what_it_shows(names: dict, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(SNIPPETS) == 3
    before = names["model"].model.layers[0].self_attn.q_proj.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names["build_optimizer"] = rlspec.optim.build_optimizer
        for snippet in SNIPPETS:
            exec(snippet, names)
    optimizer = names["optimizer"]
    assert isinstance(optimizer, SpectralOptimizer)
    assert "attention.q" in capsys.readouterr().out
    assert {"update_rms", "pass_energy"} <= optimizer.telemetry()["attention.q"].keys()
    assert not torch.equal(names["model"].model.layers[0].self_attn.q_proj.weight, before)
    family = find_family("tiny_decoder")
    assert family is not None and len(family.entries) == 4
