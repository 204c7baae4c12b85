"""What needs no config: action experts and heads by the names that they commonly have, and modules of any model."""

from __future__ import annotations

import re

from rlspec.optim.map.families.entry import Entry
from rlspec.optim.map.families.experts import GRANITE_EXPERTS
from rlspec.optim.map.families.language import FUSED_GATE, GATED_MLP, STACKED_EXPERTS
from rlspec.optim.map.families.recurrent import MIXERS
from rlspec.optim.map.families.vision import FREE, PATCHES, POSITIONS

_PATHS = (
    (
        "action",
        r"lm_expert|gemma_expert|action_expert|expert_model|action_head|action_decoder|action_model|action_projector"
        r"|(?:action|state|proprio|noisy_action)_(?:in_|out_)?(?:proj|projector|projection|encoder)"
        r"|(?:action_)?time_mlp(?:_in|_out)?|(?:action|meta)_(?:queries|query|tokens?)|diffusion_head|flow_head",
    ),
    ("connector", r"multi_modal_projector|connector|modality_projection|(?:deepstack_)?merger(?:_list)?|mm_projector"),
    ("vision", r"vision_tower|vision_model|vision_backbone|vision_encoder|image_encoder|visual|vision"),
    ("language", r"language_model|text_model|llm_backbone"),
)
_MODALITIES = tuple((modality, re.compile(rf"(?:^|\.)(?:{words})(?=\.|$)")) for modality, words in _PATHS)

_Q, _KV = "num_attention_heads", "num_key_value_heads"
_INPUT = r"(?:action_in|noisy_action|state|proprio|action)_(?:proj|projector|projection|encoder)"

