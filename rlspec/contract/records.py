"""Files in which data sets and policies say what LeRobot's metadata have no place for: what their actions mean."""

from __future__ import annotations

DATA_RECORD = "meta/rlspec.json"
"""Of a data set, from its root: environment or source, seeds, settings."""

DATA_KEYS = ("suite", "action_space", "units", "control_hz", "execution_law", "robot", "source", "episodes")
"""Of a robot's data, at least; `episodes` lists for each: source (path or id), task, success, frames."""

POLICY_RECORD = "rlspec.json"
"""Of a policy, in its folder; `rlspec.vla.data.facts` lists its keys."""
