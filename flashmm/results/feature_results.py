"""FeatureResults: one feature up close, under the names of statsmodels' MixedLMResults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.blas import hold_methods
from flashmm.arrays.labels import as_pandas
from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.statistics import confidence_limits, t_statistics
from flashmm.results import predictions, summary
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.methods.one_feature import OneFeatureTables
from flashmm.results.methods.one_feature_effects import OneFeatureEffects
from flashmm.results.methods.one_feature_tests import OneFeatureTests
from flashmm.results.pages import SummaryPage
from flashmm.results.plots_of_one_feature import FeaturePlots
from flashmm.results.statsmodels_check import StatsmodelsCheck, check_with_statsmodels
from flashmm.slips.answers import answer_calls, no_index, no_such_attribute
from flashmm.slips.attributes import FEATURE

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FeatureResults"]


@answer_calls
@hold_methods
class FeatureResults(OneFeatureTables, OneFeatureEffects, OneFeatureTests):
    """One feature of a fit.

    Parameters
    ----------
    fitted
        The fitted models of the features that have the same samples.
    position
        Which of them.
    whole
        The fitted models of all features and the position there; None where these are all.

    Notes
    -----
    As in statsmodels, `params` holds the fixed effects followed by the variance parameters
    divided by the residual variance (`scale`); `fe_params` and `theta` hold each in the units
    of Y. statsmodels' properties fittedvalues and resid are methods here, because the results
    hold no samples.

    Examples
    --------
    >>> import flashmm as fm
    >>> sleep = fm.datasets.sleepstudy()
    >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
    >>> one.fe_params.round(2).to_dict()
    {'Intercept': 251.41, 'Days': 10.47}
    >>> round(one.scale, 1)  # the residual variance
    654.9
    """

    def __init__(
        self, fitted: FittedModel, position: int, *, whole: tuple[FittedModel, int] | None = None
    ) -> None:
        self._fitted = fitted
        model, place = (fitted, position) if whole is None else whole
        self._in_whole = model, np.array([place], dtype=np.intp)
        self._position = position
        self._positions = np.array([position], dtype=np.intp)
        self._one = fitted.ds.isel(feature=position)

    @property
    def name(self) -> Any:
        """Name of the feature."""
        return self._one["feature"].item()

    def _series(self, variable: str) -> pd.Series[Any]:
        array = self._one[variable]
        dim = str(array.dims[0])
        return pd.Series(array.to_numpy(), index=pd.Index(array[dim].to_numpy(), name=dim))

    @property
    def fe_params(self) -> pd.Series[Any]:
        """Fixed effects, length p."""
        return self._series("beta").rename("fe_params")

    @property
    def bse_fe(self) -> pd.Series[Any]:
        """Standard errors of the fixed effects, length p."""
        return self._series("se_beta").rename("bse_fe")

    @property
    def theta(self) -> pd.Series[Any]:
        """Variances and covariances in squared units of Y, Residual last."""
        return self._series("theta").rename("theta")

    @property
    def bse_theta(self) -> pd.Series[Any]:
        """Standard errors of theta."""
        return self._series("se_theta").rename("bse_theta")

    @property
    def scale(self) -> float:
        """Residual variance."""
        self._fitted.one_residual("`scale`", "See `theta`.")
        return self._unit

    @property
    def _by_group(self) -> bool:
        """Whether no one residual variance is there to divide by."""
        return len(self._fitted.stats.structure.residuals) > 1

    @property
    def _unit(self) -> float:
        """What variance parameters are divided by: the residual variance, if there is one."""
        return 1.0 if self._by_group else float(self._one["theta"].to_numpy()[-1])

    @property
    def _shown(self) -> int:
        """How many of theta `params` has: all but the residual variance that is the unit."""
        return int(self.theta.size) - (not self._by_group)

    @property
    def params(self) -> pd.Series[Any]:
        """Fixed effects, then variance parameters divided by `scale`.

        With residual variances by group there is no scale: then theta itself, in squared units
        of Y.
        """
        with np.errstate(divide="ignore", invalid="ignore"):  # a residual variance of zero
            ratios = self.theta.iloc[: self._shown] / self._unit
        return pd.concat([self.fe_params, ratios]).rename("params")

    @cached_property
    def _cov_ratios(self) -> FloatArray:
        """Covariance of the variance parameters in `params`, by the delta method."""
        theta, k = self.theta.to_numpy(), self._shown
        covariance = self._fitted.on_request.theta_covariance(self._positions)[0]
        if self._by_group:
            return np.asarray(covariance)
        if not np.isfinite(covariance).all() or self._unit == 0:
            return np.full((k, k), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):  # a residual variance of zero
            gradient = np.hstack([np.eye(k), -theta[:k, None] / self._unit]) / self._unit
            return np.asarray(gradient @ covariance @ gradient.T)

    @property
    def bse(self) -> pd.Series[Any]:
        """Standard errors of `params`; the delta method for the ratios."""
        errors = np.sqrt(np.diag(self._cov_ratios))
        ratios = pd.Series(errors, index=self.theta.index[: self._shown])
        return pd.concat([self.bse_fe, ratios]).rename("bse")

    @property
    def tvalues(self) -> pd.Series[Any]:
        """Params / bse."""
        return (self.params / self.bse).rename("tvalues")

    @cached_property
    def _tests(self) -> TTestResults:
        return self.t_test()

    @property
    def df(self) -> pd.Series[Any]:
        """Degrees of freedom of `tvalues`: Satterthwaite's, n - p for the ratios."""
        fixed, ratios = (
            self._tests.df.to_numpy()[0],
            np.full(self._shown, float(self.df_resid)),
        )
        return pd.Series(np.concatenate([fixed, ratios]), index=self.params.index, name="df")

    @property
    def pvalues(self) -> pd.Series[Any]:
        """Two-sided p-values of `tvalues` on `df` degrees of freedom."""
        table = t_statistics(
            self.params.to_numpy(), self.bse.to_numpy(), self.df.to_numpy(), "two-sided"
        )
        return pd.Series(table.p, index=self.params.index, name="pvalues")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Wald limits of `params`: a DataFrame with columns 0 and 1, as statsmodels gives.

        Parameters
        ----------
        alpha
            One minus the coverage.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.conf_int().loc["Days"].round(2).tolist()
        [7.21, 13.73]
        """
        limits = confidence_limits(
            self.params.to_numpy(), self.bse.to_numpy(), self.df.to_numpy(), alpha
        )
        return pd.DataFrame(limits, index=self.params.index, columns=[0, 1])

    def cov_params(self) -> pd.DataFrame:
        """Covariance matrix of `params`; fixed effects and variances are uncorrelated.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> one.cov_params().loc["Days", "Days"].round(3).item()
        2.389
        """
        p, names = self.fe_params.size, self.params.index
        matrix = np.zeros((names.size, names.size))
        matrix[:p, :p] = self._fitted.on_request.covariance(self._positions)[0]
        matrix[p:, p:] = self._cov_ratios
        return pd.DataFrame(matrix, index=names, columns=names)

    @property
    def bse_re(self) -> pd.Series[Any]:
        """Standard errors of the variances and covariances in squared units of Y."""
        return self.bse_theta.iloc[: len(self._fitted.stats.structure.parameters)].rename("bse_re")

    @property
    def normalized_cov_params(self) -> pd.DataFrame:
        """`cov_params` divided by `scale`."""
        return self.cov_params() / self.scale

    def to_statsmodels(
        self,
        Y: Any,
        data: Any = None,
        *,
        X: Any = None,
        Z: Any = None,
        transform: Any = None,
        context: Any = None,
    ) -> StatsmodelsCheck:
        """Refit the feature with statsmodels' MixedLM, and say how well the two agree.

        Parameters
        ----------
        Y
            Features x samples, or this feature's n values.
        data
            The samples' table; or ``X`` and ``Z`` (n, q) for a model built from matrices.
        X, Z
            Matrices in place of ``data``.
        transform
            The one that the model was built with.
        context
            Names that the formulas use besides columns.

        Returns
        -------
        StatsmodelsCheck
            The two fits side by side; ``fit`` is statsmodels' MixedLMResults.

        Raises
        ------
        InputError
            If statsmodels is not installed, cannot express the model (slopes beside a second
            grouping factor), or gives up on its own fit.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> check = one.to_statsmodels(sleep.data["Reaction"], sleep.data)
        >>> check.largest_difference < 0.01  # in standard errors
        True
        """
        Y = as_pandas(Y)
        if dimensions(Y) == 1 and not isinstance(Y, pd.Series):
            Y = pd.DataFrame(np.asarray(Y)[None, :], index=[self.name])
        elif isinstance(Y, pd.Series):
            Y = pd.DataFrame(Y.to_numpy()[None, :], index=[self.name], columns=Y.index)
        rows = {"X": X, "Z": Z, "context": context}
        residuals = predictions.resid(*self._in_whole, Y, data, transform=transform, **rows)
        fitted = predictions.fittedvalues(*self._in_whole, data, **rows)
        y = (residuals + fitted).to_numpy()[0]
        if not np.isfinite(self.theta).all():
            raise InputError(f"{self.name!r} has no estimates to compare; it is {self.status!r}.")
        there = np.flatnonzero(~np.isnan(y))
        if there.size != self.nobs:
            raise InputError(
                f"Y has {there.size} values of {self.name!r} on samples with data, but the model "
                f"was fitted on {self.nobs}."
            )
        data, X, Z = (as_pandas(part) for part in (data, X, Z))
        if there.size < y.size:
            data, X, Z = (_some_rows(part, there) for part in (data, X, Z))
        design = predictions.new_rows(
            self._fitted, data, X, Z, context, known=True, need_random=True
        )
        assert design.random is not None
        left = y[there] - design.offset
        return check_with_statsmodels(self._fitted, self._position, left, design.X, design.random.Z)

    @property
    def k_fe(self) -> int:
        """Number of fixed effects, p."""
        return self._fitted.stats.p

    @property
    def k_re(self) -> int:
        """Random effects of one level, over all terms."""
        return sum(len(term.effects) for term in self._fitted.stats.structure.terms)

    @property
    def k_re2(self) -> int:
        """Number of variances and covariances, the residual not counted."""
        return len(self._fitted.stats.structure.parameters)

    @property
    def k_vc(self) -> int:
        """Components outside `cov_re`: none, every component is in it."""
        return 0

    @property
    def vcomp(self) -> FloatArray:
        """Variances outside `cov_re`: an empty array, every component is in it."""
        return np.zeros(0)

    @property
    def df_modelwc(self) -> int:
        """Number of estimated parameters, residual variances not counted."""
        residuals = len(self._fitted.stats.structure.residuals)
        return self._fitted.n_estimated - residuals * (not self._fitted.options.known_residual)

    @property
    def reml(self) -> bool:
        """Whether the fit is REML."""
        return self.method == "REML"

    @property
    def use_t(self) -> bool:
        """Tests use Student's t; True."""
        return True

    def summary(self) -> SummaryPage:
        """The page that statsmodels' MixedLM prints.

        Examples
        --------
        >>> import flashmm as fm
        >>> sleep = fm.datasets.sleepstudy()
        >>> one = fm.MultiLMM.from_formula(sleep.formula, data=sleep.data).fit().sel("Reaction")
        >>> print(one.summary())
                            Mixed Linear Model Regression Results
        ==============================================================================
        Fixed:   ~ Days
        ...
        """
        p, limits = self.k_fe, self.conf_int()
        columns = (self.df, self.tvalues, self.pvalues, limits[0], limits[1])
        fixed = [self.fe_params, self.bse_fe, *(column.iloc[:p] for column in columns)]
        return summary.feature_page(self._fitted, self._position, pd.concat(fixed, axis=1))

    @property
    def plot(self) -> FeaturePlots:
        """Pictures: ``forest``, ``caterpillar``, ``residuals``, ``predictions``, ``profile``."""
        return FeaturePlots(*self._in_whole)

    @property
    def ds(self) -> xr.Dataset:
        """The feature's slice of the results Dataset."""
        return self._one

    @property
    def llf(self) -> float:
        """Log-likelihood."""
        return float(self._one["loglik"])

    @property
    def aic(self) -> float:
        """Akaike's criterion, as lme4 counts parameters."""
        return -2.0 * self.llf + 2.0 * int(self._fitted.n_estimated_of(self._positions)[0])

    @property
    def bic(self) -> float:
        """Schwarz's criterion, as lme4 counts parameters."""
        with np.errstate(divide="ignore", invalid="ignore"):
            count = int(self._fitted.n_estimated_of(self._positions)[0])
            return -2.0 * self.llf + float(np.log(self.nobs)) * count

    @property
    def nobs(self) -> int:
        """Number of samples."""
        return self._fitted.stats.n

    @property
    def df_resid(self) -> int:
        """Residual degrees of freedom, n - p."""
        return self._fitted.stats.n - self._fitted.stats.p

    @property
    def method(self) -> str:
        """``"REML"`` or ``"ML"``."""
        return self._fitted.options.method

    @property
    def status(self) -> str:
        """The verdict."""
        return str(self._fitted.verdicts[self._position])

    @property
    def converged(self) -> bool:
        """Whether the fit ended at a stationary point."""
        return bool(self._fitted.converged[self._position])

    @property
    def n_iter(self) -> int:
        """Iterations taken."""
        return int(self._one["n_iter"])

    __getitem__ = no_index("One feature", "coefficients are params['x'], variances theta")
    __iter__ = None

    def __repr__(self) -> str:
        return f"<FeatureResults: {self.name!r}, {self.status}>"

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Results of one feature", own=FEATURE)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _some_rows(values: Any, rows: IntArray) -> Any:
    """Some rows of a table or a matrix, if there is one."""
    if values is None:
        return None
    if isinstance(values, pd.DataFrame):
        return values.iloc[rows]
    if isinstance(values, Mapping):
        return pd.DataFrame(dict(values)).iloc[rows]
    return sp.csr_array(values)[rows] if sp.issparse(values) else np.asarray(values)[rows]
