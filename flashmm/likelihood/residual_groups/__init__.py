"""Residual variances by group of samples."""
