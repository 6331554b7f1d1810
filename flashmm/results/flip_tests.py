"""Tests by sign flips of groups' scores, with labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.cluster_robust import scores
from flashmm.inference.sign_flips import Contributions, contributions, flip_tests, sign_flips
from flashmm.inference.statistics import resolve_alternative
from flashmm.progress import Progress, counted
from flashmm.results.cluster_robust import Clusters, clusters_of
from flashmm.results.estimability import estimable_contrasts
from flashmm.results.feature_tests import FeatureTests
from flashmm.results.fitted import FittedModel
from flashmm.slips.answers import answer_calls

__all__ = ["FlipTestResults", "flip_test"]


@answer_calls
class FlipTestResults(FeatureTests):
    """Tests of contrasts by sign flips, for every feature and for all features at once.

    Parameters
    ----------
    ds
        Dataset with dims feature and contrast: estimate, t, p, p_fwer; and status (feature).
    df_method
        What took the place of degrees of freedom.

    Examples
    --------
    >>> import flashmm as fm
    >>> genes = fm.datasets.varpart()
    >>> model = fm.MultiLMM.from_formula(
    ...     "~ Age", "(1 | Individual)", genes.data, genes.Y[:20], sums_by="Individual"
    ... )
    >>> tests = model.fit(parameter_space="psd").flip_test("Age", rng=1)
    >>> tests.top_table(n=2)[["estimate", "t"]].round(3)
             estimate      t
    feature
    gene6      -0.039 -1.519
    gene16      0.013  1.234
    """

    columns = ("estimate", "t", "p", "p_fwer")
    statistic = "t"
    _noun = "sign-flip tests"

    @property
    def effect(self) -> pd.DataFrame:
        """Estimates, features x contrasts, in the units of Y."""
        return self._frame("estimate")

    @property
    def tvalue(self) -> pd.DataFrame:
        """Statistics of the data, features x contrasts."""
        return self._frame("t")

    @property
    def pvalue_fwer(self) -> pd.DataFrame:
        """p-values that hold for all features of a contrast at once, features x contrasts."""
        return self._frame("p_fwer")


def flip_test(
    fitted: FittedModel,
    positions: IntArray,
    contrast: Any,
    by: Any,
    n_flips: int,
    rng: Any,
    alternative: str,
    statistic: Callable[[FloatArray], FloatArray] | None,
    progress: Progress = None,
) -> FlipTestResults:
    """Tests by sign flips; see `MultiLMMResults.flip_test`."""
    fitted.one_residual("flip_test")
    side = resolve_alternative(alternative)
    if isinstance(n_flips, bool) or not isinstance(n_flips, (int, np.integer)) or n_flips < 2:
        raise InputError(f"`n_flips` must be a whole number of at least 2, not {n_flips!r}.")
    if statistic is not None and not callable(statistic):
        raise InputError(
            "`statistic` must be a function of statistics (f, m), flips x features, that gives as "
            f"many, not {statistic!r}."
        )
    read = estimable_contrasts(fitted.stats, contrast)
    clusters = clusters_of(fitted, by, "flip_test", "by")
    labels, L = read.contrasts.labels, read.contrasts.matrix
    estimate = fitted.values("beta", positions) @ L.T
    signs = sign_flips(clusters.groups.k, int(n_flips), np.random.default_rng(rng), side)
    difference = estimate - read.contrasts.values
    found = {name: np.full(estimate.shape, np.nan) for name in ("t", "p", "p_fwer")}
    wanted = np.flatnonzero(read.estimable)
    parts = _contributions(clusters, positions, L[wanted], difference[:, wanted])
    with counted(progress, wanted.size, unit="contrast", desc="sign flips") as done:
        for column, part in zip(wanted, parts, strict=True):
            try:
                tests = flip_tests(part, signs, side, statistic)
            except ValueError as error:
                if statistic is None:
                    raise
                raise InputError(f"`statistic` failed: what it gives is {error}.") from error
            found["t"][:, column], found["p"][:, column] = tests.statistic, tests.p
            found["p_fwer"][:, column] = tests.adjusted
            done(1)
    dims = ("feature", "contrast")
    shown = f"{signs.shape[0]} sign flips by {clusters.groups.name}"
    ds = xr.Dataset(
        {
            "estimate": (dims, np.where(read.estimable, estimate, np.nan)),
            **{name: (dims, values) for name, values in found.items()},
            "value": (("contrast",), read.contrasts.values),
            "estimable": (("contrast",), read.estimable),
            "status": (("feature",), fitted.verdicts[positions]),
        },
        coords={"feature": fitted.features[positions], "contrast": pd.Index(labels)},
        attrs={"alternative": side, "df": shown, "n_flips": signs.shape[0], "note": ""},
    )
    return FlipTestResults(ds, df_method=shown)


def _contributions(
    clusters: Clusters, positions: IntArray, L: FloatArray, difference: FloatArray
) -> list[Contributions]:
    """Contributions of the groups to the score of each contrast; NaN without an estimate."""
    k, p, m = clusters.groups.k, L.shape[1], positions.size
    found = [
        Contributions(np.full((k, m), np.nan), np.full((p - 1, k, m), np.nan), np.full(m, np.nan))
        for _ in L
    ]
    r = clusters.largest
    for here, features, scale in clusters.batches(positions, k * (r * r + 2 * r * p + 3 * p * p)):
        beta = clusters.fitted.values("beta", features)
        of_features, theta = clusters.at(features, beta, scale)
        score = scores(of_features, theta)
        unit = np.sqrt(scale)
        for into, contrast, gap in zip(found, L, difference[here].T, strict=True):
            one = contributions(score, contrast, gap / unit)
            into.score[:, here] = one.score
            into.nuisance[:, :, here] = one.nuisance
            into.variance[here] = one.variance
    return found
