"""Pre- and postprocessor of `rlspec_flow`, by the name that LeRobot looks for."""

from __future__ import annotations

from typing import Any

from rlspec.vla.policies.backbone.processor import Pipelines, make_processors
from rlspec.vla.policies.flow.configuration_flow import RlspecFlowConfig


def make_rlspec_flow_pre_post_processors(
    config: RlspecFlowConfig, dataset_stats: dict[str, Any] | None = None
) -> Pipelines:
    """As `make_processors`."""
    return make_processors(config, dataset_stats)
