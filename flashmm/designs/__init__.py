"""Designs: X, Z, their labels and the structure of D(theta)."""
