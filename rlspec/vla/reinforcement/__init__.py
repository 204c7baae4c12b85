"""Reinforcement learning of a robot's policy on success in the simulator."""
