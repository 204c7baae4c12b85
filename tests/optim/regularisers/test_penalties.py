"""Penalties against their definitions and autograd, and their way into any optimizer's steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer
from rlspec.optim.regularisers.penalties import PENALTIES, orthogonal, orthonormal, penalise, relaxed_orthogonal

Build = Callable[..., nn.Module]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_each_is_its_definition_by_singular_values_and_angles(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    squares = torch.linalg.svdvals(weight).square()
    assert orthogonal(weight).item() == pytest.approx((squares - 1).square().sum().item())
    assert relaxed_orthogonal(weight).item() == pytest.approx(squares.var(correction=0).item() * 4)
    columns = (weight if shape[0] > shape[1] else weight.T).T
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    cosines = [torch.cosine_similarity(columns[i], columns[j], dim=0).item() for i, j in pairs]
    assert orthonormal(weight).item() == pytest.approx(sum(cosine**2 for cosine in cosines) ** 0.5)


def test_what_each_forgives() -> None:
    system = torch.linalg.qr(random(9, 4)).Q
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    values = {
        name: [penalty(system * scale).item() for scale in (1.0, 3.0, scales)] for name, penalty in PENALTIES.items()
    }
    zero = pytest.approx(0.0, abs=1e-12)
    assert values["orthogonal"][0] == zero and values["orthogonal"][1] > 1
    assert values["relaxed_orthogonal"][:2] == [zero, zero] and values["relaxed_orthogonal"][2] > 1
    assert values["orthonormal"] == [zero, zero, zero]  # PiSSA's factors, whose columns hold roots of singular values


@pytest.mark.parametrize("name", PENALTIES)
def test_its_gradient_joins_the_losses(tiny_qwen3: Build, backward: Callable, name: str) -> None:
    plain, penalised = tiny_qwen3(), tiny_qwen3()
    for model in (plain, penalised):
        optimizer = build_optimizer(model, rule="sgd", lr=0.1, momentum=0.0)
        if model is penalised:
            penalise(model, optimizer, name, ["attention.v"], weight=0.01)
        backward(model)
        optimizer.step()
    for (key, ours), theirs in zip(penalised.named_parameters(), plain.parameters(), strict=True):
        if "v_proj" not in key:
            assert torch.equal(ours, theirs)
            continue
        start = dict(tiny_qwen3().named_parameters())[key].detach().requires_grad_()
        PENALTIES[name](start).backward()
        assert torch.allclose(ours, theirs - 0.1 * 0.01 * start.grad, atol=1e-7)
        assert not torch.equal(ours, theirs)


def test_pissa_factors_stay_orthogonal_under_it_and_drift_without(tiny_qwen3: Build, backward: Callable) -> None:
    def drift(weight: float) -> float:
        config = LoraConfig(r=8, target_modules=["q_proj"], init_lora_weights="pissa")
        model = get_peft_model(tiny_qwen3(), config)
        optimizer = build_optimizer(model, rule="adamw", lr=3e-3)
        if weight:
            penalise(model, optimizer, "orthonormal", ["lora"], weight)
        for _ in range(10):
            backward(model)
            optimizer.step()
        factors = [param.detach() for name, param in model.named_parameters() if "lora_" in name]
        return sum(orthonormal(factor).item() for factor in factors) / len(factors)

    assert drift(1.0) < 0.5 * drift(0.0)


def test_a_recipe_names_penalties_and_their_roles(tiny_qwen3: Build, backward: Callable) -> None:
    from typing import get_args

    from rlspec.config.load import load_recipe
    from rlspec.config.optim import builder_settings
    from rlspec.config.schema import Penalty

    assert set(get_args(Penalty.model_fields["name"].annotation)) == set(PENALTIES)
    given = "optim.penalties=[{name: orthogonal, roles: [attention.v, mlp], weight: 0.01}]"
    recipe = load_recipe(["recipe=grpo_math", "optim=sgd", "optim.lr=0.1", "optim.momentum=0", given])
    changed = {}
    for penalties in (recipe.optim.penalties, []):
        model = tiny_qwen3()
        optim = recipe.optim.model_copy(update={"penalties": penalties})
        optimizer = build_optimizer(model, **builder_settings(optim, 1))
        backward(model)
        optimizer.step()
        changed[bool(penalties)] = dict(model.named_parameters())
    differ = {name for name in changed[True] if not torch.equal(changed[True][name], changed[False][name])}
    assert differ == {name for name in changed[True] if "v_proj" in name or ("mlp" in name and "weight" in name)}
    for wrong, said in (
        ("[{name: orthogonl, roles: [mlp]}]", "optim.penalties.0.name=orthogonl"),
        ("[{name: orthogonal}]", "optim.penalties.0.roles"),
        ("[{name: orthogonal, roles: [mlp], weight: 0}]", "optim.penalties.0.weight=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_recipe(["recipe=grpo_math", f"optim.penalties={wrong}"])


def test_removing_the_handle_ends_it_and_what_has_no_gradient_is_left_alone(
    tiny_qwen3: Build, backward: Callable
) -> None:
    model = tiny_qwen3()
    optimizer = build_optimizer(model, rule="sgd", lr=0.1, momentum=0.0)
    handle = penalise(model, optimizer, "orthogonal", ["attention"], weight=1.0)
    before = [param.detach().clone() for param in model.parameters()]
    optimizer.step()
    assert all(torch.equal(param, old) for param, old in zip(model.parameters(), before, strict=True))
    handle.remove()
    backward(model)
    gradients = [param.grad.clone() for param in model.parameters()]
    optimizer.step()
    assert all(torch.equal(param.grad, old) for param, old in zip(model.parameters(), gradients, strict=True))


def test_what_cannot_work_is_refused_by_name(tiny_qwen3: Build) -> None:
    model = tiny_qwen3()
    optimizer = build_optimizer(model, rule="adamw", lr=0.1)
    with pytest.raises(ConfigError, match="'orthonormall': unknown; did you mean orthonormal"):
        penalise(model, optimizer, "orthonormall", ["mlp"])
    for wrong in ({"name": "orthogonal"}, {"name": "orthogonal", "roles": ["mlp"], "rolls": 1}):
        with pytest.raises(ConfigError, match=r"penalties: .*: give name and roles, and weight"):
            build_optimizer(tiny_qwen3(), rule="sgd", penalties=[wrong])
    with pytest.raises(ConfigError, match="no trainable matrix has role 'lora'"):
        penalise(model, optimizer, "orthonormal", ["lora"])
    with pytest.raises(ConfigError, match="weight=0"):
        penalise(model, optimizer, "orthogonal", ["mlp"], weight=0.0)
