"""A pretrained policy of which some parts begin anew, as a new head on a pretrained backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rlspec.errors import ConfigError
from rlspec.optim.map.symmetry import symmetry_map


def renew(policy: nn.Module, parts: Sequence[str], new: nn.Module) -> None:
    """Give the parameters of some parts the values that they have in a policy without pretrained weights.

    Args:
        policy: With its pretrained weights; changed in place.
        parts: Of `rlspec.config.vla_schema.Part`.
        new: That policy, of the same config.

    Raises:
        ConfigError: The policy has no such part.
    """
    mapping = symmetry_map(policy)
    known = sorted({spec.modality for spec in mapping} - {""})
    for part in parts:
        if part not in known:
            raise ConfigError(f"policy.fresh={part}: the policy has no such part; it has {', '.join(known) or 'none'}")
    values, ours = dict(new.named_parameters()), dict(policy.named_parameters())
    with torch.no_grad():
        for spec in mapping:
            if spec.modality in parts:
                ours[spec.name].copy_(values[spec.name])
