"""Adapters on a robot's policy: some parts get low-rank corrections, others may be trained whole beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from rlspec.errors import CheckpointError, ConfigError
from rlspec.optim.map.symmetry import symmetry_map
from rlspec.runtime.adapters import adapter_config

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy

    from rlspec.config.vla_schema import PolicyLora

BASE = "base"
"""Folder of a run with the policy below its adapters, where that was built rather than read from somewhere."""


def add_adapters(policy: PreTrainedPolicy, lora: PolicyLora) -> nn.Module:
    """Adapters on a policy; `full_training` are parts of which peft trains and saves a copy instead.

    Raises:
        ConfigError: The policy has no such part, or nothing beside it takes adapters.
    """
    settings = lora.model_dump(exclude={"full_training", "options"}) | lora.options
    if lora.full_training:
        settings["modules_to_save"] = owning_modules(policy, lora.full_training)  # in which peft puts no adapters
    if unused := getattr(policy, "unused_parameters", None):  # no loss would reach adapters there
        settings.setdefault("exclude_modules", sorted({name.rpartition(".")[0] for name in unused}))
    return policy.wrap_with_peft(peft_config=adapter_config(**settings))


def owning_modules(policy: nn.Module, parts: Sequence[str]) -> list[str]:
    """Names of the modules that hold the trainable parameters of some parts, none of them inside of another.

    Raises:
        ConfigError: A part has no trainable parameter.
    """
    mapping = symmetry_map(policy)
    known = sorted({spec.modality for spec in mapping} - {""})
    for part in parts:
        if part not in known:
            raise ConfigError(
                f"policy.lora.full_training={part}: the policy has no such part; it has {', '.join(known) or 'none'}"
            )
    owners = {spec.name.rpartition(".")[0] for spec in mapping if spec.modality in parts}
    return sorted(name for name in owners if not any(_lies_in(name, other) for other in owners))


def _lies_in(name: str, other: str) -> bool:
    return name.startswith(f"{other}.") or (not other and bool(name))


def adapted(load: Callable[[str], Any], folder: str | Path, *, trainable: bool = False) -> nn.Module:
    """The adapters in `folder` on the policy below them, as `load` gets it from its folder or hub id.

    Raises:
        CheckpointError: That policy is not named, or not there.
    """
    from peft import PeftConfig, PeftModel

    adapters = PeftConfig.from_pretrained(str(folder))
    adapters.base_model_name_or_path = _base_of(folder, adapters.base_model_name_or_path)
    policy = load(adapters.base_model_name_or_path)
    return PeftModel.from_pretrained(policy, str(folder), config=adapters, is_trainable=trainable)


def _base_of(folder: str | Path, named: str | None) -> str:
    """Where the policy below is, also after the run has been moved."""
    if not named:
        raise CheckpointError(f"{folder}: its adapter_config.json does not name the policy that it was trained on")
    moved = next((found for up in list(Path(folder).parents)[:2] if (found := up / BASE).is_dir()), None)
    if Path(named).name == BASE and moved is not None:
        return str(moved)
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise CheckpointError(
            f"{folder}: its adapters belong to the policy in {named}, which is not there; put it back, or correct "
            "base_model_name_or_path in adapter_config.json"
        )
    return str(named)
