"""Counts of sequencing: weights from their mean-variance trend."""
