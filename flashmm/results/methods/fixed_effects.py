"""Methods on the fixed effects; the work is done in `flashmm.results.fixed_effects`."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.progress import Progress
from flashmm.results import coefficient_limits, fixed_effects, moderation
from flashmm.results.cluster_robust import MODEL
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import OfFittedModel
from flashmm.results.joint_results import FTestResults
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["FixedEffectMethods"]


@answer_calls
@hold_methods
class FixedEffectMethods(OfFittedModel):
    """Tests and limits of the fixed effects; part of `MultiLMMResults`."""

    @cached_property
    def _default_tests(self) -> TTestResults:
        return self.t_test()

    @property
    def pvalues(self) -> pd.DataFrame:
        """Two-sided p-values of the fixed effects, with the default degrees of freedom."""
        return self._default_tests.pvalue.rename_axis(columns="coef")

    def conf_int(
        self,
        alpha: float = 0.05,
        *,
        df: str = DEFAULT_DF,
        prior: Any = None,
        cov: str = MODEL,
        cluster: Any = None,
        method: Literal["wald", "profile"] = "wald",
        coefs: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> xr.DataArray:
        """Confidence limits of the fixed effects.

        Parameters
        ----------
        alpha
            One minus the coverage.
        df, prior
            Degrees of freedom, as in `t_test`. With ``"integrated"`` the limits are those at which
            the one-sided p-values are alpha / 2.
        cov, cluster
            Cluster-robust covariances, as in `t_test`.
        method
            ``"wald"``: estimate -/+ t se; ``"profile"``: where the log-likelihood of all data (ML,
            for REML fits too, as lme4), maximised over everything else, has fallen by half the
            chi-square quantile. Each limit costs a few fits.
        coefs
            Names of coefficients, or terms; all by default.
        features
            Names, a mask or a slice; all by default.
        progress
            Of profiles and of ``df="integrated"``: a bar on a terminal, as in `fit`; None for one
            after a few seconds.

        Returns
        -------
        DataArray
            Dims feature, coef, bound (lower, upper), in the units of params. NaN where a limit was
            not found.

        Raises
        ------
        InputError
            If an option or a name is unknown, or ``df`` is given for a profile.

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
        >>> result.conf_int(method="profile").dims
        ('feature', 'coef', 'bound')
        """
        return coefficient_limits.conf_int(
            self.fitted,
            self.fitted.positions(features),
            alpha,
            df=df,
            prior=prior,
            cov=cov,
            cluster=cluster,
            method=method,
            coefs=coefs,
            progress=progress,
        )

    def cov_params(
        self, features: Any = None, *, cov: str = MODEL, cluster: Any = None
    ) -> xr.DataArray:
        """Covariance matrices of the fixed effects.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default (m p^2 numbers).
        cov, cluster
            Which covariance, as in `t_test`.

        Returns
        -------
        DataArray
            Dims ``feature``, ``coef`` and ``coef_``.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> result.cov_params().sel(feature="Reaction").values.round(2).tolist()
        [[46.57, -1.45], [-1.45, 2.39]]
        """
        return fixed_effects.cov_params(
            self.fitted, self.fitted.positions(features), cov=cov, cluster=cluster
        )

    def t_test(
        self,
        contrast: Any = None,
        *,
        alternative: str = "two-sided",
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
        prior: Any = None,
        margin: Any = None,
        null: Literal["inside", "outside"] | None = None,
        cov: str = MODEL,
        cluster: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> TTestResults:
        """Test linear contrasts of the fixed effects, for every feature.

        Parameters
        ----------
        contrast
            A coefficient or expression of coefficients, ``"a - b"``, ``"(a + b)/2 = c"``; a
            list or dict of such; a vector (p,); a matrix (n_contrasts, p); a DataFrame from
            `contrast_matrix`. Every coefficient by default. R's spelling of a name is
            understood (``cls1:trtB`` for ``cls[1]:trt[T.B]``).
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``.
        df
            Degrees of freedom: ``"satterthwaite"`` (Satterthwaite 1946, as lmerTest),
            ``"kenward-roger"`` (Kenward & Roger 1997, which also widens the standard errors, as
            pbkrtest; REML fits only), ``"residual"``, n - p, as FLASHMM, ``"normal"``, infinitely
            many, as glmmTMB and statsmodels' MixedLM, or ``"integrated"``: p-values
            averaged over what all features together say of the variance ratios, for few subjects
            and many features (see Notes).
        moderated
            True for residual variances moderated by those of all features, or what `moderate`
            returns; with Satterthwaite's degrees of freedom only.
        prior
            With ``"integrated"``: a `RatioPrior`, or the results of another fit with the same
            random terms; by default `ratio_prior` of this fit.
        margin
            Make the hypothesis an interval about its value: half its length, in the units of the
            contrast; a number, one for each contrast, or a dict or Series by their labels.
        null
            Where the hypothesis lies. ``"inside"``, the default: the effect is at most the margin,
            and rejecting it shows a minimum effect (McCarthy & Smyth 2009, limma's treat).
            ``"outside"``: it is at least the margin, and rejecting it shows equivalence
            (Schuirmann 1987, two one-sided tests; the limits that go with it are
            ``conf_int(2 * alpha)``). With ``alternative="greater"`` they are superiority by a
            margin (the effect exceeds it) and non-inferiority (it exceeds minus the margin);
            with ``"less"`` their mirror images.
        cov
            ``"model"``: the covariance that the fitted model implies. ``"CR0"``, ``"CR1"``,
            ``"CR1S"``, ``"CR2"`` or ``"CR3"``: cluster-robust, right whatever the residuals'
            variances and correlations within clusters are; the model's V is the working
            covariance. CR2 (Bell & McCaffrey 2002, Pustejovsky & Tipton 2018) is for few
            clusters; degrees of freedom are Satterthwaite's under V, as clubSandwich has both.
        cluster
            With a robust ``cov``: the groups that ``sums_by`` kept, or coarser ones, as ``by`` of
            `influence`. No random effect may reach from one cluster to another.
        features
            Names, a mask or a slice; all by default. Adjusted p-values then count these
            features alone.
        progress
            Of ``df="integrated"``, which may take a while, as in `MultiLMM.fit`.

        Returns
        -------
        TTestResults
            Where columns of X were left out (``rank="drop"``) contrasts may name those too, and
            what the samples do not determine is NaN; see its ``estimable``.

        Raises
        ------
        InputError
            If a name in the contrast is unknown, or the contrast is zero.

        Notes
        -----
        ``df="integrated"``: given the ratios gamma of the variances to the residual variance, the
        t test of a contrast is exact, on n - p + d0 degrees of freedom if sigma2 is moderated by
        a prior worth d0 (Smyth 2004). The p-value is the mean of these tests over the feature's
        posterior of gamma under the prior that all features share. The table then holds

        - ``estimate``: the posterior mean of the generalised least-squares estimate;
        - ``se``: the root of the posterior mean of its variance plus its variance over gamma;
        - ``t``: (estimate - value) / se;
        - ``df``: 2 / CV^2 of that variance over the posterior: how well it is known, between a few
          and n - p + d0;
        - ``p``: the integrated p-value. It is not computed from t and df, which summarise it.

        Where one ratio has all the weight, all of them are those of the exact t test. The fit's own
        theta, its space and method play no part: the posterior is of restricted likelihoods and of
        variances that are not negative.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=60, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls + trt", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit(parameter_space="psd")
        >>> tests = result.t_test("trtB", df="integrated")
        >>> tests  # doctest: +ELLIPSIS
        t tests: 60 features x 1 contrasts, two-sided, df=integrated
        ...
        >>> bool((tests.pvalue > 0).all().all())
        True
        """
        return fixed_effects.t_test(
            self.fitted,
            self.fitted.positions(features),
            contrast,
            alternative=alternative,
            df=df,
            moderated=moderated,
            prior=prior,
            margin=margin,
            null=null,
            cov=cov,
            cluster=cluster,
            progress=progress,
        )

    def f_test(
        self,
        contrast: Any = None,
        *,
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
        prior: Any = None,
        cov: str = MODEL,
        cluster: Any = None,
        features: Any = None,
    ) -> FTestResults:
        """Test several contrasts of the fixed effects jointly, for every feature.

        Parameters
        ----------
        contrast
            As in `t_test`: the hypothesis is that all of them hold at once. A term of the
            formula, ``"cls"``, stands for all of its coefficients (`anova` has tests of terms
            whatever the coding). A dict with lists of contrasts or with terms,
            ``{"class": "cls", "both": ["a", "b - c"]}``, is a test for each name. By default
            that every coefficient is zero.
        df
            Denominator degrees of freedom: ``"satterthwaite"`` (Fai & Cornelius 1996, as
            lmerTest), ``"kenward-roger"`` (Kenward & Roger 1997: their scaled F, as pbkrtest; REML
            fits only), ``"residual"``, n - p, ``"normal"``, infinitely many (chi-square), or
            ``"integrated"``: the mean of exact F tests over the posterior of the variance ratios,
            as in `t_test`; F and ``df_denom`` then summarise it.
        moderated, prior
            As in `t_test`.
        cov, cluster
            As in `t_test`: an approximate Hotelling test (HTZ; Pustejovsky & Tipton 2018).
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        FTestResults

        Raises
        ------
        InputError
            If a name is unknown, or the contrasts contradict each other.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.fit().f_test("Age").top_table(n=1)[["F", "p"]].round(3)
                     F      p
        feature
        gene10   1.711  0.195
        """
        return fixed_effects.f_test(
            self.fitted,
            self.fitted.positions(features),
            contrast,
            df=df,
            moderated=moderated,
            prior=prior,
            cov=cov,
            cluster=cluster,
        )

    def wald_test(
        self,
        contrast: Any = None,
        *,
        use_f: bool = False,
        df: str = DEFAULT_DF,
        prior: Any = None,
        cov: str = MODEL,
        cluster: Any = None,
        features: Any = None,
    ) -> FTestResults:
        """Wald test that several contrasts hold jointly, for every feature.

        Parameters
        ----------
        contrast
            As in `f_test`.
        use_f
            False: a chi-square test, which takes the variances as known; True: `f_test`.
        df
            Denominator degrees of freedom of the F test; a chi-square test has none.
        prior
            As in `t_test`.
        cov, cluster
            As in `f_test`, with ``use_f=True``.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        FTestResults
            For a chi-square test F is the chi-square divided by its degrees of freedom, and the
            denominator's are infinite.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.fit().wald_test("Age").top_table(n=1)[["F", "p"]].round(3)
                     F      p
        feature
        gene10   1.711  0.191
        """
        return fixed_effects.wald_test(
            self.fitted,
            self.fitted.positions(features),
            contrast,
            use_f=use_f,
            df=df,
            prior=prior,
            cov=cov,
            cluster=cluster,
        )

    def top_table(self, contrast: Any, **options: Any) -> pd.DataFrame:
        """The features with the strongest evidence on one contrast.

        Parameters
        ----------
        contrast
            As in `t_test`; one contrast.
        **options
            Those of `TTestResults.top_table` (n, sort_by, adjust, alpha) and of `t_test`
            (alternative, df, moderated, prior, margin, null, cov, cluster, features).

        Returns
        -------
        DataFrame
            Indexed by feature: estimate, se, t, df, p, p_adjusted, status (the verdict).

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.top_table("Age", n=2)[["estimate", "p", "p_adjusted"]].round(3)
                 estimate      p  p_adjusted
        feature
        gene10     -0.029  0.195       0.952
        gene15      0.022  0.205       0.952
        """
        named = ("alternative", "df", "moderated", "prior", "margin", "null", "cov", "cluster")
        testing = {key: options.pop(key) for key in (*named, "features") if key in options}
        return self.t_test(contrast, **testing).top_table(**options)

    def moderate(
        self,
        *,
        trend: bool | ArrayLike = False,
        robust: bool = False,
        df: Literal["satterthwaite", "dream"] = "satterthwaite",
        legacy: bool | None = None,
    ) -> xr.Dataset:
        """Residual variances moderated by those of all features (empirical Bayes).

        The variances are taken as draws from one distribution, whose location and degrees of
        freedom are estimated (Smyth 2004). A fit without random effects gives what limma's eBayes
        does.

        Parameters
        ----------
        trend
            Whether the location follows a trend in the features' means, as in limma-trend; or
            what it follows instead, shape (m,).
        robust
            Keep outlying variances from distorting the distribution, and moderate them less
            (Phipson et al. 2016).
        df
            ``"satterthwaite"``: the degrees of freedom of the residual variance itself, which
            moves the other variances along, so that a contrast gains prior degrees of freedom as
            far as it is judged by the residual variance. ``"dream"``: those of variancePartition's
            dream (Hoffman & Roussos 2021, Bioinformatics 37:192), n - 2 tr H + tr HH' with H y the
            fitted values; all of a contrast's variance is multiplied by the moderated over the
            unmoderated residual variance and gains all of the prior's degrees of freedom. Weights
            count scaled to a mean of one in each feature. REML only.
        legacy
            How the distribution is estimated. True: by the moments of the log variances, all
            features counting alike, as limma did up to 3.60 (Smyth 2004, section 6.2). False: by
            maximum likelihood, features with more degrees of freedom counting more, as limma does
            since 3.62 where degrees of freedom differ. None: False where features have different
            numbers of observations, True where all have the same.

        Returns
        -------
        Dataset
            Dim feature: ``sigma2`` and its Satterthwaite degrees of freedom ``df``,
            2 sigma2^2 / var(sigma2); ``sigma2_prior``, ``df_prior``; ``sigma2_moderated``,
            ``df_moderated``. `t_test` and `f_test` take it as ``moderated``. With residual
            variances by group there is a dim ``param`` too: each group has a prior of its own.

        Raises
        ------
        InputError
            If fewer than two features have a variance, or the means are not known.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), np.ones((40, 1)), Z)
        >>> result = model.fit(parameter_space="psd")
        >>> table = result.moderate()
        >>> bool((table["df_moderated"] >= table["df"]).all())
        True
        """
        return moderation.moderated_variances(self.fitted, trend, robust, df, legacy)

    def fim(self, features: Any = None) -> xr.Dataset:
        """Fisher information matrices.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            ``FIM_theta``, dims ``feature``, ``param``, ``param_``: expected information of theta
            (FLASHMM's FIM.theta); ``FIM_beta``, dims ``feature``, ``coef``, ``coef_``: X'V^-1X
            (FLASHMM's FIM.beta).

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> fim = result.fim()
        >>> dict(fim["FIM_theta"].sizes), dict(fim["FIM_beta"].sizes)
        ({'feature': 1, 'param': 4, 'param_': 4}, {'feature': 1, 'coef': 2, 'coef_': 2})
        """
        return fixed_effects.fim(self.fitted, self.fitted.positions(features))

    def to_frame(
        self,
        adjust: str = "bh",
        *,
        df: str = DEFAULT_DF,
        prior: Any = None,
        cov: str = MODEL,
        cluster: Any = None,
        layout: Literal["long", "wide"] = "long",
    ) -> pd.DataFrame:
        """One row per feature and coefficient, or one per feature: estimate, se, t, df, p, ...

        Parameters
        ----------
        adjust
            How p-values are adjusted over the features, per coefficient.
        df, prior, cov, cluster
            Degrees of freedom and covariances, as in `t_test`.
        layout
            ``"long"``, or ``"wide"``: a row per feature, columns (coef, quantity).

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> result.to_frame()[["estimate", "se", "df"]].round(2)
                            estimate    se    df
        feature  coef
        Reaction Intercept    251.41  6.82  17.0
                 Days          10.47  1.55  17.0
        """
        tests = self.t_test(df=df, prior=prior, cov=cov, cluster=cluster)
        table = tests.to_frame(adjust, layout=layout)
        if layout == "wide":
            return table.rename_axis(columns={"contrast": "coef"})
        return table.rename_axis(index={"contrast": "coef"})
