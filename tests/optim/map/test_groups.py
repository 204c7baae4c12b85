"""Which groups contain which, and that the rules of roles=symmetric bear the group of every role."""

from __future__ import annotations

import itertools

import pytest
import torch
from family_cases import CASES, build
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import RULES, build_optimizer, symmetry_map
from rlspec.optim.map.families import ROLE_PRESETS, Entry, Family, register_family
from rlspec.optim.map.groups import CONTAINED, BlockLayout, broken, rule_group

WIDE, TALL = BlockLayout(6, 10), BlockLayout(10, 6)


def elements(group: str) -> set[tuple[tuple[int, ...], ...]]:
    """All of a group on two coordinates; of O those with entries 0, 1 and -1, and one more."""
    identity, flip, swap = ((1, 0), (0, 1)), ((-1, 0), (0, 1)), ((0, 1), (1, 0))
    generators = {"-": [], "D": [flip], "P": [swap], "S": [flip, swap], "O": [flip, swap]}[group]
    found = {identity}
    for _ in range(8):
        products = itertools.product(generators, found)
        found |= {tuple(map(tuple, (torch.tensor(a) @ torch.tensor(b)).tolist())) for a, b in products}
        found |= {tuple(map(tuple, (torch.tensor(a) * s).tolist())) for a in found for s in (1, -1) if group in "DSO"}
    return found | ({((3, 4), (4, -3))} if group == "O" else set())


@pytest.mark.parametrize(("larger", "smaller"), list(itertools.product("OSPD-", repeat=2)))
def test_a_group_contains_another_where_all_its_elements_are_in_it(larger: str, smaller: str) -> None:
    assert (smaller in CONTAINED[larger]) == (elements(smaller) <= elements(larger))


@pytest.mark.parametrize(
    ("group", "rule", "cut", "missing"),
    [
        ("S_V x O(d)", "adamw", WIDE, ("O(d)",)),
        ("S_V x O(d)", "muon", WIDE, ()),
        ("S_V x O(d)", "row_norm", WIDE, ()),
        ("O(d) x S_ff, signs", "row_norm", WIDE, ("O(d)",)),
        ("O(d) x S_ff, signs", "column_norm", WIDE, ()),
        ("S_ff, signs x O(d)", "centered_row_norm", WIDE, ("signs",)),
        ("S_V, shift x O(d)", "row_norm", WIDE, ("shift",)),
        ("S_V, shift x O(d)", "centered_row_norm", WIDE, ()),
        ("S_V, shift x O(d)", "adamw", WIDE, ("shift", "O(d)")),
        ("O(head) x O(d)", "row_norm", BlockLayout(3, 10, heads=0), ("O(head)",)),
        ("S_heads, signs x O(d)", "aro", BlockLayout(3, 10, heads=0), ("O(d)",)),
        ("S_heads, signs x -", "aro", BlockLayout(3, 10, heads=0), ()),
        ("S_heads, signs x -", "aro", BlockLayout(3, 10), ("S_heads",)),
        ("S_heads, signs x -", "aro", BlockLayout(3, 10, heads=1), ("S_heads",)),
        ("S_experts, O(d) x S_ff", "trion", BlockLayout(3, 10, stacked=True), ("O(d)",)),
        ("S_experts, - x S_ff", "trion", BlockLayout(3, 10, stacked=True), ()),
        ("S_experts, - x S_ff", "trion", BlockLayout(3, 10), ("S_experts",)),
        ("S_heads, SO(2) x O(d)", "normuon", BlockLayout(3, 10, heads=0), ("SO(2)",)),
        ("O(d) x S_ff", "conda", WIDE, ()),
        ("O(d) x S_ff", "conda", TALL, ("O(d)",)),
        ("signs", "adamw", BlockLayout(0, 8), ()),
        ("O(d)", "adamw", BlockLayout(0, 8), ("O(d)",)),
        ("O(d)", "sgd", BlockLayout(0, 8), ()),
        ("-", "adamw", WIDE, ()),
        ("GL(r) with its partner", "muon", WIDE, ("GL(r)",)),
        ("GL(r) with its partner", "lora_muon", WIDE, ()),
    ],
)
def test_what_a_rule_breaks_of_a_group(group: str, rule: str, cut: BlockLayout, missing: tuple[str, ...]) -> None:
    assert broken(group, RULES[rule], cut) == missing


def test_the_short_side_of_a_rule_is_that_of_the_block() -> None:
    assert (rule_group(RULES["conda"], WIDE), rule_group(RULES["conda"], TALL)) == ("O x S", "S x O")
    assert (rule_group(RULES["adamw"], BlockLayout(0, 8)), rule_group(RULES["lora_pion"], WIDE)) == ("S", "GL(r)")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("rule", ["muon", "pion"])
def test_symmetric_breaks_nothing_in_any_family_but_what_turns_in_biases(case, rule: str) -> None:
    mapping = symmetry_map(build(case), rule=rule, roles="symmetric")
    assert [(spec.label, spec.rule, spec.broken) for spec in mapping if spec.broken and spec.role != "bias"] == []
    assert any(spec.broken for spec in symmetry_map(build(case), rule="adamw"))


