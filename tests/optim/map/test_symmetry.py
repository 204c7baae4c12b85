"""Roles, splits and rules of every parameter of Qwen3, with LoRA and without, and of plain modules; what is refused."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer, symmetry_map


def by_role(mapping) -> dict:
    return {spec.role: spec for spec in mapping}


def test_every_parameter_of_qwen3_is_claimed_once_with_the_right_heads(tiny_qwen3) -> None:
    model = tiny_qwen3()
    mapping = symmetry_map(model, rule="pion")
    assert sorted(spec.name for spec in mapping) == sorted(name for name, _ in model.named_parameters())
    layout = {spec.role: (spec.num_heads, spec.head_axis, spec.rule) for spec in mapping}
    assert layout == {
        "embed": (1, 0, "adamw"),
        "attention.q": (4, 0, "pion"),
        "attention.k": (2, 0, "pion"),
        "attention.v": (2, 0, "pion"),
        "attention.o": (4, 1, "pion"),
        "mlp.gate": (1, 0, "pion"),
        "mlp.up": (1, 0, "pion"),
        "mlp.down": (1, 0, "pion"),
        "norm": (1, 0, "adamw"),
    }
    assert mapping.frozen == ()


def test_tied_embeddings_are_one_parameter_and_untied_ones_two(tiny_qwen3) -> None:
    assert "lm_head" not in by_role(symmetry_map(tiny_qwen3()))
    untied = by_role(symmetry_map(tiny_qwen3(tie_word_embeddings=False)))
    assert (untied["lm_head"].rule, untied["embed"].rule) == ("adamw", "adamw")


def tiny_llama(**changes) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(sizes | {"intermediate_size": 96, "vocab_size": 50} | changes)))


def test_the_output_head_gets_adamw_in_every_family() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_llama(tie_word_embeddings=False)
    head = by_role(symmetry_map(model, rule="muon"))["lm_head"]
    assert (head.name, head.rule, head.shape) == ("lm_head.weight", "adamw", (50, 64))
    assert "lm_head" not in symmetry_map(tiny_llama(tie_word_embeddings=True)).roles
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert by_role(symmetry_map(adapted, rule="muon"))["lm_head"].rule == "adamw"


def of_no_family() -> nn.Module:
    model = tiny_llama()
    model.config.model_type = model.model.config.model_type = "unheard_of"
    return model


@pytest.mark.filterwarnings("error")
def test_an_unheard_of_decoder_is_cut_by_common_names_and_the_numbers_of_its_config_which_is_noted() -> None:
    known, mapping = symmetry_map(tiny_llama(), rule="pion"), symmetry_map(of_no_family(), rule="pion")
    assert {spec.name: spec.split for spec in mapping} == {spec.name: spec.split for spec in known}
    expected = (
        "model_type unheard_of is of no family: heads of 4 matrices by common names and the numbers of its config"
    )
    assert mapping.notes == (expected,)
    assert known.notes == ()


def test_attention_that_cannot_be_split_into_heads_is_said_once() -> None:
    model = of_no_family()
    vars(model.config).update(num_attention_heads=None, num_key_value_heads=None)
    with pytest.warns(UserWarning, match="no head layout is known for model_type unheard_of") as caught:
        symmetry_map(model, rule="pion")
    assert len(caught) == 1


class Attention(nn.Module):
    """By nanochat's names: four heads of queries; of keys and values two, if anybody says so."""

    def __init__(self, kv: str, keys: int = 16) -> None:
        super().__init__()
        self.n_head = 4
        if kv:
            setattr(self, kv, 2)
        self.c_q, self.c_k, self.c_v = nn.Linear(32, 32), nn.Linear(32, keys), nn.Linear(32, keys)
        self.c_proj = nn.Linear(32, 32)


@pytest.mark.parametrize("kv", ["n_kv_head", "num_query_groups", "num_key_value_heads", ""])
def test_heads_of_keys_have_the_size_of_the_queries(kv: str) -> None:
    specs = {spec.name: spec for spec in symmetry_map(nn.ModuleDict({"attn": Attention(kv)}), rule="muon")}
    found = {
        name[-8]: (spec.role, spec.num_heads, spec.head_axis)
        for name, spec in specs.items()
        if "c_" in name and spec.name.endswith("weight")
    }
    assert found == {
        "q": ("attention.q", 4, 0),
        "k": ("attention.k", 2, 0),
        "v": ("attention.v", 2, 0),
        "j": ("attention.o", 4, 1),
    }


