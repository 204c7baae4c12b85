"""Roles and layouts of every family, of plain modules by their common names, and of families that users add."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from family_cases import CASES, FusedTower, build, paligemma, qwen3_vl
from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim import build_optimizer, symmetry_map
from rlspec.optim.kernels.layout import split_blocks
from rlspec.optim.map.families import FAMILIES, Entry, Family, register_family

DECODER = {
    "attention.q": "4 heads on rows",
    "attention.k": "2 heads on rows",
    "attention.v": "2 heads on rows",
    "attention.o": "4 heads on columns",
}
TOWER = {f"vision:attention.{key}": "4 heads on rows" for key in "qkv"} | {"vision:attention.o": "4 heads on columns"}
POOLED = TOWER | {"vision:attention.qkv": "12 heads on rows"}
FUSED = {"attention.qkv": "12 heads on rows", "attention.o": "4 heads on columns"}
EXPERT = {f"action:{role}": split for role, split in DECODER.items()}
CUT = {
    "qwen3": DECODER,
    "qwen3_moe": DECODER | {"mlp.expert.gate_up": "4 stacked, 2 parts on rows", "mlp.expert.down": "4 stacked"},
    "mixtral": DECODER | {"mlp.expert.gate_up": "4 stacked, 2 parts on rows", "mlp.expert.down": "4 stacked"},
    "qwen2": DECODER,
    "llama": DECODER,
    "gemma": DECODER,
    "gemma2": DECODER,
    "gemma3": DECODER,
    "pi05_expert": EXPERT,
    "smolvla": DECODER | EXPERT | TOWER,
    "smolvlm": DECODER | TOWER,
    "paligemma": DECODER | POOLED,
    "qwen3_vl": DECODER | {f"vision:{role}": split for role, split in FUSED.items()},
    "siglip": POOLED,
    "siglip2": POOLED,
    "dinov2": TOWER,
    "dinov2_swiglu": TOWER | {"vision:mlp.gate_up": "2 parts on rows"},
    "fused_qkv": FUSED,
    "torch_encoder": FUSED,
}
MLP = {"mlp.gate", "mlp.up", "mlp.down", "mlp.fc1", "mlp.fc2", "linear", "conv.patch"}


@pytest.mark.filterwarnings("error:no head layout")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_parameter_is_claimed_once_with_the_heads_of_its_config(case) -> None:
    model = build(case)
    mapping = symmetry_map(model, rule="muon")
    named = [name for name, _ in model.named_parameters()]
    assert sorted([*(spec.name for spec in mapping), *(name for name, _ in mapping.frozen)]) == sorted(named)
    assert {spec.label: spec.split for spec in mapping if spec.split != "whole"} == CUT[case.name]
    spectral = {spec.role for spec in mapping if spec.rule == "muon"}
    assert spectral == {label.rpartition(":")[2] for label in CUT[case.name]} | (spectral & MLP)
    assert {spec.rule for spec in mapping if len(spec.shape) < 2} == {"adamw"}
    assert all(len(spec.shape) > 1 for spec in mapping if spec.rule == "muon")


def test_experts_are_matrices_of_their_own_and_their_router_is_centered() -> None:
    model = build(next(case for case in CASES if case.name == "qwen3_moe"))
    specs = {spec.role: spec for spec in symmetry_map(model, rule="muon")}
    assert (specs["mlp.expert.gate_up"].matrices, specs["mlp.expert.down"].matrices) == (8, 4)
    assert specs["mlp.expert.gate_up"].state_bytes == 8 * specs["mlp.expert.gate_up"].numel  # float64
    assert (specs["mlp.router"].rule, specs["mlp.router"].group) == ("centered_left_polar", "S_experts, shift x O(d)")
    assert {spec.rule for spec in symmetry_map(model, rule="adamw")} == {"adamw"}
    assert {spec.role: spec for spec in symmetry_map(model, rule="muon", roles={"mlp": "pion"})}[
        "mlp.router"
    ].rule == "pion"


def test_a_step_takes_gate_and_up_of_each_expert_apart() -> None:
    case = next(case for case in CASES if case.name == "qwen3_moe")
    model = build(case)
    optimizer = build_optimizer(model, rule="pion", lr=1.0, promotion_steps=2, adjust_lr="none", momentum=0.0)
    case.loss(model).backward()
    weight = model.model.layers[0].mlp.experts.gate_up_proj
    before, gradient = weight.detach().clone(), weight.grad.clone()
    optimizer.step()
    change = before - weight.detach()
    for expert in range(4):
        for rows in (slice(0, 24), slice(24, 48)):
            u, x, vh = torch.linalg.svd(gradient[expert, rows], full_matrices=False)
            x = x / x.norm()
            for step in range(5):
                x = (15 * x - 10 * x**3 + 3 * x**5) / 8 if step < 2 else (5 * x**3 - 3 * x**5) / 2
            assert (change[expert, rows] - u @ torch.diag(x) @ vh).abs().max() < 1e-11


def test_split_whole_leaves_fused_projections_apart() -> None:
    splits = {spec.label: spec.split for spec in symmetry_map(FusedTower(), rule="muon", split="whole")}
    assert (splits["attention.qkv"], splits["attention.o"]) == ("3 parts on rows", "whole")


def test_the_parts_of_a_vision_language_model_are_told_apart() -> None:
    import transformers

    for model in (paligemma(transformers), qwen3_vl(transformers)):
        found = {spec.modality for spec in symmetry_map(model)}
        assert found == {"vision", "connector", "language"}
    specs = {spec.label: spec for spec in symmetry_map(paligemma(transformers), rule="muon")}
    assert specs["connector:linear"].name == "model.multi_modal_projector.linear.weight"
    assert specs["embed"].name == "model.language_model.embed_tokens.weight"
    assert "lm_head" not in specs  # tied, and claimed once as an embedding, whose rows a shift would change
    assert "shift" not in specs["embed"].group
    assert not specs["vision:position"].decays
    assert not specs["vision:token"].decays


class DiffusionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.cross = FusedTower().blocks[0].attn, CrossAttention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(32, 192))


class CrossAttention(nn.Module):
    """As diffusers names it, with fewer heads for keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.num_kv_heads = 4, 2
        self.to_q, self.to_k, self.to_v = nn.Linear(32, 32), nn.Linear(48, 16), nn.Linear(48, 16)
        self.to_out = nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.0))


class DiffusionHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.action_in_proj, self.state_proj = nn.Linear(7, 32), nn.Linear(8, 32)
        self.time_mlp = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.blocks = nn.ModuleList([DiffusionBlock()])
        self.action_queries = nn.Parameter(torch.zeros(4, 32))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(32, 7)})


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.action_head = DiffusionHead()


def test_a_diffusion_head_is_known_by_its_names() -> None:
    found = {
        spec.name.removeprefix("action_head.").removesuffix(".weight"): (spec.role, spec.split, spec.rule)
        for spec in symmetry_map(Policy(), rule="pion")
        if len(spec.shape) > 1
    }
    assert {spec.modality for spec in symmetry_map(Policy())} == {"action"}
    assert found == {
        "action_queries": ("token", "whole", "adamw"),
        "action_in_proj": ("linear.input", "whole", "pion"),
        "state_proj": ("linear.input", "whole", "pion"),
        "time_mlp.0": ("mlp.fc1", "whole", "pion"),
        "time_mlp.2": ("mlp.fc2", "whole", "pion"),
        "blocks.0.attn.qkv": ("attention.qkv", "12 heads on rows", "pion"),
        "blocks.0.attn.proj": ("attention.o", "4 heads on columns", "pion"),
        "blocks.0.cross.to_q": ("attention.q", "4 heads on rows", "pion"),
        "blocks.0.cross.to_k": ("attention.k", "2 heads on rows", "pion"),
        "blocks.0.cross.to_v": ("attention.v", "2 heads on rows", "pion"),
        "blocks.0.cross.to_out.0": ("attention.o", "4 heads on columns", "pion"),
        "blocks.0.mlp.fc1": ("mlp.fc1", "whole", "pion"),
        "blocks.0.mlp.fc2": ("mlp.fc2", "whole", "pion"),
        "blocks.0.adaLN_modulation.1": ("modulation", "whole", "adamw"),
        "final_layer.linear": ("output", "whole", "adamw"),
    }


