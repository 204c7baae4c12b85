"""Vision-language-action policies. Importing the package registers what it adds to LeRobot."""

from rlspec.vla.optimizers import SpectralOptimizerConfig

__all__ = ["SpectralOptimizerConfig"]
