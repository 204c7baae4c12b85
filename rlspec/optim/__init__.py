"""Spectral optimizers: one composition of pure tensor functions per rule, and the symmetry map of a model."""
