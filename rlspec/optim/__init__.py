"""Spectral optimizers: one composition of pure tensor functions per rule, and the symmetry map of a model.

Names are imported when they are asked for, so that `rlspec.optim.settings` can be had without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlspec.optim.build import build_optimizer
    from rlspec.optim.engine.optimizer import SpectralOptimizer
    from rlspec.optim.map.symmetry import symmetry_map
    from rlspec.optim.rules import RULES

__all__ = ["RULES", "SpectralOptimizer", "build_optimizer", "symmetry_map"]

_HOMES = {
    "RULES": "rules",
    "SpectralOptimizer": "engine.optimizer",
    "build_optimizer": "build",
    "symmetry_map": "map.symmetry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