def test_keys_that_no_head_of_the_queries_size_divides_are_whole_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="no head layout"):
        mapping = symmetry_map(nn.ModuleDict({"attn": Attention("", keys=12)}), rule="muon")
    assert {spec.num_heads for spec in mapping if spec.name in ("attn.c_k.weight", "attn.c_v.weight")} == {1}


def test_nanogpt_is_cut_by_its_heads() -> None:
    layers = {"c_attn": nn.Linear(32, 96), "c_proj": nn.Linear(32, 32)}
    block = nn.ModuleDict(
        {"attn": nn.ModuleDict(layers), "mlp": nn.ModuleDict({"c_fc": nn.Linear(32, 64), "c_proj": nn.Linear(64, 32)})}
    )
    block["attn"].n_head = 4
    specs = {spec.name: spec for spec in symmetry_map(block, rule="muon")}
    assert (specs["attn.c_attn.weight"].role, specs["attn.c_attn.weight"].num_heads) == ("attention.qkv", 12)
    assert (specs["attn.c_proj.weight"].role, specs["attn.c_proj.weight"].num_heads) == ("attention.o", 4)
    assert [specs[f"mlp.{key}.weight"].role for key in ("c_fc", "c_proj")] == ["mlp.fc1", "mlp.fc2"]


@pytest.mark.parametrize("around", ["", "model", "net.backbone", "module.model"])
@pytest.mark.parametrize("name", ["fc", "head", "output", "proj_out", "head.fc"])
def test_an_output_head_is_one_in_whatever_is_wrapped_around_the_model(around: str, name: str) -> None:
    model: nn.Module = nn.Linear(8, 3)
    inner = nn.ModuleDict({"layer": nn.Linear(8, 8)})
    *outer, last = name.split(".")
    inner[outer[0] if outer else last] = nn.ModuleDict({last: model}) if outer else model
    for key in reversed(around.split(".") if around else []):
        inner = nn.ModuleDict({key: inner})
    found = {
        spec.name.removeprefix(f"{around}.").removesuffix(".weight"): spec.role
        for spec in symmetry_map(inner, rule="muon")
    }
    assert (found[name], found["layer"]) == ("output", "linear")


def test_heads_of_an_unheard_of_decoder_that_contradict_its_config_are_an_error() -> None:
    model = of_no_family()
    model.model.layers[0].self_attn.q_proj = nn.Linear(64, 128, bias=False)  # queries and gates
    with pytest.raises(ConfigError, match=r"q_proj.*makes heads of 32, but the config's head_dim is 16.*split: whole"):
        symmetry_map(model, rule="pion")
    mapping = symmetry_map(model, rule="pion", overrides=[{"pattern": "q_proj", "num_heads": 8, "parts": 2}])
    assert by_role(mapping)["attention.q"].split == "8 heads on rows"


@pytest.mark.filterwarnings("error")
def test_nothing_is_said_where_attention_is_split_or_need_not_be(tiny_qwen3) -> None:
    symmetry_map(tiny_qwen3(), rule="pion")
    symmetry_map(tiny_llama(), rule="pion")
    symmetry_map(of_no_family(), rule="pion", split="whole")
    symmetry_map(of_no_family(), rule="adamw")
    symmetry_map(of_no_family(), rule="pion", overrides=[{"pattern": "self_attn", "rule": "adamw"}])


def test_attention_biases_are_biases(tiny_qwen3) -> None:
    mapping = symmetry_map(tiny_qwen3(attention_bias=True))
    biases = [spec for spec in mapping if spec.role == "bias"]
    assert len(biases) == 2 * 4
    assert {spec.rule for spec in biases} == {"adamw"}


def test_frozen_parameters_are_listed_apart(tiny_qwen3) -> None:
    model = tiny_qwen3()
    model.model.embed_tokens.weight.requires_grad_(False)
    mapping = symmetry_map(model)
    assert mapping.frozen == (("model.embed_tokens.weight", 262 * 128),)
    assert "embed" not in mapping.roles


