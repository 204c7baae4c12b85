"""DROID-format data: read, generated, and converted into LeRobotDataset v3."""
