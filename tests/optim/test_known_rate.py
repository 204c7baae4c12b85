"""A learning rate from elsewhere, on a real, tiny Qwen3: each parameter's against the transfer rules, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import SpectralOptimizer, build_optimizer

Build = Callable[..., nn.Module]


def rates(optimizer: SpectralOptimizer) -> dict[str, float]:
    """Learning rate by the last two words of a parameter's name."""
    return {
        ".".join(name.split(".")[-2:]): group["lr"] for group in optimizer.param_groups for name in group["param_names"]
    }


def one_rate(optimizer: SpectralOptimizer) -> float:
    """That of all parameters, which must be one."""
    found = list(rates(optimizer).values())
    assert found == pytest.approx([found[0]] * len(found))
    return found[0]


def build(model: nn.Module, lr_from: dict[str, Any], **settings: Any) -> SpectralOptimizer:
    return build_optimizer(model, lr_from=lr_from, **({"rule": "muon"} | settings))


def test_rules_of_matched_length_keep_the_learning_rate(tiny_qwen3: Build) -> None:
    for rule in ("muon", "pion", "normuon", "soap", "signum", "adamw"):
        assert one_rate(build(tiny_qwen3(), {"lr": 3e-6}, rule=rule)) == pytest.approx(3e-6)


def test_steps_of_another_length_get_what_moves_the_weights_as_far(tiny_qwen3: Build, backward: Callable) -> None:
    def moved(**settings: Any) -> dict[str, float]:
        model = tiny_qwen3()
        before = {name: param.detach().clone() for name, param in model.named_parameters()}
        backward(model)
        exact = {"schedule": "polar_express", "ns_steps": 12, "momentum": 0.0}
        build_optimizer(model, rule="muon", **exact, **settings).step()
        return {
            name: (param.detach() - before[name]).square().mean().sqrt().item()
            for name, param in model.named_parameters()
            if "proj" in name
        }

    plain = moved(lr=1e-3)
    for adjust_lr in ("paper", "spectral", "original", "none"):
        assert moved(lr_from={"lr": 1e-3}, adjust_lr=adjust_lr) == pytest.approx(plain, rel=2e-2)


def test_the_published_muon_of_rlvr_is_said_in_adamws_terms(tiny_qwen3: Build) -> None:
    known = {"rule": "muon", "lr": 1e-6, "adjust_lr": "paper", "paper_scale": 5.0}
    found = rates(build(tiny_qwen3(), known, rule="muon"))
    assert found["up_proj.weight"] == pytest.approx(25e-6)
    assert found["embed_tokens.weight"] == found["q_norm.weight"] == pytest.approx(1e-6)  # AdamW there and here


def test_a_larger_batch_gets_the_root_and_plain_sgd_the_whole(tiny_qwen3: Build) -> None:
    assert one_rate(build(tiny_qwen3(), {"lr": 1e-6, "batch": 256}, batch=1024)) == pytest.approx(2e-6)
    known = {"rule": "sgd", "lr": 0.1, "batch": 256}
    assert one_rate(build(tiny_qwen3(), known, rule="sgd", batch=1024)) == pytest.approx(0.4)


def test_across_widths_matrices_follow_the_spectral_condition_and_the_rest_stays(tiny_qwen3: Build) -> None:
    found = rates(build(tiny_qwen3(), {"lr": 1e-3, "width": 32}, rule="adamw"))  # the model's is 128
    assert found["up_proj.weight"] == pytest.approx(1e-3 / 4)
    assert found["o_proj.weight"] == pytest.approx(1e-3 / 4)
    assert found["embed_tokens.weight"] == found["norm.weight"] == pytest.approx(1e-3)
    spectral = rates(
        build(tiny_qwen3(), {"rule": "muon", "lr": 1e-3, "width": 32, "adjust_lr": "spectral"}, adjust_lr="spectral")
    )
    assert spectral["up_proj.weight"] == pytest.approx(1e-3)  # which transfers as it is
    matched = rates(build(tiny_qwen3(), {"rule": "muon", "lr": 1e-3, "width": 32}))
    assert matched["up_proj.weight"] == pytest.approx(1e-3 / 2)  # 1 / sqrt(width)


