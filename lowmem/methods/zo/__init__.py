"""Zeroth order: training by forward passes alone, in the memory of inference."""
