"""Simulated data with a known truth."""

from flashmm.simulate.single_cell import SimulatedRNASeq, rnaseq

__all__ = ["SimulatedRNASeq", "rnaseq"]
