"""Trials that count: which policy runs when, who judges, and what may be concluded."""
