"""Pre- and postprocessor of `rlspec_pi05`: LeRobot's, by the name that it looks for."""

from __future__ import annotations

from typing import Any

from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors

from rlspec.vla.policies.pi05.configuration_pi05 import RlspecPI05Config


def make_rlspec_pi05_pre_post_processors(
    config: RlspecPI05Config, dataset_stats: dict[str, Any] | None = None
) -> tuple[Any, Any]:
    """As LeRobot's."""
    return make_pi05_pre_post_processors(config, dataset_stats)
