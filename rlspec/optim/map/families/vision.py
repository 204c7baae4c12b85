"""Vision towers, and what joins them to a language model."""

from __future__ import annotations

from rlspec.optim.map.families.entry import Entry, Family

# Without rotary positions, queries against keys and values against outputs are free up to any invertible head x head.
FREE = "O(head) x O(d)"
_H = "num_attention_heads"

GELU_MLP = (
    Entry(r"mlp\.(?:linear_)?fc1\.weight", "mlp.fc1", "S_ff x O(d)"),
    Entry(r"mlp\.(?:linear_)?fc2\.weight", "mlp.fc2", "O(d) x S_ff"),
)

PATCHES = (
    Entry(r"patch_embeddings?\.(?:proj(?:ection)?\.)?weight", "conv.patch", "O(d) x -"),
    Entry(r"patch_embed\.proj\.weight", "conv.patch", "O(d) x -"),
)

POSITIONS = (
    Entry(r"(?:position_embeddings?|pos_embed(?:ding)?|position_embedding_table)(?:\.weight)?", "position", "- x O(d)"),
    Entry(r"relative_position_bias_table", "position", "-"),
    Entry(
        r"(?:(?:class|cls|dist|distillation|mask|reg|register|storage)_tokens?|probe)(?:\.weight)?", "token", "S x O(d)"
    ),
)

VISION = (
    Family(
        "siglip",
        ("siglip_vision_model", "siglip2_vision_model", "smolvlm_vision", "idefics3_vision", "clip_vision_model"),
        (
            Entry(r"self_attn\.q_proj\.weight", "attention.q", FREE, _H),
            Entry(r"self_attn\.k_proj\.weight", "attention.k", FREE, _H),
            Entry(r"self_attn\.v_proj\.weight", "attention.v", FREE, _H),
            Entry(r"self_attn\.out_proj\.weight", "attention.o", "O(d) x O(head)", _H, 1),
            *GELU_MLP,
            *PATCHES,
            *POSITIONS,
        ),
        "vision",
    ),
    Family(
        "dinov2",
        ("dinov2", "dinov2_with_registers"),
        (
            Entry(r"attention\.query\.weight", "attention.q", FREE, _H),
            Entry(r"attention\.key\.weight", "attention.k", FREE, _H),
            Entry(r"attention\.value\.weight", "attention.v", FREE, _H),
            Entry(r"attention\.output\.dense\.weight", "attention.o", "O(d) x O(head)", _H, 1),
            Entry(r"mlp\.weights_in\.weight", "mlp.gate_up", "S_ff x O(d)", parts=2),
            Entry(r"mlp\.weights_out\.weight", "mlp.down", "O(d) x S_ff, signs"),
            *GELU_MLP,
            *PATCHES,
            *POSITIONS,
        ),
        "vision",
    ),
    Family(
        "qwen3_vl",  # transformers gives the whole model and its tower one model_type
        ("qwen3_vl", "qwen3_vl_vision"),
        (
            Entry(r"attn\.qkv\.weight", "attention.qkv", "S_heads, SO(2) x O(d)", ("num_heads",) * 3, parts=3),
            Entry(r"attn\.proj\.weight", "attention.o", "O(d) x O(head)", "num_heads", 1),
            Entry(
                r"(?:deepstack_)?merger(?:_list\.\d+)?\.linear_fc1\.weight", "mlp.fc1", "S_ff x -", modality="connector"
            ),
            Entry(
                r"(?:deepstack_)?merger(?:_list\.\d+)?\.linear_fc2\.weight",
                "mlp.fc2",
                "O(d) x S_ff",
                modality="connector",
            ),
            *GELU_MLP,
            *PATCHES,
            *POSITIONS,
        ),
        "vision",
    ),
    Family(
        "vision_language",  # the level above tower and decoder: connectors
        ("smolvlm", "idefics3", "paligemma", "llava"),
        (
            Entry(r"modality_projection\.proj\.weight", "linear", "O(d) x -"),
            Entry(r"multi_modal_projector\.linear\.weight", "linear", "O(d) x O(d)"),
            Entry(r"multi_modal_projector\.linear_1\.weight", "mlp.fc1", "S_ff x O(d)"),
            Entry(r"multi_modal_projector\.linear_2\.weight", "mlp.fc2", "O(d) x S_ff"),
        ),
        "connector",
    ),
)