def test_weight_decay_follows(tiny_qwen3: Build) -> None:
    def decays(optimizer: SpectralOptimizer) -> dict[str, float]:
        return {group["role"]: group["weight_decay"] for group in optimizer.param_groups}

    batch = decays(build(tiny_qwen3(), {"lr": 1e-3, "batch": 16, "weight_decay": 0.2}, batch=64))
    assert batch["mlp.up"] == pytest.approx(0.1) and batch["norm"] == 0.0  # lr doubles
    width = decays(build(tiny_qwen3(), {"lr": 1e-3, "width": 32, "weight_decay": 0.2}, rule="adamw"))
    assert width["mlp.up"] == pytest.approx(0.4)  # as the root of the width
    own = decays(build(tiny_qwen3(), {"lr": 1e-3, "batch": 16}, batch=64, weight_decay=0.3))
    assert own["mlp.up"] == 0.3


def test_scales_of_roles_multiply_and_what_was_computed_is_said(tiny_qwen3: Build) -> None:
    roles = {"mlp": {"lr_scale": 0.5}, "attention.v": {"rule": "normuon", "adjust_lr": "none"}}
    optimizer = build(tiny_qwen3(), {"lr": 1e-3, "batch": 16}, batch=64, roles=roles)
    found = rates(optimizer)
    assert found["up_proj.weight"] == pytest.approx(1e-3) and found["q_proj.weight"] == pytest.approx(2e-3)
    assert found["v_proj.weight"] == pytest.approx(2e-3 * 0.2 * 128**0.5)
    assert optimizer.rates is not None
    first, *lines = optimizer.rates.splitlines()
    assert first == "learning rates from adamw at 0.001, batch 16 (here 64):"
    assert any(line.split()[:4] == ["mlp.up", "muon", "lr", "0.001"] for line in lines)
    assert build_optimizer(tiny_qwen3(), rule="muon").rates is None


@pytest.mark.parametrize(
    ("known", "settings", "words"),
    [
        ({"lr": 1e-3, "batch": 8}, {}, "batch: the size of this run's batch"),
        ({"lr": "x"}, {}, "lr_from.lr='x'; must be a number above 0"),
        ({"lr": -1}, {}, "lr_from.lr=-1; must be a number above 0"),
        ({"lr": 1e-3, "width": 0}, {}, "lr_from.width=0; must be a number above 0"),
        ({"lr": 1e-3, "bacth": 8}, {}, "lr_from.bacth: unknown; did you mean batch"),
        ({"lr": 1e-3, "rule": "muonn"}, {}, "did you mean muon"),
        ({"lr": 1e-3}, {"rule": "sgd"}, "lr_from: .* as long as the gradient"),
        ({"lr": 1e-3}, {"rule": "scion"}, "lr_from: .*q_proj.* as long as scion_radius says"),
        ({"lr": 1e-3, "width": 32, "rule": "conda"}, {"rule": "conda"}, "operator norm of its updates is not known"),
    ],
)
def test_what_cannot_be_carried_over_is_refused_by_name(
    known: dict[str, Any], settings: dict[str, Any], words: str, tiny_qwen3: Build
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(tiny_qwen3(), known, **settings)


def test_a_model_without_a_config_has_no_width() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    assert rates(build(model, {"lr": 1e-3})) == {"0.weight": pytest.approx(1e-3), "0.bias": pytest.approx(1e-3)}
    with pytest.raises(ConfigError, match="width of this model is not known"):
        build(model, {"lr": 1e-3, "width": 8})


def test_a_recipe_gives_its_batch() -> None:
    from rlspec.config.load import load_recipe
    from rlspec.rlvr.session import optimizer_factory

    given = ["recipe=grpo_math", "optim=muon", "+optim.lr_from={rule: adamw, lr: 1e-6, batch: 1024}"]
    recipe = load_recipe([*given, "batch.prompts_per_step=256"])
    torch.manual_seed(0)
    optimizer = optimizer_factory(recipe.optim, recipe.batch.prompts_per_step)(nn.Sequential(nn.Linear(8, 8)))
    assert one_rate(optimizer) == pytest.approx(0.5e-6)
    with pytest.raises(ConfigError, match="optim.lr_from.rule=adamww"):
        load_recipe(["recipe=grpo_math", "+optim.lr_from={rule: adamww}"])
