"""A human at the arm: what a teleoperator says, and when the human is in charge."""
