"""A Franka arm at a table in MuJoCo: own model with exact kinematics, four language-conditioned tasks."""
