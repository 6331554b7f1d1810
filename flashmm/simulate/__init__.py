"""Simulated data with a known truth."""

from flashmm.simulate.single_cell import SimulatedRNASeq, rnaseq
from flashmm.slips.refusals import no_call

__all__ = ["SimulatedRNASeq", "rnaseq"]

no_call(__name__, "counts of cells are simulate.rnaseq(...), draws of a fit result.draw(n)")
