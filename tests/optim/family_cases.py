"""Real models of every family, tiny, built from their configs, each with one batch and its loss; no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 50,
    "rms_norm_eps": 1e-30,  # so that norms of queries and keys are free of scale
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
IMAGE = 49  # token that stands for a piece of an image


@dataclass(frozen=True)
class Case:
    """One model: how to build it, and a loss that reaches its matrices."""

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]


def seeded(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(first: list[int] | None = None) -> Tensor:
    drawn = torch.randint(3, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    return drawn if first is None else torch.cat([torch.tensor(first).expand(2, -1), drawn], 1)


def projected(output: Tensor) -> Tensor:
    """A loss without symmetries of its own."""
    return (output.double() * seeded(tuple(output.shape), 7)).sum() + (output.double() ** 2).mean()


def language_loss(model: nn.Module) -> Tensor:
    return projected(model(input_ids=tokens()).logits)


def decoder(name: str, model_type: str, **changes: Any) -> Case:
    def build() -> nn.Module:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(TEXT | changes)))
        if "num_experts_per_tok" in changes:
            model.set_experts_implementation("eager")  # the others compute in float32 at most
        return model

    return Case(name, build, language_loss)


def vision(name: str, build: Callable[[Any], nn.Module], loss: Callable[[nn.Module], Tensor] | None = None) -> Case:
    def of_images(model: nn.Module) -> Tensor:
        output = model(pixel_values=seeded((2, 3, 32, 32)))
        return projected(output.last_hidden_state) + projected(output.pooler_output)

    def imported() -> nn.Module:
        import transformers

        return build(transformers)

    return Case(name, imported, loss or of_images)


def siglip2_loss(model: nn.Module) -> Tensor:
    mask, shapes = torch.ones(2, 16, dtype=torch.long), torch.tensor([[4, 4], [4, 4]])
    output = model(pixel_values=seeded((2, 16, 192)), pixel_attention_mask=mask, spatial_shapes=shapes)
    return projected(output.last_hidden_state) + projected(output.pooler_output)


def without(settings: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def smolvlm(library: Any) -> nn.Module:
    config = library.SmolVLMConfig(
        vision_config=VISION, text_config={"model_type": "llama", **TEXT}, scale_factor=2, image_token_id=IMAGE
    )
    return library.SmolVLMForConditionalGeneration(config)


def smolvlm_loss(model: nn.Module) -> Tensor:
    return projected(model(input_ids=tokens([IMAGE] * 4), pixel_values=seeded((2, 1, 3, 32, 32))).logits)


def paligemma(library: Any) -> nn.Module:
    config = library.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "projection_dim": 64, **VISION},
        text_config={"model_type": "gemma", **TEXT},
        projection_dim=64,
        image_token_id=IMAGE,
    )
    return library.PaliGemmaForConditionalGeneration(config)


def paligemma_loss(model: nn.Module) -> Tensor:
    return projected(model(input_ids=tokens([IMAGE] * 16), pixel_values=seeded((2, 3, 32, 32))).logits)


def qwen3_vl(library: Any) -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    tower = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 8}
    config = library.Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**tower, "out_hidden_size": 64, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        image_token_id=IMAGE,
    )
    return library.Qwen3VLForConditionalGeneration(config)


def qwen3_vl_loss(model: nn.Module) -> Tensor:
    grid = torch.tensor([[1, 4, 4]] * 2)  # 16 patches, merged by four, of each image
    pixels = seeded((32, 3 * 2 * 8 * 8))
    ids = tokens([IMAGE] * 4)
    kinds = (ids == IMAGE).int()
    return projected(model(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds).logits)


def pi_gemma() -> nn.Module:
    """The action expert of pi0.5 with its adaptive norms, which start at zero and are drawn here."""
    from lerobot.policies.pi_gemma import PiGemmaForCausalLM
    from transformers import GemmaConfig

    expert = PiGemmaForCausalLM(GemmaConfig(**TEXT, use_adarms=True, adarms_cond_dim=64))
    for name, param in expert.named_parameters():
        if "norm" in name:
            nn.init.normal_(param, std=0.3)
    return nn.ModuleDict({"gemma_expert": expert})


def pi_gemma_loss(model: nn.Module) -> Tensor:
    decoder_model = model["gemma_expert"].model
    return projected(decoder_model(input_ids=tokens(), adarms_cond=seeded((2, 64))).last_hidden_state)


def pi05() -> nn.Module:
    """The whole of pi0.5, whose two decoders and tower of images LeRobot gives sizes of its own."""
    from unittest.mock import patch

    from lerobot.policies.pi05 import modeling_pi05 as module
    from lerobot.policies.pi05.configuration_pi05 import PI05Config

    real_vlm, real_expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def small(config: Any) -> Any:
        for key, value in (VISION | {"projection_dim": TEXT["hidden_size"]}).items():
            setattr(config.vision_config, key, value)
        config.text_config.vocab_size, config.image_token_id = TEXT["vocab_size"], IMAGE
        return real_vlm(config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = TEXT["vocab_size"]
        return real_expert(config)

    sizes = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    text = TEXT | {"num_attention_heads": 8}  # LeRobot's attention knows no other number
    decoder_sizes = module.GemmaConfig(*(text[key] for key in sizes), TEXT["head_dim"])
    with (
        patch.object(module, "get_gemma_config", lambda _: decoder_sizes),
        patch.object(module, "PaliGemmaForConditionalGenerationWithPiGemma", small),
        patch.object(module, "PiGemmaForCausalLM", small_expert),
    ):
        config = PI05Config(
            device="cpu", push_to_hub=False, chunk_size=4, n_action_steps=4, max_action_dim=20,
            image_resolution=(VISION["image_size"], VISION["image_size"]),
        )  # fmt: skip
        return module.PI05Pytorch(config)


def smolvla() -> nn.Module:
    """SmolVLA's model and expert; its processor would come from the hub and is not needed."""
    from unittest.mock import patch

    from lerobot.policies.smolvla import smolvlm_with_expert as module
    from transformers import SmolVLMConfig

    text = {"model_type": "llama", **TEXT}
    config = SmolVLMConfig(vision_config=VISION, text_config=text, scale_factor=2, image_token_id=IMAGE)
    with patch.object(module, "AutoConfig") as configs, patch.object(module, "AutoProcessor"):
        configs.from_pretrained.return_value = config
        return module.SmolVLMWithExpertModel(
            load_vlm_weights=False,
            train_expert_only=False,
            attention_mode="cross_attn",
            self_attn_every_n_layers=2,
            expert_width_multiplier=0.75,
        )


