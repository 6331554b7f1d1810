"""Plain tables of one feature, and what its fit says of samples; functions do the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import IntArray
from flashmm.results import predictions, residuals, tidy
from flashmm.results.fitted import FittedModel
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OneFeatureTables"]


@answer_calls
@hold_methods
class OneFeatureTables:
    """Tables and samples of one feature; part of `FeatureResults`."""

    _fitted: FittedModel
    _positions: IntArray
    _in_whole: tuple[FittedModel, IntArray]

    def tidy(self, **options: Any) -> pd.DataFrame:
        """One row per parameter; see `MultiLMMResults.tidy`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
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
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
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
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.augment(data=sleep.data)[["y", "fitted", "resid"]].head(2).round(1)
               y  fitted  resid
        0  249.6   253.7   -4.1
        1  258.7   273.3  -14.6
        """
        table = tidy.augment(*self._in_whole, Y, data, options)
        return tidy.one_sample_table(table, data)

    def predict(self, newdata: Any = None, **options: Any) -> xr.DataArray | xr.Dataset:
        """Predict new samples; see `MultiLMMResults.predict`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.predict({"Days": [0.0, 9.0]}).values.round(1).tolist()
        [251.4, 345.6]
        """
        found = predictions.predict(self._fitted, self._positions, newdata, **options)
        return found.isel(feature=0)

    def fittedvalues(self, data: Any = None, **options: Any) -> pd.Series[Any]:
        """Fitted values, the samples' table given again; `MultiLMMResults.fittedvalues`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.fittedvalues(sleep.data).head(3).round(1).tolist()
        [253.7, 273.3, 293.0]
        """
        found = predictions.fittedvalues(*self._in_whole, data, **options)
        return found.isel(feature=0).to_series().rename("fittedvalues")

    def resid(self, Y: Any = None, data: Any = None, **options: Any) -> pd.Series[Any]:
        """Residuals, Y and the samples' table given again; see `MultiLMMResults.resid`.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.resid(data=sleep.data).head(3).round(1).tolist()
        [-4.1, -14.6, -42.2]
        """
        found = residuals.resid(*self._in_whole, Y, data, **options)
        return found.isel(feature=0).to_series().rename("resid")