def test_roles_change_rules_from_general_to_special(tiny_qwen3) -> None:
    mapping = by_role(symmetry_map(tiny_qwen3(), rule="muon", roles={"attention.o": "adamw", "attention": "pion"}))
    rules = {role: spec.rule for role, spec in mapping.items() if spec.rule != "adamw"}
    assert rules == {
        "attention.q": "pion",
        "attention.k": "pion",
        "attention.v": "pion",
        "mlp.gate": "muon",
        "mlp.up": "muon",
        "mlp.down": "muon",
    }


def test_the_first_matching_override_wins(tiny_qwen3) -> None:
    overrides = [
        {"pattern": r"layers\.0\..*q_proj", "rule": "muon", "lr_scale": 0.5, "split": "whole", "adjust_lr": "spectral"},
        {"pattern": "q_proj", "promotion_steps": 3, "weight_decay": 0.2},
    ]
    optimizer = build_optimizer(tiny_qwen3(), rule="pion", lr=1e-3, weight_decay=0.1, overrides=overrides)
    first, second = (group for group in optimizer.param_groups if group["role"] == "attention.q")
    assert (first["rule"], first["lr"], first["num_heads"], first["adjust_lr"]) == ("muon", 5e-4, 1, "spectral")
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.2)
    assert (second["rule"], second["lr"], second["num_heads"], second["promotion_steps"]) == ("pion", 1e-3, 4, 3)


def test_vectors_have_no_weight_decay_and_matrices_do(tiny_qwen3) -> None:
    optimizer = build_optimizer(tiny_qwen3(), weight_decay=0.1)
    assert {group["role"]: group["weight_decay"] for group in optimizer.param_groups}["norm"] == 0.0
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups if group["role"] != "norm")


def test_split_whole_leaves_matrices_whole(tiny_qwen3) -> None:
    assert {spec.num_heads for spec in symmetry_map(tiny_qwen3(), split="whole")} == {1}


def test_the_rule_adamw_is_adamw_everywhere(tiny_qwen3) -> None:
    assert {spec.rule for spec in symmetry_map(tiny_qwen3(), rule="adamw")} == {"adamw"}


def test_a_step_per_head_is_the_filter_on_slices_of_each_head(tiny_qwen3, backward) -> None:
    model = tiny_qwen3().double()
    backward(model)
    optimizer = build_optimizer(model, rule="pion", lr=1.0, promotion_steps=2, adjust_lr="none", momentum=0.0)
    attention = model.model.layers[1].self_attn
    before = {
        name: getattr(attention, name).weight.detach().clone() for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    gradients = {name: getattr(attention, name).weight.grad.clone() for name in before}
    optimizer.step()
    for name, weight in before.items():
        change = weight - getattr(attention, name).weight.detach()
        heads = {"q_proj": 4, "k_proj": 2, "v_proj": 2, "o_proj": 4}[name]
        for head in range(heads):
            cut = slice(32 * head, 32 * head + 32)
            place = (slice(None), cut) if name == "o_proj" else (cut, slice(None))
            u, x, vh = torch.linalg.svd(gradients[name][place], full_matrices=False)
            x = x / x.norm()
            for step in range(5):
                x = (15 * x - 10 * x**3 + 3 * x**5) / 8 if step < 2 else (5 * x**3 - 3 * x**5) / 2
            assert (change[place] - u @ torch.diag(x) @ vh).abs().max() < 1e-12


def with_lora(model: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))


def test_lora_factors_get_adamw_by_default_and_a_spectral_name_warns(tiny_qwen3) -> None:
    model = with_lora(tiny_qwen3())
    mapping = symmetry_map(model)
    assert len(mapping) == 2 * 2 * 7
    assert {spec.rule for spec in mapping} == {"adamw"}
    assert len(mapping.frozen) == len(list(tiny_qwen3().named_parameters()))
    with pytest.warns(UserWarning, match="rule pion updates nothing.*lora: lora_muon"):
        build_optimizer(model, rule="pion")


