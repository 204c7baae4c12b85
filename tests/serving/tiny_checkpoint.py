"""A tiny untrained policy in LeRobot's format with DROID's features. Imports LeRobot, which takes its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_policy(folder: Path, size: tuple[int, int] = (64, 64), kind: str = "rlspec_adapter") -> None:
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

    import rlspec.vla.policies  # noqa: F401

    config: Any = make_policy_config(kind, device="cpu", push_to_hub=False, size="tiny", chunk_size=8)
    image = PolicyFeature(FeatureType.VISUAL, (3, *size))
    names = ("observation.images.exterior_1_left", "observation.images.wrist_left")
    config.input_features = {**dict.fromkeys(names, image), "observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (8,))}
    bounds = {"mean": 0.0, "std": 0.5, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    stats = {
        name: {key: torch.full((8,), value) for key, value in bounds.items()}
        for name in ("observation.state", "action")
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy: Any = get_policy_class(config.type)(config)
    policy.save_pretrained(folder)
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
