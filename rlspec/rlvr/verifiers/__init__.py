"""Verifiers: what a completion of a problem is worth, and whether a data set can be judged at all."""
