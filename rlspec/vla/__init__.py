"""Vision-language-action policies on LeRobot, trained, and measured in simulators.

The names below are registered with LeRobot when their modules are imported, which its commands do for every module
here (`--policy.discover_packages_path=rlspec.vla`). The package itself imports none of them: LeRobot takes 20 seconds,
and worker processes that only simulate need nothing of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlspec.vla.environments import RlspecFrankaEnv, RlspecLiberoEnv
    from rlspec.vla.optimizers import SpectralOptimizerConfig
    from rlspec.vla.policies import RlspecAdapterConfig, RlspecFlowConfig, RlspecPI05Config, RlspecSmolVLAConfig

__all__ = [
    "RlspecAdapterConfig",
    "RlspecFlowConfig",
    "RlspecFrankaEnv",
    "RlspecLiberoEnv",
    "RlspecPI05Config",
    "RlspecSmolVLAConfig",
    "SpectralOptimizerConfig",
]

_HOMES = {
    "RlspecFrankaEnv": "environments",
    "RlspecLiberoEnv": "environments",
    "SpectralOptimizerConfig": "optimizers",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'policies')}"), name)
