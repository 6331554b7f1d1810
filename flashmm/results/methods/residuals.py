"""Methods on residuals; the work is done in `flashmm.results.residuals`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from flashmm.arrays.blas import hold_methods
from flashmm.results import residuals
from flashmm.results.fitted import OfFittedModel
from flashmm.slips.answers import answer_calls
from flashmm.sources import Transform

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ResidualMethods"]


@answer_calls
@hold_methods
class ResidualMethods(OfFittedModel):
    """Residuals and what they say of the model; part of `MultiLMMResults`."""

    def resid(
        self,
        Y: Any = None,
        data: Any = None,
        *,
        kind: Literal["conditional", "marginal", "pearson", "standardized"] | None = None,
        weights: Any = None,
        transform: Transform = None,
        level: Literal["population", "conditional"] = "conditional",
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        feature_covariates: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.DataArray:
        """Residuals: Y minus `fittedvalues`, both Y and the samples' table given again.

        Where the fit left out missing values, they may be there again: their residuals are NaN.

        Parameters
        ----------
        Y
            Features x samples, of every kind that `MultiLMM.from_formula` takes; features are
            matched by name when Y has names. None where ``data`` has a column for each feature,
            as after ``"y ~ x"``.
        data
            The samples' table.
        kind
            ``"conditional"``: y - X beta - Z b, the default, and ``"marginal"``: y - X beta,
            whatever ``level`` says; ``"pearson"``: those of ``level`` times the root of the weight,
            as lme4, with residual variances by group also over the root of the group's, as nlme;
            ``"standardized"``: those of ``level`` over their own standard deviation, of
            variance one each.
        weights
            Those of the fit again, for the last two kinds: shape (n,), the name of a column of
            ``data``, or features x samples. Not needed without.
        transform
            The one that the model was built with.
        level, features, X, Z, feature_covariates, context
            As in `fittedvalues`.

        Returns
        -------
        DataArray
            Dims feature, sample.

        Raises
        ------
        InputError
            If Y lacks a feature or does not match the samples, or weights are needed.

        Notes
        -----
        The conditional residual sigma2 W^-1 P y has the variance sigma2 / w - v, v the variance
        of the error of x'beta + z'b: sigma2 (1 - h) / w with h the leverage, so that standardised
        residuals are lme4's pearson over sigma sqrt(1 - hatvalues), and of least squares the
        internally studentised ones. The marginal residual has z'Dz + sigma2 / w - x'Cx
        (Nobre & Singer 2007, Biom J 49:863).

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> Y = rng.normal(size=(3, 40))
        >>> result = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y).fit()
        >>> result.resid(Y, data, kind="standardized").shape
        (3, 40)
        """
        return residuals.resid(
            self.fitted,
            self.fitted.positions(features),
            Y,
            data,
            kind=kind,
            weights=weights,
            transform=transform,
            level=level,
            X=X,
            Z=Z,
            feature_covariates=feature_covariates,
            context=context,
        )

    def check_residuals(
        self,
        Y: Any,
        data: Any = None,
        *,
        by: Any = None,
        weights: Any = None,
        transform: Transform = None,
        features: Any = None,
        X: ArrayLike | None = None,
        Z: Any = None,
        context: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Check the residuals of every feature in one more pass over Y.

        Parameters
        ----------
        Y, data
            As in `resid`; Y is read block by block.
        by
            What variances are compared between: a column of ``data``, or n labels; by default the
            grouping factor of the first random term.
        weights
            As in `resid`; those of each observation are held in memory.
        transform, features, X, Z, context
            As in `resid`.

        Returns
        -------
        Dataset
            Dim feature: ``n``; ``skewness``, ``kurtosis`` (minus 3) and ``normality_p`` (Jarque &
            Bera 1987) of the conditional residuals (times the root of the weight), the same with
            ``_standardized`` of the standardised ones; ``level_correlation`` and ``level_p``, of
            absolute standardised residuals with fitted values: a variance that depends on the
            level; ``levene``, ``levene_p``, the F test of absolute standardised residuals between
            groups (Levene 1960); ``n_outlying``, those beyond 3. Dims feature, param:
            ``blup_skewness``, ``blup_kurtosis``, ``blup_normality_p`` of the predicted random
            effects, which shrinkage makes look more normal than the effects are. Dim sample:
            ``sample_mean_square`` over the features, about one for a regular sample, and
            ``sample_outlying``, the share beyond 3. ``attrs["by"]`` names the groups.

        Raises
        ------
        InputError
            If Y does not match the samples, weights are needed, or ``by`` is unknown.

        Notes
        -----
        p-values treat residuals as independent, which they nearly are where the samples are many
        more than the effects: read them as a ranking.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> Y = rng.normal(size=(3, 40))
        >>> result = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=Y).fit()
        >>> check = result.check_residuals(Y, data)
        >>> check.attrs["by"], check["levene_p"].shape, check["sample_mean_square"].shape
        ('g', (3,), (40,))
        """
        return residuals.check_residuals(
            self.fitted,
            self.fitted.positions(features),
            Y,
            data,
            by=by,
            weights=weights,
            transform=transform,
            X=X,
            Z=Z,
            context=context,
        )

    def plot_residuals(
        self, feature: Any, Y: Any = None, data: Any = None, *, axes: Any = None, **options: Any
    ) -> Any:
        """Draw the classic panels of one feature's residuals; needs matplotlib.

        Parameters
        ----------
        feature
            Name of the feature; or its position, if no feature is called by a number.
        Y, data
            As in `resid`.
        axes
            Four axes of matplotlib; new ones by default.
        **options
            Those of `resid`: weights, transform, X, Z, context.

        Returns
        -------
        ndarray of Axes
            Residuals by fitted values; normal quantiles of the standardised residuals; the root of
            their size by fitted values; normal quantiles of the predicted random effects (without
            any a histogram of the residuals).

        Examples
        --------
        >>> import matplotlib.pyplot as plt, flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> result = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit()
        >>> axes = result.plot_residuals("Reaction", data=sleep.data)
        >>> len(axes)
        2
        >>> plt.close()
        """
        position = self.fitted.positions([feature])
        return residuals.residual_panels(self.fitted, position, Y, data, axes, **options)
