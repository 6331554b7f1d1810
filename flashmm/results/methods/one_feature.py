"""Plain tables of one feature; the work is done in `flashmm.results.tidy`."""

from __future__ import annotations

from typing import Any

import pandas as pd

from flashmm.arrays.types import IntArray
from flashmm.results import tidy
from flashmm.results.fitted import FittedModel
from flashmm.slips.answers import answer_calls

__all__ = ["OneFeatureTables"]


@answer_calls
class OneFeatureTables:
    """Tables of one feature; part of `FeatureResults`."""

    _fitted: FittedModel
    _positions: IntArray
    _in_whole: tuple[FittedModel, IntArray]

    def tidy(self, **options: Any) -> pd.DataFrame:
        """One row per parameter; see `MultiLMMResults.tidy`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.tidy()[["term", "estimate"]].head(2).round(2)
                term  estimate
        0  Intercept    251.41
        1       Days     10.47
        """
        return tidy.tidy(self._fitted, self._positions, **options)

    def glance(self) -> pd.DataFrame:
        """One row on how the fit went; see `MultiLMMResults.glance`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.glance()[["nobs", "sigma", "n_iter"]].round(2)
                  nobs  sigma  n_iter
        feature
        Reaction   180  25.59       1
        """
        return tidy.glance(self._fitted, self._positions)

    def augment(self, Y: Any = None, data: Any = None, **options: Any) -> pd.DataFrame:
        """Values, fitted values and residuals beside the samples' table.

        Parameters
        ----------
        Y
            Features x samples, as in `resid`; None where ``data`` has a column for the feature.
        data
            The samples' table.
        **options
            Those of `MultiLMMResults.augment`.

        Returns
        -------
        DataFrame
            One row per sample: y, fixed, fitted, resid, and the other columns of ``data``.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.augment(data=sleep.data)[["y", "fitted", "resid"]].head(2).round(1)
               y  fitted  resid
        0  249.6   253.7   -4.1
        1  258.7   273.3  -14.6
        """
        table = tidy.augment(*self._in_whole, Y, data, options)
        return tidy.one_sample_table(table, data)
