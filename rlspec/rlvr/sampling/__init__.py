"""How a policy is asked and what answers: itself, with calls in between, or an engine."""
