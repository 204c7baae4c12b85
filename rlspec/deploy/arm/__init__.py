"""The arm itself: its limits, its kinematics, how a target becomes motion. Pure numpy."""
