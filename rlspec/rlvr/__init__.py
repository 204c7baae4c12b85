"""Reinforcement learning with verifiable rewards: data, grader, losses, trainers, evaluation."""
