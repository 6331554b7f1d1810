"""The methods of the results by subject: a docstring and one call each."""
