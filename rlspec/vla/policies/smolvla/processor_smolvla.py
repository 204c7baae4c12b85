"""Pre- and postprocessor of `rlspec_smolvla`: LeRobot's, by the name that it looks for."""

from __future__ import annotations

from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

from rlspec.vla.policies.smolvla.configuration_smolvla import RlspecSmolVLAConfig


def make_rlspec_smolvla_pre_post_processors(
    config: RlspecSmolVLAConfig, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """As LeRobot's."""
    return make_smolvla_pre_post_processors(config, dataset_stats)
