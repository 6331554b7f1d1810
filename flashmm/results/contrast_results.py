"""Tests of single contrasts, for every feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import xarray as xr

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import FloatArray
from flashmm.inference.statistics import check_alpha, confidence_limits
from flashmm.results.deferred import Deferred
from flashmm.results.feature_tests import FeatureTests
from flashmm.results.simultaneous import (
    JointContrasts,
    simultaneous_tests,
    two_stage_tests,
)
from flashmm.slips.answers import answer_calls

__all__ = ["TTestResults"]


@answer_calls
@hold_methods
class TTestResults(FeatureTests):
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
    limits
        Confidence limits (features, contrasts, 2) for an alpha, a number or one of each
        limit, where they are not estimate -/+ t se.
    joint
        What is known of the contrasts together, for `simultaneous`.

    Examples
    --------
    >>> import flashmm as fm
    >>> genes = fm.datasets.varpart()
    >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
    >>> tests = model.fit().t_test("Age")
    >>> tests.contrasts, tests.pvalue.shape
    (['Age'], (20, 1))
    >>> tests.top_table(n=2)[["estimate", "se", "p"]].round(3)
             estimate     se      p
    feature
    gene10     -0.029  0.022  0.195
    gene15      0.022  0.018  0.205
    """

    columns = ("estimate", "se", "t", "df", "p")
    statistic = "t"
    _noun = "t tests"

    def __init__(
        self,
        ds: xr.Dataset | Deferred,
        *,
        alternative: str,
        df_method: str,
        limits: Callable[[float | FloatArray], FloatArray] | None = None,
        joint: JointContrasts | None = None,
    ) -> None:
        super().__init__(ds, df_method=df_method)
        self.alternative = alternative
        self.limits = limits
        self.joint = joint

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
    def df(self) -> pd.DataFrame:
        """Degrees of freedom, features x contrasts."""
        return self._frame("df")

    def conf_int(self, alpha: float = 0.05) -> xr.DataArray:
        """Two-sided confidence limits, dims feature, contrast, bound.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> tests = model.fit().t_test("Age")
        >>> tests.conf_int(0.1).sel(feature="gene1").values.round(3).tolist()
        [[-0.025, 0.034]]
        """
        ds = self.ds
        if self.limits is not None:
            check_alpha(alpha)
            limits = self.limits(alpha)
        else:
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

    def simultaneous(
        self, method: str = "mvt", *, alpha: float = 0.05, rng: Any = None
    ) -> xr.Dataset:
        """Test all contrasts at once: family-wise error over the contrasts of a feature.

        Features are not counted: adjust over them too (`adjust_pvalues` of a column), or screen
        them first (`two_stage`). Contrasts of `marginal_means` and `marginal_slopes` with ``by``
        are adjusted within each group, as emmeans does.

        Parameters
        ----------
        method
            ``"tukey"``: all pairwise differences of some means, by the studentized range;
            ``"dunnett"``: means against one control; ``"mvt"``: any contrasts, by the distribution
            of the largest t with their own correlations (single-step); ``"scheffe"``: these and
            all their linear combinations; ``"sidak"``: Sidak's inequality.
        alpha
            One minus the simultaneous coverage.
        rng
            For ``"mvt"`` and ``"dunnett"``: a seed or Generator of the points of the
            quasi-Monte-Carlo integration; always the same points by default. Their standard error
            is about 0.0005 for middling p-values and 1 % of small ones.

        Returns
        -------
        Dataset
            Dims feature, contrast: ``p``, adjusted; ``lower``, ``upper``, simultaneous limits
            (of a one-sided test the other is infinite); ``critical``, to which ``|t|`` is compared;
            estimate, se, t, df; ``family`` (contrast). NaN for features that failed and
            contrasts that are not estimable.

        Raises
        ------
        InputError
            If the method is unknown, or not for such contrasts.

        Notes
        -----
        Each contrast has its own degrees of freedom, as in emmeans. Tukey's method is exact for
        means of equal, uncorrelated variances and conservative for others (Kramer 1956; Hayter
        1984); the largest t is that of a multivariate t distribution with the estimated
        correlations (Hothorn, Bretz & Westfall 2008), sampled by directions
        (`flashmm.inference.max_t`). With ``df="integrated"`` a contrast's statistic is the t
        that has its p-value.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"trt": np.tile(list("ABC"), 16), "g": np.repeat(range(8), 6)})
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ trt + (1 | g)", data=data, Y=rng.normal(size=(3, 48))).fit(parameter_space="psd")
        >>> tests = result.marginal_means("trt", contrast="pairwise")
        >>> table = tests.simultaneous("tukey")
        >>> bool((table["p"] >= tests.ds["p"]).all())
        True
        """
        return simultaneous_tests(self.ds, self.joint, method, alpha, rng, self.limits)

    def two_stage(self, screen: Any, *, alpha: float = 0.05, within: str = "holm") -> xr.Dataset:
        """Screen features by an overall test, then confirm contrasts within those that pass.

        The features' overall p-values are adjusted by Benjamini and Hochberg; the contrasts of the
        R of G features that pass are tested at family-wise level R alpha / G. This keeps the
        overall false discovery rate, the expected share of features with any false rejection
        among those that pass, at alpha (Heller et al. 2009, Bioinformatics 25:1019; Van den
        Berge et al. 2017, Genome Biology 18:151).

        Parameters
        ----------
        screen
            The overall test: what ``f_test(contrasts)`` returns, or p-values by feature (a Series
            is matched by label).
        alpha
            Overall false discovery rate.
        within
            How p-values are adjusted within a feature: ``"holm"``; ``"shaffer"``, Holm's first
            step divided by c - 1, since of c contrasts whose joint hypothesis is false at most
            c - 1 are true; ``"none"``, where logic lets at most one be true (all pairs of three
            means).

        Returns
        -------
        Dataset
            ``p_screen``, ``p_screen_adjusted``, ``passed`` (feature); ``p``, adjusted within the
            feature and times G / R, NaN for features that did not pass, and ``rejected``
            (feature, contrast). They belong to this alpha alone.

        Raises
        ------
        InputError
            If ``screen`` holds several hypotheses or other features.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"trt": np.tile(list("ABC"), 16), "g": np.repeat(range(8), 6)})
        >>> Y = rng.normal(size=(20, 48)) + 2.0 * (data["trt"] == "B").to_numpy()
        >>> result = fm.MultiLMM.from_formula("~ trt + (1 | g)", data=data, Y=Y).fit()
        >>> contrasts = ["trt[T.B]", "trt[T.C]", "trt[T.B] - trt[T.C]"]
        >>> found = result.t_test(contrasts).two_stage(result.f_test(contrasts))
        >>> int(found["passed"].sum())
        20
        """
        return two_stage_tests(self.ds, screen, alpha, within)
