"""`rlspec_adapter`: actions by L1 regression, with bridge attention over the layers of a vision-language model."""
