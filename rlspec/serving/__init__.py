"""A policy behind a socket: sessions, batches, limits."""