MODULES = (
    # Joints, poses and grippers are physical axes: no rotation on their side.
    Entry(rf"{_INPUT}\.weight", "linear.input", "O(d) x -", modality="action"),
    Entry(rf"{_INPUT}\.(?:fc1|linear_1|0)\.weight", "mlp.fc1", "S_ff x -", modality="action"),
    Entry(rf"{_INPUT}\.(?:fc2|linear_2|2)\.weight", "mlp.fc2", "O(d) x S_ff", modality="action"),
    Entry(r"action_out_(?:proj|projector|projection)\.weight", "output", "- x O(d)", modality="action"),
    Entry(r"(?:action_)?time_mlp_in\.weight", "mlp.fc1", "S_ff x O(d)", modality="action"),
    Entry(r"(?:action_)?time_mlp_out\.weight", "mlp.fc2", "O(d) x S_ff", modality="action"),
    Entry(r"(?:time_mlp|time_embed|t_embedder\.mlp)\.0\.weight", "mlp.fc1", "S_ff x -"),
    Entry(r"(?:time_mlp|time_embed|t_embedder\.mlp)\.2\.weight", "mlp.fc2", "O(d) x S_ff"),
    Entry(r"final_layer\.(?:linear\.)?weight", "output", "- x O(d)"),
    Entry(r"action_head\.(?:model\.)?fc1\.weight", "linear", "O(d) x O(d)", modality="action"),
    Entry(r"action_head\.(?:model\.)?(?:fc2|output|out_proj|proj)\.weight", "output", "- x O(d)", modality="action"),
    Entry(r"(?:action|meta)_(?:queries|query|tokens?)(?:\.weight)?", "token", "S x O(d)", modality="action"),
    # Scales, shifts and gates of single channels: permutations at most.
    Entry(r"(?i:ada_?ln)(?:_modulation)?(?:\.\w+)?\.weight", "modulation", "signs x -"),
    *MIXERS,
    # Attention by the words of torch, timm, diffusers and transformers; the module has the number of heads.
    Entry(r"(?:(?:to_)?qkv|c_attn)\.weight", "attention.qkv", FREE, (_Q, _KV, _KV), parts=3),
    Entry(r"(?:q_proj|to_q|query|wq|c_q)\.weight", "attention.q", FREE, _Q),
    Entry(r"(?:k_proj|to_k|key|wk|c_k|k_(?:self|adapter|task))\.weight", "attention.k", FREE, _KV),
    Entry(r"(?:v_proj|to_v|value|wv|c_v|v_(?:self|adapter|task))\.weight", "attention.v", FREE, _KV),
    Entry(r"(?:o_proj|out_proj|to_out\.0|to_out|wo)\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
    Entry(r"att(?:n|ention)\w*\.(?:c_)?proj\.weight", "attention.o", "O(d) x O(head)", _Q, 1),
    *GATED_MLP,
    *FUSED_GATE,
    *STACKED_EXPERTS,
    *GRANITE_EXPERTS,
    Entry(r"(?:mlp\.gate|gate\.wg|router(?:\.\w+)?)\.weight", "router", "S_experts x O(d)"),
    Entry(r"(?:fc1|linear1|c_fc)\.weight", "mlp.fc1", "S_ff x O(d)"),
    Entry(r"(?:fc2|linear2|mlp\.c_proj)\.weight", "mlp.fc2", "O(d) x S_ff"),
    *PATCHES,
    *POSITIONS,
)
"""Kinds of parameters in modules of no family; heads are the attributes `HEAD_NAMES` of the module around them."""

ADAPTIVE_NORM = Entry(r"\w*norm\w*\.dense\.weight", "modulation", "signs x -", parts=3, modality="action")
"""pi0.5's adaptive RMSNorm (3 d, d): scale, shift and gate of every channel from the time; in every family."""

HEAD_NAMES = {
    _Q: ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead", "heads"),
    _KV: (
        *("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "kv_heads"),
        *("num_query_groups", "n_query_groups"),
    ),
}
"""Words that modules have for a number of heads; without one for keys and values, theirs have the queries' size."""

ROLE_PRESETS: dict[str, dict[str, dict[str, str]]] = {
    "symmetric": {
        "embed": {"rule": "row_norm"},
        "lm_head": {"rule": "centered_row_norm"},
        "mlp.gate": {"rule": "row_then_polar"},
        "mlp.up": {"rule": "row_then_polar"},
        "mlp.gate_up": {"rule": "row_then_polar"},
        "mlp.down": {"rule": "column_then_polar"},
        "mlp.fc1": {"rule": "row_then_polar"},
        "mlp.fc2": {"rule": "column_then_polar"},
        "mlp.expert.gate_up": {"rule": "row_then_polar"},
        "mlp.expert.down": {"rule": "column_then_polar"},
        "mlp.router": {"rule": "centered_left_polar"},
        "linear.input": {"rule": "column_norm"},
        "output": {"rule": "row_norm"},
        "position": {"rule": "row_norm"},
        "token": {"rule": "row_norm"},
        "lora": {"rule": "lora_muon"},
    },
    "vla": {
        "vision": {"rule": "muon"},
        "connector": {"rule": "muon"},
        "language": {"rule": "muon"},
        "action": {"rule": "pion", "split": "whole"},
    },
    "vla_openpi": {
        "vision": {"rule": "muon"},
        "connector": {"rule": "muon"},
        "language": {"rule": "muon"},
        "action": {"rule": "pion", "split": "whole"},
        "modulation": {"rule": "pion", "split": "whole"},
        "conv.patch": {"rule": "adamw"},
    },
}
"""Name -> roles; what a model has not is left out.

`symmetric` gives every role an update of its group (arXiv 2605.18106): rows that are tokens, neurons or physical axes
are normalised one by one, so are such columns, what a softmax does not see is taken out, and LoRA factors move as their
product. What it leaves out has the optimizer's rule, under O x O (attention per head, plain layers), or, as norms,
biases and modulations, AdamW, which bears their signs.

`vla` is the routing of the Pion paper (arXiv 2605.19282): Muon for what the VLM knows, Pion on whole matrices for
actions, AdamW for embeddings, output layers and vectors. `vla_openpi` is that of its runs with pi0.5: the dense layers
of adaptive norms have Pion too, and patch embeddings AdamW."""


def modality_of(path: str) -> str:
    """The part of the model that a parameter's name tells, "" where it tells none."""
    return next((modality for modality, words in _MODALITIES if words.search(path)), "")
