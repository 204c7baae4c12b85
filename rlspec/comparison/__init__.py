"""Comparisons of arms: a plan written first, rates tuned alike, fresh seeds, and a table that says how sure it is."""
