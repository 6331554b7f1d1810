"""What a fit found: estimates as labelled tables over the results Dataset.

What is large (covariances, information, random effects) is computed on request from theta and
the summary statistics; it is not stored.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import xarray as xr

from flashmm.arrays.labels import feature_positions
from flashmm.exceptions import InputError
from flashmm.likelihood import AnyEstimator, AnyProjection, make_likelihood, project_any
from flashmm.results.on_request import OnRequest
from flashmm.solvers.status import Status
from flashmm.stats.own_rows import PatternedStats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from flashmm.formulas.recipe import DesignRecipe
    from flashmm.stats.summary_stats import SummaryStats

    FloatArray = NDArray[np.float64]

__all__ = ["Estimates", "FitOptions", "attributes"]


@dataclass(frozen=True)
class FitOptions:
    """How a model was fitted, and the formulas as text; kept in ``results.ds.attrs``."""

    method: Literal["REML", "ML"]
    solver: str
    parameter_space: str
    max_iter: int
    epsilon: float
    memory: int
    engine: str
    fixed: str = ""
    random: str = ""
    n_dropped: int = 0


class Estimates:
    """Estimates of all features; the foundation of `MultiLMMResults`.

    Parameters
    ----------
    ds
        Estimates, as an xarray Dataset; its variables are listed in `flashmm.storage.schema`.
    stats
        The summary statistics that were fitted.
    options
        How they were fitted.
    projection
        The statistics projected off X; computed when left out.
    recipe
        How X and Z are made of data; None when the model was built from matrices.
    """

    def __init__(
        self,
        ds: xr.Dataset,
        stats: SummaryStats | PatternedStats,
        options: FitOptions,
        projection: AnyProjection | None = None,
        recipe: DesignRecipe | None = None,
    ) -> None:
        self.ds = ds
        self.stats = stats
        self.options = options
        self.recipe = recipe
        self._lacks_samples = False  # whether these are features of one pattern of samples
        if projection is not None:
            self.__dict__["_projection"] = projection

    @cached_property
    def _projection(self) -> AnyProjection:
        return project_any(self.stats)

    @cached_property
    def _likelihood(self) -> AnyEstimator:
        return make_likelihood(self._projection, self.options.method, self.options.engine)

    @cached_property
    def _on_request(self) -> OnRequest:
        theta = self._projection.to_internal(self.ds["theta"].to_numpy())
        varies = self.ds["status"].to_numpy() != Status.ZERO_VARIANCE
        known = varies & np.isfinite(theta).all(axis=1)
        likelihood, memory = self._likelihood, self.options.memory
        return OnRequest(likelihood, self._projection, theta, known, memory)

    def _frame(self, name: str) -> pd.DataFrame:
        array = self.ds[name]
        dim = str(array.dims[1])
        return pd.DataFrame(
            array.to_numpy(),
            index=self._features,
            columns=pd.Index(self.ds[dim].to_numpy(), name=dim),
        )

    def _series(self, name: str) -> pd.Series[Any]:
        return pd.Series(self.ds[name].to_numpy(), index=self._features, name=name)

    @property
    def _features(self) -> pd.Index:
        return pd.Index(self.ds["feature"].to_numpy(), name="feature")

    @property
    def params(self) -> pd.DataFrame:
        """Fixed effects, features x coefficients (FLASHMM's coef, transposed)."""
        return self._frame("beta")

    @property
    def bse(self) -> pd.DataFrame:
        """Standard errors of the fixed effects, features x coefficients."""
        return self._frame("se_beta")

    @property
    def tvalues(self) -> pd.DataFrame:
        """Params / bse, features x coefficients."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.params / self.bse

    @property
    def theta(self) -> pd.DataFrame:
        """Variances and covariances, features x parameters, Residual last."""
        return self._frame("theta")

    @property
    def bse_theta(self) -> pd.DataFrame:
        """Standard errors of theta, from the expected information."""
        return self._frame("se_theta")

    @property
    def score(self) -> pd.DataFrame:
        """Derivatives of the log-likelihood by theta (FLASHMM's dlogL)."""
        return self._frame("score")

    @property
    def llf(self) -> pd.Series[Any]:
        """Maximised log-likelihoods, with the constant of lme4 and statsmodels."""
        return self._series("loglik").rename("llf")

    @property
    def aic(self) -> pd.Series[Any]:
        """-2 llf + 2 (p + number of variance parameters), as lme4 counts them."""
        return (-2.0 * self.llf + 2.0 * self._n_estimated).rename("aic")

    @property
    def bic(self) -> pd.Series[Any]:
        """-2 llf + log(n) (p + number of variance parameters), as lme4 counts them."""
        return (-2.0 * self.llf + np.log(self.nobs) * self._n_estimated).rename("bic")

    @property
    def _n_estimated(self) -> int:
        return self.stats.p + self.ds.sizes["param"]

    @property
    def n_iter(self) -> pd.Series[Any]:
        """Iterations taken by each feature."""
        return self._series("n_iter")

    @property
    def status(self) -> pd.Series[Any]:
        """Verdict of each feature as text, e.g. ``"converged"``; see `flashmm.Status`."""
        labels = np.array([status.label for status in Status], dtype=object)
        return pd.Series(labels[self.ds["status"].to_numpy()], index=self._features, name="status")

    @property
    def converged(self) -> pd.Series[Any]:
        """Whether each feature ended at a stationary point."""
        good = self.ds["status"].to_numpy() <= Status.INDEFINITE
        return pd.Series(good, index=self._features, name="converged")

    @property
    def nobs(self) -> Any:
        """Number of samples; of each feature, a Series, where they miss different ones."""
        if isinstance(self.stats, PatternedStats):
            return pd.Series(self.stats.nobs, index=self._features, name="nobs")
        return self.stats.n

    @property
    def df_resid(self) -> Any:
        """Residual degrees of freedom, n - p; like `nobs`."""
        df = self.nobs - self.stats.p
        return df.rename("df_resid") if isinstance(df, pd.Series) else df

    @property
    def method(self) -> str:
        """``"REML"`` or ``"ML"``."""
        return self.options.method

    # ---- samples missing by feature ----------------------------------------------------------

    def of_pattern(self, feature: Any) -> Self:
        """The results of the features that have the same samples as one, an ordinary fit.

        Parameters
        ----------
        feature
            Name of the feature, or its position when the features have text names.

        Returns
        -------
        MultiLMMResults
            Nothing is fitted again. These results themselves where no sample is missing.
        """
        stats = self.stats
        if not isinstance(stats, PatternedStats):
            return self
        return self._of_pattern(int(stats.pattern[self._positions([feature])[0]]))

    def _of_pattern(self, pattern: int) -> Self:
        stats = self.stats
        assert isinstance(stats, PatternedStats)
        ds = self.ds.isel(feature=stats.members(pattern)).drop_vars("nobs")
        one = stats.of_pattern(pattern)
        options = replace(self.options, engine="auto")
        ds.attrs = attributes(one, options)
        results = type(self)(ds, one, options, recipe=self.recipe)
        results._lacks_samples = True
        return results

    def _by_pattern(
        self, positions: NDArray[np.intp], call: Callable[[Any, NDArray[np.intp]], xr.Dataset]
    ) -> xr.Dataset:
        """What ``call`` says of the results of each pattern and of some features in them."""
        stats = self.stats
        assert isinstance(stats, PatternedStats)
        places, parts = [], []
        for pattern in np.unique(stats.pattern[positions]):
            here = np.flatnonzero(stats.pattern[positions] == pattern)
            members = stats.members(int(pattern))
            one = self._of_pattern(int(pattern))
            parts.append(call(one, np.searchsorted(members, positions[here])))
            places.append(here)
        order = np.argsort(np.concatenate(places))
        return xr.concat(parts, "feature").isel(feature=order)

    def _one_design(self, what: str) -> SummaryStats:
        """The statistics, where all features have the same samples, which ``what`` needs."""
        if isinstance(self.stats, PatternedStats):
            raise InputError(
                f"{what} needs features that have the same samples; here each lacks its own "
                "(missing='feature'). results.of_pattern(feature) holds those that share the "
                "samples of one, and can do it."
            )
        return self.stats

    # ---- helpers ---------------------------------------------------------------------------

    def _known_recipe(self) -> DesignRecipe:
        if self.recipe is None:
            raise InputError(
                "These results do not know how X and Z are made of data: the model was built from "
                "matrices or summary statistics, or its formulas hold what a file cannot keep. "
                "Pass matrices: X and Z to `predict`, contrasts to `t_test`."
            )
        return self.recipe

    def _fixed_rows(self, data: Any, context: Mapping[str, Any] | None) -> FloatArray:
        """Rows of X for new data, the coefficients of the statistics alone, shape (c, p)."""
        recipe = self._known_recipe()
        rows = recipe.fixed_rows(data, context)
        position = {name: i for i, name in enumerate(recipe.fixed.names)}
        return rows[:, [position[name] for name in self.stats.coef_names]]

    def _coords(self, *names: str) -> dict[str, Any]:
        return {name: self.ds[name].to_numpy() for name in names}

    def _positions(self, features: Any) -> NDArray[np.intp]:
        names = self._features.to_numpy()
        if features is None:
            return np.arange(names.size)
        return feature_positions(names, features)


def attributes(stats: SummaryStats | PatternedStats, options: FitOptions) -> dict[str, Any]:
    """What ``results.ds.attrs`` holds: strings and numbers."""
    return {**asdict(options), "nobs": stats.n, "df_resid": stats.n - stats.p}
