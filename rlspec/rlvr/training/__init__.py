"""Thin subclasses of TRL's trainers, what stands around their steps, and the check of problems before the first."""
