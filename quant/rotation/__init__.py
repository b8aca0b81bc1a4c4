"""Rotations, permutations and smoothing of layers' inputs, taken back in weights. Knows no model by name."""
