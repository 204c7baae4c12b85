"""Sigma-reparametrisation on a real, tiny Qwen3: what it leaves, what it changes, and the way back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer, symmetry_map
from rlspec.optim.regularisers.sigma_reparam import fold, folded_state_dict, sigma_reparametrise

Build = Callable[..., nn.Module]
TOKENS = torch.randint(0, 262, (2, 12), generator=torch.Generator().manual_seed(5))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def test_the_model_computes_what_it_did_and_keeps_its_roles(tiny_qwen3: Build) -> None:
    model = tiny_qwen3().eval()
    before, roles = logits(model), {spec.name: (spec.role, spec.num_heads) for spec in symmetry_map(model)}
    names = sigma_reparametrise(model, ["attention", "mlp.up"])
    assert names == [name for name, (role, _) in roles.items() if role.startswith("attention") or role == "mlp.up"]
    assert torch.allclose(logits(model), before, atol=1e-5)
    after = {spec.name: (spec.role, spec.num_heads) for spec in symmetry_map(model)}
    for name in names:
        layer = name.removesuffix(".weight")
        assert after.pop(f"{layer}.parametrizations.weight.original") == roles.pop(name)
        assert after.pop(f"{layer}.parametrizations.weight.1.gain") == ("vector", 1)
    assert after == roles


def test_the_top_singular_value_is_the_gain_whatever_the_direction_does(tiny_qwen3: Build) -> None:
    model = tiny_qwen3().eval()
    (first, *_) = sigma_reparametrise(model, ["attention.q"])
    layer = model.get_submodule(first.removesuffix(".weight"))
    steps = layer.parametrizations["weight"]
    gain = steps[1].gain
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(gain.item(), rel=1e-4)
    with torch.no_grad():
        steps.original.mul_(7)  # a larger direction is the same direction
        gain.fill_(0.5)
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(0.5, rel=1e-4)
        steps.original[:, 0] += 100  # another one, which training follows and evaluation does not
        assert torch.linalg.matrix_norm(layer.weight, 2).item() > 1
        model.train()
        for _ in range(200):
            weight = layer.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(0.5, rel=1e-3)


def test_it_trains_under_any_rule_and_folds_into_plain_weights(tiny_qwen3: Build, backward: Callable) -> None:
    model = tiny_qwen3()
    names = sigma_reparametrise(model)
    optimizer = build_optimizer(model, rule="muon", lr=1e-3)
    losses = []
    for _ in range(6):
        losses.append(backward(model).item())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05
    assert "vector" in {group["role"] for group in optimizer.param_groups}
    model.eval()
    trained, saved = logits(model), folded_state_dict(model)
    plain = tiny_qwen3()
    plain.load_state_dict(saved)
    assert torch.allclose(logits(plain.eval()), trained, atol=1e-6)
    assert fold(model) == names
    assert torch.equal(logits(model), trained)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in plain.named_parameters()}


def test_saving_does_not_move_the_power_iteration(tiny_qwen3: Build) -> None:
    model = tiny_qwen3().train()
    sigma_reparametrise(model, ["attention.q"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded_state_dict(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_what_cannot_be_reparametrised_is_refused_before_anything_changes(tiny_qwen3: Build) -> None:
    model = tiny_qwen3()
    with pytest.raises(ConfigError, match="no trainable matrix has role 'atention'"):
        sigma_reparametrise(model, ["mlp", "atention"])
    with pytest.raises(ConfigError, match="embed_tokens.weight is shared"):
        sigma_reparametrise(model, ["mlp", "embed"])
    assert not any("parametrizations" in name for name in model.state_dict())