def test_lora_factors_split_like_their_layer_when_a_spectral_rule_is_asked_for(tiny_qwen3) -> None:
    mapping = by_role(symmetry_map(with_lora(tiny_qwen3()), roles={"lora": "muon"}))
    split = {role: (spec.num_heads, spec.head_axis) for role, spec in mapping.items() if "attention" in role}
    assert split == {
        "lora.A.attention.q": (1, 0),
        "lora.B.attention.q": (4, 0),
        "lora.A.attention.k": (1, 0),
        "lora.B.attention.k": (2, 0),
        "lora.A.attention.v": (1, 0),
        "lora.B.attention.v": (2, 0),
        "lora.A.attention.o": (4, 1),
        "lora.B.attention.o": (1, 0),
    }
    assert {spec.rule for spec in mapping.values()} == {"muon"}


def test_lora_trains_and_its_base_stays(tiny_qwen3, backward) -> None:
    model = with_lora(tiny_qwen3())
    base = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.detach().clone()
    optimizer = build_optimizer(model, rule="muon", lr=1e-2, roles={"lora": "muon"})
    losses = []
    for _ in range(4):
        losses.append(backward(model).item())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert torch.equal(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight, base)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(7, 8), nn.MultiheadAttention(8, 2)
        self.patch, self.norm, self.scale = nn.Conv2d(3, 8, 2), nn.LayerNorm(8), nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 5)


def test_plain_modules_go_by_module_type() -> None:
    found = {
        spec.name: (spec.role, spec.num_heads, spec.head_axis, spec.rule) for spec in symmetry_map(Plain(), rule="muon")
    }
    assert found == {
        "scale": ("vector", 1, 0, "adamw"),
        "embed.weight": ("embed", 1, 0, "adamw"),
        "attention.in_proj_weight": ("attention.qkv", 6, 0, "muon"),
        "attention.in_proj_bias": ("bias", 1, 0, "adamw"),
        "attention.out_proj.weight": ("attention.o", 2, 1, "muon"),
        "attention.out_proj.bias": ("bias", 1, 0, "adamw"),
        "patch.weight": ("conv", 1, 0, "muon"),
        "patch.bias": ("bias", 1, 0, "adamw"),
        "norm.weight": ("norm", 1, 0, "adamw"),
        "norm.bias": ("norm", 1, 0, "adamw"),
        "head.weight": ("output", 1, 0, "adamw"),
        "head.bias": ("bias", 1, 0, "adamw"),
    }


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4))


def overrides_of(refusal: ConfigError) -> list[dict[str, str]]:
    """The lines that a refusal gives, as a user would paste them."""
    return ast.literal_eval(str(refusal).partition("overrides=")[2].partition("]")[0] + "]")


def test_an_unclaimed_parameter_is_an_error_with_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"table of shape \(3, 4\) in a Odd") as refusal:
        symmetry_map(Odd())
    assert overrides_of(refusal.value) == [{"pattern": "^table$", "rule": "adamw"}]
    spec = symmetry_map(Odd(), overrides=overrides_of(refusal.value)).specs[0]
    assert (spec.role, spec.rule) == ("other", "adamw")


class Experts(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Module() for _ in range(layers))
        for layer in self.layers:
            layer.linear, layer.w1 = nn.Linear(6, 6), nn.Parameter(torch.randn(4, 8, 6))
            layer.w2, layer.table = nn.Parameter(torch.randn(4, 6, 8)), nn.Parameter(torch.randn(3, 5))


def test_a_refusal_lists_everything_that_nobody_claims_and_its_lines_claim_it() -> None:
    model = Experts()
    with pytest.raises(ConfigError) as refusal:
        symmetry_map(model, rule="muon")
    words = str(refusal.value)
    assert words.startswith(
        "no role is known for 9 trainable parameters: 3 of layers.N.w1 of shape (4, 8, 6) in a Module;"
    )
    assert all(
        part in words for part in ("3 of layers.N.w2 of shape (4, 6, 8)", "3 of layers.N.table", "stacked: true")
    )
    assert "\n" not in words
    mapping = symmetry_map(model, rule="muon", overrides=overrides_of(refusal.value))
    assert {spec.name: spec.rule for spec in mapping if "linear" not in spec.name} == {
        f"layers.{layer}.{name}": "adamw" for layer in range(3) for name in ("w1", "w2", "table")
    }