def smolvla_loss(model: nn.Module) -> Tensor:
    prefix, suffix = seeded((2, 6, 64), 3), seeded((2, 5, 48), 4)
    mask = torch.ones(2, 11, 11, dtype=torch.bool)
    mask[:, :6, 6:] = False
    positions = torch.arange(11).expand(2, -1)
    outputs, _ = model(attention_mask=mask, position_ids=positions, inputs_embeds=[prefix, suffix], use_cache=False)
    return projected(outputs[0]) + projected(outputs[1])


class FusedBlock(nn.Module):
    """A block of a vision transformer as timm and the original DINOv2 write it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(32), nn.LayerNorm(32), FusedAttention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(32, 64), "fc2": nn.Linear(64, 32)})

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn(self.norm1(states))
        return states + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(states))))


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, _ = states.shape
        q, k, v = self.qkv(states).reshape(batch, length, 3, self.num_heads, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, 32))


class FusedTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 32, 8, 8)})
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 17, 32))
        self.blocks = nn.ModuleList(FusedBlock() for _ in range(2))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).mT
        states = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            states = block(states)
        return states


class TorchEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2)

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states)


CASES = (
    decoder("qwen3", "qwen3", tie_word_embeddings=True),
    decoder("qwen3_moe", "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    decoder("mixtral", "mixtral", num_local_experts=4, num_experts_per_tok=2),
    decoder("qwen2", "qwen2"),
    decoder("llama", "llama"),
    decoder("gemma", "gemma"),
    decoder("gemma2", "gemma2", query_pre_attn_scalar=16, attn_logit_softcapping=2.0),
    decoder("gemma3", "gemma3_text", query_pre_attn_scalar=16),
    Case("pi05_expert", pi_gemma, pi_gemma_loss),
    Case("smolvla", smolvla, smolvla_loss),
    vision("smolvlm", smolvlm, smolvlm_loss),
    vision("paligemma", paligemma, paligemma_loss),
    vision("qwen3_vl", qwen3_vl, qwen3_vl_loss),
    vision("siglip", lambda library: library.SiglipVisionModel(library.SiglipVisionConfig(**VISION))),
    vision(
        "siglip2",
        lambda library: library.Siglip2VisionModel(
            library.Siglip2VisionConfig(**without(VISION, "image_size"), num_patches=16)
        ),
        siglip2_loss,
    ),
    vision("dinov2", lambda library: library.Dinov2Model(library.Dinov2Config(**without(VISION, "intermediate_size")))),
    vision(
        "dinov2_swiglu",
        lambda library: library.Dinov2Model(
            library.Dinov2Config(**without(VISION, "intermediate_size"), use_swiglu_ffn=True)
        ),
    ),
    Case("fused_qkv", FusedTower, lambda model: projected(model(seeded((2, 3, 32, 32))))),
    Case("torch_encoder", TorchEncoder, lambda model: projected(model(seeded((2, 9, 32))))),
)


def build(case: Case) -> nn.Module:
    """The model in float64, every vector and matrix drawn anew so that nothing is special by its start."""
    torch.manual_seed(0)
    model = case.build().double()
    model.eval()
    for param in model.parameters():
        if param.requires_grad:
            nn.init.normal_(param, 0.5 if param.ndim < 2 else 0.0, 0.2 if param.ndim < 2 else param.shape[-1] ** -0.5)
    return model
