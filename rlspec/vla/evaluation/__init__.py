"""Measuring policies in the simulator. Nothing here imports torch or lerobot before a policy is loaded."""
