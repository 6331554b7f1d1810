"""Pictures of the fits of all features: `MultiLMMResults.plot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flashmm.arrays.blas import hold_methods
from flashmm.results import fixed_effects, influence, integrated, pictures
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.moderation import feature_means
from flashmm.results.pictures_by_name import PicturesByName
from flashmm.results.plots_of_one_feature import FeaturePlots, of_contrasts
from flashmm.slips.answers import answer_calls

__all__ = ["ResultPlots"]


@answer_calls
@hold_methods
class ResultPlots(PicturesByName):
    """Pictures of a fit; each method draws one and returns the Axes of matplotlib.

    They need matplotlib: ``pip install 'flashmm[plot]'``. The functions that draw, which take
    numbers, are those of `flashmm.plots`.

    Parameters
    ----------
    fitted
        The fitted models of all features.

    Examples
    --------
    >>> import numpy as np, matplotlib.pyplot as plt, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
    >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(30, 40)), X, Z).fit()
    >>> result.plot.volcano("x1", df="residual").get_xlabel()
    'x1'
    >>> result.plot.theta().get_xlabel()
    'variance, Z1'
    >>> plt.close("all")
    """

    place = "result.plot"
    subject = "a fit"

    def __init__(self, fitted: FittedModel) -> None:
        self.fitted = fitted

    # ---- tests ---------------------------------------------------------------------------------

    def volcano(
        self,
        contrast: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        adjust: str = "bh",
        label: Any = 10,
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """Evidence by size of the effect, one mark per feature.

        Parameters
        ----------
        contrast
            One contrast, as in `MultiLMMResults.t_test`.
        features
            Names, a mask or a slice; all by default.
        alpha, adjust
            Features whose p-value, adjusted as in `top_table`, is at most alpha have a colour.
        label
            How many of these are named, those with most evidence; or features to name.
        ax
            Axes of matplotlib; new ones by default.
        **options
            Those of `MultiLMMResults.t_test`: df, moderated, prior, cov, ...

        Returns
        -------
        Axes
            p-values of zero, too small for a number, are triangles at the top; verdicts other than
            converged have marks of their own; features without a test are counted.

        Raises
        ------
        InputError
            If matplotlib is not installed, or there is no such contrast.
        """
        return self._tests(contrast, features, options).plot.volcano(
            alpha=alpha, adjust=adjust, label=label, ax=ax
        )

    def ma(
        self,
        contrast: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        adjust: str = "bh",
        label: Any = 10,
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """Size of the effect by the features' means over the samples.

        Parameters
        ----------
        contrast, features, alpha, adjust, label, ax, **options
            As in `volcano`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, there is no such contrast, or the means do not follow
            from the statistics.
        """
        means = feature_means(self.fitted)[self.fitted.positions(features)]
        return self._tests(contrast, features, options).plot.ma(
            means, alpha=alpha, adjust=adjust, label=label, ax=ax
        )

    def pvalues(
        self,
        contrast: Any = None,
        *,
        features: Any = None,
        bins: int = 20,
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """How many features have which p-value, by verdict.

        Parameters
        ----------
        contrast, features
            As in `volcano`.
        bins
            Number of bars between 0 and 1.
        ax, **options
            As in `volcano`.

        Returns
        -------
        Axes
            The dashed line is where all bars end if no feature has an effect.

        Raises
        ------
        InputError
            If matplotlib is not installed, or there is no such contrast.
        """
        return self._tests(contrast, features, options).plot.pvalues(bins=bins, ax=ax)

    def qq(
        self, contrast: Any = None, *, features: Any = None, ax: Any = None, **options: Any
    ) -> Any:
        """Quantiles of the p-values by those of a uniform distribution, by verdict.

        Parameters
        ----------
        contrast, features, ax, **options
            As in `volcano`.

        Returns
        -------
        Axes
            See `flashmm.plots.qq`.

        Raises
        ------
        InputError
            If matplotlib is not installed, or there is no such contrast.
        """
        return self._tests(contrast, features, options).plot.qq(ax=ax)

    def forest(
        self,
        contrasts: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """Estimates and confidence limits: contrasts of one feature, or features.

        Parameters
        ----------
        contrasts
            As in `MultiLMMResults.t_test`; all coefficients but the intercept by default. Of one
            feature they are the rows; of several features they differ in colour.
        features
            Names, a mask or a slice; by default the 20 with the smallest p-values.
        alpha
            One minus the coverage.
        ax
            Axes of matplotlib; new ones by default.
        **options
            Those of `MultiLMMResults.t_test`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, a contrast cannot be read, or more than 7 contrasts of
            several features are to be drawn.
        """
        tests = self._tests(contrasts, features, options)
        every = None if features is None else slice(None)
        return of_contrasts(tests, "forest", contrasts)(features=every, alpha=alpha, ax=ax)

    def dots(
        self,
        contrasts: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        adjust: str = "bh",
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """Contrasts by features: colour tells the estimate, area the evidence.

        Parameters
        ----------
        contrasts
            As in `MultiLMMResults.t_test`; all coefficients but the intercept by default.
        features
            Names, a mask or a slice; by default the 20 with the smallest p-values.
        alpha, adjust
            p-values are adjusted over all features; those up to alpha have a ring.
        ax
            Axes of matplotlib; new ones by default.
        **options
            Those of `MultiLMMResults.t_test`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or a contrast cannot be read.
        """
        tests = self._tests(contrasts, None, options)
        return of_contrasts(tests, "dots", contrasts)(
            features=features, alpha=alpha, adjust=adjust, ax=ax
        )

    # ---- variances -----------------------------------------------------------------------------

    def fractions(
        self,
        features: Any = None,
        *,
        kind: Literal["violin", "bars"] | None = None,
        of: Literal["total", "random"] = "total",
        column_means: Any = None,
        ax: Any = None,
    ) -> Any:
        """Shares of the variance: their distribution over features, or bars of some features.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default.
        kind
            ``"violin"`` or ``"bars"``; bars for up to 12 features by default.
        of
            ``"total"``: of all terms, as `MultiLMMResults.variance_fractions`; ``"random"``: of
            the random effects and the residuals, as `MultiLMMResults.icc`.
        column_means
            As in `MultiLMMResults.variance_fractions`.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            Features without estimates are no part of violins.

        Raises
        ------
        InputError
            If matplotlib is not installed, or an option is unknown.
        """
        return pictures.fractions(
            self.fitted,
            self.fitted.positions(features),
            kind,
            of=of,
            column_means=column_means,
            ax=ax,
        )

    def theta(
        self,
        x: str | None = None,
        y: str | None = None,
        *,
        features: Any = None,
        log: bool = False,
        ax: Any = None,
    ) -> Any:
        """Two variance parameters of every feature, and where their space ends.

        Parameters
        ----------
        x, y
            Names of parameters, as in ``result.theta``; the first and the next variance by
            default.
        features
            Names, a mask or a slice; all by default.
        log
            True for logarithmic axes (linear about zero).
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            Verdicts differ in mark and colour; the dashed line is the boundary of the psd space.

        Raises
        ------
        InputError
            If matplotlib is not installed, or a parameter is unknown.
        """
        return pictures.theta(self.fitted, self.fitted.positions(features), x, y, log=log, ax=ax)

    def trend(self, *, features: Any = None, robust: bool = False, ax: Any = None) -> Any:
        """Residual standard deviations by the features' means, and the trend in them.

        Parameters
        ----------
        features
            Names, a mask or a slice; all by default. The trend is that of all.
        robust
            As in `MultiLMMResults.moderate`, whose prior is the line.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or the means do not follow from the statistics.
        """
        return pictures.trend(self.fitted, self.fitted.positions(features), robust, ax)

    def ratio_prior(self, *, ax: Any = None) -> Any:
        """What all features say of the variance ratios: `MultiLMMResults.ratio_prior`.

        Parameters
        ----------
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or nothing can be learned of such a fit.
        """
        return integrated.default_ratio_prior(self.fitted).plot(ax=ax)

    def influence(
        self,
        by: Any = None,
        contrast: Any = None,
        *,
        features: Any = None,
        alpha: float = 0.05,
        exact: bool | None = None,
        ax: Any = None,
        **options: Any,
    ) -> Any:
        """How much each group of samples does: Cook's distances, or hits with and without it.

        Parameters
        ----------
        by
            As in `MultiLMMResults.influence`.
        contrast
            As in `Influence.plot`.
        features
            Names, a mask or a slice; all by default.
        alpha
            As in `Influence.plot`.
        exact
            As in `MultiLMMResults.influence`.
        ax
            Axes of matplotlib; new ones by default.
        **options
            As in `Influence.plot`.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or no sums were kept by group.
        """
        found = influence.influence(self.fitted, self.fitted.positions(features), by, exact)
        return found.plot(contrast, alpha, ax=ax, **options)

    # ---- one feature ---------------------------------------------------------------------------

    def caterpillar(self, feature: Any, term: str | None = None, **options: Any) -> Any:
        """Predicted random effects of one feature; see `FeaturePlots.caterpillar`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        term, **options
            As in `FeaturePlots.caterpillar`.

        Returns
        -------
        Axes
        """
        return self._one(feature).caterpillar(term, **options)

    def profile(self, feature: Any, param: str | None = None, **options: Any) -> Any:
        """Profile of one variance parameter of one feature; see `FeaturePlots.profile`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        param, **options
            As in `FeaturePlots.profile`.

        Returns
        -------
        Axes
        """
        return self._one(feature).profile(param, **options)

    def residuals(self, feature: Any, Y: Any = None, data: Any = None, **options: Any) -> Any:
        """The classic panels of one feature's residuals; see `FeaturePlots.residuals`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        Y, data, **options
            As in `FeaturePlots.residuals`.

        Returns
        -------
        ndarray of Axes
        """
        return self._one(feature).residuals(Y, data, **options)

    def predictions(self, feature: Any, x: str, data: Any, Y: Any = None, **options: Any) -> Any:
        """Predictions of one feature over its data; see `FeaturePlots.predictions`.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        x, data, Y, **options
            As in `FeaturePlots.predictions`.

        Returns
        -------
        Axes
        """
        return self._one(feature).predictions(x, data, Y, **options)

    def _one(self, feature: Any) -> FeaturePlots:
        return FeaturePlots(self.fitted, self.fitted.positions([feature]))

    def _tests(self, contrast: Any, features: Any, options: Mapping[str, Any]) -> TTestResults:
        positions = self.fitted.positions(features)
        return fixed_effects.t_test(self.fitted, positions, contrast, **options)
