"""`rlspec_smolvla`: LeRobot's SmolVLA with the optimizer of the symmetry map."""