def test_a_bias_has_the_group_of_its_layers_outputs_which_adamw_does_not_bear() -> None:
    mapping = symmetry_map(build(next(case for case in CASES if case.name == "siglip")), rule="muon", roles="symmetric")
    found = {spec.name.rpartition("layers.0.")[2]: spec for spec in mapping if "layers.0." in spec.name}
    groups = {name: found[name].group for name in found if name.endswith(("proj.bias", "fc1.bias", "fc2.bias"))}
    assert groups == {
        "self_attn.q_proj.bias": "O(head)",
        "self_attn.k_proj.bias": "O(head)",
        "self_attn.v_proj.bias": "O(head)",
        "self_attn.out_proj.bias": "O(d)",
        "mlp.fc1.bias": "S_ff",
        "mlp.fc2.bias": "O(d)",
    }
    assert {name: found[name].broken for name in ("self_attn.v_proj.bias", "mlp.fc1.bias")} == {
        "self_attn.v_proj.bias": ("O(head)",),
        "mlp.fc1.bias": (),
    }


@pytest.mark.parametrize("policy", ["rlspec_adapter", "rlspec_flow", "rlspec_smolvla", "rlspec_pi05"])
def test_symmetric_breaks_nothing_in_any_policy(policy: str) -> None:
    from rlspec.vla.meta_policy import build_meta_policy

    specs = {spec.label: spec for spec in symmetry_map(build_meta_policy(policy, {}), rule="muon", roles="symmetric")}
    assert [(label, spec.rule) for label, spec in specs.items() if spec.broken and spec.role != "bias"] == []
    assert specs["action:output"].rule == "row_norm"  # its rows are joints and grippers
    if "action:linear.input" in specs:
        assert specs["action:linear.input"].rule == "column_norm"


def test_no_rule_of_the_preset_is_there_in_vain() -> None:
    found = {spec.role for case in CASES for spec in symmetry_map(build(case))}
    found |= {"linear.input", "output"}  # of policies
    assert {key for key in ROLE_PRESETS["symmetric"] if key not in found} == {"lora"}


def test_only_an_untied_head_is_centered(tiny_qwen3) -> None:
    def rules(**changes) -> dict[str, str]:
        return {spec.role: spec.rule for spec in symmetry_map(tiny_qwen3(**changes), rule="muon", roles="symmetric")}

    assert rules()["embed"] == rules(tie_word_embeddings=False)["embed"] == "row_norm"
    assert "lm_head" not in rules()
    assert rules(tie_word_embeddings=False)["lm_head"] == "centered_row_norm"


def test_tokens_without_gradient_stay_where_they_are_and_the_others_move_as_under_adamw(tiny_qwen3) -> None:
    model = tiny_qwen3(tie_word_embeddings=False)
    seen = torch.randint(0, 40, (4, 24), generator=torch.Generator().manual_seed(1))
    optimizer = build_optimizer(model, rule="muon", roles="symmetric", lr=1e-3, nesterov=True)
    before = model.model.embed_tokens.weight.detach().clone()
    for scale in (1.0, 1e-7):  # the second of gradients as small as those of RLVR
        model.zero_grad()
        (scale * model(input_ids=seen, labels=seen).loss).backward()
        optimizer.step()
    change = model.model.embed_tokens.weight.detach() - before
    moved = change.square().mean(1).sqrt()
    used = torch.zeros(262, dtype=torch.bool).index_fill(0, seen.flatten(), True)
    assert not moved[~used].any()
    assert torch.all(moved[used] > 0.25e-3) and torch.all(moved[used] < 0.41e-3)  # two steps of 0.2 lr


def test_lora_factors_move_as_their_product(tiny_qwen3) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_qwen3(), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    specs = symmetry_map(adapted, rule="muon", roles="symmetric")
    assert {(spec.rule, spec.rule_group, spec.broken) for spec in specs} == {("lora_muon", "GL(r)", ())}
    assert {spec.broken for spec in symmetry_map(adapted, rule="muon")} == {("GL(r)",)}


@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name].kind == "matrix"])
def test_a_rule_is_centered_where_it_says_so(rule: str) -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, row = torch.randn(6, 9, generator=generator), torch.randn(9, generator=generator)

    def update(gradient: Tensor) -> Tensor:
        from rlspec.optim import SpectralOptimizer

        param = nn.Parameter(torch.zeros(6, 9))
        param.grad = gradient.clone()
        SpectralOptimizer([param], rule=rule, lr=1.0, promotion_steps=2).step()
        return param.detach()

    plain, shifted = update(gradient), update(gradient + row)
    assert plain.any()
    blind = (shifted - plain).norm() < 1e-4 * plain.norm() and plain.sum(0).norm() < 1e-4 * plain.norm()
    assert blind == RULES[rule].centered


def test_a_family_with_a_group_that_cannot_be_read_is_refused() -> None:
    entry = Entry(r"w\.weight", "mlp", "U(d) x O(d)")
    with pytest.raises(ConfigError, match=r"family odd, mlp: group 'U\(d\) x O\(d\)': 'U\(d\)' is none of"):
        register_family(Family("odd", ("odd",), (entry,)))
