"""Pictures of the fit of one feature: `FeatureResults.plot`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.types import IntArray
from flashmm.designs.design import INTERCEPT
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.results import fixed_effects, pictures, residuals
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.pictures_by_name import PicturesByName
from flashmm.slips.answers import answer_calls

__all__ = ["FeaturePlots", "of_contrasts"]


@answer_calls
@hold_methods
class FeaturePlots(PicturesByName):
    """Pictures of one feature; each method draws one and returns the Axes of matplotlib.

    They need matplotlib: ``pip install 'multilmm[plot]'``. A feature without estimates gives empty
    Axes that say so.

    Parameters
    ----------
    fitted
        The fitted models of all features.
    position
        Of the feature among them, shape (1,).

    Examples
    --------
    >>> import numpy as np, matplotlib.pyplot as plt, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(40, 2)), np.kron(np.eye(8), np.ones((5, 1)))
    >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), X, Z).fit()
    >>> result.sel(0).plot.forest().get_title()
    '0'
    >>> plt.close()
    """

    place = "feature.plot"
    subject = "one feature"

    def __init__(self, fitted: FittedModel, position: IntArray) -> None:
        self.fitted = fitted
        self.position = position

    def forest(
        self, contrasts: Any = None, *, alpha: float = 0.05, ax: Any = None, **options: Any
    ) -> Any:
        """Estimates and confidence limits of contrasts.

        Parameters
        ----------
        contrasts
            As in `MultiLMMResults.t_test`; all coefficients but the intercept by default.
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
            If matplotlib is not installed, or a contrast cannot be read.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.plot.forest().get_title()
        'Reaction'
        >>> plt.close()
        """
        tests = fixed_effects.t_test(self.fitted, self.position, contrasts, **options)
        return of_contrasts(tests, "forest", contrasts)(alpha=alpha, ax=ax)

    def caterpillar(
        self,
        term: str | None = None,
        *,
        effect: str | None = None,
        se: Literal["conditional", "prediction"] = "conditional",
        alpha: float = 0.05,
        sort: bool = True,
        ax: Any = None,
    ) -> Any:
        """Predicted random effects of all levels of a factor, with normal limits.

        Parameters
        ----------
        term, effect
            Random term, and which of its effects; the first by default.
        se
            Standard errors, as in `MultiLMMResults.blup`.
        alpha
            One minus the coverage.
        sort
            False for the order of the levels, True for that of size.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            Levels whose limits hold zero are grey.

        Raises
        ------
        InputError
            If matplotlib is not installed, or the model has no such random effects.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.plot.caterpillar("Subject", effect="Days").get_xlabel()
        'predicted random effect, Days'
        >>> plt.close()
        """
        return pictures.caterpillar(
            self.fitted, self.position, term, effect, se=se, alpha=alpha, sort=sort, ax=ax
        )

    def fractions(
        self,
        *,
        of: Literal["total", "random"] = "total",
        column_means: Any = None,
        ax: Any = None,
    ) -> Any:
        """Shares of the variance, as a bar.

        Parameters
        ----------
        of, column_means
            As in `ResultPlots.fractions`.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, or an option is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.plot.fractions().get_xlabel()
        'share of the variance'
        >>> plt.close()
        """
        return pictures.fractions(
            self.fitted, self.position, "bars", of=of, column_means=column_means, ax=ax
        )

    def profile(self, param: str | None = None, *, alpha: float = 0.05, ax: Any = None) -> Any:
        """How far the log-likelihood falls away from the estimate of a variance parameter.

        Parameters
        ----------
        param
            Name of a parameter, as in ``result.theta``; the first by default.
        alpha
            One minus the coverage of the interval, whose limits are dotted lines.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes
            Twice the fall of the log-likelihood that was fitted, maximised over the other variance
            parameters; 33 fits.

        Raises
        ------
        InputError
            If matplotlib is not installed, or the parameter is unknown.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.plot.profile("Subject[Days]").get_xlabel()
        'variance, Subject[Days]'
        >>> plt.close()
        """
        return pictures.profile(self.fitted, self.position, param, alpha, ax)

    def residuals(
        self, Y: Any = None, data: Any = None, *, axes: Any = None, **options: Any
    ) -> Any:
        """The classic panels of the residuals.

        Parameters
        ----------
        Y, data
            As in `MultiLMMResults.resid`.
        axes
            Four Axes of matplotlib; new ones by default.
        **options
            Those of `MultiLMMResults.resid`: weights, transform, X, Z, context.

        Returns
        -------
        ndarray of Axes
            Residuals by fitted values; normal quantiles of the standardised residuals; the root of
            their size by fitted values; normal quantiles of the predicted random effects (without
            any a histogram of the residuals).

        Raises
        ------
        InputError
            If matplotlib is not installed, there are not four Axes, or data do not fit.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> len(one.plot.residuals(data=sleep.data))
        2
        >>> plt.close()
        """
        return residuals.residual_panels(self.fitted, self.position, Y, data, axes, **options)

    def predictions(
        self,
        x: str,
        data: Any,
        Y: Any = None,
        *,
        by: str | None = None,
        at: Mapping[str, Any] | None = None,
        level: Literal["population", "conditional"] = "population",
        interval: Literal["confidence", "prediction"] | None = "confidence",
        alpha: float = 0.05,
        df: str = DEFAULT_DF,
        points: int = 50,
        transform: Any = None,
        context: Mapping[str, Any] | None = None,
        ax: Any = None,
    ) -> Any:
        """Predictions with their limits along a variable, over the samples.

        Parameters
        ----------
        x
            Column of ``data`` along the axis: a line for numbers, marks for a factor.
        data
            The samples' table.
        Y
            Features x samples, as the model was given them, to draw the samples. None: those of
            the column of ``data`` that is called as the feature, if there is one.
        by
            Column with a line for each of its levels; at most 28.
        at
            Values of other columns. Numbers are at their mean by default, whole numbers at their
            median, everything else at its most frequent level.
        level, interval, alpha, df
            As in `MultiLMMResults.predict`. At the conditional level ``by`` is the grouping
            factor, and other columns are typical of each of its levels.
        points
            Values along a line.
        transform, context
            Those of the model.
        ax
            Axes of matplotlib; new ones by default.

        Returns
        -------
        Axes

        Raises
        ------
        InputError
            If matplotlib is not installed, the model was built from matrices, or a column is
            absent.

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> model = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data)
        >>> one = model.fit().sel("Reaction")
        >>> one.plot.predictions("Days", sleep.data).get_xlabel()
        'Days'
        >>> plt.close()
        """
        return pictures.predictions(
            self.fitted,
            self.position,
            x,
            data,
            Y,
            by=by,
            at=at,
            level=level,
            interval=interval,
            alpha=alpha,
            df=df,
            points=points,
            transform=transform,
            context=context,
            ax=ax,
        )


def of_contrasts(tests: TTestResults, picture: str, asked: Any) -> Any:
    """A picture of several contrasts: of all but the intercept where none was asked for."""
    plots = tests.plot
    names = [name for name in tests.contrasts if name != INTERCEPT]
    chosen = names if asked is None and names else None

    def draw(**options: Any) -> Any:
        return getattr(plots, picture)(chosen, **options)

    return draw
