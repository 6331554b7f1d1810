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
        """One row per parameter; see `MultiLMMResults.tidy`."""
        return tidy.tidy(self._fitted, self._positions, **options)

    def glance(self) -> pd.DataFrame:
        """One row on how the fit went; see `MultiLMMResults.glance`."""
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
        """
        table = tidy.augment(*self._in_whole, Y, data, options)
        return tidy.one_sample_table(table, data)
