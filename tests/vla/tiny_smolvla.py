"""A SmolVLA of 260,000 parameters from a folder, for trials and tests without network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
IMAGE_SIZE = 64


def write_tiny_vlm(folder: Path) -> Path:
    """Write config, byte-level tokenizer and processor of a vision-language model without weights.

    Args:
        folder: made where there is none.

    Returns:
        The folder, for `vlm_model_name` (see `tiny_settings`).
    """
    import transformers

    library: Any = transformers
    tokenizer = _byte_tokenizer()
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 64, "image_size": IMAGE_SIZE, "patch_size": 16, **heads}
    text = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
        "num_key_value_heads": 2, "head_dim": 16, **heads,
    }  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids(SPECIAL["image_token"])
    library.SmolVLMConfig(
        vision_config=vision, text_config=text, scale_factor=2, image_token_id=image_token, pad_token_id=0
    ).save_pretrained(folder)
    sizes = {"size": {"longest_edge": IMAGE_SIZE}, "max_image_size": {"longest_edge": IMAGE_SIZE}}
    images, videos = library.SmolVLMImageProcessor(**sizes), library.SmolVLMVideoProcessor(**sizes)
    library.SmolVLMProcessor(images, tokenizer, videos, image_seq_len=4, chat_template="").save_pretrained(folder)
    return folder


def tiny_settings(folder: Path) -> dict[str, Any]:
    """Fields of `RlspecSmolVLAConfig` for a folder of `write_tiny_vlm`: images of 64 pixels, chunks of 8."""
    return {
        "vlm_model_name": str(folder),
        "load_vlm_weights": False,
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": (IMAGE_SIZE, IMAGE_SIZE),
        "chunk_size": 8,
        "n_action_steps": 4,
        "tokenizer_max_length": 64,
        "num_steps": 3,
        "train_expert_only": False,
        "freeze_vision_encoder": False,
        "device": "cpu",
        "push_to_hub": False,
    }


def _byte_tokenizer() -> Any:
    """Every byte a token, and what SmolVLA asks its tokenizer for."""
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="<eos>",
        extra_special_tokens=SPECIAL,
        additional_special_tokens=[],
    )