def test_a_tensor_of_three_axes_is_a_stack_or_not_as_the_user_says_and_refused_until_then() -> None:
    model, rest = Experts(1), {"pattern": "table", "rule": "adamw"}
    experts = {"pattern": "w[12]", "rule": "muon"}
    with pytest.raises(ConfigError, match=r"layers.0.w1 of shape \(4, 8, 6\) is no matrix.*say stacked: true"):
        symmetry_map(model, rule="muon", overrides=[rest, experts])
    stacked = by_name(symmetry_map(model, rule="muon", overrides=[rest, {**experts, "stacked": True}]))
    assert (stacked["layers.0.w1"].matrices, stacked["layers.0.w1"].block) == (4, (8, 6))
    flat = by_name(symmetry_map(model, rule="muon", overrides=[rest, {**experts, "stacked": False}]))
    assert (flat["layers.0.w1"].matrices, flat["layers.0.w1"].block) == (1, (4, 48))


def by_name(mapping) -> dict:
    return {spec.name: spec for spec in mapping}


def test_a_step_runs_on_the_matrices_that_an_override_describes() -> None:
    model = Experts(1)
    model.layers[0].w1.grad, model.layers[0].w2.grad = torch.randn(4, 8, 6), torch.randn(4, 6, 8)
    overrides = [
        {"pattern": "w1", "rule": "muon", "stacked": True, "parts": 2},
        {"pattern": "w2", "rule": "muon", "stacked": True, "transposed": True, "num_heads": 4, "head_axis": 0},
        {"pattern": "table", "rule": "adamw"},
    ]
    optimizer = build_optimizer(model, rule="muon", lr=1.0, momentum=0.0, adjust_lr="none", overrides=overrides)
    before = [param.detach().clone() for param in (model.layers[0].w1, model.layers[0].w2)]
    optimizer.step()
    change = [old - new.detach() for old, new in zip(before, (model.layers[0].w1, model.layers[0].w2), strict=True)]
    blocks = [*change[0].reshape(8, 4, 6), *change[1].mT.reshape(16, 2, 6)]
    for block in blocks:  # each has its own polar factor, whose singular values Muon brings near to 1
        assert torch.linalg.svdvals(block).sub(0.95).abs().max() < 0.3


