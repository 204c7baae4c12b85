"""Hydra's config root, installed as `rlspec_recipes`: a short YAML file per recipe; groups model/, data/, optim/."""
