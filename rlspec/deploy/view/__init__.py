"""A page to watch a run on, with a stop button."""
