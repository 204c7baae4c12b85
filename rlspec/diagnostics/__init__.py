"""Looking at runs: curves and summaries."""
