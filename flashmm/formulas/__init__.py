"""Formulas and tables of data to the columns of X and Z, and back for new data."""
