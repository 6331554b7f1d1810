"""Files of statistics and results: written whole or not at all, read only when sound."""
