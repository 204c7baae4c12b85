"""`rlspec_pi05`: LeRobot's pi0.5 with the optimizer of the symmetry map."""
