"""With settings="paper" every rule has the numbers of its paper, and whoever says another hears of it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import RULES, build_optimizer, symmetry_map
from rlspec.optim.papers import PAPERS
from rlspec.optim.settings import OptimizerSettings, defaults

ROWS = ("none", "stale_eps", 1e-8, "eps_mode", "absolute")
POLAR = ("none", "polar_eps", 1e-8, "eps_mode", "absolute")
# rule: split, momentum, nesterov, weight decay, adjust_lr, then names and values of its own
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "signum": ("heads", 0.9, False, 0.0, "none"),
    "muon": ("whole", 0.95, True, 0.0, "original"),
    "pion": ("heads", 0.95, False, 0.01, "paper", "paper_scale", 5.0, "promotion_steps", 0.0),
    "conda": ("whole", 0.95, False, 0.0, "match_rms_adamw", "betas", (0.9, 0.99), "conda_scale", 0.25,
              "basis_period", 2000),
    "aro": ("whole", 0.95, False, 0.0, "match_rms_adamw", "base_function", "sinkgd"),
    "root": ("whole", 0.95, True, 0.1, "match_rms_adamw", "outlier_quantile", 0.9),
    "row_norm": ("heads", 0.95, False, 0.0, *ROWS),
    "centered_row_norm": ("heads", 0.95, False, 0.0, *ROWS),
    "column_norm": ("heads", 0.95, False, 0.0, *ROWS),
    "right_polar": ("heads", 0.95, False, 0.0, *POLAR, "nuclear_exponent", 1.0),
    "left_polar": ("heads", 0.95, False, 0.0, *POLAR, "nuclear_exponent", 1.0),
    "centered_left_polar": ("heads", 0.95, False, 0.0, *POLAR, "nuclear_exponent", 1.0),
    "row_then_polar": ("heads", 0.95, False, 0.0, *ROWS, "polar_eps", 1e-8, "nuclear_exponent", 1.0),
    "column_then_polar": ("heads", 0.95, False, 0.0, *ROWS, "polar_eps", 1e-8, "nuclear_exponent", 1.0),
    "polar_then_row": ("heads", 0.95, False, 0.0, *ROWS, "polar_eps", 1e-8),
    "namo": ("whole", 0.95, True, 0.1, "match_rms_adamw", "variance_beta", 0.99, "variance_eps", 1e-8),
    "namo_d": ("whole", 0.95, True, 0.1, "match_rms_adamw", "variance_beta", 0.99, "variance_eps", 1e-8,
               "column_clamp", 0.75),
    "normuon": ("whole", 0.95, True, 0.0, "original", "variance_beta", 0.95),
    "adamuon": ("whole", 0.95, True, 0.01, "match_rms_adamw", "variance_beta", 0.95),
    "adago": ("whole", 0.95, False, 0.0, "none", "norm_bound", 10.0, "norm_start", 1e-6, "step_floor", 0.01),
    "auon": ("whole", 0.95, True, 0.0, "none", "brake", 1.5),
    "hybrid_auon": ("whole", 0.95, True, 0.0, "none", "brake", 1.5),
    "spectra": ("whole", 0.95, False, 0.0, "original", "spectral_clip", 10.0),
    "lora_muon": ("heads", 0.9, False, 0.01, "none", "extra_ns_steps", 3),
    "fismo": ("whole", 0.95, False, 0.0, "none"),
    "trion": ("whole", 0.95, False, 0.0, "original"),
    "dion": ("whole", 0.95, False, 0.0, "spectral"),
    "scion": ("whole", 0.9, False, 0.0, "match_rms_adamw", "scion_radius", 50.0),
    "scion_sign": ("heads", 0.9, False, 0.0, "match_rms_adamw", "scion_radius", 3000.0),
    "scion_row": ("heads", 0.9, False, 0.0, "match_rms_adamw", "scion_radius", 3000.0),
    "soap": ("whole", 0.95, False, 0.01, "match_rms_adamw", "betas", (0.95, 0.95), "soap_period", 10,
             "soap_skip_first", True),
    "dct_adamw": ("whole", 0.95, False, 0.0, "match_rms_adamw"),
}  # fmt: skip


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)


def test_the_table_covers_every_rule_with_settings_of_its_own() -> None:
    assert PUBLISHED.keys() == {name for name, paper in PAPERS.items() if paper.settings}


def test_a_rule_without_an_entry_is_here_because_somebody_looked() -> None:
    # adamw and sgd are torch's; the others' docstrings name the source.
    assert RULES.keys() - PAPERS.keys() == {"adamw", "sgd", "diffgrad", "lora_rite"}


@pytest.mark.parametrize("rule", PAPERS)
def test_papers_speak_of_rules_and_of_settings_that_these_have(rule: str) -> None:
    known = RULES[rule].options | defaults(OptimizerSettings) | {"split": "heads"}
    same = {name for name, value in PAPERS[rule].settings.items() if value == known[name]}
    assert same <= {"promotion_steps", "paper_scale"}, "these are ours as well"  # of these two presets have others


@pytest.mark.parametrize("rule", PUBLISHED)
def test_the_numbers(rule: str) -> None:
    split, momentum, nesterov, weight_decay, adjust_lr, *own = PUBLISHED[rule]
    values = RULES[rule].options | defaults(OptimizerSettings) | dict(PAPERS[rule].settings)
    assert values.get("split", "heads") == split
    assert (values["momentum"], values["nesterov"], values["weight_decay"]) == (momentum, nesterov, weight_decay)
    assert values["adjust_lr"] == adjust_lr
    assert {name: values[name] for name in own[::2]} == dict(zip(own[::2], own[1::2], strict=True))


@pytest.mark.parametrize("rule", [name for name in PUBLISHED if RULES[name].kind == "matrix"])
def test_the_optimizer_has_them_in_the_groups_of_the_rule_and_only_there(rule: str) -> None:
    model = Attention()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = build_optimizer(model, rule=rule, lr=1e-3, settings="paper")
    groups = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    group, split = groups["heads.out_proj.weight"], PUBLISHED[rule][0]
    assert group["num_heads"] == (4 if split == "heads" else 1)
    assert {name: group[name] for name in PAPERS[rule].settings if name != "split"} == {
        name: value for name, value in PAPERS[rule].settings.items() if name != "split"
    }
    vector = groups["norm.weight"]
    assert (vector["rule"], vector["weight_decay"]) == ("adamw", 0.0)
    ours = defaults(OptimizerSettings)
    assert {name: vector[name] for name in ours} == ours
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()


def test_each_role_has_its_own_rules_and_what_the_role_says_wins() -> None:
    roles = {"attention.o": {"rule": "namo", "weight_decay": 0.3}}
    optimizer = build_optimizer(Attention(), rule="muon", roles=roles, weight_decay=0.2, settings="paper")
    groups = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    namo, muon = groups["heads.out_proj.weight"], groups["heads.in_proj_weight"]
    assert (namo["rule"], namo["nesterov"], namo["weight_decay"], namo["variance_eps"]) == ("namo", True, 0.3, 1e-8)
    assert (muon["adjust_lr"], muon["weight_decay"], muon["num_heads"]) == ("original", 0.2, 3)


def test_the_map_shows_the_papers_split_too() -> None:
    found = {spec.name: spec.num_heads for spec in symmetry_map(Attention(), rule="muon", paper=True)}
    assert found["heads.out_proj.weight"] == 1
    kept = symmetry_map(Attention(), rule="muon", paper=True, roles={"attention": {"split": "heads"}})
    assert {spec.name: spec.num_heads for spec in kept}["heads.out_proj.weight"] == 4


def test_an_argument_that_the_paper_overrules_is_named() -> None:
    with pytest.warns(UserWarning, match=r"weight_decay of rule namo is 0.1, not 0.3"):
        build_optimizer(Attention(), rule="namo", weight_decay=0.3, settings="paper")


def test_other_words_and_what_does_not_go_with_it_are_refused() -> None:
    with pytest.raises(ConfigError, match="settings='papers'; did you mean paper"):
        build_optimizer(Attention(), rule="muon", settings="papers")
    with pytest.raises(ConfigError, match="lr_from"):
        build_optimizer(Attention(), rule="muon", settings="paper", lr_from={"rule": "adamw", "lr": 1e-3})


def test_a_recipe_says_it(tmp_path: object) -> None:
    from rlspec.config.load import load_recipe
    from rlspec.config.optim import builder_settings, map_settings

    optim = load_recipe(["recipe=debug_grpo", "optim=namo", "optim.settings=paper"]).optim
    assert builder_settings(optim, 1)["settings"] == "paper"
    assert map_settings(optim)["paper"] is True
    assert build_optimizer(Attention(), **builder_settings(optim, 1)).param_groups[0]["weight_decay"] == 0.1
