"""The answer checker: extraction, normalisation, comparison, and killable worker processes."""