class Regression(nn.Module):
    """The L1 head of VLA-Adapter, by its names."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Module()
        block.num_heads = 4
        for key in ("q_proj", "k_self", "k_adapter", "k_task", "v_self", "v_adapter", "v_task", "o_proj"):
            setattr(block, key, nn.Linear(32, 32))
        block.ffn, block.gating_factor = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32)), nn.Parameter(torch.ones(1))
        self.fc1, self.fc2 = nn.Linear(56, 32), nn.Linear(32, 7)
        self.mlp_resnet_blocks = nn.ModuleList([block])


def test_a_regression_head_is_known_by_its_names() -> None:
    policy = nn.ModuleDict({"action_head": nn.ModuleDict({"model": Regression()}), "proprio_projector": nn.Module()})
    policy["proprio_projector"].fc1 = nn.Linear(8, 32)
    specs = {spec.name: spec for spec in symmetry_map(policy, rule="pion")}
    roles = {name.rpartition("model.")[2]: (spec.role, spec.num_heads, spec.rule) for name, spec in specs.items()}
    assert roles["fc1.weight"] == ("linear", 1, "pion")
    assert roles["fc2.weight"] == ("output", 1, "adamw")
    assert roles["proprio_projector.fc1.weight"] == ("mlp.fc1", 1, "pion")
    assert roles["mlp_resnet_blocks.0.q_proj.weight"] == ("attention.q", 4, "pion")
    assert {roles[f"mlp_resnet_blocks.0.{key}_task.weight"][0] for key in "kv"} == {"attention.k", "attention.v"}
    assert specs["action_head.model.mlp_resnet_blocks.0.o_proj.weight"].head_axis == 1
    assert roles["mlp_resnet_blocks.0.gating_factor"] == ("vector", 1, "adamw")
    assert {spec.modality for spec in specs.values()} == {"action"}


@pytest.mark.parametrize(
    ("path", "beside", "role"),
    [
        ("mamba.out_proj", "in_proj", "linear.mixer"),
        ("mixer.out_proj", "in_proj", "linear.mixer"),
        ("conv.out_proj", "in_proj", "linear.mixer"),
        ("linear_attn.o_proj", "q_proj", "linear.mixer"),
        ("mlp.wo", "wi_0", "linear"),
        ("classification_head.out_proj", "dense", "linear"),
        ("self_attn.attn.proj", "pool", "linear"),
        ("mixer.o_proj", "q_proj", "attention.o"),
        ("self_attn.wo", "wq", "attention.o"),
        ("attn.proj", "qkv", "attention.o"),
    ],
)
@pytest.mark.filterwarnings("ignore:no head layout")
def test_an_output_is_of_attention_only_beside_its_queries(path: str, beside: str, role: str) -> None:
    around, _, key = path.rpartition(".")
    model = nn.Module()
    model.config = SimpleNamespace(model_type="unheard_of", num_attention_heads=4)
    inner = model
    for word in around.split("."):
        inner.add_module(word, nn.Module())
        inner = inner.get_submodule(word)
    inner.add_module(key, nn.Linear(16, 16, bias=False))
    inner.add_module(beside, nn.Linear(16, 48, bias=False))
    spec = next(spec for spec in symmetry_map(model, rule="muon") if spec.name == f"{path}.weight")
    assert (spec.role, spec.num_heads) == (role, 4 if role == "attention.o" else 1)


def test_the_order_of_fused_projections_of_an_unknown_model_is_not_guessed() -> None:
    model = nn.Module()
    model.config = SimpleNamespace(model_type="unheard_of", num_attention_heads=4)
    model.attn = nn.ModuleDict({"qkv_proj": nn.Linear(16, 48), "out_proj": nn.Linear(16, 16)})
    with pytest.warns(UserWarning, match="no head layout is known for model_type unheard_of"):
        specs = {spec.name: spec for spec in symmetry_map(model, rule="muon")}
    assert (specs["attn.qkv_proj.weight"].role, specs["attn.qkv_proj.weight"].split) == ("linear", "whole")


def test_heads_of_latent_attention_are_measured_by_their_own_sizes() -> None:
    model = nn.Module()
    sizes = {"num_attention_heads": 4, "head_dim": 8, "qk_head_dim": 24, "v_head_dim": 16}
    model.config = SimpleNamespace(model_type="unheard_of", **sizes)
    model.self_attn = nn.ModuleDict({"q_proj": nn.Linear(64, 96), "o_proj": nn.Linear(64, 64)})
    assert [spec.num_heads for spec in symmetry_map(model, rule="muon") if spec.matrices] == [4, 4]
    model.config.v_head_dim = 32
    with pytest.raises(ConfigError, match="o_proj.*makes heads of 16, but the config's v_head_dim is 32"):
        symmetry_map(model, rule="muon")


def test_experts_stored_the_other_way_round_are_not_known_by_their_name() -> None:
    model = nn.Module()
    model.mlp = nn.Module()
    model.mlp.experts = nn.Module()
    model.mlp.experts.gate_up_proj = nn.Parameter(torch.ones(4, 12, 8))
    assert [spec.split for spec in symmetry_map(model, rule="muon")] == ["4 stacked, 2 parts on rows"]
    model.mlp.experts.is_transposed = True
    with pytest.raises(ConfigError, match="stacked: true .* parts: 2"):
        symmetry_map(model, rule="muon")


def test_attention_without_a_number_of_heads_stays_whole_and_is_said() -> None:
    attention = nn.ModuleDict({"q_proj": nn.Linear(8, 8), "o_proj": nn.Linear(8, 8)})
    with pytest.warns(UserWarning, match="no head layout is known for ModuleDict"):
        mapping = symmetry_map(nn.ModuleDict({"self_attn": attention}), rule="muon")
    assert {(spec.role, spec.split) for spec in mapping if spec.matrices} == {("linear", "whole")}


def test_a_number_of_heads_that_does_not_fit_is_an_error_until_the_matrix_stays_whole() -> None:
    tower = FusedTower()
    tower.blocks[1].attn.num_heads = 5
    with pytest.raises(ConfigError, match=r"blocks.1.attn.qkv.weight.*15 heads do not divide axis 0"):
        symmetry_map(tower, rule="muon")
    overrides = [{"pattern": r"blocks\.1\.attn", "split": "whole"}]
    splits = {spec.name: spec.split for spec in symmetry_map(tower, rule="muon", overrides=overrides)}
    assert splits["blocks.1.attn.qkv.weight"] == "3 parts on rows"
    assert splits["blocks.0.attn.qkv.weight"] == "12 heads on rows"


def test_groups_of_a_convolution_are_matrices_of_their_own() -> None:
    spec = symmetry_map(nn.Sequential(nn.Conv2d(6, 8, 3, groups=2)), rule="muon").specs[0]
    assert (spec.role, spec.split, spec.matrices) == ("conv", "2 parts on rows", 2)


def test_a_number_of_heads_is_never_taken_from_the_config_around_an_action_head(tiny_qwen3) -> None:
    model = tiny_qwen3()
    model.action_head = nn.ModuleDict({"cross_attention": nn.ModuleDict({"q_proj": nn.Linear(128, 128)})})
    specs = {spec.name: spec for spec in symmetry_map(model, rule="muon")}
    assert specs["action_head.cross_attention.q_proj.weight"].split == "whole"


def test_weights_stored_the_other_way_round_are_updated_as_their_transposes() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    stored, plain = nn.Sequential(Conv1D(12, 6)), nn.Sequential(nn.Linear(6, 12))
    gradient = torch.randn(6, 12)
    for rule in ("muon", "normuon", "row_norm", "conda"):
        stored[0].weight.data.zero_(), plain[0].weight.data.zero_()
        stored[0].weight.grad, plain[0].weight.grad = gradient, gradient.T.contiguous()
        for model in (stored, plain):
            build_optimizer(model, rule=rule, lr=1.0, adjust_lr="original").step()
        assert (stored[0].weight.T - plain[0].weight).abs().max() < 1e-5
        assert plain[0].weight.any()


def test_a_transposed_convolution_is_the_matrix_of_its_outputs() -> None:
    spec = symmetry_map(nn.Sequential(nn.ConvTranspose2d(4, 6, 3)), rule="muon").specs[0]
    assert (spec.role, spec.rule, spec.block, spec.matrices) == ("conv", "muon", (54, 4), 1)
    grouped = symmetry_map(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)), rule="muon").specs[0]
    assert (grouped.split, grouped.block) == ("2 parts on columns", (27, 2))


@pytest.mark.parametrize("name", ["lm_head", "head", "fc", "classifier", "score"])
def test_output_heads_of_plain_modules_get_adamw(name: str) -> None:
    model = nn.ModuleDict({"encoder": nn.TransformerEncoderLayer(8, 2, 16), name: nn.Linear(8, 5)})
    specs = {spec.name: spec for spec in symmetry_map(model, rule="muon")}
    assert (specs[f"{name}.weight"].role, specs[f"{name}.weight"].rule) == ("output", "adamw")
    model[name] = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    specs = {spec.name: spec for spec in symmetry_map(model, rule="muon")}
    if name in ("lm_head", "classifier", "score"):  # of a sequence the last one, as of VGG
        assert [specs[f"{name}.{index}.weight"].role for index in (0, 2)] == ["linear", "output"]


class MadeUp(nn.Module):
    """A decoder that nobody has heard of, with fused projections for grouped queries."""

    class Config:
        model_type, n_heads, n_kv = "made_up", 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.config = self.Config()
        self.wte = nn.Embedding(20, 32)
        self.mix_in, self.mix_out = nn.Linear(32, (4 + 2 + 2) * 8), nn.Linear(32, 32)
        self.ffn = nn.ModuleDict({"up": nn.Linear(32, 48), "down": nn.Linear(48, 32)})

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.wte(tokens)
        q, k, v = self.mix_in(states).unflatten(-1, (8, 8)).transpose(1, 2).split((4, 2, 2), 1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        states = states + self.mix_out(mixed.transpose(1, 2).flatten(2))
        return states + self.ffn["down"](torch.relu(self.ffn["up"](states)))


def register_made_up() -> None:
    register_family(Family("made_up", ("made_up",), (
        Entry(r"mix_in\.weight", "attention.qkv", "O(head) x O(d)", ("n_heads", "n_kv", "n_kv")),
        Entry(r"mix_out\.weight", "attention.o", "O(d) x O(head)", "n_heads", head_axis=1),
        Entry(r"ffn\.(?:up|down)\.weight", "mlp", "S_ff"),
    )))  # fmt: skip


@pytest.fixture
def families():
    before = list(FAMILIES)
    yield
    FAMILIES[:] = before


def test_a_family_is_five_lines_and_its_blocks_are_the_heads(families: None) -> None:
    model = MadeUp().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_made_up()
        specs = {spec.role: spec for spec in symmetry_map(model, rule="pion")}
    assert len(inspect.getsource(register_made_up).splitlines()) - 1 == 5
    assert specs["attention.qkv"].split == "8 heads on rows"
    assert (specs["mlp"].rule, specs["embed"].rule, specs["mlp"].modality) == ("pion", "adamw", "language")
    torch.manual_seed(0)
    (model(torch.randint(0, 20, (2, 9))) ** 3).sum().backward()
    heads = [split_blocks(part, 8) for part in (model.mix_in.weight, model.mix_in.weight.grad)]
    bias = [part.reshape(8, 8, 1) for part in (model.mix_in.bias, model.mix_in.bias.grad)]
    weight, gradient = (torch.cat(pair, 2) for pair in zip(heads, bias, strict=True))
    out, out_gradient = (split_blocks(part, 4, 1) for part in (model.mix_out.weight, model.mix_out.weight.grad))
    left = (gradient @ weight.mT)[6:]
    right = (out.mT @ out_gradient).unflatten(0, (2, 2)).sum(1)
    assert (left - right).norm() < 1e-12 * left.norm()
    assert (left.flip(0) - right).norm() > 0.1 * left.norm()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family("mine", ("qwen3",), ()), "model_type qwen3 belongs to family qwen3 already"),
        (Family("mine", ("x",), (), "hearing"), "modality 'hearing'; allowed: language"),
        (Family("mine", ("x",), (Entry("a", "mlp", "-", "h", 2),)), "head_axis of mlp must be 0"),
    ],
)
def test_a_family_that_cannot_be_is_refused(families: None, family: Family, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        register_family(family)
    assert family not in FAMILIES