def test_a_matrix_that_the_family_does_not_know_is_an_error(tiny_qwen3) -> None:
    model = tiny_qwen3()
    model.value_head = nn.Linear(128, 1)
    with pytest.raises(ConfigError, match="value_head.weight.*attention.q"):
        symmetry_map(model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads=3.*3 heads do not divide"),
        ({"num_attention_heads": 8}, "num_attention_heads=8 makes heads of 16, but the config's head_dim is 32"),
        ({"num_key_value_heads": None}, "config has no number num_key_value_heads"),
    ],
)
def test_head_counts_that_contradict_the_weights_are_errors(tiny_qwen3, changes: dict, words: str) -> None:
    model = tiny_qwen3()
    vars(model.config).update(changes)
    with pytest.raises(ConfigError, match=words) as refusal:
        symmetry_map(model)
    assert "layers.0.self_attn." in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rule": "moun"}, "did you mean muon"),
        ({"split": "head"}, "did you mean heads"),
        ({"roles": {"atention.q": "muon"}}, "did you mean attention"),
        ({"roles": {"mlp": "muno"}}, "did you mean muon"),
        ({"roles": {"norm": "muon"}}, "norm.weight.*no matrix"),
        ({"overrides": [{"pattern": "q_porj", "rule": "adamw"}]}, "'q_porj' matches no trainable parameter"),
        ({"overrides": [{"pattern": "(", "rule": "adamw"}]}, "no regular expression"),
        ({"overrides": [{"rule": "adamw"}]}, "has no pattern"),
        ({"overrides": [{"pattern": "q_proj", "rul": "adamw"}]}, "unknown key 'rul'; did you mean rule"),
        ({"overrides": [{"pattern": "q_proj", "split": "hole"}]}, "did you mean whole"),
        ({"overrides": [{"pattern": "q_proj", "adjust_lr": "pper"}]}, "did you mean paper"),
        ({"overrides": [{"pattern": "embed", "promotion_steps": 1}]}, "rule adamw has none"),
        ({"overrides": [{"pattern": "norm", "num_heads": 2}]}, "sets num_heads of .*, whose rule adamw has none"),
        ({"overrides": [{"pattern": "q_proj", "lr_scale": "x"}]}, "overrides: lr_scale='x'; must be a number above 0"),
        ({"roles": {"mlp": {"lr_scale": -1}}}, "roles: mlp: lr_scale=-1; must be a number above 0"),
        ({"roles": {"mlp": 3}}, "roles: mlp: 3: give a rule, or a mapping"),
        ({"adamw_lr_scale": "5"}, "adamw_lr_scale='5'; must be a number above 0"),
        ({"adamw_lr_scale": 0}, "adamw_lr_scale=0; must be a number above 0"),
        ({"adamw_lr_scale": float("inf")}, "adamw_lr_scale=inf; must be a number above 0"),
        ({"overrides": [{"pattern": "q_proj", "num_heads": 0}]}, "num_heads=0 must be a whole number from 1"),
        ({"overrides": [{"pattern": "q_proj", "num_heads": "4"}]}, "num_heads='4' must be a whole number from 1"),
        ({"overrides": [{"pattern": "q_proj", "num_heads": 5}]}, "q_proj.weight: 5 heads do not divide axis 0"),
        ({"overrides": [{"pattern": "q_proj", "num_heads": 4, "parts": 3}]}, "num_heads=4 is no multiple of its 3"),
        ({"overrides": [{"pattern": "q_proj", "head_axis": 2}]}, "head_axis=2 must be 0 or 1"),
        ({"overrides": [{"pattern": "q_proj", "stacked": 1}]}, "stacked=1 must be true or false"),
        ({"overrides": [{"pattern": "q_proj", "stacked": True}]}, "q_proj.weight.*is no stack"),
        ({"overrides": [{"pattern": "q_proj", "rule": "muon", "promotion_steps": 1}]}, "rule muon has none"),
    ],
)
def test_misspelt_and_impossible_words_are_errors(tiny_qwen3, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        symmetry_map(tiny_qwen3(), **settings)


def test_a_model_with_nothing_to_train_is_an_error(tiny_qwen3) -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(tiny_qwen3().requires_grad_(False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_map_knows_the_bytes_of_optimizer_state(tiny_qwen3, backward, dtype: torch.dtype) -> None:
    model = tiny_qwen3().to(dtype)
    backward(model)
    for rule in ("adamw", "muon"):
        optimizer = build_optimizer(model, rule=rule)
        optimizer.step()
        tensors = [t for s in optimizer.state.values() for key, t in s.items() if key != "step"]
        assert sum(spec.state_bytes for spec in optimizer.symmetry) == sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("muon", {"state_dtype": "bfloat16"}),
        ("adamw", {"state_dtype": "bfloat16"}),
        ("dion", {"dion_rank": 0.1}),
        ("namo", {"state_dtype": "bfloat16", "roles": {"mlp": {"rule": "dion", "dion_rank": 0.2}}}),
    ],
)
def test_the_bytes_are_those_of_the_settings_that_were_given(
    tiny_qwen3, backward, rule: str, settings: dict, dtype: torch.dtype
) -> None:
    model = tiny_qwen3().to(dtype)
    backward(model)
    optimizer = build_optimizer(model, rule=rule, **settings)
    optimizer.step()
    tensors = [t for s in optimizer.state.values() for key, t in s.items() if key != "step"]
    counted = sum(spec.state_bytes for spec in optimizer.symmetry)
    assert counted == sum(t.nbytes for t in tensors)
    if rule != "adamw":  # which keeps no momentum that could be rounded, and no rank
        assert counted != sum(spec.state_bytes for spec in symmetry_map(model, rule=rule, roles=settings.get("roles")))


@pytest.mark.parametrize("rule", ["adamw", "muon", "pion"])
def test_a_real_model_learns_one_batch(tiny_qwen3, backward, rule: str) -> None:
    model = tiny_qwen3()
    optimizer = build_optimizer(model, rule=rule, lr=3e-3, promotion_steps="auto", telemetry_every=1)
    first = backward(model)
    for _ in range(8):
        optimizer.step()
        last = backward(model)
    assert last < first - 0.5
    assert set(optimizer.telemetry()) == set(optimizer.symmetry.roles)
    assert optimizer.inactive_spectral_groups(steps=1) == []
