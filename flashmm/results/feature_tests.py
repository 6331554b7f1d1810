"""What tests of all features have in common: their tables, whatever the hypothesis."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.labels import feature_positions, find_labels
from flashmm.arrays.types import BoolArray
from flashmm.exceptions import InputError, check_option, nearest
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.results.deferred import Deferred, dataset_of
from flashmm.results.plots_of_tests import TestPlots
from flashmm.slips.answers import answer_calls, no_such_attribute
from flashmm.slips.attributes import TESTS

__all__ = ["FeatureTests"]

log = logging.getLogger("flashmm")

# What pertpy and scanpy call the columns of a table of differential expression.
_STYLES = {
    "pertpy": {
        "estimate": "log_fc",
        "p": "p_value",
        "p_adjusted": "adj_p_value",
        "t": "t_value",
        "se": "sd",
    },
    "scanpy": {
        "t": "scores",
        "estimate": "logfoldchanges",
        "p": "pvals",
        "p_adjusted": "pvals_adj",
    },
}
_LABELS = {"pertpy": "variable", "scanpy": "names"}

_ROWS = 12  # of a table that is printed

_SORT = {"p": "p", "pvalue": "p", "t": "t", "F": "F", "effect": "estimate", "estimate": "estimate"}


@answer_calls
@hold_methods
class FeatureTests:
    """Tests of the same hypotheses for every feature; the foundation of what users are handed.

    Parameters
    ----------
    ds
        Dataset with dims feature and contrast; it holds p and the variables of `columns`.
    df_method
        How the degrees of freedom were found.
    """

    columns: tuple[str, ...] = ("p",)
    statistic = "p"
    _noun = "tests"

    def __init__(self, ds: xr.Dataset | Deferred, *, df_method: str) -> None:
        self._ds = ds
        self.df_method = df_method
        self._told = False

    @property
    def ds(self) -> xr.Dataset:
        """What the tests found, as an xarray Dataset."""
        return dataset_of(self._ds)

    @property
    def contrasts(self) -> list[str]:
        """Labels of the hypotheses."""
        return [str(name) for name in self.ds["contrast"].to_numpy()]

    @property
    def estimable(self) -> pd.Series[Any]:
        """Whether the samples determine what is tested, by hypothesis.

        Where columns of X depend on others (``rank="drop"``) some contrasts have no answer: they
        are NaN, and ``"not estimable"`` is their status in tables.
        """
        index = pd.Index(self.contrasts, name="contrast")
        return pd.Series(self._estimable(), index=index, name="estimable")

    @property
    def pvalue(self) -> pd.DataFrame:
        """p-values, features x contrasts, not adjusted."""
        return self._frame("p")

    def adjusted(self, method: str = "bh", *, over: str = "features") -> pd.DataFrame:
        """p-values adjusted for multiple testing.

        Parameters
        ----------
        method
            ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.
        over
            ``"features"``: separately for each contrast; ``"all"``: over all features and
            contrasts together.

        Raises
        ------
        InputError
            If an option is unknown.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.adjusted("holm").min().round(2).to_dict()
        {'Age': 1.0}
        """
        p = self.pvalue
        values = p.to_numpy()
        check_option("over", over, ("features", "all"))
        if over == "features":
            adjusted = adjust_pvalues(values, method)
        else:
            adjusted = adjust_pvalues(values.reshape(-1), method).reshape(values.shape)
        return pd.DataFrame(adjusted, index=p.index, columns=p.columns)

    def top_table(
        self,
        contrast: str | int | None = None,
        *,
        n: int | None = 10,
        sort_by: str = "p",
        adjust: str = "bh",
        adjust_over: str = "features",
        alpha: float | None = None,
        style: str | None = None,
    ) -> pd.DataFrame:
        """The features with the strongest evidence on one contrast.

        Parameters
        ----------
        contrast
            Label or position; may be left out when there is only one.
        n
            Number of rows; None for all.
        sort_by
            ``"p"`` or a column, by size: ``"t"``, ``"estimate"`` or ``"F"``.
        adjust
            ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.
        adjust_over
            ``"features"`` or ``"all"`` (all contrasts too), as in `adjusted`.
        alpha
            Keep only features whose adjusted p-value is at most alpha.
        style
            ``"pertpy"`` or ``"scanpy"`` for their names of the columns, features as a column;
            the log fold change is then the estimate, in the units of Y: a log2 fold change
            where Y is log2, as ``transform="log2p1"`` makes it.

        Returns
        -------
        DataFrame
            Indexed by feature: estimate, se, t, df, p (or F, df_num, df_denom, p), p_adjusted,
            status (the verdict). In the style of pertpy: variable, log_fc, p_value,
            adj_p_value, t_value, sd, df, contrast, status; of scanpy: names, scores,
            logfoldchanges, pvals, pvals_adj.

        Raises
        ------
        InputError
            If the contrast or an option is unknown.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.top_table("Age", n=2)[["estimate", "p", "p_adjusted"]].round(3)
                 estimate      p  p_adjusted
        feature
        gene10     -0.029  0.195       0.952
        gene15      0.022  0.205       0.952
        """
        position = self._position(contrast)
        self._tell()
        options = [name for name, column in _SORT.items() if column in self.columns]
        check_option("sort_by", sort_by, options)
        one = self.ds.isel(contrast=position)
        table = pd.DataFrame(
            {name: one[name].to_numpy() for name in self.columns}, index=self._features()
        )
        table["p_adjusted"] = self.adjusted(adjust, over=adjust_over).to_numpy()[:, position]
        if "status" in one:
            table["status"] = self._status()[:, position]
        key = table[_SORT[sort_by]].to_numpy()
        size = np.abs(table[self.statistic].to_numpy())
        first = key if _SORT[sort_by] == "p" else -np.abs(key)
        size, first = np.where(np.isnan(size), -1.0, size), np.where(np.isnan(first), np.inf, first)
        order = np.lexsort((-size, first))  # ties in p (underflow) by the statistic
        table = table.iloc[order]
        if alpha is not None:
            table = table[table["p_adjusted"] <= alpha]
        if style is not None:
            table = _styled(table, style, self.contrasts[position])
        if n is None:
            return table
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
            raise InputError(f"`n` must be a whole number of features, or None for all, not {n!r}.")
        return table.head(int(n))

    def to_frame(
        self,
        adjust: str = "bh",
        *,
        adjust_over: str = "features",
        layout: Literal["long", "wide"] = "long",
    ) -> pd.DataFrame:
        """One row per feature and contrast, with the columns of `top_table`; or one per feature.

        Parameters
        ----------
        adjust, adjust_over
            As in `top_table`.
        layout
            ``"long"``, or ``"wide"``: a row per feature, columns (contrast, quantity).

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.to_frame().shape
        (20, 7)
        >>> tests.to_frame(layout="wide").columns[:2].tolist()
        [('Age', 'estimate'), ('Age', 'se')]
        """
        check_option("layout", layout, ("long", "wide"))
        adjusted = self.adjusted(adjust, over=adjust_over).to_numpy()
        features, contrasts = self._features(), self.contrasts
        index = pd.MultiIndex.from_product([features, contrasts], names=["feature", "contrast"])
        columns = {name: self.ds[name].to_numpy().ravel() for name in self.columns}
        table = pd.DataFrame({**columns, "p_adjusted": adjusted.ravel()}, index=index)
        if "status" in self.ds:
            table["status"] = self._status().ravel()
        return table if layout == "long" else _wide(table, features, contrasts)

    def summary_frame(self, adjust: str = "bh", *, adjust_over: str = "features") -> pd.DataFrame:
        """The table of `to_frame`, under statsmodels' name for it.

        Parameters
        ----------
        adjust, adjust_over
            As in `top_table`.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.summary_frame().columns[:4].tolist()
        ['estimate', 'se', 't', 'df']
        """
        return self.to_frame(adjust, adjust_over=adjust_over)

    @property
    def feature_names(self) -> pd.Index:
        """Names of the tested features, in order."""
        return self._features()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.ds["feature"].to_numpy().tolist())

    def __contains__(self, feature: object) -> bool:
        return bool(find_labels(self.ds["feature"].to_numpy(), [feature])[0] >= 0)

    def __getitem__(self, feature: Any) -> pd.DataFrame:
        """The rows of `to_frame` of one feature, by contrast, or of several."""
        one = np.ndim(feature) == 0 and not isinstance(feature, slice)
        names = self.ds["feature"].to_numpy()
        if isinstance(feature, str) and feature in self.contrasts and feature not in self:
            raise InputError(
                f"{feature!r} is a contrast, and tests[...] chooses features: its p-values are "
                f"tests.pvalue[{feature!r}], its table tests.top_table({feature!r})."
            )
        at = feature_positions(names, [feature] if one else feature)
        count, table = len(self.contrasts), self.to_frame()
        rows = (at[:, None] * count + np.arange(count)).ravel()
        return table.iloc[rows].droplevel(0) if one else table.iloc[rows]

    def __len__(self) -> int:
        return int(self.ds.sizes["feature"])

    @property
    def plot(self) -> TestPlots:
        """Pictures: ``tests.plot.volcano()``, ``qq``, ``pvalues``, ``ma``, ``forest``, ``dots``."""
        return TestPlots(self)

    def _tell(self) -> None:
        """Log, once, why these tests cannot be trusted, if so; also in ``ds.attrs["note"]``."""
        note = self.ds.attrs.get("note", "")
        if note and not self._told:
            log.warning(note)
            self._told = True

    def _title(self) -> str:
        m, c = self.ds.sizes["feature"], self.ds.sizes["contrast"]
        side = f"{self.ds.attrs['alternative']}, " if "alternative" in self.ds.attrs else ""
        if "margin" in self.ds:
            side += f"null {self.ds.attrs['null']} the margin, "
        return f"{self._noun}: {m} features x {c} contrasts, {side}df={self.df_method}"

    def __repr__(self) -> str:
        table = self.to_frame()
        shown = table.to_string(max_rows=_ROWS, float_format=_short) if len(table) else ""
        return "\n".join([self._title(), *([shown] if shown else [])])

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Tests", own=TESTS)

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(max_rows=_ROWS, float_format=_short)
        return f"<p>{html.escape(self._title())}</p>\n{table}"

    def _estimable(self) -> BoolArray:
        if "estimable" in self.ds:
            return np.asarray(self.ds["estimable"].to_numpy(), dtype=bool)
        return np.ones(self.ds.sizes["contrast"], dtype=bool)

    def _status(self) -> NDArray[Any]:
        """Verdict of each feature and hypothesis, shape (m, c)."""
        verdict = self.ds["status"].to_numpy()[:, None]
        return np.where(self._estimable(), verdict, np.array("not estimable", dtype=object))

    def _features(self) -> pd.Index:
        return pd.Index(self.ds["feature"].to_numpy(), name="feature")

    def _frame(self, name: str) -> pd.DataFrame:
        columns = pd.Index(self.contrasts, name="contrast")
        return pd.DataFrame(self.ds[name].to_numpy(), index=self._features(), columns=columns)

    def _position(self, contrast: Any) -> int:
        labels = self.contrasts
        if not labels:
            raise InputError("There is no hypothesis to show: the formula has an intercept alone.")
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


def _short(value: float) -> str:
    return f"{value:.4g}"


def _wide(table: pd.DataFrame, features: pd.Index, contrasts: list[str]) -> pd.DataFrame:
    """A table with a row per feature, of one with a row per feature and contrast."""
    count = len(contrasts)
    if count == 0:
        return pd.DataFrame(index=features)
    parts = [table.iloc[i::count].set_axis(features) for i in range(count)]
    return pd.concat(parts, axis=1, keys=contrasts, names=["contrast", "quantity"])


def _styled(table: pd.DataFrame, style: str, contrast: str) -> pd.DataFrame:
    """A table of t-tests under the names of another package."""
    check_option("style", style, list(_STYLES))
    if "estimate" not in table:
        raise InputError(f"style={style!r} is for single contrasts: joint tests have no estimate.")
    names = _STYLES[style]
    result = table[list(names)].rename(columns=names)
    if style == "pertpy":
        result["df"], result["contrast"] = table["df"], contrast
        if "status" in table:
            result["status"] = table["status"]
    return result.rename_axis(index=_LABELS[style]).reset_index()
