"""Tensor functions on batches of matrices (batch, rows, cols) that know no rule and keep no state."""
