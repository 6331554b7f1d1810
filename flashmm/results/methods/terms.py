"""Methods on the terms of a model; the work is done in `flashmm.results.term_tests`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.progress import Progress
from flashmm.results import explained, term_tests
from flashmm.results.cluster_robust import MODEL
from flashmm.results.fitted import OfFittedModel
from flashmm.results.joint_results import FTestResults
from flashmm.slips.answers import answer_calls

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TermMethods"]


@answer_calls
@hold_methods
class TermMethods(OfFittedModel):
    """Tests of terms and explained variance; part of `MultiLMMResults`."""

    def anova(
        self,
        *,
        type: Literal[1, 2, 3, "I", "II", "III"] = 3,
        df: str = DEFAULT_DF,
        moderated: bool | xr.Dataset = False,
        prior: Any = None,
        cov: str = MODEL,
        cluster: Any = None,
        features: Any = None,
    ) -> FTestResults:
        """F tests of the terms of the fixed formula, for every feature.

        The hypotheses of type III do not depend on how factors are coded: a term is tested with the
        linear predictor averaged, with equal weights, over the levels of the factors outside the
        term, as in SAS and lmerTest. Type I tests a term given those before it, type II given
        all that do not contain it. The intercept is not tested; where there is nothing else the
        table is empty. In a model built from matrices each coefficient is a term of its own. Where
        columns of X were left out (``rank="drop"``) the hypotheses are SAS's type III estimable
        functions; a term without any has no numerator degrees of freedom and NaN. Under type II
        the columns left out count as their terms' own: of ``x + x2`` with x2 = 2 x neither has any.

        Parameters
        ----------
        type
            3, 2 or 1.
        df
            Denominator degrees of freedom, as in `f_test`.
        moderated, prior, cov, cluster
            As in `t_test` and `f_test`.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        FTestResults
            One hypothesis per term. Its ``ds`` has sums of squares too, ``sum_sq`` and
            ``mean_sq``, as lmerTest defines them: F times the residual variance of the fit,
            and that times the numerator's degrees of freedom. Moderated, integrated and
            cluster-robust tests have none.

        Raises
        ------
        InputError
            If an option is unknown, or a type I or II hypothesis is asked for that differs
            between features, as they have samples or weights of their own.

        Notes
        -----
        Types I and II depend on X'X. With weights of the samples it is the weighted one, as in R's
        anova of lm; lmerTest leaves weights out there.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=5, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls * trt", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit(parameter_space="psd")
        >>> result.anova().df_num.iloc[0].to_dict()
        {'log(libsize)': 1.0, 'cls': 1.0, 'trt': 1.0, 'cls:trt': 1.0}
        >>> result.anova(type=2).ds["sum_sq"].dims
        ('feature', 'contrast')
        """
        return term_tests.anova(
            self.fitted,
            self.fitted.positions(features),
            type=type,
            df=df,
            moderated=moderated,
            prior=prior,
            cov=cov,
            cluster=cluster,
        )

    def drop1(
        self,
        *,
        test: Literal["F", "LRT"] = "F",
        df: str = DEFAULT_DF,
        features: Any = None,
        progress: Progress = None,
    ) -> FTestResults | xr.Dataset:
        """Tests of each fixed term that no other term contains, as R's drop1.

        Parameters
        ----------
        test
            ``"F"``: the F tests of `anova` for these terms; ``"LRT"``: likelihood-ratio tests,
            every feature fitted with and without the term by ML, whatever the fit's own method.
        df
            Denominator degrees of freedom of the F tests, as in `f_test`.
        features
            Names, a mask or a slice; all by default.
        progress
            Of the fits for ``"LRT"``, as in `MultiLMM.fit`.

        Returns
        -------
        FTestResults or Dataset
            With ``"LRT"`` a Dataset, dims feature, term: ``statistic``, twice the gain in
            log-likelihood; ``df``; chi-square ``p``; ``loglik`` and ``aic`` without the term;
            ``aic_full``, of the model as it is.

        Raises
        ------
        InputError
            If an option is unknown.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=5, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls * trt", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit(parameter_space="psd")
        >>> result.drop1(test="LRT")["term"].values.tolist()
        ['log(libsize)', 'cls:trt']
        """
        return term_tests.drop1(
            self.fitted, self.fitted.positions(features), test=test, df=df, progress=progress
        )

    def ranova(
        self, *, reduce_terms: bool = True, features: Any = None, progress: Progress = None
    ) -> xr.Dataset:
        """Likelihood-ratio tests of the random terms, as lmerTest's ranova.

        Every feature is fitted without the term by the method of the fit (the fixed effects stay,
        so REML will do).

        Parameters
        ----------
        reduce_terms
            Whether a term with slopes loses one slope at a time, with its covariances; False:
            terms go whole.
        features
            Names, a mask or a slice; all by default.
        progress
            Of the fits without a term, as in `MultiLMM.fit`.

        Returns
        -------
        Dataset
            Dims feature, component: ``statistic``; ``df``, parameters fewer; ``p``, of a
            chi-square on them, as lmerTest gives, which errs on the safe side in the psd space;
            ``p_mixture``, of the distribution in the coordinate ``null``, as `variance_test`;
            ``loglik`` and ``aic`` without the component. Empty without random effects.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> model.fit(parameter_space="psd").ranova()["component"].values.tolist()
        ['g']
        """
        return term_tests.ranova(
            self.fitted,
            self.fitted.positions(features),
            reduce_terms=reduce_terms,
            progress=progress,
        )

    def r_squared(
        self,
        *,
        by: Literal["model", "term"] = "model",
        divisor: Literal["n-1", "n"] = "n-1",
        column_means: ArrayLike | None = None,
        type: Literal[1, 2, 3, "I", "II", "III"] = 3,
        df: str = DEFAULT_DF,
        features: Any = None,
    ) -> xr.Dataset:
        """Explained variance: marginal and conditional R2, or semi-partial R2 by term.

        Parameters
        ----------
        by
            ``"model"``: marginal R2, the share of the fixed effects, and conditional R2, that of
            fixed and random effects (Nakagawa, Johnson & Schielzeth 2017, J R Soc Interface
            14:20170213, equations 2.5 and 2.6; with random slopes their variance averaged over the
            samples, Johnson 2014, Methods Ecol Evol 5:944, equation 11). ``"term"``: R2 of each
            fixed term given the others, from its F test (Edwards et al. 2008, Stat Med 27:6137,
            equation 19), df_num F / (df_num F + df_denom).
        divisor
            Of the variance over the samples of the fixed part X beta: ``"n-1"``, R's var() and so
            MuMIn and performance, or ``"n"``, as `variance_fractions`.
        column_means
            As in `variance_fractions`.
        type, df
            Of the tests of terms, as in `anova`.
        features
            Names, a mask or a slice; all by default.

        Returns
        -------
        Dataset
            Dims feature: ``marginal``, ``conditional``, their standard errors ``marginal_se``,
            ``conditional_se`` (delta method), and the variances ``fixed``, ``random``,
            ``residual`` in squared units of Y. By term: ``r_squared``, dims feature, term.

        Raises
        ------
        InputError
            If an option is unknown, or the means of the columns of X are needed and not known.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> result = model.fit(parameter_space="psd")
        >>> r2 = result.r_squared()
        >>> bool((r2["conditional"] >= r2["marginal"]).all())
        True
        >>> result.r_squared(by="term")["term"].values.tolist()
        ['x']
        """
        return explained.r_squared(
            self.fitted,
            self.fitted.positions(features),
            by=by,
            divisor=divisor,
            column_means=column_means,
            type=type,
            df=df,
        )
