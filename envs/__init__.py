"""Gymnasium environments of rlspec, installed as `rlspec_envs`. Never imports rlspec."""
