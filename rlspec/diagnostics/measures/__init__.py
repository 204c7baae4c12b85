"""Numbers of matrices, spectra and point clouds: pure functions of tensors, each with the source of its formula."""
