"""Methods on samples: predicted, given again, or drawn from the fitted models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.results import bootstrap, predictions
from flashmm.results.bootstrap_results import BootstrapResults
from flashmm.results.fitted import OfFittedModel
from flashmm.results.refit import Progress
from flashmm.slips.answers import answer_calls
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SampleMethods"]


@answer_calls
@hold_methods
class SampleMethods(OfFittedModel):
    """Predictions, residuals and the parametric bootstrap; part of `MultiLMMResults`."""

    def predict(
        self,
        newdata: Any = None,
        *,
        level: Literal["population", "conditional"] = "population",
        random: str | Sequence[str] | None = None,
        se: bool = False,
        interval: Literal["confidence", "prediction"] | None = None,
        alpha: float = 0.05,
        df: str = DEFAULT_DF,
        prior: Any = None,
        allow_new_levels: bool = False,
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray | xr.Dataset:
        """Predict new samples, for every feature, on the scale of the (transformed) Y.

        Parameters
        ----------
        newdata
            One row per sample, with the columns that the formulas use. The columns of X and Z
            are made as they were for the model: same levels, same state of transforms such as
            ``scale(x)``.
        level
            ``"population"``: x'beta, whatever the groups; ``"conditional"``: x'beta + z'b, with
            the predicted random effects of the samples' groups.
        random
            At the conditional level, the random effects to predict with, others being zero
            (lme4's ``re.form``): names of terms, ``"Subject"``, or of variances,
            ``"Subject[Days]"``. All by default. A prediction interval counts the others as those
            of new levels.
        se
            Add standard errors.
        interval
            ``"confidence"``: limits of the mean above; ``"prediction"``: limits of a new
            observation, which adds the residual variance and, at the population level, the
            variance of a new group's random effects.
        alpha
            One minus the coverage.
        df
            Degrees of freedom of the limits: ``"satterthwaite"``, for the whole variance of the
            prediction; ``"residual"``, n - p; ``"normal"``; or ``"integrated"``: predictions,
            errors and limits averaged over what all features say of the variance ratios, as in
            `t_test`.
        prior
            As in `t_test`, with ``"integrated"``.
        allow_new_levels
            At the conditional level, predict groups that the model does not know with random
            effects of zero, whose variance enters the standard errors. Otherwise they raise.
        features
            Names, a mask or a slice; all by default.
        X, Z
            Matrices (c, p) and (c, q) in place of ``newdata``, for models built from matrices. X
            may hold the columns too that ``rank="drop"`` left out.
        feature_covariates
            Covariates that each feature has its own of, at these samples: name to features x
            samples, as in `MultiLMM.from_formula`; NaN gives NaN. Not with ``se`` or ``interval``.
            One that is left out must be a column of ``newdata``, the same for all features.
        context
            Names that the formulas use besides columns; needed again after loading a file.

        Returns
        -------
        DataArray or Dataset
            Dims feature, sample. With ``se`` or ``interval`` a Dataset: prediction, se, and
            lower, upper and df where an interval is asked for. ``se`` is the standard error of
            prediction that the interval is built on: of the mean, or of a new observation.
            The offset is part of a prediction. Where columns of X were left out
            (``rank="drop"``), samples that the fit says nothing about are NaN, and the
            coordinate ``estimable`` says which.

        Raises
        ------
        InputError
            If a column is absent or holds missing values, a level is unknown, or the matrices
            have the wrong shape.

        Notes
        -----
        With C = cov(beta), D the covariance of b and T = Z'PZ, the variance of
        x'(beta_hat - beta) + z'(b_hat - b) is sigma2 x'(X'X)^-1 x + w'(D - D T D) w with
        w = z - Z'X (X'X)^-1 x: Henderson's (1975) mixed model equations, free of D^-1. Limits are
        Student's; theta counts as known but for the degrees of freedom.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> new = pd.DataFrame({"x": [0.0, 1.0], "g": ["a", "z"]})
        >>> result = model.fit(parameter_space="psd")
        >>> result.predict(new).dims
        ('feature', 'sample')
        >>> limits = result.predict(
        ...     new, level="conditional", interval="prediction", allow_new_levels=True)
        >>> bool((limits.upper > limits.lower).all())
        True
        """
        return predictions.predict(
            self.fitted,
            self.fitted.positions(features),
            newdata,
            level=level,
            random=random,
            se=se,
            interval=interval,
            alpha=alpha,
            df=df,
            prior=prior,
            allow_new_levels=allow_new_levels,
            X=X,
            Z=Z,
            feature_covariates=feature_covariates,
            context=context,
        )

    def fittedvalues(
        self,
        data: Any = None,
        *,
        level: Literal["population", "conditional"] = "conditional",
        random: str | Sequence[str] | None = None,
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray:
        """Fitted values of the samples that the model was built on, their data given again.

        Parameters
        ----------
        data
            The samples' table, as given to `MultiLMM.from_formula`; results keep no samples.
            Samples that the fit dropped may be in it: theirs are NaN.
        level
            ``"conditional"``: X beta + Z b, statsmodels' fittedvalues; ``"population"``: X beta.
        random
            As in `predict`.
        features, X, Z, feature_covariates, context
            As in `predict`.

        Returns
        -------
        DataArray
            Dims feature, sample.

        Raises
        ------
        InputError
            If a column is absent, or a level is not one the model was fitted on.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> result.fittedvalues(sleep.data).values[0, :3].round(1).tolist()
        [253.7, 273.3, 293.0]
        """
        return predictions.fittedvalues(
            self.fitted,
            self.fitted.positions(features),
            data,
            level=level,
            random=random,
            X=X,
            Z=Z,
            feature_covariates=feature_covariates,
            context=context,
        )

    def draw(
        self, n: int = 1, *, rng: Any = None, features: Any = None
    ) -> SummaryStats | PatternedStats:
        """Draw statistics of new data from the fitted models.

        Parameters
        ----------
        n
            Replicates of each feature.
        rng
            A Generator or a seed.
        features
            Names, a mask or a slice; all that have an estimate by default.

        Returns
        -------
        SummaryStats or PatternedStats
            Its features are the replicates, named ``"feature#replicate"``; those of a feature with
            rows of its own have them too.

        Raises
        ------
        InputError
            If a feature that was asked for has no estimate, or no distribution has its theta.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> result.draw(2, rng=1, features=[0]).feature_names.tolist()
        ['0#0', '0#1']
        """
        return bootstrap.draw(
            self.fitted, self.fitted.positions(features), n, rng=rng, every=features is not None
        )

    def bootstrap(
        self,
        n: int = 999,
        *,
        statistic: str | Sequence[str] | Callable[[Any], Any] | None = None,
        rng: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> BootstrapResults:
        """Parametric bootstrap: draw new statistics from each fitted model and fit again.

        The statistics X'y, Z'y and y'y are drawn themselves, from their exact distribution, so
        that a replicate costs what a fit costs, whatever the number of samples.

        Parameters
        ----------
        n
            Replicates of each feature.
        statistic
            What is kept of each refit: names of variance parameters, coefficients, or contrasts of
            these (``"a - b"``); or a function that takes the results of a fit and gives one or
            several numbers for each of its features. All coefficients and variance parameters
            by default.
        rng
            A Generator or a seed. Each feature has random numbers of its own, so its
            replicates depend neither on the batches nor on ``features``.
        features
            Names, a mask or a slice; all by default.
        progress
            None (default) for a bar on a terminal once it has taken a few seconds (needs tqdm),
            True for one at once, False for none, or a function of the numbers of replicates done
            and in all.

        Returns
        -------
        BootstrapResults

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit(
        ...     parameter_space="psd")
        >>> share = lambda fit: fit.icc()["estimate"].sel(component="Z1")
        >>> result.bootstrap(20, statistic=share, rng=1)
        <BootstrapResults: 3 features, 20 replicates, 1 statistics>
        """
        return bootstrap.bootstrap(
            self.fitted,
            self.fitted.positions(features),
            n,
            statistic=statistic,
            results_of=self._of,
            rng=rng,
            progress=progress,
        )

    def bootstrap_test(
        self,
        contrast: Any = None,
        *,
        component: str | None = None,
        n: int = 999,
        alternative: str = "two-sided",
        rng: Any = None,
        features: Any = None,
        progress: Progress = None,
    ) -> xr.Dataset:
        """Parametric bootstrap test of a contrast or of a variance component.

        The model is fitted under the hypothesis, replicates are drawn from that fit, and the
        test statistic is computed for each: t for a contrast, twice the gain in
        log-likelihood for a component.

        Parameters
        ----------
        contrast
            One contrast of the fixed effects, as in `t_test`.
        component
            A variance component, as in `variance_test`; give one of the two.
        n
            Replicates of each feature.
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``, for a contrast.
        rng, features, progress
            As in `bootstrap`.

        Returns
        -------
        Dataset
            Dims feature: ``statistic``; ``p``, (1 + replicates as extreme) / (1 + replicates)
            (Davison & Hinkley 1997, section 4.2); ``p_se``, its Monte Carlo standard error;
            ``n_replicates``, those whose fit converged.

        Raises
        ------
        InputError
            If not exactly one hypothesis is given, or it is unknown.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> X = np.column_stack([np.ones(40), rng.normal(size=40)])
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), X, Z).fit(
        ...     parameter_space="psd")
        >>> bool((result.bootstrap_test("x2", n=20, rng=1)["p"] > 0).all())
        True
        """
        return bootstrap.bootstrap_test(
            self.fitted,
            self.fitted.positions(features),
            contrast,
            component=component,
            n=n,
            alternative=alternative,
            rng=rng,
            progress=progress,
        )
