"""What code that makes any of torch's optimizers passes on, and where their steps run: compiled, on meta, alone."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer

SWITCHES = ("foreach", "fused", "capturable", "differentiable", "amsgrad")


def weight_with_gradient(sign: float = 1.0) -> nn.Parameter:
    drawn = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 6, generator=drawn))
    weight.grad = sign * torch.randn(8, 6, generator=drawn)
    return weight


def test_switches_of_torch_may_be_given_where_they_are_off() -> None:
    off = dict.fromkeys(SWITCHES, False)
    for switches in (off, dict.fromkeys(SWITCHES)):
        optimizer = SpectralOptimizer([{"params": [weight_with_gradient()], **switches}], lr=0.1, **switches)
        optimizer.add_param_group({"params": [weight_with_gradient()], **switches})
        optimizer.step()
        assert not set(SWITCHES) & optimizer.param_groups[0].keys()
    build_optimizer(nn.Sequential(nn.Linear(4, 4)), rule="muon", **off)


@pytest.mark.parametrize(
    "given", [{"overrides": {"pattern": "w"}}, {"overrides": "w"}, {"betas": 0.9}, {"betas": None}]
)
def test_what_has_another_shape_than_it_should_is_one_line(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}=.*(two numbers|a list of mappings)"):
        build_optimizer(nn.Sequential(nn.Linear(4, 4)), rule="muon", **given)


@pytest.mark.parametrize("bound", ["spectral_cap", "update_clip", "gradient_clip"])
def test_a_bound_on_singular_values_needs_a_rule_of_matrices(bound: str) -> None:
    with pytest.raises(ConfigError, match=f"^{bound}: has no effect on adamw; it bounds steps of matrix rules$"):
        SpectralOptimizer([weight_with_gradient()], rule="adamw", **{bound: 1.0})
    both = [{"params": [weight_with_gradient()], "rule": rule} for rule in ("adamw", "muon")]
    SpectralOptimizer(both, **{bound: 1.0}).step()


@pytest.mark.parametrize("change", ["the weight at once", "the model later"])
def test_adamw_follows_entries_whatever_lies_beside_them_in_memory(change: str) -> None:
    """torch's fused kernel pairs what stands at the same place of two storages (there it is a bug as well)."""
    drawn = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(4, 3, 3, 3, generator=drawn), torch.randn(6, 4, 3, 3, 3, generator=drawn)
    plain, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    if change == "the weight at once":
        other = nn.Parameter(start.contiguous(memory_format=torch.channels_last))
    for number in range(6):
        if number == 3:
            other.data = other.data.contiguous(memory_format=torch.channels_last)
        for weight in (plain, other):
            weight.grad = gradients[number].clone()
            if number == 0:
                weight.optimizer = SpectralOptimizer([weight], rule="adamw", lr=0.1)
            weight.optimizer.step()
    assert torch.equal(plain, other)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_that_is_on_is_refused_in_one_line(switch: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{switch}=True: rules choose their own kernels; leave it out$"):
        SpectralOptimizer([weight_with_gradient()], **{switch: True})
    with pytest.raises(ConfigError, match=rf"^{switch}=True: "):
        SpectralOptimizer([{"params": [weight_with_gradient()], switch: True}])


@pytest.mark.parametrize("rule", ["muon", "pion", "adamw", "sgd", "ademamix", "normuon"])
def test_to_maximise_is_to_minimise_the_opposite(rule: str) -> None:
    up, down = weight_with_gradient(), weight_with_gradient(-1.0)
    before, gradient = up.detach().clone(), up.grad.clone()
    settings = {"rule": rule, "lr": 0.1, "weight_decay": 0.1, "promotion_steps": 2.0}
    climbing, falling = SpectralOptimizer([up], maximize=True, **settings), SpectralOptimizer([down], **settings)
    for _ in range(3):
        climbing.step(), falling.step()
    assert torch.equal(up, down) and not torch.equal(up, before)
    assert torch.equal(up.grad, gradient)
    assert climbing.state_dict()["param_groups"][0]["maximize"] is True


def test_adamw_climbs_as_torchs_own_does() -> None:
    ours, theirs = weight_with_gradient(), weight_with_gradient()
    SpectralOptimizer([ours], rule="adamw", lr=0.1, weight_decay=0.1, maximize=True).step()
    torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1, maximize=True, fused=True).step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_a_compiled_step_has_the_bits_of_a_plain_one(rule: str) -> None:
    plain, compiled = weight_with_gradient(), weight_with_gradient()
    optimizer = SpectralOptimizer([compiled], rule=rule, lr=0.1)
    step, other = torch.compile(optimizer.step), SpectralOptimizer([plain], rule=rule, lr=0.1)
    for _ in range(2):
        step(), other.step()
    assert torch.equal(plain, compiled)


@pytest.mark.parametrize("rule", ["muon", "pion", "adamw", "sgd", "normuon"])
def test_tensors_without_values_take_steps_and_get_state_of_the_right_shape(rule: str) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Embedding(7, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 5))
    for param in model.parameters():
        param.grad = torch.empty_like(param)
    optimizer = build_optimizer(model, rule=rule, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.step()
    assert all(optimizer.state[param] for param in model.parameters())
    for param in model.parameters():
        values = {key: value for key, value in optimizer.state[param].items() if key != "step"}
        assert values and all(value.is_meta for value in values.values())
        assert int(optimizer.state[param]["step"]) == 2


ALONE = """
    import sys

    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "lerobot", "pydantic", "hydra", "omegaconf",
                 "rich", "msgpack", "websockets", "gymnasium", "matplotlib", "pandas", "scipy", "safetensors"):
        sys.modules[name] = None  # as if it were not installed
    import torch
    from torch import nn
    from rlspec.optim import build_optimizer

    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(11, 16), "layer": nn.TransformerEncoderLayer(16, 4, 32, 0.0),
                           "lm_head": nn.Linear(16, 11)})
    optimizer = build_optimizer(model, rule="pion", lr=3e-3, promotion_steps="auto")
    tokens = torch.randint(0, 11, (9, 4))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        logits = model["lm_head"](model["layer"](model["embed"](tokens)))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert {spec.rule for spec in optimizer.symmetry if spec.role == "attention.qkv"} == {"pion"}
    print("trained")
"""


def test_the_optimizers_train_where_nothing_but_torch_is_installed() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(ALONE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_the_extra_optim_needs_torch_alone() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert [name.partition(">")[0] for name in project["optional-dependencies"]["optim"]] == ["torch"]
    assert not any(name.startswith(("trl", "transformers", "torch")) for name in project["dependencies"])
