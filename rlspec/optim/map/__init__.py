"""From a model to the role, the symmetry group and the blocks of every parameter."""
