"""Vision-language-action policies. Importing the package registers what it adds to LeRobot."""

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
