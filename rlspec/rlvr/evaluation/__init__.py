"""Measuring a policy on problems with known answers, inside training and outside."""
