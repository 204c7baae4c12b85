"""Behaviour cloning on accelerate, with LeRobot's policies, processors, schedulers and image transforms."""
