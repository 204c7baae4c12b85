"""Where actions come from, and which of them is due."""
