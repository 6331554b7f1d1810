"""Pictures of tests: `FTestResults.plot`, `TTestResults.plot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.labels import feature_positions, in_order
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, listing
from flashmm.plots import intervals, many_tests
from flashmm.results.pictures_by_name import PicturesByName
from flashmm.slips.answers import answer_calls

__all__ = ["Picturable", "TestPlots"]

# Rows of a picture when nobody says which features.
SHOWN = 20


class Picturable(Protocol):
    """Tests of the same hypotheses for every feature, as far as pictures need them."""

    @property
    def ds(self) -> xr.Dataset:
        """What the tests found."""

    @property
    def contrasts(self) -> list[str]:
        """Labels of the hypotheses."""

    def _position(self, contrast: Any) -> int:
        """Position of one hypothesis."""

    def _tell(self) -> None:
        """Log, once, why the tests cannot be trusted, if so."""

    def adjusted(self, method: str = "bh", *, over: str = "features") -> pd.DataFrame:
        """Adjusted p-values, features x contrasts."""


@dataclass(frozen=True)
class _OneContrast:
    """Tests of one contrast for m features: arrays of shape (m,)."""

    name: str
    features: NDArray[Any]
    estimate: FloatArray
    p: FloatArray
    p_adjusted: FloatArray
    status: NDArray[Any] | None


@answer_calls
@hold_methods
class TestPlots(PicturesByName):
    """Pictures of tests; each method draws one and returns the Axes.

    They need matplotlib: ``pip install 'multilmm[plot]'``.

    Parameters
    ----------
    tests
        What is drawn.

    Examples
    --------
    >>> import numpy as np, matplotlib.pyplot as plt, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
    >>> tests = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), X, Z).fit().t_test("x1")
    >>> tests.plot.volcano().get_xlabel()
    'x1'
    >>> plt.close()
    """

    __test__ = False  # its name is no test's
    place = "tests.plot"
    subject = "tests"

    def __init__(self, tests: Picturable) -> None:
        self.tests = tests

    # ---- all features of one contrast ----------------------------------------------------------

    def volcano(
        self,
        contrast: Any = None,
        *,
        alpha: float = 0.05,
        adjust: str = "bh",
        label: Any = 10,
        ax: Any = None,
    ) -> Any:
        """Evidence by size of the effect, one mark per feature.

        Parameters
        ----------
        contrast
            Label or position; may be left out when there is only one.
        alpha, adjust
            Features whose p-value, adjusted as in `top_table`, is at most alpha have a colour.
        label
            How many of these are named, those with most evidence; or features to name.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            p-values of zero, too small for a number, are triangles at the top; verdicts other than
            converged have marks of their own; features without a test are counted.

        Raises
        ------
        InputError
            If matplotlib is not installed, the tests are joint ones, or an option is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.plot.volcano().get_xlabel()
        'Age'
        >>> plt.close()
        """
        one = self._one(contrast, adjust, "A volcano plot")
        return many_tests.volcano(
            one.estimate,
            one.p,
            names=list(one.features),
            status=one.status,
            p_adjusted=one.p_adjusted,
            alpha=alpha,
            label=_labels(one.features, label),
            xlabel=one.name,
            ax=ax,
        )

    def ma(
        self,
        mean: Any,
        contrast: Any = None,
        *,
        alpha: float = 0.05,
        adjust: str = "bh",
        label: Any = 10,
        ax: Any = None,
    ) -> Any:
        """Size of the effect by the features' means.

        Parameters
        ----------
        mean
            Means of the features: a Series matched by label, or shape (m,). ``result.plot.ma``
            knows them.
        contrast, alpha, adjust, label, ax
            As in `volcano`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, the tests are joint ones, or features have no mean.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.plot.ma(genes.Y[:20].mean(axis=1)).get_xlabel()
        'mean of the feature'
        >>> plt.close()
        """
        one = self._one(contrast, adjust, "An MA plot")
        means = np.asarray(in_order(mean, one.features, "`mean`", of="features", by_text=True))
        if means.shape != one.p.shape:
            raise InputError(
                f"`mean` must be {one.p.size} numbers, one per feature; its shape is {means.shape}."
            )
        return many_tests.mean_difference(
            means,
            one.estimate,
            one.p,
            names=list(one.features),
            status=one.status,
            p_adjusted=one.p_adjusted,
            alpha=alpha,
            label=_labels(one.features, label),
            ylabel=one.name,
            ax=ax,
        )

    def pvalues(self, contrast: Any = None, *, bins: int = 20, ax: Any = None) -> Any:
        """How many features have which p-value, by verdict.

        Parameters
        ----------
        contrast
            Label or position; may be left out when there is only one.
        bins
            Number of bars between 0 and 1.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            The dashed line is where all bars end if no feature has an effect.

        Raises
        ------
        InputError
            If matplotlib is not installed, or the contrast is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> len(tests.plot.pvalues(bins=10).patches)
        10
        >>> plt.close()
        """
        one = self._one(contrast, "none")
        return many_tests.pvalue_histogram(
            one.p, status=one.status, bins=bins, title=one.name, ax=ax
        )

    def qq(self, contrast: Any = None, *, ax: Any = None) -> Any:
        """Quantiles of the p-values by those of a uniform distribution, by verdict.

        Parameters
        ----------
        contrast
            Label or position; may be left out when there is only one.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            See `flashmm.plots.qq`.

        Raises
        ------
        InputError
            If matplotlib is not installed, or the contrast is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> ax = tests.plot.qq()
        >>> plt.close()
        """
        one = self._one(contrast, "none")
        return many_tests.qq(one.p, status=one.status, title=one.name, ax=ax)

    # ---- some features -------------------------------------------------------------------------

    def forest(
        self,
        contrasts: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        ax: Any = None,
    ) -> Any:
        """Estimates and confidence limits: contrasts of one feature, or features.

        Parameters
        ----------
        contrasts
            Label or position, or several; all by default. Of one feature they are the rows; of
            several features they differ in colour.
        features
            Names, a mask or a slice; by default the 20 with the smallest p-values.
        alpha
            One minus the coverage.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, the tests are joint ones or without limits, or more
            than 7 contrasts of several features are to be drawn.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.plot.forest(features=["gene1", "gene2"]).get_xlabel()
        'Age'
        >>> plt.close()
        """
        if not hasattr(self.tests, "conf_int"):
            raise InputError("A forest needs estimates with confidence limits; see `t_test`.")
        columns = self._columns(contrasts)
        rows = self._rows(features, columns)
        limits = self.tests.conf_int(alpha)
        low, high = (limits.sel(bound=b).to_numpy() for b in ("lower", "upper"))
        at = np.ix_(rows, columns)
        middle, low, high = self._values("estimate")[at], low[at], high[at]
        names, labels = self._features[rows], [self.tests.contrasts[i] for i in columns]
        if rows.size == 1:
            title = str(names[0])
            return intervals.forest(middle[0], low[0], high[0], labels, title=title, ax=ax)
        one = columns.size == 1
        named: dict[str, Any] = {"xlabel": labels[0]} if one else {"series": labels}
        return intervals.forest(middle, low, high, list(names), ax=ax, **named)

    def dots(
        self,
        contrasts: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        adjust: str = "bh",
        ax: Any = None,
    ) -> Any:
        """Contrasts by features: colour tells the estimate, area the evidence.

        Parameters
        ----------
        contrasts
            Label or position, or several; all by default.
        features
            Names, a mask or a slice; by default the 20 with the smallest p-values.
        alpha, adjust
            p-values are adjusted over all features, as in `adjusted`; those up to alpha have a
            ring.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, the tests are joint ones, or a name is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.plot.dots(features=["gene1", "gene2"]).get_xticklabels()[0].get_text()
        'Age'
        >>> plt.close()
        """
        self._need_estimates("A dot plot")
        columns = self._columns(contrasts)
        rows = self._rows(features, columns)
        chance = self.tests.adjusted(adjust).to_numpy()[np.ix_(rows, columns)]
        labels = [self.tests.contrasts[i] for i in columns]
        estimate = self._values("estimate")[np.ix_(rows, columns)]
        return intervals.dots(
            estimate, chance, list(self._features[rows]), labels, alpha=alpha, ax=ax
        )

    # ---- parts ---------------------------------------------------------------------------------

    @property
    def _features(self) -> NDArray[Any]:
        return np.asarray(self.tests.ds["feature"].to_numpy())

    def _values(self, name: str) -> FloatArray:
        return np.asarray(self.tests.ds[name].to_numpy(), dtype=np.float64)

    def _need_estimates(self, what: str) -> None:
        if "estimate" not in self.tests.ds:
            raise InputError(
                f"{what} needs estimates, which joint tests do not have; see `t_test`."
            )

    def _one(self, contrast: Any, adjust: str, what: str = "") -> _OneContrast:
        """All features of one contrast."""
        if what:
            self._need_estimates(what)
        self.tests._tell()
        i, ds = self.tests._position(contrast), self.tests.ds
        return _OneContrast(
            name=self.tests.contrasts[i],
            features=self._features,
            estimate=self._values("estimate")[:, i] if what else np.zeros(0),
            p=self._values("p")[:, i],
            p_adjusted=self.tests.adjusted(adjust).to_numpy()[:, i],
            status=ds["status"].to_numpy() if "status" in ds else None,
        )

    def _columns(self, contrasts: Any) -> IntArray:
        """Positions of contrasts, which are called by their labels or positions."""
        labels = self.tests.contrasts
        if contrasts is None:
            return np.arange(len(labels))
        if isinstance(contrasts, (str, int, np.integer)):
            contrasts = [contrasts]
        found = []
        for one in contrasts:
            if isinstance(one, (int, np.integer)) and -len(labels) <= one < len(labels):
                found.append(int(one) % len(labels))
            elif one in labels:
                found.append(labels.index(one))
            else:
                raise InputError(f"Unknown contrast {one!r}. Available: {listing(labels, 10)}.")
        if not found:
            raise InputError("`contrasts` names no contrast.")
        return np.array(found, dtype=np.intp)

    def _rows(self, features: Any, columns: IntArray) -> IntArray:
        """Positions of the features to draw."""
        names = self._features
        if features is not None:
            return feature_positions(names, features)
        if names.size <= SHOWN:
            return np.arange(names.size)
        p = self._values("p")[:, columns]
        with np.errstate(invalid="ignore"):
            smallest = np.where(np.isnan(p), np.inf, p).min(axis=1)
        return np.argsort(smallest, kind="stable")[:SHOWN]


def _labels(features: NDArray[Any], label: Any) -> Any:
    """A number of labels as it is; features as positions."""
    if label is None:
        return 0
    if isinstance(label, (int, np.integer, np.bool_)):
        return label
    return feature_positions(features, [label] if isinstance(label, str) else label)
