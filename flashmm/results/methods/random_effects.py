"""Methods on the variance components and the random effects: tests, shares, limits, BLUPs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.results import (
    correlations,
    heterogeneity,
    random_effects,
    structured,
    variance_components,
    variance_shares,
    variance_tests,
)
from flashmm.results.fitted import OfFittedModel
from flashmm.results.refit import Progress
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["RandomEffectMethods"]


@answer_calls
@hold_methods
class RandomEffectMethods(OfFittedModel):
    """Variance components and random effects; part of `MultiLMMResults`."""

    def variance_components(
        self, *, alternative: str = "two-sided", features: Any = None
    ) -> xr.Dataset:
        """Variances and covariances with standard errors and, unconstrained, z-tests.

        Parameters
        ----------
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature, param: ``estimate`` and ``se`` in squared units of Y, the standard error
            from the expected information; in the unconstrained space ``z``, estimate / se, and its
            normal p-value ``p``. In the psd space a variance of zero is on the boundary, where z
            is not normal: use `variance_test`.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> list(result.variance_components())
        ['estimate', 'se', 'z', 'p']
        """
        return variance_components.variance_components(
            self.fitted, self.fitted.positions(features), alternative=alternative
        )

    def variance_test(
        self,
        components: str | Sequence[str] | None = None,
        *,
        null: Literal["asymptotic", "exact"] = "asymptotic",
        n_sim: int = 10_000,
        rng: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> xr.Dataset:
        """Likelihood-ratio tests that random effects are absent, for every feature.

        Every feature is fitted again without the component, from the same statistics. The
        fixed effects stay, so the test is valid under REML too.

        Parameters
        ----------
        components
            Names of variances, ``"Subject[Days]"``, whose covariances go with them, or of
            terms, ``"Subject"``, which go whole. Every variance by default.
        null
            ``"asymptotic"``: chi-square in the unconstrained space; in the psd space a mixture
            of chi-squares (Self & Liang 1987, Stram & Lee 1994). ``"exact"``: the finite-sample
            distribution of Crainiceanu & Ruppert (2004), for models with one variance component,
            against a positive variance.
        n_sim
            Draws from the exact null distribution; one set serves all features.
        rng
            Random numbers for them: a Generator or a seed.
        features
            Names, a mask or a slice; all by default.
        progress
            Of the fits without a component, as in `MultiLMM.fit`.

        Returns
        -------
        Dataset
            Dims feature, component: ``statistic``, twice the gain in log-likelihood; ``p``;
            ``loglik_null``; with the exact null ``p_se``, the Monte Carlo standard error of p.
            The coordinate ``null`` says what distribution each component has.

        Raises
        ------
        InputError
            If a component is unknown, or the exact distribution does not apply.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> test = model.fit(parameter_space="psd").variance_test()
        >>> test["null"].item()
        '0.5 chi2_0 + 0.5 chi2_1'
        """
        return variance_tests.variance_test(
            self.fitted,
            self.fitted.positions(features),
            components,
            null=null,
            n_sim=n_sim,
            rng=rng,
            progress=progress,
        )

    def heterogeneity(self, *, features: Any = None) -> xr.Dataset:
        """How far samples differ beyond their known variances: Q, I2 and H2 of meta-analysis.

        For fits with ``residual_variance``. Cochran's Q is y'Py without random effects, chi-square
        on n - p if there are none (Cochran 1954). I2 is the percentage that the components make up
        of what a typical sample varies, theirs and the typical sampling variance
        (n - p) / tr P (Higgins & Thompson 2002, equation 9), and H2 the total over the latter.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            By feature: ``Q``, ``df``, ``p``; ``typical_variance`` in squared units of Y, ``I2`` in
            percent, ``H2``: NaN unless a random intercept has a level for every sample, from
            which tr P is known. Without random effects H2 is Q / df, and I2 the share of Q above
            df. By feature and component, random intercepts: ``tau2``, ``I2_component``; that of
            a known covariance counts with its mean diagonal over the levels with samples.

        Raises
        ------
        InputError
            If the residual variance was estimated.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> s2 = rng.uniform(0.05, 0.2, size=(3, 12))  # effects of 12 studies on 3 genes
        >>> y = 0.5 + rng.normal(scale=0.4, size=(3, 12)) + np.sqrt(s2) * rng.normal(size=(3, 12))
        >>> model = fm.MultiLMM.from_arrays(y, np.ones((12, 1)), np.eye(12), weights=1 / s2)
        >>> result = model.fit(residual_variance=1.0, parameter_space="psd")
        >>> result.heterogeneity()["I2"].to_numpy().round(1)
        array([...])
        """
        return heterogeneity.heterogeneity(self.fitted, self.fitted.positions(features))

    def icc(self, *, features: Any = None) -> xr.Dataset:
        """Intra-class correlations: each random effect's share of the random variance.

        The fixed effects are left out of the total, which makes this the adjusted
        repeatability of Nakagawa & Schielzeth (2010, Biol Rev 85:935). A correlated term counts as
        one component, with its variance averaged over the samples.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature, component (the residual last): ``estimate`` and ``se``, by the delta
            method; NaN where the total is not positive.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> bool(np.allclose(result.icc()["estimate"].sum("component"), 1.0))
        True
        """
        return variance_shares.icc(self.fitted, self.fitted.positions(features))

    def variance_fractions(
        self,
        *,
        by: Literal["term", "coef"] = "term",
        column_means: ArrayLike | None = None,
        features: Any = None,
    ) -> xr.Dataset:
        """Shares of the total variance: every fixed term, random effect and the residual.

        As variancePartition defines them (Hoffman & Schadt 2016, BMC Bioinformatics 17:483): a
        fixed term has the variance over the samples of its part of the linear predictor, and
        these are scaled to add up to that of all fixed effects together. A random effect with
        slopes has its variance averaged over the samples (Johnson 2014).

        Parameters
        ----------
        by
            ``"term"``: the coefficients of one term of the formula together; ``"coef"``: each
            alone, as variancePartition does for mixed models.
        column_means
            Means of the columns of X over the samples, shape (p,). They follow from the
            statistics where the model has an intercept, indicators of all levels of a factor
            (``0 + group``) or a random intercept ``(1 | group)``.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature, component (fixed, then random, the residual last): ``estimate``,
            adding up to one, and ``se``, by the delta method.

        Raises
        ------
        InputError
            If the means of the columns of X are needed and not known.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=9, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit()
        >>> result.variance_fractions()["component"].values.tolist()
        ['log(libsize)', 'cls', 'sam', 'Residual']
        """
        return variance_shares.variance_fractions(
            self.fitted, self.fitted.positions(features), by=by, column_means=column_means
        )

    def conf_int_theta(
        self,
        alpha: float = 0.05,
        *,
        method: Literal["wald", "profile"] = "wald",
        scale: Literal["variance", "sd"] = "variance",
        params: str | Sequence[str] | None = None,
        features: Any = None,
        progress: Progress = None,
        max_seconds: float | None = None,
    ) -> xr.DataArray:
        """Confidence limits of the variances and covariances.

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"wald"``: estimate -/+ z se; in the psd space limits of a variance are symmetric on
            the log scale, theta exp(-/+ z se / theta), and NaN for a variance of zero.
            ``"profile"``: where the log-likelihood that was fitted (restricted for REML), maximised
            over the other variance parameters, has fallen by half the chi-square quantile.
        scale
            ``"variance"``, or ``"sd"`` for the square roots of the variances' limits (0 for a
            negative lower limit), covariances left out.
        params
            Names of variance parameters; all by default.
        features
            Names, a mask or a slice; all by default.
        progress
            Of profiles: None (default) for a bar on a terminal once they have taken a few
            seconds, True for one at once, False for none (needs tqdm), or a function of the
            numbers of parameters done and in all.
        max_seconds
            Of profiles: limits that are not found after so many seconds are NaN, and counted in
            the warning. No limit by default; correlated blocks of four effects take seconds a
            feature.

        Returns
        -------
        DataArray
            Dims feature, param, bound (lower, upper). The profile of a variance in the psd
            space ends at 0. NaN where a limit was not found.

        Raises
        ------
        InputError
            If an option or a parameter is unknown, or ``max_seconds`` is not positive.

        Warns
        -----
        ConvergenceWarning
            Once, with the number of features that lack a profile limit.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> result.conf_int_theta(method="profile", scale="sd").dims
        ('feature', 'param', 'bound')
        """
        return variance_components.conf_int_theta(
            self.fitted,
            self.fitted.positions(features),
            alpha,
            method=method,
            scale=scale,
            params=params,
            progress=progress,
            max_seconds=max_seconds,
        )

    def blup(
        self, se: Literal["conditional", "prediction"] | bool | None = None, *, features: Any = None
    ) -> xr.DataArray | xr.Dataset:
        """Best linear unbiased predictions of the random effects.

        Parameters
        ----------
        se
            ``"conditional"`` (or True): standard deviations given y and beta, lme4's condVar
            and statsmodels' random_effects_cov; ``"prediction"``: standard errors of
            prediction with beta estimated; None: predictions alone.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        DataArray or Dataset
            Dims feature, level; the coordinates term, group, group_level and effect tell the
            levels apart. With ``se`` a Dataset with the variables blup and se.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> effects = result.blup(se="conditional")
        >>> effects.sel(level="Subject[308]")["blup"].values.round(2).tolist()
        [2.26]
        >>> effects.sel(level="Subject[308]")["se"].values.round(2).tolist()
        [12.07]
        """
        return random_effects.blup(self.fitted, self.fitted.positions(features), se)

    def coef(self, *, features: Any = None) -> dict[str, xr.DataArray]:
        """Coefficients of each group: fixed plus predicted random effects, as lme4's coef.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        dict
            By grouping factor: dims feature, group_level, coef, in the units of params. The
            random terms of one factor are added together; coefficients without a random effect
            are the same in all levels, and a random effect without a fixed one stands alone.

        Raises
        ------
        InputError
            If the columns of Z are not known to be effects of groups, as in models from matrices.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> model.fit(parameter_space="psd").coef()["g"].shape
        (3, 8, 2)
        """
        return random_effects.coefficients_by_group(self.fitted, self.fitted.positions(features))

    def random_correlations(
        self,
        alpha: float = 0.05,
        *,
        method: Literal["delta", "profile"] = "delta",
        features: Any = None,
    ) -> xr.Dataset:
        """Correlations of the random effects of a level, with confidence limits.

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"delta"``: the delta method, symmetric in Fisher's z = artanh(rho); NaN limits for a
            correlation of one. ``"profile"``: where the log-likelihood that was fitted
            (restricted for REML), maximised over everything else, has fallen by half the
            chi-square quantile; for terms with two effects.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature, param (the covariances): ``estimate``, ``se`` (delta method),
            ``lower``, ``upper``. NaN where a variance is not positive.

        Raises
        ------
        InputError
            If an option is unknown, or a profile is asked for of a term with more effects.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=80), "g": np.repeat(list("abcdefgh"), 10)})
        >>> Y = rng.normal(size=(3, 80)) + rng.normal(size=(3, 8))[:, np.repeat(range(8), 10)]
        >>> model = fm.MultiLMM.from_formula("~ x + (1 + x | g)", data=data, Y=Y)
        >>> model.fit(parameter_space="psd").random_correlations()["param"].values.tolist()
        ['g[Intercept,x]']
        """
        return correlations.random_correlations(
            self.fitted, self.fitted.positions(features), alpha, method=method
        )

    def random_parameters(
        self,
        alpha: float = 0.05,
        *,
        method: Literal["delta", "profile"] = "delta",
        features: Any = None,
    ) -> xr.Dataset:
        """Standard deviations and correlations of the random effects, with confidence limits.

        They are the parameters of each term's structure: a standard deviation for each effect and
        a correlation of each pair of ``us``, the standard deviations of ``diag`` (one with
        ``hom=TRUE``), one of each of ``cs`` and ``ar1``, called after the term and ``"term[rho]"``,
        ``"term[range]"`` of ``exp`` in units of its positions.

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"delta"``: the delta method, symmetric in the logarithm of a standard deviation and
            in Fisher's z = artanh(rho), for ``cs`` of s effects in
            log((1 + (s - 1) rho) / (1 - rho)), and in the logarithm of a range; NaN limits for a
            standard deviation of zero or a correlation at the end of its range.
            ``"profile"``: where the log-likelihood that was fitted (restricted for REML), maximised
            over everything else, has fallen by half the chi-square quantile.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature, param (the residual last; the coordinate ``kind`` is "sd", "correlation"
            or "range"): ``estimate``, ``se`` (delta method), ``lower``, ``upper``, standard
            deviations in units of Y. NaN where a variance is negative. With times that are dates
            or durations the coordinate ``unit`` tells that of a range, or of a correlation's step.

        Raises
        ------
        InputError
            If an option is unknown, or a profile is asked for of an unstructured term with more
            than two effects, or of ``ar1``, ``exp`` and ``cs`` with ``hom=FALSE``.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"f": list("abc") * 30, "g": np.repeat(list("uvwxyz"), 15)})
        >>> model = fm.MultiLMM.from_formula("~ f + cs(0 + f | g)", data=data,
        ...                                  Y=rng.normal(size=(3, 90)))
        >>> model.fit(parameter_space="psd").random_parameters()["param"].values.tolist()
        ['g', 'g[rho]', 'Residual']
        """
        return structured.random_parameters(
            self.fitted, self.fitted.positions(features), alpha, method=method
        )

    @property
    def random_effects(self) -> dict[str, xr.DataArray]:
        """Predictions by random term: dims feature, the grouping factor's levels, effect."""
        return random_effects.random_effects(self.fitted)
