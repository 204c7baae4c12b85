"""Data sets of demonstrations: generating, describing, checking and loading them."""
