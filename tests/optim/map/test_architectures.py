"""Every architecture: right, or AdamW with a note, and each layout of heads proved by the loss.

The map says which rows are one head. To turn these leaves the loss as it is to 1e-12; to turn half as many or twice as
many does not.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from functools import cache

import pytest
import torch
from architecture_cases import ARCHITECTURES, Architecture
from family_cases import build
from head_moves import (
    Attention,
    attentions,
    bias_of,
    exchange_heads,
    letters,
    move_rows,
    rotation,
    turn_keys,
    turn_values,
    with_heads,
)
from torch import Tensor, nn
from transformers.models.gpt_bigcode import modeling_gpt_bigcode  # noqa: F401  compiled before softmax is replaced

from rlspec.optim import build_optimizer, symmetry_map
from rlspec.optim.kernels.layout import merge_blocks, split_blocks
from rlspec.optim.map.spec import ParameterSpec

pytestmark = pytest.mark.usefixtures("nothing_in_float32")

EXACT, BROKEN = 1e-12, 1e-7
CASES = {case.name: case for case in ARCHITECTURES}
GROUPED = {"attention.q": "4 heads on rows", "attention.k": "2 heads on rows", "attention.v": "2 heads on rows",
           "attention.o": "4 heads on columns"}  # fmt: skip
ENCODER = {f"attention.{key}": "4 heads on rows" for key in "qkv"} | {"attention.o": "4 heads on columns"}
FUSED = {"attention.qkv": "12 heads on rows", "attention.o": "4 heads on columns"}
EXPERTS = {"mlp.expert.gate_up": "4 stacked, 2 parts on rows", "mlp.expert.down": "4 stacked"}
GATE_UP = {"mlp.gate_up": "2 parts on rows"}
LATENT = {"attention.q_b": "4 heads on rows", "attention.kv_b": "8 heads on rows", "attention.o": "4 heads on columns"}
TOWER = {f"vision:{role}": split for role, split in ENCODER.items()}

CUT = dict.fromkeys(CASES, GROUPED) | {
    "gpt2": FUSED,
    "gpt_neox": FUSED,
    "phi3": {"attention.qkv": "8 heads on rows", "attention.o": "4 heads on columns"} | GATE_UP,
    "falcon": {"attention.qkv": "8 heads on rows", "attention.o": "4 heads on columns"},
    "falcon_one_key": {"attention.qkv": "6 heads on rows", "attention.o": "4 heads on columns"},
    "falcon_in_turns": FUSED,
    "bloom": FUSED,
    "gpt_neox_japanese": FUSED,
    "gpt_bigcode": {"attention.qkv": "6 heads on rows", "attention.o": "4 heads on columns"},
    "gpt_bigcode_in_turns": FUSED,
    "mpt": FUSED,
    "persimmon": FUSED,
    "modernbert-decoder": ENCODER | GATE_UP,
    "electra": ENCODER,
    "distilbert": ENCODER,
    "qwen3_5_moe": GROUPED | {"attention.q": "8 heads on rows"} | EXPERTS,
    "diffllama": {"attention.q": "8 heads on rows", "attention.k": "4 heads on rows",
                  "attention.o": "4 heads on columns"},
    "afmoe": GROUPED | {"attention.gate": "4 heads on rows"} | EXPERTS,
    "glm_moe_dsa": LATENT | EXPERTS,
    "granitemoeshared": GROUPED | EXPERTS | GATE_UP,
    "longcat_flash": LATENT | EXPERTS | {"mlp.expert.gate_up": "6 stacked, 2 parts on rows"},
    "minimax": GROUPED | EXPERTS | {"linear.mixer": "12 heads on rows"},
    "jamba": GROUPED | EXPERTS | {"linear.mixer": "2 parts on rows"},
    "falcon_mamba": {"linear.mixer": "2 parts on rows"},
    "modernbert": FUSED | GATE_UP,
    "qwen3_5": GROUPED | {"attention.q": "8 heads on rows"},
    "qwen3_next": GROUPED | {"attention.q": "8 heads on rows"} | EXPERTS,
    "glm4": GROUPED | GATE_UP,
    "lfm2": GROUPED | {"linear.mixer": "3 parts on rows"},
    "lfm2_moe": GROUPED | EXPERTS | {"linear.mixer": "3 parts on rows"},
    "codegen": {"attention.qkv": "24 heads on rows", "attention.o": "8 heads on columns"},
    "deepseek_v2": LATENT | EXPERTS,
    "deepseek_v3": LATENT | EXPERTS,
    "glm4_moe_lite": LATENT | EXPERTS,
    "youtu": LATENT,
    "deepseek_v3_uneven": {"attention.q": "4 heads on rows", "attention.kv_b": "4 heads on rows",
                           "attention.o": "4 heads on columns"} | EXPERTS,
    "mamba": {"linear.mixer": "2 parts on rows"},
    "mamba2": {},
    "bert": ENCODER,
    "t5": ENCODER,
    "vit": TOWER,
    "swin": TOWER,
    "convnext": {},
    "resnet": {},
    "torchvision_vit": FUSED,
    "torchvision_resnet": {},
    "encoder_with_head": FUSED,
    "fused_tower": FUSED,
    "transposed_convolutions": {"conv": "2 parts on columns"},
}  # fmt: skip
CUT |= {
    name: GROUPED | EXPERTS
    for name in (
        *(
            "qwen3_moe",
            "gemma4_experts",
            "mixtral",
            "olmoe",
            "qwen2_moe",
            "gpt_oss",
            "llama4",
            "granitemoe",
            "glm4_moe",
        ),
        *("ernie4_5_moe", "dots1", "solar_open", "hunyuan_v1_moe"),
        *("phimoe", "flex_olmo", "minimax_m2", "exaone_moe"),
    )
}

ADAMW = {"embed", "norm", "bias", "vector", "lm_head", "output", "position", "token", "depthwise", "state",
         "coefficients", "scalar_gate", "router"}  # fmt: skip
UNKNOWN = {"depthwise", "model_type"}  # of no family: attention by common names, mixers whole
NOTED = {
    "qwen3_5": {"depthwise"},
    "qwen3_next": {"depthwise", "scalar_gate"},
    "qwen2_moe": {"scalar_gate"},
    "gemma3n": {"coefficients"},
    "lfm2": {"depthwise"},
    "lfm2_moe": {"depthwise"},
    "olmo_hybrid": {"depthwise"},
    "qwen3_5_moe": {"depthwise", "scalar_gate"},
    **dict.fromkeys(("jamba", "falcon_mamba"), {"depthwise", "state"}),
    **dict.fromkeys(("phimoe", "flex_olmo", "minimax_m2", "exaone_moe"), {"model_type", "router"}),
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2"), UNKNOWN),
    "mamba": {"depthwise", "state"},
    "mamba2": {"depthwise"},
    "vit": {"token"},
    "convnext": {"depthwise"},
    "torchvision_vit": {"token"},
    "fused_tower": {"token"},
}


@cache
def built(name: str) -> tuple[nn.Module, list[ParameterSpec]]:
    """A model that nobody may change, and its map."""
    model = build(CASES[name])
    for path, param in model.named_parameters():
        if path.endswith("A_log"):
            nn.init.constant_(param, 0.1)  # so that what decays by it is seen
    return model, list(symmetry_map(model, rule="muon"))


def loss_of(case: Architecture, model: nn.Module) -> float:
    with torch.no_grad():
        return float(case.loss(model))


@cache
def loss_before(name: str) -> float:
    return loss_of(CASES[name], built(name)[0])


def misfit(name: str, move) -> float:
    """How much a move changes the loss, relative to it; the move itself must change weights."""
    model, _ = built(name)
    moved = copy.deepcopy(model)
    move(moved)
    before, after = loss_before(name), loss_of(CASES[name], moved)
    pairs = zip(model.parameters(), moved.parameters(), strict=True)
    assert any((old - new).norm() > 0.1 * old.norm() for old, new in pairs)
    return abs(after - before) / abs(before)


@pytest.mark.filterwarnings("error:no head layout")
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_is_claimed_and_nothing_is_whole_that_has_heads(name: str) -> None:
    model, specs = built(name)
    trained = [path for path, param in model.named_parameters() if param.requires_grad]
    assert sorted(spec.name for spec in specs) == sorted(trained)
    assert {spec.label: spec.split for spec in specs if spec.split != "whole"} == CUT[name]
    assert {spec.role for spec in specs if spec.rule == "adamw"} <= ADAMW
    assert not any(spec.role in ADAMW for spec in specs if spec.rule != "adamw")
    notes = symmetry_map(model, rule="muon").notes
    assert {note.partition(" ")[0] for note in notes} == NOTED.get(name, set())


@pytest.mark.parametrize("name", CASES)
def test_two_steps_of_every_architecture_change_all_that_has_a_gradient(name: str) -> None:
    model = copy.deepcopy(built(name)[0])
    optimizer = build_optimizer(model, rule="muon", lr=1e-3)
    before = {path: param.detach().clone() for path, param in model.named_parameters()}
    learnt = set()  # a router may pass no gradient in one of the steps
    for _ in range(2):
        model.zero_grad()
        CASES[name].loss(model).backward()
        learnt |= {path for path, param in model.named_parameters() if param.grad is not None and param.grad.any()}
        optimizer.step()
    for path, param in model.named_parameters():
        assert param.isfinite().all()
        assert torch.equal(param, before[path]) == (path not in learnt), path


WITH_HEADS = [name for name in CASES if "attention.o" in str(CUT[name])]
WITH_VALUES = [
    name for name in WITH_HEADS if name not in ("deepseek_v3_uneven", "diffllama")
]  # values in blocks of their own


def every(name: str) -> list[Attention]:
    found = list(attentions(built(name)[1]))
    assert found
    return found


@pytest.mark.parametrize("name", WITH_VALUES)
def test_values_turn_against_outputs_head_by_head(name: str) -> None:
    for attention in every(name):
        assert misfit(name, lambda model, one=attention: turn_values(model, one)) < EXACT
        wrong = with_heads(attention, 0.5)
        assert misfit(name, lambda model, one=wrong: turn_values(model, one)) > BROKEN


FIXED = (
    "olmo2",
    "olmo3",
    "olmoe",
    "olmo_hybrid",
    "flex_olmo",
    "minimax_m2",
    "bitnet",
    "bloom",
    "mpt",
    "diffllama",
    "gpt_oss",
    "t5",
    "swin",
)
"""Heads that cannot change places alone: gains, slopes, sinks and biases of positions are their own."""


@pytest.mark.parametrize("name", [name for name in WITH_HEADS if name not in FIXED])
def test_heads_change_places_with_their_keys_and_queries(name: str) -> None:
    for attention in every(name):
        if attention.heads("k") == 1:
            continue
        assert misfit(name, lambda model, one=attention: exchange_heads(model, one)) < EXACT
        wrong = with_heads(attention, 2)
        assert misfit(name, lambda model, one=wrong: exchange_heads(model, one)) > BROKEN


LATENT_KEYS = (
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v3_uneven",
    "glm4_moe_lite",
    "youtu",
    "glm_moe_dsa",
    "longcat_flash",
)
"""Their queries have channels for positions, which belong to a key that all heads share."""
NORMED_KEYS = ("flex_olmo", "minimax_m2", "exaone_moe", "persimmon")
"""Of no family, so that the map knows nothing of the norms of their queries and keys, or these take a mean."""


@pytest.mark.parametrize("name", [name for name in WITH_HEADS if name not in LATENT_KEYS + NORMED_KEYS])
def test_keys_turn_with_their_queries_as_far_as_positions_and_norms_let_them(name: str) -> None:
    case = CASES[name]
    for attention in every(name):
        assert misfit(name, lambda model, one=attention: turn_keys(model, one, case.planes, case.rotary)) < EXACT
        wrong = with_heads(attention, 0.5)
        if attention.heads("k") > 1:
            assert misfit(name, lambda model, one=wrong: turn_keys(model, one, case.planes, case.rotary)) > BROKEN


def test_channels_of_lightning_attention_change_places_within_a_head() -> None:
    """Behind a nonlinearity queries and keys of one head can only change places, in one order."""
    model, specs = built("minimax")
    fused = next(spec for spec in specs if spec.blocks == "qkv" * 4)

    def reordered(moved: nn.Module, spec: ParameterSpec) -> None:
        def order(block: Tensor, head: int) -> Tensor:
            return block[torch.randperm(len(block), generator=torch.Generator().manual_seed(head))]

        move_rows(moved, spec, {"q": order, "k": order})

    assert misfit("minimax", lambda moved: reordered(moved, fused)) < EXACT
    wrong = replace(fused, blocks="qqqqkkkkvvvv")
    assert misfit("minimax", lambda moved: reordered(moved, wrong)) > BROKEN


def test_values_of_differential_attention_turn_in_pairs_that_are_apart() -> None:
    """Heads 0 and 2 of the values are one pair, 1 and 3 the other; to each belong two of the four blocks of outputs."""

    @torch.no_grad()
    def turned(model: nn.Module, apart: int) -> None:
        attention = model.get_submodule("model.layers.1.self_attn")
        values = attention.v_proj.weight.view(4, 8, -1)
        outputs = attention.o_proj.weight.view(-1, 4, 16)
        for pair in range(2):
            both = [pair, pair + apart] if apart == 2 else [2 * pair, 2 * pair + 1]
            turn = rotation(16, pair)
            values[both] = (turn @ values[both].flatten(0, 1)).view(2, 8, -1)
            for block in (2 * pair, 2 * pair + 1):
                outputs[:, block] = outputs[:, block] @ turn.T

    assert misfit("diffllama", lambda model: turned(model, 2)) < EXACT
    assert misfit("diffllama", lambda model: turned(model, 1)) > BROKEN


def test_biases_turn_with_the_heads_that_they_belong_to_and_the_map_says_so() -> None:
    seen = 0
    for name in WITH_HEADS:
        model, specs = built(name)
        groups = {spec.name: spec.group for spec in specs}
        for spec in specs:
            bias = bias_of(model, spec.name) if spec.role.startswith("attention.") else None
            if bias is not None:
                path = next(path for path, param in model.named_parameters() if param is bias)
                assert groups[path] == spec.group.partition(" x ")[0]
                seen += "O(head)" in groups[path]
    assert seen > 10


NEURONS = [name for name in CASES if any(role in str(CUT[name]) for role in ("gate_up",))]


@torch.no_grad()
def reorder(model: nn.Module, above: ParameterSpec, below: ParameterSpec) -> None:
    """Neurons of every part of gate and up, and the columns of down, in one new order."""
    weight, bias = model.get_parameter(above.name), bias_of(model, above.name)

    def of(tensor: Tensor, *layout: bool | int) -> None:
        blocks = split_blocks(tensor, above.num_heads, 0, *layout)
        order = torch.randperm(blocks.shape[1], generator=torch.Generator().manual_seed(0))
        tensor.copy_(merge_blocks(blocks[:, order].clone(), tensor.shape, 0, *layout))

    of(weight, above.stacked, above.transposed, above.interleave)
    if bias is not None:
        of(bias.unsqueeze(-1), above.stacked, False, above.interleave)
    down = model.get_parameter(below.name)
    blocks = split_blocks(down, 1, 0, below.stacked, below.transposed)
    order = torch.randperm(blocks.shape[2], generator=torch.Generator().manual_seed(0))
    down.copy_(merge_blocks(blocks[:, :, order].clone(), down.shape, 0, below.stacked, below.transposed))


def shared_prefix(name: str, near: str) -> int:
    return len(os.path.commonprefix([name, near]))


@pytest.mark.parametrize("name", NEURONS)
def test_neurons_of_fused_gates_and_of_experts_change_places(name: str) -> None:
    _, specs = built(name)
    ups = [spec for spec in specs if spec.role in ("mlp.gate_up", "mlp.expert.gate_up")]
    assert ups
    for above in ups:
        wanted, near = above.role.replace("gate_up", "down"), above.name.rpartition(".")[0].replace("input", "output")
        below = max((spec for spec in specs if spec.role == wanted), key=lambda spec: shared_prefix(spec.name, near))
        assert misfit(name, lambda model, pair=(above, below): reorder(model, *pair)) < EXACT
        wrong = replace(above, interleave=0 if above.interleave else 1)
        assert misfit(name, lambda model, pair=(wrong, below): reorder(model, *pair)) > BROKEN


def test_split_whole_leaves_projections_apart_or_says_why_it_cannot() -> None:
    for name, parts in (("gpt2", 3), ("gpt_neox", 3), ("qwen3_5", 2), ("deepseek_v3", 2), ("phi3", 0), ("falcon", 0)):
        mapping = symmetry_map(built(name)[0], rule="muon", split="whole")
        fused = [spec for spec in mapping if spec.role in ("attention.qkv", "attention.q", "attention.kv_b")]
        spec = next(spec for spec in fused if spec.blocks)
        assert spec.num_heads == (parts or len(letters(spec)))
        assert any("stays per head: its fused projections differ in size" in note for note in mapping.notes) == (
            parts == 0
        )
        if parts:
            weight = built(name)[0].get_parameter(spec.name)
            found = split_blocks(weight, spec.num_heads, 0, spec.stacked, spec.transposed, spec.interleave)
            heads = split_blocks(weight, len(spec.blocks), 0, spec.stacked, spec.transposed)
            kinds = torch.tensor([ord(letter) for letter in spec.blocks])
            for block, letter in zip(found, dict.fromkeys(spec.blocks), strict=True):
                assert torch.equal(block, heads[kinds == ord(letter)].flatten(0, 1))


def test_experts_of_any_storage_are_updated_one_by_one() -> None:
    for name in ("mixtral", "gpt_oss", "llama4", "granitemoe"):
        model = copy.deepcopy(built(name)[0])
        CASES[name].loss(model).backward()
        optimizer = build_optimizer(model, rule="muon", lr=1.0, momentum=0.0, adjust_lr="none")
        spec = next(spec for spec in optimizer.symmetry if spec.role == "mlp.expert.gate_up")
        weight = model.get_parameter(spec.name)
        before, gradient = weight.detach().clone(), weight.grad.clone()
        optimizer.step()
        change, gradient = (
            (each.mT if spec.transposed else each).double() for each in (before - weight.detach(), gradient)
        )
        assert change.shape[1:] == (192, 64)
        reached = [expert for expert in range(4) if gradient[expert].any()]
        assert len(reached) > 1
        for expert in reached:
            for part in range(2):
                rows = slice(part, None, 2) if name == "gpt_oss" else slice(96 * part, 96 * part + 96)
                u, x, vh = torch.linalg.svd(gradient[expert, rows], full_matrices=False)
                x = x / x.norm()
                for _ in range(5):
                    x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
                assert (change[expert, rows] - u @ torch.diag(x) @ vh).abs().max() < 1e-10
