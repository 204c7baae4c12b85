"""Spectral optimizers: one composition of pure tensor functions per rule, and the symmetry map of a model."""

from rlspec.optim.build import build_optimizer
from rlspec.optim.engine.optimizer import SpectralOptimizer
from rlspec.optim.map.symmetry import symmetry_map
from rlspec.optim.rules import RULES

__all__ = ["RULES", "SpectralOptimizer", "build_optimizer", "symmetry_map"]
