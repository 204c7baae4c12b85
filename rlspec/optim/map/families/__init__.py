r"""Which role each parameter of a known architecture plays: one short declarative entry per kind of matrix.

To add a family, say which `model_type`s its configs have, and for each kind of matrix the end of its name, its role,
its symmetry group and, where heads are cut, the config's attribute with their number:

    register_family(Family("tiny", ("tiny_decoder",), (
        Entry(r"attn\.query\.weight", "attention.q", "S_heads x O(d)", "n_heads"),
        Entry(r"attn\.output\.weight", "attention.o", "O(d) x O(head)", "n_heads", head_axis=1),
        Entry(r"ffn\.(?:in|out)\.weight", "mlp", "S_ff x -"),
    )))

Embeddings, norms, biases, output heads, `nn.MultiheadAttention` and LoRA factors are recognised by their modules in
every family and need no entry; matrices that a family does not name are refused, so that none is overlooked. Models
of no family go by `MODULES`: common names, with the number of heads from the attention module or else the config. Check
a new family as tests/optim/map/test_architectures.py does: its loss stays only if the blocks are the true heads.
"""

from __future__ import annotations

from rlspec.errors import ConfigError
from rlspec.optim.map.families.action import ADAPTIVE_NORM, HEAD_NAMES, MODULES, ROLE_PRESETS, modality_of
from rlspec.optim.map.families.encoder import ENCODERS
from rlspec.optim.map.families.entry import MODALITIES, Entry, Family
from rlspec.optim.map.families.experts import WITH_EXPERTS
from rlspec.optim.map.families.fused import FUSED
from rlspec.optim.map.families.language import LANGUAGE
from rlspec.optim.map.families.recurrent import RECURRENT
from rlspec.optim.map.families.vision import VISION
from rlspec.optim.map.groups import check_group

__all__ = [
    "ADAPTIVE_NORM",
    "FAMILIES",
    "HEAD_NAMES",
    "MODALITIES",
    "MODULES",
    "ROLE_PRESETS",
    "Entry",
    "Family",
    "find_family",
    "modality_of",
    "register_family",
]

FAMILIES: list[Family] = [*LANGUAGE, *FUSED, *WITH_EXPERTS, *RECURRENT, *ENCODERS, *VISION]
"""Every known family; `register_family` adds one."""


def register_family(family: Family) -> Family:
    """Make the symmetry map know models whose config has one of the family's `model_type`s.

    Raises:
        ConfigError: if a `model_type` is taken, an axis is not 0 or 1, or a modality or group is unknown.
    """
    for model_type in family.model_types:
        known = find_family(model_type)
        if known is not None:
            raise ConfigError(f"family {family.name}: model_type {model_type} belongs to family {known.name} already")
    for modality in (family.modality, *(entry.modality or family.modality for entry in family.entries)):
        if modality not in MODALITIES:
            raise ConfigError(f"family {family.name}: modality {modality!r}; allowed: {', '.join(MODALITIES)}")
    for entry in family.entries:
        if entry.head_axis not in (0, 1):
            raise ConfigError(f"family {family.name}: head_axis of {entry.role} must be 0 (rows) or 1 (columns)")
        check_group(entry.symmetry, f"family {family.name}, {entry.role}")
    FAMILIES.append(family)
    return family


def find_family(model_type: str | None) -> Family | None:
    """The family of a config's `model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
