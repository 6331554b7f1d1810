"""Comparison of fits of nested models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from flashmm.exceptions import InputError
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.inference.nesting import check_same_data, nesting
from flashmm.inference.variance_tests import likelihood_ratio
from flashmm.results.estimates import Estimates
from flashmm.stats.own_rows import PatternedStats, same_rows
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["ModelComparison"]


def common_sums(
    large: SummaryStats | PatternedStats, small: SummaryStats | PatternedStats
) -> tuple[SummaryStats, SummaryStats]:
    """The sums of two models of the same features, which must lack the same samples."""
    if not isinstance(large, PatternedStats) and not isinstance(small, PatternedStats):
        return large, small
    if (
        isinstance(large, PatternedStats)
        and isinstance(small, PatternedStats)
        and large.n == small.n
        and same_rows(large, small)
    ):
        return large.sums, small.sums
    raise InputError("The models were fitted to different data: their features miss other samples.")


class ModelComparison(Estimates):
    """Tests of a fit against a fit of a smaller model; part of `MultiLMMResults`."""

    def compare_lr_test(
        self, other: Estimates, *, features: Any = None, adjust: str = "bh"
    ) -> pd.DataFrame:
        """Likelihood-ratio test of this fit against that of a nested model, for every feature.

        Parameters
        ----------
        other
            A fit of the same data by the same method with fewer fixed effects (ML only), fewer
            random effects, or both; ``model.drop(...)`` makes such models.
        features
            Names, positions or a mask; all features of this fit by default. ``other`` must have
            them.
        adjust
            ``"bh"``, ``"by"``, ``"holm"``, ``"bonferroni"`` or ``"none"``.

        Returns
        -------
        DataFrame
            Indexed by feature: ``statistic``, twice the gain in log-likelihood; ``df``, the
            number of parameters more; ``p``; ``p_adjusted``. NaN where either fit did not
            converge. ``attrs["null"]`` names the null distribution: chi-square, or a mixture where
            a variance is tested in the psd space.

        Raises
        ------
        InputError
            If the fits are not of the same data, method and parameter space, the models are not
            nested, or REML fits have different fixed effects: restricted likelihoods are then
            likelihoods of different data.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), X, Z)
        >>> test = model.fit("ML").compare_lr_test(model.drop(fixed="x2").fit("ML"))
        >>> test["df"].tolist(), test.attrs["null"]
        ([1, 1, 1], 'chi2_1')
        """
        if not isinstance(other, Estimates):
            raise InputError(f"`other` must be the results of a fit; it is {type(other).__name__}.")
        for option in ("method", "parameter_space"):
            mine, theirs = getattr(self.options, option), getattr(other.options, option)
            if mine != theirs:
                raise InputError(
                    f"The fits differ in {option}: {mine!r} and {theirs!r}. Fit both alike."
                )
        positions = self._positions(features)
        names = self._features.to_numpy()[positions]
        theirs = other._positions(names)
        large, small = common_sums(self.stats.take(positions), other.stats.take(theirs))
        lacks = nesting(large, small)
        if lacks.df == 0:
            raise InputError("The two models have the same parameters: there is nothing to test.")
        check_same_data(large, small)
        if self.method == "REML" and lacks.coefficients:
            raise InputError(
                "REML fits with different fixed effects cannot be compared by their likelihoods. "
                "Fit both with method='ML', or test the coefficients with f_test."
            )
        good = self.converged.to_numpy()[positions] & other.converged.to_numpy()[theirs]
        full, reduced = self.llf.to_numpy()[positions], other.llf.to_numpy()[theirs]
        statistic = np.where(good, likelihood_ratio(full, reduced), np.nan)
        null = lacks.null(self.options.parameter_space)
        p = null.sf(statistic)
        table = pd.DataFrame(
            {
                "statistic": statistic,
                "df": lacks.df,
                "p": p,
                "p_adjusted": adjust_pvalues(p, adjust),
            },
            index=pd.Index(names, name="feature"),
        )
        table.attrs["null"] = str(null)
        return table
