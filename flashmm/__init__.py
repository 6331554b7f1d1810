"""Many linear mixed models that share one design, fitted from summary statistics."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flashmm.arrays.lazy import lazy

if TYPE_CHECKING:
    from flashmm import datasets, simulate
    from flashmm.citation import cite
    from flashmm.counts.voom import Voom, voom
    from flashmm.designs.covariances import Covariance
    from flashmm.designs.pedigrees import pedigree_covariance, relationship_matrix
    from flashmm.designs.relationship_files import read_covariance, read_grm
    from flashmm.exceptions import (
        ConvergenceWarning,
        CovarianceWarning,
        FlashMMError,
        FormulaWarning,
        InputError,
        MissingSamplesWarning,
        PrecisionWarning,
        RankWarning,
        SlowWarning,
    )
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
    from flashmm.results.loading import load
    from flashmm.simulate.power import power
    from flashmm.solvers.verdict_texts import Status
    from flashmm.sources.long_tables import from_long
    from flashmm.stats.own_rows import PatternedStats
    from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "BootstrapResults",
    "ConvergenceWarning",
    "Covariance",
    "CovarianceWarning",
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
    "cite",
    "contrast_matrix",
    "datasets",
    "from_long",
    "load",
    "pedigree_covariance",
    "power",
    "read_covariance",
    "read_grm",
    "relationship_matrix",
    "simulate",
    "voom",
]

# Where a public name is defined: it is imported when it is first used, and so is what it needs.
_HOMES = {
    "cite": "citation",
    **dict.fromkeys(("Voom", "voom"), "counts.voom"),
    **dict.fromkeys(
        (
            *("ConvergenceWarning", "CovarianceWarning", "FlashMMError"),
            *("FormulaWarning", "InputError"),
            *("MissingSamplesWarning", "PrecisionWarning", "RankWarning", "SlowWarning"),
        ),
        "exceptions",
    ),
    "Covariance": "designs.covariances",
    **dict.fromkeys(("pedigree_covariance", "relationship_matrix"), "designs.pedigrees"),
    **dict.fromkeys(("read_covariance", "read_grm"), "designs.relationship_files"),
    "contrast_matrix": "inference.contrasts",
    "adjust_pvalues": "inference.multiplicity",
    "MultiLMM": "model",
    **dict.fromkeys(
        (
            *("BootstrapResults", "FTestResults", "FeatureResults", "FlipTestResults", "Influence"),
            *("MultiLMMResults", "RatioPrior", "TTestResults"),
        ),
        "results",
    ),
    "load": "results.loading",
    "power": "simulate.power",
    "Status": "solvers.verdict_texts",
    "from_long": "sources.long_tables",
    "PatternedStats": "stats.own_rows",
    "SummaryStats": "stats.summary_stats",
}

# Modules that moved, and that the documentation of 0.1 named.
_MOVED = {
    "formula": "formulas.build",
    "schema": "storage.schema",
    "solvers.status": "solvers.verdict_texts",
}
for _old, _new in _MOVED.items():
    sys.modules[f"{__name__}.{_old}"] = lazy(f"{__name__}.{_new}", f"{__name__}.{_old}")


def __getattr__(name: str) -> Any:
    """Import a public name, or a room of the house, with its first use (PEP 562)."""
    value: Any
    if name == "__version__":
        value = import_module(f"{__name__}.citation").installed_version()
    elif name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MOVED:
        value = sys.modules[f"{__name__}.{name}"]
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        value = import_module(f"{__name__}.{name}")
    else:
        cures = import_module(f"{__name__}.slips.cures")
        cure = cures.known(cures.PACKAGE, name)
        if not cure and not name.startswith("_"):
            results = import_module(f"{__name__}.results").MultiLMMResults
            cure = f"it is a method of results: result.{name}" if hasattr(results, name) else ""
            asked = cures.known(cures.ATTRIBUTES, name)
            cure = cure or (f"of results, {asked}" if asked else "")
        near = import_module(f"{__name__}.exceptions").nearest(name, __all__)
        more = f"; {cure}" if cure else f". {near}" * (not name.startswith("_"))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{more}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names alone: the rooms are imported by their own paths."""
    return [*__all__, "__version__"]
