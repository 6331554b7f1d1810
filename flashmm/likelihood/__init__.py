"""Likelihoods: theta to log-likelihood, score and information, for many features."""
