"""Updates of parameters that several processes share: who owns a matrix, what travels, and what stays where it is."""
