"""pi0.5 of openpi, in PyTorch, as one of our policies: its weights have other names, its statistics lie beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspec.contract.features import ACTION, STATE, image_key
from rlspec.errors import CheckpointError
from rlspec.vla.data.norm_stats import read_norm_stats

WEIGHTS = "model.safetensors"
CONFIGS = ("config.json", "configs.json")
_SIZES = {"action_horizon": "chunk_size", "action_dim": "max_action_dim"}
_SAME = {
    "paligemma_variant": "paligemma_variant",
    "action_expert_variant": "action_expert_variant",
    "precision": "dtype",
}


@dataclass(frozen=True)
class Checkpoint:
    """What openpi's folder says."""

    folder: Path
    settings: dict[str, Any]  # fields of our config
    stats: dict[str, dict[str, Any]]
    sizes: dict[str, int]  # of state and action

    @classmethod
    def read(cls, folder: Path, norm_stats: Path | None, *, state: int | None, action: int | None) -> Checkpoint:
        """Everything but the weights.

        Raises:
            CheckpointError: The folder holds no pi0.5 in PyTorch, or its statistics are not to be found.
            DataError: They cannot be read.
        """
        _check_names(folder)
        stats = read_norm_stats(norm_stats or _only_statistics(folder))
        given = {STATE: state, ACTION: action}
        sizes = {name: given[name] or len(stats[name]["mean"]) for name in (STATE, ACTION)}
        cut = {name: {kind: values[: sizes[name]] for kind, values in each.items()} for name, each in stats.items()}
        for name, size in sizes.items():
            if (found := len(cut[name]["mean"])) < size:
                raise CheckpointError(f"{folder}: statistics of {found} numbers of {name}, and {size} are wanted")
        return cls(folder, _settings(folder), cut, sizes)


def _check_names(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    file = folder / WEIGHTS
    if not file.is_file():
        jax = (folder / "params").is_dir()
        remedy = (
            "convert it first by openpi's examples/convert_jax_model_to_pytorch.py" if jax else "correct the folder"
        )
        raise CheckpointError(f"{folder}: no {WEIGHTS}{': weights of JAX' if jax else ''}; {remedy}")
    try:
        with safe_open(file, "np") as opened:
            names = {name.removeprefix("model.") for name in opened.keys()}  # noqa: SIM118  # it is no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    if any("lora" in name for name in names):
        raise CheckpointError(f"{file}: LoRA factors that are not merged; merge them into the weights in openpi first")
    if "state_proj.weight" in names:
        raise CheckpointError(f"{file}: a pi0, which has state_proj; only pi0.5 is adopted: use LeRobot's pi0")
    if "time_mlp_in.weight" not in names or not any(name.startswith("paligemma_with_expert.") for name in names):
        raise CheckpointError(f"{file}: no pi0.5 of openpi: it lacks time_mlp_in or paligemma_with_expert")


def _only_statistics(folder: Path) -> Path:
    found = sorted((folder / "assets").rglob("norm_stats.json"))
    if len(found) != 1:
        there = ", ".join(str(path.relative_to(folder)) for path in found) or "none"
        raise CheckpointError(f"{folder}: statistics below assets: {there}; choose with norm_stats=FILE")
    return found[0]


def _settings(folder: Path) -> dict[str, Any]:
    """Of openpi's config, as far as there is one; what it leaves open is that of pi0.5."""
    file = next((path for name in CONFIGS if (path := folder / name).is_file()), None)
    try:
        given = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        renamed = {ours: given[theirs] for theirs, ours in (_SIZES | _SAME).items() if theirs in given}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from None
    if "chunk_size" in renamed:
        renamed["n_action_steps"] = min(10, renamed["chunk_size"])
    return renamed


def adopt(given: Checkpoint, out: Path, *, cameras: Sequence[str], **settings: Any) -> None:
    """Write a policy of type rlspec_pi05 with its processors.

    Args:
        given: what is adopted.
        out: folder, put in place whole.
        cameras: names after `observation.images.`, in the order in which the model sees them.
        settings: other fields of its config.

    Raises:
        CheckpointError: The weights do not fit.
    """
    import torch
    from lerobot.configs import FeatureType, PolicyFeature

    from rlspec.vla.policies.adopted import write_policy
    from rlspec.vla.policies.pi05.configuration_pi05 import RlspecPI05Config
    from rlspec.vla.policies.pi05.modeling_pi05 import RlspecPI05Policy
    from rlspec.vla.policies.pi05.processor_pi05 import make_rlspec_pi05_pre_post_processors

    pictures = {image_key(name): PolicyFeature(FeatureType.VISUAL, (3, 224, 224)) for name in cameras}
    config = RlspecPI05Config(
        **{"device": "cpu", "push_to_hub": False, **given.settings, **settings},
        input_features={STATE: PolicyFeature(FeatureType.STATE, (given.sizes[STATE],)), **pictures},
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (given.sizes[ACTION],))},
    )
    policy = RlspecPI05Policy.from_pretrained(given.folder, config=config)
    stats = {name: {kind: torch.as_tensor(value) for kind, value in each.items()} for name, each in given.stats.items()}
    write_policy(out, policy, make_rlspec_pi05_pre_post_processors(config, stats))
