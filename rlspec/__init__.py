"""rlspec: RL post-training and robot fine-tuning with an optimizer matched to the symmetry of every parameter group."""

__version__ = "0.1.0"
