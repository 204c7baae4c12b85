"""A project of its own whose name LeRobot looks for among installed distributions: `pip install` this folder."""
