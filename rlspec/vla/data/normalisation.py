"""What a policy normalises by, and whether it can: LeRobot leaves numbers without statistics as they are, silently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlspec.contract.features import ACTION, STATE

NEEDED: Mapping[str, tuple[str, ...]] = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
"""LeRobot's mode -> the statistics that it divides by."""


def normalised_by(pipeline: Any) -> dict[str, dict[str, Any]]:
    """The statistics in a pre- or postprocessor; empty where it does not normalise."""
    return next((step._tensor_stats for step in pipeline.steps if hasattr(step, "_tensor_stats")), {})


def unnormalised(config: Any, preprocessor: Any, postprocessor: Any) -> Iterator[str]:
    """Why state or action would pass as they are though the policy was trained on normalised ones, in words."""
    features = {**(config.input_features or {}), **(config.output_features or {})}
    for name, kind, pipeline in ((STATE, "STATE", preprocessor), (ACTION, "ACTION", postprocessor)):
        mode = (config.normalization_mapping or {}).get(kind)
        needed = NEEDED.get(str(getattr(mode, "value", mode)), ())
        if name not in features or not needed or not any(hasattr(step, "_tensor_stats") for step in pipeline.steps):
            continue
        stats = normalised_by(pipeline)
        found = stats.get(name, {})
        lacking = [each for each in needed if each not in found]
        size = int(features[name].shape[0])
        if lacking:
            yield f"no {' and '.join(lacking)} of {name}{_elsewhere(stats, name)}"
        elif len(found[needed[0]].reshape(-1)) < size:
            yield f"statistics of {len(found[needed[0]].reshape(-1))} numbers for {name}, which has {size}"


def _elsewhere(stats: Mapping[str, Any], name: str) -> str:
    """Some checkpoints of the hub keep them per robot, as so100.buffer.action."""
    under = sorted(key for key in stats if key != name and key.endswith(f".{name}"))
    return f", but under {', '.join(under[:3])}: those of other robots" if under else ""
