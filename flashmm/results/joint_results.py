"""Joint tests of several contrasts at once, for every feature."""

from __future__ import annotations

import pandas as pd

from flashmm.arrays.blas import hold_methods
from flashmm.results.feature_tests import FeatureTests
from flashmm.slips.answers import answer_calls

__all__ = ["FTestResults"]


@answer_calls
@hold_methods
class FTestResults(FeatureTests):
    """Joint tests of several contrasts of the fixed effects, for every feature.

    Parameters
    ----------
    ds
        Dataset with dims feature and contrast (a hypothesis): F, df_num, df_denom, p; and, if
        known, status (feature).
    df_method
        How the denominator's degrees of freedom were found.

    Examples
    --------
    >>> import flashmm as fm
    >>> genes = fm.datasets.varpart()
    >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
    >>> model.fit().f_test("Age").top_table(n=2)[["F", "df_num", "p"]].round(3)
                 F  df_num      p
    feature
    gene10   1.711     1.0  0.195
    gene15   1.631     1.0  0.205
    """

    columns = ("F", "df_num", "df_denom", "p")
    statistic = "F"
    _noun = "F tests"

    @property
    def fvalue(self) -> pd.DataFrame:
        """F statistics, features x hypotheses."""
        return self._frame("F")

    @property
    def df_num(self) -> pd.DataFrame:
        """Numerator degrees of freedom, features x hypotheses."""
        return self._frame("df_num")

    @property
    def df_denom(self) -> pd.DataFrame:
        """Denominator degrees of freedom, features x hypotheses."""
        return self._frame("df_denom")
