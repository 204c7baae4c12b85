"""Hydra's config root, installed as `rlspec_recipes`: one short YAML file per recipe, and groups model/, data/, optim/."""
