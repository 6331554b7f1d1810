"""Random designs and responses that try to break a fit: ``python -m tests.stress``."""
