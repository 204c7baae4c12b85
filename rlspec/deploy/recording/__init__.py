"""Demonstrations and corrections on a robot: runs that a human drives or takes over, kept as data sets."""
