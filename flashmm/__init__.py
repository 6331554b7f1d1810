"""Many linear mixed models that share one design, fitted from summary statistics."""

from importlib.metadata import PackageNotFoundError, version

from flashmm import simulate
from flashmm.exceptions import (
    ConvergenceWarning,
    FlashMMError,
    InputError,
    MissingSamplesWarning,
    PrecisionWarning,
)
from flashmm.inference.contrasts import contrast_matrix
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.model import MultiLMM
from flashmm.patterned_stats import PatternedStats
from flashmm.power_analysis import power
from flashmm.results import (
    BootstrapResults,
    FeatureResults,
    FTestResults,
    MultiLMMResults,
    TTestResults,
)
from flashmm.solvers.status import Status
from flashmm.summary_stats import SummaryStats

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
    "InputError",
    "MissingSamplesWarning",
    "MultiLMM",
    "MultiLMMResults",
    "PatternedStats",
    "PrecisionWarning",
    "Status",
    "SummaryStats",
    "TTestResults",
    "adjust_pvalues",
    "contrast_matrix",
    "power",
    "simulate",
]
