"""Likelihoods of features that have rows of their own: each its own X, Z and samples."""
