"""Many linear mixed models that share one design, fitted from summary statistics."""

import sys
from importlib.metadata import PackageNotFoundError, version

from flashmm import simulate
from flashmm.counts.voom import Voom, voom
from flashmm.exceptions import (
    ConvergenceWarning,
    FlashMMError,
    FormulaWarning,
    InputError,
    MissingSamplesWarning,
    PrecisionWarning,
    RankWarning,
    SlowWarning,
)
from flashmm.formulas import build
from flashmm.inference.contrasts import contrast_matrix
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.model import MultiLMM
from flashmm.results import (
    BootstrapResults,
    FeatureResults,
    FlipTestResults,
    FTestResults,
    Influence,
    MultiLMMResults,
    RatioPrior,
    TTestResults,
)
from flashmm.simulate.power import power
from flashmm.solvers.status import Status
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage import schema

try:
    __version__ = version("flashmm")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "BootstrapResults",
    "ConvergenceWarning",
    "FTestResults",
    "FeatureResults",
    "FlashMMError",
    "FlipTestResults",
    "FormulaWarning",
    "Influence",
    "InputError",
    "MissingSamplesWarning",
    "MultiLMM",
    "MultiLMMResults",
    "PatternedStats",
    "PrecisionWarning",
    "RankWarning",
    "RatioPrior",
    "SlowWarning",
    "Status",
    "SummaryStats",
    "TTestResults",
    "Voom",
    "adjust_pvalues",
    "contrast_matrix",
    "power",
    "simulate",
    "voom",
]

# Modules that moved, and that the documentation of 0.1 named.
sys.modules[f"{__name__}.formula"] = build
sys.modules[f"{__name__}.schema"] = schema


def __dir__() -> list[str]:
    """Public names alone: the rooms are imported by their own paths."""
    return [*__all__, "__version__"]
