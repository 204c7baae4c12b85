"""Imported by LeRobot's commands because of its distribution's name; registers rlspec's robot and teleoperator."""

from rlspec.deploy.lerobot import FrankaRlspec, FrankaRlspecConfig, FrankaRlspecExpert, FrankaRlspecExpertConfig

__all__ = ["FrankaRlspec", "FrankaRlspecConfig", "FrankaRlspecExpert", "FrankaRlspecExpertConfig"]
