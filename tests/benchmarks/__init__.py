"""Benchmarks: flashmm beside its peers, in one run, on the same data.

``python -m tests.benchmarks`` from the root of the repository; see docs/benchmarks.md.
"""
