"""Weights in 2, 3, 4 and 8 bits: rotations, codes, error feedback, calibration, and the layers that use them.

Everything here receives tensors and modules; nothing here loads a model.
"""
