"""TTestResults: tests of contrasts for all features, and their tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.exceptions import InputError, nearest
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.inference.statistics import confidence_limits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["TTestResults"]

_SORT = {"p": "p", "pvalue": "p", "t": "t", "effect": "estimate", "estimate": "estimate"}


class TTestResults:
    """Tests of linear contrasts of the fixed effects, for every feature.

    Parameters
    ----------
    ds
        Dataset with dims feature and contrast: estimate, se, t, df, p; value (contrast); and,
        if known, status (feature).
    alternative
        ``"two-sided"``, ``"greater"`` or ``"less"``.
    df_method
        How the degrees of freedom were found.
    """

    def __init__(self, ds: xr.Dataset, *, alternative: str, df_method: str) -> None:
        self.ds = ds
        self.alternative = alternative
        self.df_method = df_method

    @property
    def contrasts(self) -> list[str]:
        """Labels of the contrasts."""
        return [str(name) for name in self.ds["contrast"].to_numpy()]

    @property
    def effect(self) -> pd.DataFrame:
        """Estimates, features x contrasts, in the units of Y."""
        return self._frame("estimate")

    @property
    def sd(self) -> pd.DataFrame:
        """Standard errors of the estimates, features x contrasts."""
        return self._frame("se")

    @property
    def tvalue(self) -> pd.DataFrame:
        """T statistics, features x contrasts."""
        return self._frame("t")

    @property
    def pvalue(self) -> pd.DataFrame:
        """p-values, features x contrasts, not adjusted."""
        return self._frame("p")

    @property
    def df(self) -> pd.DataFrame:
        """Degrees of freedom, features x contrasts."""
        return self._frame("df")

    def adjusted(self, method: str = "bh") -> pd.DataFrame:
        """p-values adjusted over the features, separately for each contrast.

        Parameters
        ----------
        method
            ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.
        """
        p = self.pvalue
        return pd.DataFrame(adjust_pvalues(p.to_numpy(), method), index=p.index, columns=p.columns)

    def conf_int(self, alpha: float = 0.05) -> xr.DataArray:
        """Two-sided confidence limits, dims feature, contrast, bound."""
        ds = self.ds
        limits = confidence_limits(
            ds["estimate"].to_numpy(), ds["se"].to_numpy(), ds["df"].to_numpy(), alpha
        )
        coords = {name: ds[name] for name in ("feature", "contrast")}
        return xr.DataArray(
            limits,
            dims=("feature", "contrast", "bound"),
            coords={**coords, "bound": ["lower", "upper"]},
            name="conf_int",
        )

    def top_table(
        self,
        contrast: str | int | None = None,
        *,
        n: int | None = 10,
        sort_by: str = "p",
        adjust: str = "bh",
        alpha: float | None = None,
    ) -> pd.DataFrame:
        """The features with the strongest evidence on one contrast.

        Parameters
        ----------
        contrast
            Label or position; may be left out when there is only one.
        n
            Number of rows; None for all.
        sort_by
            ``"p"``, ``"t"`` (absolute) or ``"estimate"`` (absolute).
        adjust
            Adjustment over the features: ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"``,
            ``"none"``.
        alpha
            Keep only features whose adjusted p-value is at most alpha.

        Returns
        -------
        DataFrame
            Indexed by feature: estimate, se, t, df, p, p_adjusted, status (the verdict).

        Raises
        ------
        InputError
            If the contrast or an option is unknown.
        """
        position = self._position(contrast)
        if sort_by not in _SORT:
            raise InputError(f"Unknown sort_by={sort_by!r}. {nearest(str(sort_by), list(_SORT))}")
        one = self.ds.isel(contrast=position)
        index = self._features()
        table = pd.DataFrame(
            {name: one[name].to_numpy() for name in ("estimate", "se", "t", "df", "p")}, index=index
        )
        table["p_adjusted"] = adjust_pvalues(table["p"].to_numpy(), adjust)
        if "status" in one:
            table["status"] = one["status"].to_numpy()
        key = table[_SORT[sort_by]].to_numpy()
        size = np.abs(table["t"].to_numpy())
        first = key if _SORT[sort_by] == "p" else -np.abs(key)
        size, first = np.where(np.isnan(size), -1.0, size), np.where(np.isnan(first), np.inf, first)
        order = np.lexsort((-size, first))  # ties in p (underflow) by |t|
        table = table.iloc[order]
        if alpha is not None:
            table = table[table["p_adjusted"] <= alpha]
        return table if n is None else table.head(n)

    def to_frame(self, adjust: str = "bh") -> pd.DataFrame:
        """One row per feature and contrast: estimate, se, t, df, p, p_adjusted."""
        adjusted = self.adjusted(adjust).to_numpy()
        features, contrasts = self._features(), self.contrasts
        index = pd.MultiIndex.from_product([features, contrasts], names=["feature", "contrast"])
        columns = {
            name: self.ds[name].to_numpy().ravel() for name in ("estimate", "se", "t", "df", "p")
        }
        table = pd.DataFrame({**columns, "p_adjusted": adjusted.ravel()}, index=index)
        if "status" in self.ds:
            table["status"] = np.repeat(self.ds["status"].to_numpy(), len(contrasts))
        return table

    summary_frame = to_frame

    def __repr__(self) -> str:
        m, c = self.ds.sizes["feature"], self.ds.sizes["contrast"]
        return (
            f"<TTestResults: {m} features x {c} contrasts, {self.alternative}, df={self.df_method}>"
        )

    def _features(self) -> pd.Index:
        return pd.Index(self.ds["feature"].to_numpy(), name="feature")

    def _frame(self, name: str) -> pd.DataFrame:
        columns = pd.Index(self.contrasts, name="contrast")
        return pd.DataFrame(self.ds[name].to_numpy(), index=self._features(), columns=columns)

    def _position(self, contrast: Any) -> int:
        labels = self.contrasts
        if contrast is None:
            if len(labels) > 1:
                raise InputError(
                    f"There are {len(labels)} contrasts; say which. {nearest('', labels)}"
                )
            return 0
        if isinstance(contrast, (int, np.integer)):
            if not -len(labels) <= contrast < len(labels):
                raise InputError(f"Contrast {contrast} is out of range: there are {len(labels)}.")
            return int(contrast)
        if contrast not in labels:
            raise InputError(f"Unknown contrast {contrast!r}. {nearest(str(contrast), labels)}")
        return labels.index(contrast)
