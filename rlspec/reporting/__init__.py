"""Runs and sweeps as one self-contained page."""
