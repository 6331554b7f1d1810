"""FeatureResults: one feature up close, under the names of statsmodels' MixedLMResults."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flashmm.inference.statistics import confidence_limits, t_statistics

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from flashmm.results import MultiLMMResults
    from flashmm.results.contrast_results import TTestResults
    from flashmm.results.summary import SummaryPage

    FloatArray = NDArray[np.float64]

__all__ = ["FeatureResults"]


class FeatureResults:
    """One feature of a fit.

    Parameters
    ----------
    results
        The fit of all features.
    position
        Which of them.

    Notes
    -----
    As in statsmodels, `params` holds the fixed effects followed by the variance parameters
    divided by the residual variance (`scale`); `fe_params` and `theta` hold each in the units
    of Y.
    """

    def __init__(self, results: MultiLMMResults, position: int) -> None:
        self._results = results
        self._position = position
        self._one = results.ds.isel(feature=position)

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
        return float(self._one["theta"].to_numpy()[-1])

    @property
    def params(self) -> pd.Series[Any]:
        """Fixed effects, then variance parameters divided by `scale`."""
        return pd.concat([self.fe_params, self.theta.iloc[:-1] / self.scale]).rename("params")

    @cached_property
    def _cov_ratios(self) -> FloatArray:
        """Covariance of the variance parameters divided by `scale`, by the delta method."""
        theta = self.theta.to_numpy()
        k = theta.size - 1
        FIM = self._results.fim([self._position_name])["FIM_theta"].to_numpy()[0]
        if not np.isfinite(FIM).all():
            return np.full((k, k), np.nan)
        gradient = np.hstack([np.eye(k), -theta[:k, None] / self.scale]) / self.scale
        length = np.sqrt(np.diag(FIM))
        inverse = np.linalg.pinv(FIM / np.outer(length, length), hermitian=True)
        covariance = inverse / np.outer(length, length)
        return np.asarray(gradient @ covariance @ gradient.T)

    @property
    def bse(self) -> pd.Series[Any]:
        """Standard errors of `params`; the delta method for the ratios."""
        errors = np.sqrt(np.diag(self._cov_ratios))
        ratios = pd.Series(errors, index=self.theta.index[:-1])
        return pd.concat([self.bse_fe, ratios]).rename("bse")

    @property
    def tvalues(self) -> pd.Series[Any]:
        """Params / bse."""
        return (self.params / self.bse).rename("tvalues")

    @property
    def pvalues(self) -> pd.Series[Any]:
        """Two-sided p-values of `tvalues` on `df_resid` degrees of freedom."""
        table = t_statistics(
            self.params.to_numpy(), self.bse.to_numpy(), float(self.df_resid), "two-sided"
        )
        return pd.Series(table.p, index=self.params.index, name="pvalues")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Wald limits of `params`: a DataFrame with columns 0 and 1, as statsmodels gives.

        Parameters
        ----------
        alpha
            One minus the coverage.
        """
        limits = confidence_limits(
            self.params.to_numpy(), self.bse.to_numpy(), float(self.df_resid), alpha
        )
        return pd.DataFrame(limits, index=self.params.index, columns=[0, 1])

    def cov_params(self) -> pd.DataFrame:
        """Covariance matrix of `params`; fixed effects and variances are uncorrelated."""
        p, names = self.fe_params.size, self.params.index
        matrix = np.zeros((names.size, names.size))
        matrix[:p, :p] = self._results.cov_params([self._position_name]).to_numpy()[0]
        matrix[p:, p:] = self._cov_ratios
        return pd.DataFrame(matrix, index=names, columns=names)

    @property
    def cov_re(self) -> dict[str, pd.DataFrame]:
        """Covariance matrix of the effects of each random term."""
        theta, structure = self._one["theta"].to_numpy(), self._results.stats.structure
        matrices = {}
        for position, term in enumerate(structure.terms):
            s = len(term.effects)
            matrix = np.zeros((s, s))
            for i, parameter in enumerate(structure.parameters):
                if parameter.term != position:
                    continue
                if parameter.row < 0:
                    matrix += theta[i] * np.eye(s)
                else:
                    matrix[parameter.row, parameter.column] = theta[i]
                    matrix[parameter.column, parameter.row] = theta[i]
            effects = list(term.effects)
            matrices[term.name] = pd.DataFrame(matrix, index=effects, columns=effects)
        return matrices

    @property
    def random_effects(self) -> dict[str, pd.DataFrame]:
        """Predictions of each random term: levels x effects, as lme4's ranef."""
        one = self._results.blup(features=[self._position_name])
        values = one.to_numpy()[0]
        structure = self._results.stats.structure
        return {
            term.name: pd.DataFrame(
                values[start : start + term.n_columns].reshape(len(term.levels), -1),
                index=pd.Index(term.levels, name=term.group),
                columns=list(term.effects),
            )
            for term, start in zip(structure.terms, structure.offsets, strict=False)
        }

    def t_test(self, contrast: Any = None, **options: Any) -> TTestResults:
        """Test contrasts of the fixed effects; see `MultiLMMResults.t_test`."""
        return self._results.t_test(contrast, features=[self._position_name], **options)

    def summary(self) -> SummaryPage:
        """The page that statsmodels' MixedLM prints."""
        return self._results.summary(self._position_name)

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
        return float(self._results.aic.iloc[self._position])

    @property
    def bic(self) -> float:
        """Schwarz's criterion, as lme4 counts parameters."""
        return float(self._results.bic.iloc[self._position])

    @property
    def nobs(self) -> int:
        """Number of samples."""
        return self._results.nobs

    @property
    def df_resid(self) -> int:
        """Residual degrees of freedom, n - p."""
        return self._results.df_resid

    @property
    def method(self) -> str:
        """``"REML"`` or ``"ML"``."""
        return self._results.method

    @property
    def status(self) -> str:
        """The verdict."""
        return str(self._results.status.iloc[self._position])

    @property
    def converged(self) -> bool:
        """Whether the fit ended at a stationary point."""
        return bool(self._results.converged.iloc[self._position])

    @property
    def n_iter(self) -> int:
        """Iterations taken."""
        return int(self._one["n_iter"])

    @property
    def _position_name(self) -> Any:
        return self._results.ds["feature"].to_numpy()[self._position]

    def __repr__(self) -> str:
        return f"<FeatureResults: {self.name!r}, {self.status}>"

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()
