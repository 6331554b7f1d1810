"""Pictures: each function takes numbers and the Axes of matplotlib, and returns the Axes.

``result.plot``, ``tests.plot`` and ``feature.plot`` call them with the numbers of a fit. They need
matplotlib, ``pip install 'multilmm[plot]'``, which nothing else imports.
"""

from typing import TYPE_CHECKING, Any

from flashmm.exceptions import nearest
from flashmm.plots.groups import cooks_distances, hits_without_groups
from flashmm.plots.intervals import caterpillar, dots, forest
from flashmm.plots.many_tests import mean_difference, pvalue_histogram, qq, volcano
from flashmm.plots.samples import predictions, residuals
from flashmm.plots.variances import (
    fractions,
    profile,
    ratio_prior,
    theta,
    variance_trend,
    voom_trend,
)
from flashmm.slips.refusals import no_call

__all__ = [
    "caterpillar",
    "cooks_distances",
    "dots",
    "forest",
    "fractions",
    "hits_without_groups",
    "mean_difference",
    "predictions",
    "profile",
    "pvalue_histogram",
    "qq",
    "ratio_prior",
    "residuals",
    "theta",
    "variance_trend",
    "volcano",
    "voom_trend",
]

no_call(__name__, "pictures are result.plot.volcano(contrast), ..., or plots.volcano(...)")


if not TYPE_CHECKING:  # which would believe in every attribute

    def __getattr__(name: str) -> Any:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}. {nearest(name, __all__)}"
        )
