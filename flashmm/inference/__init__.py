"""Inference as pure functions: contrasts, tests, multiplicity."""
