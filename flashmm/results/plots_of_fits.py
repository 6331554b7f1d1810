"""Pictures of the fits of all features: `MultiLMMResults.plot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flashmm.arrays.blas import hold_methods
from flashmm.results import fixed_effects, influence, integrated, pictures
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.moderation import feature_means
from flashmm.results.plots_by_feature import PicturesByFeature
from flashmm.results.plots_of_one_feature import of_contrasts
from flashmm.slips.answers import answer_calls

__all__ = ["ResultPlots"]


@answer_calls
@hold_methods
class ResultPlots(PicturesByFeature):
    """Pictures of a fit; each method draws one and returns the Axes of matplotlib.

    They need matplotlib: ``pip install 'multilmm[plot]'``. The functions that draw, which take
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.volcano("Age").get_xlabel()
        'Age'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.ma("Age").get_ylabel()
        'Age'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> len(result.plot.pvalues("Age", bins=10).patches)
        10
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> ax = result.plot.qq("Age")
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.forest("Age", features=["gene1", "gene2"]).get_xlabel()
        'Age'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.dots(features=["gene1", "gene2"]).get_xticklabels()[0].get_text()
        'Age'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.fractions(["gene1", "gene2"]).get_xlabel()
        'share of the variance'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.theta().get_xlabel()
        'variance, Individual'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.trend().get_ylabel()
        'residual standard deviation'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> result = model.fit()
        >>> result.plot.ratio_prior().get_xlabel()
        'variance over the residual variance'
        >>> plt.close("all")
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

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(
        ...     "Reaction ~ Days + (1 | Subject)", data=sleep.data, sums_by="Subject"
        ... )
        >>> model.fit().plot.influence().get_xlabel()
        "Cook's distance"
        >>> plt.close("all")
        """
        found = influence.influence(self.fitted, self.fitted.positions(features), by, exact)
        return found.plot(contrast, alpha, ax=ax, **options)

    def _tests(self, contrast: Any, features: Any, options: Mapping[str, Any]) -> TTestResults:
        positions = self.fitted.positions(features)
        return fixed_effects.t_test(self.fitted, positions, contrast, **options)
