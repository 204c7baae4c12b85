"""What users say of roles, parts of a model and single parameters, and which pairs of LoRA factors a rule may have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from family_cases import CASES, build, paligemma, qwen3_vl
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer, symmetry_map
from rlspec.optim.map.families import ROLE_PRESETS

PAIR = "lora_muon"


@pytest.fixture
def vlm() -> nn.Module:
    torch.manual_seed(0)
    return paligemma(transformers)


def rules(model: nn.Module, **settings) -> dict[str, str]:
    return {spec.label: spec.rule for spec in symmetry_map(model, **settings)}


def test_a_part_of_the_model_stands_for_its_matrices_only(vlm) -> None:
    found = rules(vlm, rule="adamw", roles={"vision": "muon", "language": "pion"})
    assert {found[f"vision:{role}"] for role in ("attention.q", "attention.qkv", "mlp.fc1", "conv.patch")} == {"muon"}
    assert {found[role] for role in ("attention.q", "mlp.down")} == {"pion"}
    assert {found[role] for role in ("embed", "norm", "vision:norm", "vision:position", "connector:linear")} == {
        "adamw"
    }


def test_a_role_wins_over_a_part_and_both_together_over_a_role(vlm) -> None:
    roles = {"vision:attention": "muon", "attention": "adamw", "vision": "pion", "attention.o": "pion"}
    found = rules(vlm, rule="pion", roles=roles)
    assert found["attention.q"] == "adamw"
    assert found["attention.o"] == "pion"
    assert {found[f"vision:attention.{key}"] for key in "qkvo"} == {"muon"}
    assert found["vision:mlp.fc1"] == "pion"
    assert rules(vlm, roles={"language:attention": "muon"})["attention.q"] == "muon"
    assert rules(vlm, roles={"mlp": "adamw", "language": "muon"})["mlp.up"] == "adamw"
    found = rules(vlm, roles={"mlp": "adamw", "language": "muon", "language:mlp": "pion", "mlp.gate": "muon"})
    assert (found["vision:mlp.fc1"], found["mlp.up"], found["mlp.gate"]) == ("adamw", "pion", "pion")
    assert rules(vlm, roles={"embed": "row_norm"})["embed"] == "row_norm"


def test_a_role_carries_any_setting_of_its_group(vlm) -> None:
    roles = {
        "language": {"rule": "pion", "promotion_steps": 3, "lr_scale": 0.5, "split": "whole"},
        "attention.o": {"promotion_steps": 1, "weight_decay": 0.2, "lr_scale": 0.1, "adjust_lr": "spectral"},
    }
    overrides = [{"pattern": r"layers\.0\.self_attn\.o_proj", "promotion_steps": 0, "lr_scale": 2.0}]
    optimizer = build_optimizer(vlm, rule="pion", lr=1.0, roles=roles, overrides=overrides)
    groups = [group for group in optimizer.param_groups if group["role"] == "attention.o"]
    seen = [(group["promotion_steps"], group["lr"], group["num_heads"], group["weight_decay"]) for group in groups]
    assert seen == [(0, 0.1, 1, 0.2), (1, pytest.approx(0.05), 1, 0.2)]
    assert {group["adjust_lr"] for group in groups} == {"spectral"}
    (queries,) = (group for group in optimizer.param_groups if group["role"] == "attention.q")
    assert (queries["promotion_steps"], queries["lr"], queries["num_heads"]) == (3, 0.5, 1)


def test_options_of_a_rule_may_stand_beside_its_name_or_under_options(tiny_qwen3) -> None:
    for settings in ({"nuclear_beta": 0.5}, {"options": {"nuclear_beta": 0.5}}):
        with pytest.raises(ConfigError, match="unknown key 'nuclear_beta'"):
            symmetry_map(tiny_qwen3(), roles={"mlp": {"rule": "muon", **settings}})
    for settings in ({"schedule": "polar_express"}, {"options": {"schedule": "polar_express"}}):
        optimizer = build_optimizer(tiny_qwen3(), rule="pion", roles={"mlp.up": {"rule": "muon", **settings}})
        (group,) = (group for group in optimizer.param_groups if group["role"] == "mlp.up")
        assert (group["rule"], group["schedule"]) == ("muon", "polar_express")
    with pytest.raises(ConfigError, match=r"roles: sets schedule of .*q_proj.weight, whose rule pion has none"):
        symmetry_map(tiny_qwen3(), rule="pion", roles={"attention": {"schedule": "polar_express"}})


def test_the_preset_for_vision_language_and_action_learns_on_a_real_model(vlm) -> None:
    vlm.eval().action_head = nn.Sequential(nn.Linear(50, 32), nn.ReLU(), nn.Linear(32, 7))
    optimizer = build_optimizer(vlm, rule="adamw", lr=1e-3, roles="vla")
    specs = {spec.label: spec for spec in optimizer.symmetry}
    assert {specs[label].rule for label in ("vision:attention.q", "connector:linear", "mlp.up")} == {"muon"}
    assert (specs["action:linear"].rule, specs["attention.q"].split) == ("pion", "4 heads on rows")
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = vlm.action_head(vlm(**inputs()).logits).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def inputs() -> dict[str, torch.Tensor]:
    from family_cases import IMAGE, seeded, tokens

    return {"input_ids": tokens([IMAGE] * 16), "pixel_values": seeded((2, 3, 32, 32)).float()}


def test_a_preset_leaves_out_parts_that_are_frozen_or_missing(tiny_qwen3, vlm) -> None:
    assert set(ROLE_PRESETS["vla"]) == {"vision", "connector", "language", "action"}
    assert rules(tiny_qwen3(), rule="adamw", roles="vla")["attention.q"] == "muon"
    vlm.model.vision_tower.requires_grad_(False)
    assert rules(vlm, rule="adamw", roles="vla")["mlp.up"] == "muon"


def test_what_adamw_updates_beside_another_rule_may_have_a_rate_of_its_own(tiny_qwen3) -> None:
    def rates(rule: str, **given: Any) -> dict[str, float]:
        model = tiny_qwen3(tie_word_embeddings=False)
        groups = build_optimizer(model, rule=rule, lr=0.1, adamw_lr_scale=5.0, **given).param_groups
        return {group["role"]: round(group["lr"], 9) for group in groups}

    found = rates("muon")
    assert {role for role, rate in found.items() if rate == 0.5} == {"embed", "lm_head", "norm"}
    assert {rate == 0.1 for role, rate in found.items() if role not in ("embed", "lm_head", "norm")} == {True}
    assert rates("muon", roles={"mlp": "adamw", "norm": {"lr_scale": 2.0}})["mlp.up"] == 0.5
    assert rates("muon", roles={"norm": {"lr_scale": 2.0, "weight_decay": 0.3}})["norm"] == 1.0
    assert set(rates("adamw").values()) == {0.1}
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="adamw_lr_scale"):
            symmetry_map(tiny_qwen3(), rule="muon", adamw_lr_scale=wrong)


def test_lora_factors_keep_the_rate_that_they_were_given(tiny_qwen3) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_qwen3(), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():  # norms and a matrix of Muon's are trained beside them
        parameter.requires_grad_("lora_" in name or "norm" in name or "up_proj" in name)
    rates: dict[str, set[float]] = {}
    for group in build_optimizer(model, rule="muon", lr=0.1, adamw_lr_scale=5.0).param_groups:
        rates.setdefault(group["role"].partition(".")[0], set()).add(group["lr"])
    assert rates == {"lora": {0.1}, "norm": {0.5}, "mlp": {0.1}}


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("vlm", "roles='vlm' is no preset; did you mean vla"),
        ({"action": "pion"}, "no trainable parameter has role 'action'"),
        ({"vison": "muon"}, "did you mean vision"),
        ({"vison:mlp": "muon"}, "'vison:mlp': did you mean vision"),
        ({"vision:mpl": "muon"}, "no trainable parameter has role 'vision:mpl'; did you mean .*vision:mlp"),
        ({"vision": {"rule": "muno"}}, "did you mean muon"),
        ({"vision": {"ruel": "muon"}}, "roles: vision: unknown key 'ruel'; did you mean rule"),
        ({"vision": {"split": "hole"}}, "roles: vision: split='hole'; did you mean whole"),
        ({"vision": {"rule": "muon", "promotion_steps": 1}}, "roles: sets promotion_steps of .* rule muon has none"),
    ],
)
def test_misspelt_roles_are_answered_with_the_nearest(vlm, roles, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        symmetry_map(vlm, rule="pion", roles=roles)


def adapted(model: nn.Module, **settings) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(**({"r": 4, "lora_alpha": 8} | settings)))


def test_factors_know_their_partner_and_scaling(tiny_qwen3) -> None:
    mapping = symmetry_map(adapted(tiny_qwen3(), target_modules=["q_proj"], use_rslora=True), rule=PAIR)
    names = {spec.name for spec in mapping}
    for spec in mapping:
        assert spec.partner in names
        assert spec.partner == spec.name.replace(*(("lora_A", "lora_B")[:: 1 if "lora_A" in spec.name else -1]))
        assert (spec.scaling, spec.rule, spec.num_heads) == (4.0, PAIR, 1)


@pytest.mark.parametrize("name", ["llama", "gemma3", "paligemma", "qwen3_vl", "dinov2", "fused_qkv", "smolvla"])
def test_adapters_split_like_their_layers_in_every_family(name: str) -> None:
    base = build(next(case for case in CASES if case.name == name))
    splits = {spec.label: spec.split for spec in symmetry_map(base, rule="muon")}
    targets = sorted({spec.name.rsplit(".", 2)[-2] for spec in symmetry_map(base) if spec.role.startswith("attention")
                      and "in_proj_weight" not in spec.name and ".head." not in spec.name})  # fmt: skip
    model = adapted(
        base, target_modules=rf".*layers?\.\d+\..*\.({'|'.join(targets)})|.*blocks\.\d+\.attn\.({'|'.join(targets)})"
    )
    specs = [spec for spec in symmetry_map(model, roles={"lora": "muon"}) if "lora" in spec.role]
    assert specs
    for spec in specs:
        label = spec.label.replace("lora.A.", "").replace("lora.B.", "")
        on_rows = "rows" in splits[label]
        assert spec.split == (splits[label] if on_rows == ("lora.B" in spec.role) else "whole")


def test_adapters_of_embeddings_convolutions_and_dora_are_claimed(vlm) -> None:
    targets = ["embed_tokens", "patch_embedding", "q_proj"]
    mapping = symmetry_map(adapted(vlm, target_modules=targets), rule=PAIR)
    assert {spec.rule for spec in mapping} == {PAIR}
    roles = {spec.label for spec in mapping}
    assert {"lora.A.embed", "lora.B.embed", "vision:lora.A.conv.patch", "lora.B.attention.q"} <= roles
    dora = symmetry_map(adapted(paligemma(transformers), target_modules=["q_proj"], use_dora=True), rule=PAIR)
    assert {spec.rule for spec in dora if "magnitude" in spec.name} == {"adamw"}


def test_adapters_over_stacks_of_experts_are_no_single_pairs() -> None:
    base = build(next(case for case in CASES if case.name == "qwen3_moe"))
    targets = [f"model.layers.{layer}.mlp.experts.down_proj" for layer in (0, 1)]
    model = adapted(base, target_modules=["q_proj"], target_parameters=targets)
    factors = [spec for spec in symmetry_map(model) if "experts" in spec.name]
    assert {(spec.role, spec.rule) for spec in factors} == {
        ("lora.A.mlp.expert.down", "adamw"),
        ("lora.B.mlp.expert.down", "adamw"),
    }
    with pytest.raises(ConfigError, match=r"experts.*lora_A.*needs the scaling of its layer"):
        symmetry_map(model, rule=PAIR)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"rule": "muon", "overrides": [{"pattern": r"q_proj.*lora_A", "rule": PAIR}]},
            r"lora_A.*: rule lora_muon updates it together with .*lora_B.default.weight, which is of rule adamw",
        ),
        (
            {"rule": "muon", "roles": {"lora.B": PAIR}},
            r"lora_B.*together with .*lora_A.default.weight, which is of rule",
        ),
        ({"rule": PAIR, "roles": {"lora.B": {"lr_scale": 16.0}}}, r"lora_A.*lora_B.*which has other settings"),
    ],
)
def test_a_pair_needs_both_factors(tiny_qwen3, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        symmetry_map(adapted(tiny_qwen3(), target_modules=["q_proj"]), **settings)


def test_a_frozen_factor_makes_no_pair(tiny_qwen3) -> None:
    model = adapted(tiny_qwen3(), target_modules=["q_proj"])
    for name, param in model.named_parameters():
        if "lora_A" in name:
            param.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"lora_B.default.weight.*lora_A.default.weight.*frozen or missing"):
        symmetry_map(model, rule=PAIR)


def test_what_is_no_factor_cannot_have_the_rule_of_a_pair(tiny_qwen3) -> None:
    with pytest.raises(ConfigError, match=r"q_proj.weight: rule lora_muon updates both factors.*role lora only"):
        symmetry_map(tiny_qwen3(), rule="muon", roles={"attention": PAIR})
    with pytest.warns(UserWarning, match="rule lora_muon updates nothing"):
        build_optimizer(tiny_qwen3(), rule=PAIR)


def test_state_of_a_pair_is_counted(tiny_qwen3, backward) -> None:
    model = adapted(tiny_qwen3(), target_modules=["q_proj", "o_proj"])
    backward(model)
    for rule in (PAIR, "lora_rite", "adamw"):
        optimizer = build_optimizer(model, rule=rule)
        optimizer.step()
        tensors = [
            t for s in optimizer.state.values() for key, t in s.items() if isinstance(t, torch.Tensor) and t.ndim
        ]
        assert sum(spec.state_bytes for spec in optimizer.symmetry) == sum(t.nbytes for t in tensors)


def test_the_vision_tower_of_qwen3_vl_is_routed_apart_from_its_connector() -> None:
    found = rules(qwen3_vl(transformers), rule="pion", roles={"connector": "adamw", "vision": "muon"})
    assert found["vision:attention.qkv"] == "muon"
    assert {found["connector:mlp.fc1"], found["connector:mlp.fc2"]} == {"adamw"}
    assert found["attention.q"] == "pion"
