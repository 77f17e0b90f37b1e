"""Pixels to probabilities, whatever computes them. Imports no torch by itself."""
