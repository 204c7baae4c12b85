"""Tiny models of the architectures that people train, each with one batch and its loss; no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from family_cases import TEXT, Case, FusedTower, TorchEncoder, language_loss, projected, seeded, tokens, without
from torch import Tensor, nn

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1}
ROUTED |= {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
LATENT = ROUTED | {
    "head_dim": 8,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
STATES |= {"mamba_chunk_size": 8}  # texts are padded to it
MIXED = {"layer_types": ["linear_attention", "full_attention"]}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOWER |= {"image_size": 32, "patch_size": 8}


@dataclass(frozen=True)
class Architecture(Case):
    """A case with what its positions leave of the freedom of queries and keys.

    Attributes:
        planes: which channels of a head its rotary positions turn together: "half" (i with i + half), "pairs" (2i with
            2i + 1); "": it has none.
        rotary: how many channels of a head they turn; None: all.
    """

    planes: str = ""
    rotary: int | None = None


def text(
    name: str,
    model_type: str = "",
    auto: str = "AutoModelForCausalLM",
    *drop: str,
    planes: str = "half",
    rotary: int | None = None,
    loss: Callable[[nn.Module], Tensor] = language_loss,
    **changes: Any,
) -> Architecture:
    def build() -> nn.Module:
        import transformers

        settings = without(TEXT, *drop) | changes
        config = transformers.CONFIG_MAPPING[model_type or name](**settings)
        model = getattr(transformers, auto).from_config(config, attn_implementation="eager")
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the others compute in float32 at most
        return model

    return Architecture(name, build, loss, planes, rotary)


def translated(model: nn.Module) -> Tensor:
    return projected(model(input_ids=tokens(), decoder_input_ids=tokens()[:, :9]).logits)


def pictured(model: nn.Module) -> Tensor:
    output = model(pixel_values=seeded((2, 3, 32, 32)))
    return sum(projected(value) for value in output.values() if value is not None and value.ndim > 1)  # type: ignore[misc]


def vision(name: str, auto: str = "AutoModel", **settings: Any) -> Architecture:
    def build() -> nn.Module:
        import transformers

        config = transformers.CONFIG_MAPPING[name](**settings)
        return getattr(transformers, auto).from_config(config)

    return Architecture(name, build, pictured)


def plain(name: str, build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Architecture:
    return Architecture(name, build, lambda model: projected(model(seeded(shape))))


def torchvision_vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5)


def torchvision_resnet() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def encoder_with_head() -> nn.Module:
    model = nn.Sequential()
    model.add_module("encoder", TorchEncoder())
    model.add_module("lm_head", nn.Linear(32, 11))
    return model


def decoder_of_pictures() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2), nn.Conv2d(4, 3, 1)
    )


UNKNOWN_TO_MPT = ("head_dim", "num_key_value_heads", "hidden_size", "num_attention_heads", "num_hidden_layers")
QUARTER = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
CAUSAL = "AutoModelForCausalLM"

ARCHITECTURES = (
    text("qwen3"),
    text("qwen3_moe", **EXPERTS),
    text("qwen2"),
    text("llama"),
    text("mistral"),
    text("gemma"),
    text("gemma2"),
    text("gemma3_text"),
    text("smollm3"),
    text("gpt2", planes=""),
    text("gpt_neox", rotary=4, rope_parameters=QUARTER),
    text("phi", rotary=8),
    text("phi3"),
    text("codegen", "", CAUSAL, "head_dim", "num_key_value_heads", planes="pairs", rotary=4,
         num_attention_heads=8, rotary_dim=4),
    text("olmo2"),
    text("olmo3"),
    text("falcon", "", CAUSAL, "head_dim", new_decoder_architecture=True, num_kv_heads=2),
    text("falcon_one_key", "falcon", CAUSAL, "head_dim", new_decoder_architecture=False, multi_query=True),
    text("falcon_in_turns", "falcon", CAUSAL, "head_dim", new_decoder_architecture=False,
         multi_query=False, bias=True),
    text("bloom", planes=""),
    text("gpt_neox_japanese", intermediate_multiple_size=2),
    text("gpt_bigcode", "", CAUSAL, "head_dim", "num_key_value_heads", planes="", attention_softmax_in_fp32=False),
    text("gpt_bigcode_in_turns", "gpt_bigcode", CAUSAL, "head_dim", "num_key_value_heads", planes="",
         attention_softmax_in_fp32=False, multi_query=False),
    text("mpt", "", CAUSAL, *UNKNOWN_TO_MPT, planes="", d_model=64, n_heads=4, n_layers=2),
    text("persimmon", rotary=8),
    text("modernbert-decoder", "", CAUSAL, "head_dim", "num_key_value_heads"),
    text("modernbert", "", "AutoModelForMaskedLM"),
    text("qwen3_5", "qwen3_5_text", rotary=4, **DELTA, **MIXED),
    text("qwen3_next", rotary=4, shared_expert_intermediate_size=24, **EXPERTS, **DELTA, **MIXED),
    text("gemma3n", "gemma3n_text", vocab_size_per_layer_input=50, hidden_size_per_layer_input=8, laurel_rank=8,
         num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0]),
    text("gemma4", "gemma4_text", vocab_size_per_layer_input=50, hidden_size_per_layer_input=8, global_head_dim=32),
    text("gemma4_experts", "gemma4_text", vocab_size_per_layer_input=50, hidden_size_per_layer_input=8,
         global_head_dim=32, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24),
    text("granite"),
    text("cohere2", planes="pairs"),
    text("glm4", planes="pairs", rotary=8),
    text("starcoder2"),
    text("ernie4_5", planes="pairs"),
    text("lfm2", layer_types=["conv", "full_attention"]),
    text("lfm2_moe", layer_types=["conv", "full_attention"], num_dense_layers=1, **EXPERTS),
    text("olmo_hybrid", **DELTA, **MIXED),
    text("bamba", attn_layer_indices=[1], **STATES),
    text("falcon_h1", mamba_d_ssm=128, **STATES),
    text("granitemoehybrid", layer_types=["mamba", "attention"], num_local_experts=0, shared_intermediate_size=32,
         planes="", **STATES),
    text("nemotron_h", planes="", layers_block_type=["mamba", "attention"], mamba_num_heads=8, mamba_head_dim=16,
         ssm_state_size=8, n_groups=2, chunk_size=8),
    text("zamba2", planes="", mamba_ngroups=1, n_mamba_heads=8, hybrid_layer_ids=[1], chunk_size=8,
         layers_block_type=["mamba", "hybrid"]),
    text("exaone4"),
    text("diffllama", num_attention_heads=8, num_key_value_heads=4, head_dim=8),
    text("hunyuan_v1_dense"),
    text("apertus"),
    text("arcee"),
    text("jais2"),
    text("nemotron", rotary=8),
    text("cwm"),
    text("vaultgemma"),
    text("ministral"),
    text("ministral3"),
    text("olmo"),
    text("mixtral", num_local_experts=4, num_experts_per_tok=2),
    text("olmoe", num_experts=4, num_experts_per_tok=2),
    text("qwen2_moe", shared_expert_intermediate_size=24, **EXPERTS),
    text("deepseek_v2", v_head_dim=16, **LATENT),
    text("deepseek_v3", v_head_dim=16, **LATENT),
    text("deepseek_v3_uneven", "deepseek_v3", v_head_dim=8, **LATENT | {"q_lora_rank": None}),
    text("glm4_moe_lite", v_head_dim=16, mlp_layer_types=["dense", "sparse"], **LATENT),
    text("youtu", v_head_dim=16, **LATENT),
    text("bitnet"),
    text("phimoe", num_local_experts=4, num_experts_per_tok=2),
    text("flex_olmo", num_experts=4, num_experts_per_tok=2),
    text("minimax_m2", num_local_experts=4, num_experts_per_tok=2, rotary_dim=8),
    text("exaone_moe", num_shared_experts=1, mlp_layer_types=["dense", "sparse"], **EXPERTS),
    text("granitemoeshared", num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=32),
    text("qwen3_5_moe", "qwen3_5_moe_text", rotary=4, shared_expert_intermediate_size=24, **EXPERTS, **DELTA, **MIXED),
    text("ernie4_5_moe", planes="pairs", moe_num_experts=4, moe_k=2, moe_intermediate_size=24, moe_num_shared_experts=1,
         moe_layer_start_index=1),
    text("dots1", **ROUTED),
    text("solar_open", **ROUTED),
    text("afmoe", num_dense_layers=1, layer_types=["sliding_attention"] * 2, num_shared_experts=1, **EXPERTS),
    text("hunyuan_v1_moe", num_experts=4, moe_topk=2),
    text("glm_moe_dsa", v_head_dim=16, index_topk=64, index_head_dim=16, index_n_heads=2,
         mlp_layer_types=["dense", "sparse"], **LATENT),
    text("longcat_flash", v_head_dim=16, ffn_hidden_size=96, expert_ffn_hidden_size=24, moe_topk=2, zero_expert_num=2,
         num_layers=2, **LATENT),
    text("minimax", layer_types=["linear_attention", "full_attention"], num_local_experts=4, num_experts_per_tok=2),
    text("jamba", planes="", attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
         num_experts=4, num_experts_per_tok=2, mamba_d_state=8, use_mamba_kernels=False),
    text("gpt_oss", num_local_experts=4, num_experts_per_tok=2),
    text("llama4", "llama4_text", num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=96,
         interleave_moe_layer_step=2, planes="pairs"),
    text("granitemoe", num_local_experts=4, num_experts_per_tok=2),
    text("glm4_moe", rotary=8, **ROUTED),
    text("mamba", state_size=8),
    text("falcon_mamba", state_size=8),
    text("mamba2", num_heads=8, head_dim=16, state_size=8, n_groups=2, expand=2, chunk_size=8),
    text("bert", "", "AutoModelForMaskedLM", planes=""),
    text("electra", "", "AutoModelForMaskedLM", "head_dim", "num_key_value_heads", planes="", embedding_size=32),
    text("distilbert", "", "AutoModelForMaskedLM", planes="", dim=64, n_heads=4, n_layers=2, hidden_dim=96),
    text("t5", "", "AutoModelForSeq2SeqLM", planes="", d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
         loss=translated),
    vision("vit", **TOWER),
    vision("swin", image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    vision("convnext", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    vision("resnet", "AutoModelForImageClassification", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]),
    plain("torchvision_vit", torchvision_vit, (2, 3, 32, 32)),
    plain("torchvision_resnet", torchvision_resnet, (2, 3, 32, 32)),
    plain("encoder_with_head", encoder_with_head, (2, 9, 32)),
    plain("fused_tower", FusedTower, (2, 3, 32, 32)),
    plain("transposed_convolutions", decoder_of_pictures, (2, 4, 8, 8)),
)  # fmt: skip
