"""LeRobot plugins: the robot `franka_rlspec` and the teleoperator `franka_rlspec_expert`.

`--robot.discover_packages_path=rlspec.deploy.lerobot` makes LeRobot's commands know them; so does installing the
distribution in the folder beside this file, which LeRobot then finds by its name.
"""

from rlspec.deploy.lerobot.config_franka_rlspec import FrankaRlspecConfig
from rlspec.deploy.lerobot.config_franka_rlspec_expert import FrankaRlspecExpertConfig
from rlspec.deploy.lerobot.franka_rlspec import FrankaRlspec
from rlspec.deploy.lerobot.franka_rlspec_expert import FrankaRlspecExpert

__all__ = ["FrankaRlspec", "FrankaRlspecConfig", "FrankaRlspecExpert", "FrankaRlspecExpertConfig"]
