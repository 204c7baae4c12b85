"""Recipes: their schema, loading and error messages. Imports neither torch nor transformers."""
