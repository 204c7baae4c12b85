"""One study for each value of `what=` in `python -m rlspec.diagnose`; their names are in `catalogue`."""
