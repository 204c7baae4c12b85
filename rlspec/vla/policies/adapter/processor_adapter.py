"""Pre- and postprocessor of `rlspec_adapter`, by the name that LeRobot looks for."""

from __future__ import annotations

from typing import Any

from rlspec.vla.policies.adapter.configuration_adapter import RlspecAdapterConfig
from rlspec.vla.policies.backbone.processor import Pipelines, make_processors


def make_rlspec_adapter_pre_post_processors(
    config: RlspecAdapterConfig, dataset_stats: dict[str, Any] | None = None
) -> Pipelines:
    """As `make_processors`."""
    return make_processors(config, dataset_stats)
