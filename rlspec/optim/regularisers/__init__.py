"""What holds a model's weights back during training, placed by role through the symmetry map."""
