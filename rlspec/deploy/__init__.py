"""From a policy to a Franka that moves: a safe loop at a fixed rate. Imports no torch."""
