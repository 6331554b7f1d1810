"""The fitted model: what every capability of the results is a function of.

To add a capability:

1. *The function.* In the module of its subject, here or in `flashmm.inference` if it makes no
   labelled tables: it takes the `FittedModel`, the positions of the features (never their names)
   and its options, and asks `fitted` for all that it needs::

       def signal_to_noise(fitted: FittedModel, positions: IntArray) -> xr.DataArray:
           theta = fitted.values("theta", positions)
           ratio = theta[:, :-1] / theta[:, -1:]
           coords = {"feature": fitted.features[positions], "param": fitted.params[:-1]}
           return xr.DataArray(ratio, dims=("feature", "param"), coords=coords)

2. *The method.* In `methods/`, in the group of its subject: the docstring and one call, which
   turns names into positions; the same call with ``self._positions`` makes it a method of
   `FeatureResults`::

       def signal_to_noise(self, *, features: Any = None) -> xr.DataArray:
           '''Variances over the residual variance. ...'''
           return ratios.signal_to_noise(self.fitted, self.fitted.positions(features))

3. *The test.* In ``tests/test_<subject>.py``, against a reference or by a property, through the
   method; the function itself is ``signal_to_noise(result.fitted, positions)``. Where features
   lack samples of their own (``missing="feature"``), `FittedModel.by_pattern` gives the answer
   pattern by pattern, and `FittedModel.one_design` refuses.

What is large (covariances, information, random effects) is computed on request from theta and
the summary statistics; it is not stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self, cast

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.labels import feature_positions
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.formulas.new_data_recipe import DesignRecipe
from flashmm.likelihood import AnyEstimator, AnyProjection, make_likelihood, project_any
from flashmm.likelihood.known_residual import hold_residual
from flashmm.results.deferred import Deferred, array_of, dataset_of
from flashmm.results.on_request import OnRequest
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.groups import absent_residuals
from flashmm.stats.known_levels import in_roots
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["FitOptions", "FittedModel", "OfFittedModel", "attributes"]


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
    # "estimated", or "known": theta of the results holds the values.
    residual_variance: str = "estimated"
    # What groups have residual variances of their own; empty for one variance.
    residual_by: str = ""
    # Where a mapping made these of finer ones: which, as `flashmm.stats.groups.coarser_of` writes.
    residual_groups: str = ""

    @property
    def known_residual(self) -> bool:
        """Whether the residual variance was known, and not estimated."""
        return self.residual_variance == "known"


def attributes(stats: SummaryStats | PatternedStats, options: FitOptions) -> dict[str, Any]:
    """What ``results.ds.attrs`` holds: strings and numbers."""
    return {**asdict(options), "nobs": stats.n, "df_resid": stats.n - stats.p}


@dataclass(frozen=True, eq=False, repr=False)
class FittedModel:
    """The fitted models of all features, and what is computed of them once.

    Parameters
    ----------
    estimates
        Estimates, as an xarray Dataset, or what makes it; its variables are listed in
        `flashmm.storage.schema`.
    stats
        The summary statistics that were fitted.
    options
        How they were fitted.
    projected
        The statistics projected off X, if that has been done.
    recipe
        How X and Z are made of data; None when the model was built from matrices.
    whole
        The fitted models of all features, where these are those with one pattern of samples.
    members
        Their positions in the whole; None for a whole fit.
    """

    estimates: xr.Dataset | Deferred
    stats: SummaryStats | PatternedStats
    options: FitOptions
    projected: AnyProjection | None = None
    recipe: DesignRecipe | None = None
    whole: FittedModel | None = None
    members: IntArray | None = None
    # What was learned of the fit and is not learned again, by subject.
    kept: dict[str, Any] = field(default_factory=dict, init=False)

    # ---- the model in numbers --------------------------------------------------------------

    @property
    def ds(self) -> xr.Dataset:
        """Estimates, as an xarray Dataset."""
        return dataset_of(self.estimates)

    def array(self, name: str) -> NDArray[Any]:
        """A variable of the Dataset without its labels."""
        return array_of(self.estimates, name)

    @cached_property
    def projection(self) -> AnyProjection:
        """The statistics projected off X."""
        if self.projected is not None:
            return self.projected
        return project_any(self.stats, known_residual=self.options.known_residual)

    @cached_property
    def independent(self) -> SummaryStats | PatternedStats:
        """The statistics with Z L in the place of Z where levels have known covariances."""
        turned: SummaryStats | PatternedStats = in_roots(self.stats)[0]
        return turned

    def know(self, likelihood: AnyEstimator) -> None:
        """Take the likelihood that was maximised, which is then not made again."""
        self.__dict__["likelihood"] = self.held(likelihood)

    def held(self, likelihood: AnyEstimator) -> Any:
        """A likelihood of these features, its residual variance held where it is known."""
        if not self.options.known_residual:
            return likelihood
        return hold_residual(likelihood, self.projection, self.array("theta")[:, -1])

    @cached_property
    def likelihood(self) -> AnyEstimator:
        """The likelihood that was maximised."""
        made = make_likelihood(self.projection, self.options.method, self.options.engine)
        return cast("AnyEstimator", self.held(made))

    @cached_property
    def on_request(self) -> OnRequest:
        """The likelihood at the estimates, for what is too large to store."""
        theta = self.projection.to_internal(self.array("theta"))
        varies = self.array("status") != Status.ZERO_VARIANCE
        known = varies & np.isfinite(theta).all(axis=1)
        return OnRequest(self.likelihood, self.projection, theta, known, self.options.memory)

    @property
    def converged(self) -> BoolArray:
        """Whether each feature ended at a stationary point, shape (m,)."""
        return np.asarray(self.array("status") <= Status.INDEFINITE)

    @property
    def verdicts(self) -> NDArray[Any]:
        """The verdicts as text, shape (m,)."""
        labels = np.array([status.label for status in Status], dtype=object)
        return np.asarray(labels[self.array("status")])

    @property
    def nobs(self) -> int | NDArray[np.int64]:
        """Samples; of each feature, shape (m,), where they miss different ones."""
        return self.stats.nobs if isinstance(self.stats, PatternedStats) else self.stats.n

    @property
    def n_estimated(self) -> int:
        """Parameters of a feature with samples of all groups: p and the variance parameters."""
        own = int(self.array("theta").shape[1])
        if self.stats.structure.curved is not None:
            own += self.stats.structure.n_own - len(self.stats.structure.param_names)
        return self.stats.p + own - self.options.known_residual

    @cached_property
    def absent(self) -> BoolArray | None:
        """Which residual variances are of groups a feature has no samples of, (m, H), if any."""
        return absent_residuals(self.stats)

    def n_estimated_of(self, positions: IntArray) -> IntArray:
        """`n_estimated` of each feature, which may lack the samples of a group, shape (B,)."""
        count = np.full(positions.size, self.n_estimated, dtype=np.intp)
        return count if self.absent is None else count - self.absent[positions].sum(axis=1)

    def values(self, name: str, positions: IntArray) -> FloatArray:
        """Estimates of the features at some positions: a variable of the Dataset."""
        return np.asarray(self.array(name)[positions])

    # ---- labels ------------------------------------------------------------------------------

    def positions(self, features: Any = None) -> IntArray:
        """What a user calls some features, as positions; all by default.

        For public methods alone: functions of a fitted model take positions.
        """
        if features is None:
            return np.arange(len(self.array("status")))
        return feature_positions(self.names, features)

    @property
    def names(self) -> NDArray[Any]:
        """Names of the features, shape (m,)."""
        return np.asarray(self.ds["feature"].to_numpy())

    @property
    def coefs(self) -> NDArray[Any]:
        """Names of the coefficients, shape (p,)."""
        return np.asarray(self.ds["coef"].to_numpy())

    @property
    def params(self) -> NDArray[Any]:
        """Names of the variance parameters, shape (k,), Residual last."""
        return np.asarray(self.ds["param"].to_numpy())

    def frame(self, name: str) -> pd.DataFrame:
        """A variable of the Dataset, features x coefficients or parameters."""
        array = self.ds[name]
        dim = str(array.dims[1])
        columns = pd.Index(array[dim].to_numpy(), name=dim)
        return pd.DataFrame(array.to_numpy(), index=self.features, columns=columns)

    def series(self, name: str, values: NDArray[Any]) -> pd.Series[Any]:
        """Values of the features, shape (m,), as a Series."""
        return pd.Series(values, index=self.features, name=name)

    @property
    def features(self) -> pd.Index:
        """Names of the features as pandas holds them: text is ``str`` from pandas 3 on."""
        return pd.Index(self.names, name="feature")

    # ---- samples missing by feature ----------------------------------------------------------

    def of_pattern(self, pattern: int) -> FittedModel:
        """The fitted models of the features that lack the same samples; nothing is fitted again."""
        stats = self.stats
        assert isinstance(stats, PatternedStats)
        ds = self.ds.isel(feature=stats.members(pattern)).drop_vars("nobs")
        one = stats.of_pattern(pattern)
        options = replace(self.options, engine="auto")
        ds.attrs = attributes(one, options)
        members = stats.members(pattern)
        projected = None
        if self._not_estimable[members].all():
            # Nothing is computed of features without estimates, but their arrays have shapes.
            with contextlib.suppress(InputError):
                some = stats.sums.take(stats.pattern == pattern)
                projected = project_any(some, known_residual=options.known_residual)
        return FittedModel(ds, one, options, projected, self.recipe, whole=self, members=members)

    @property
    def _not_estimable(self) -> BoolArray:
        """Features whose samples cannot carry the model, shape (m,)."""
        return np.asarray(self.array("status") == Status.NOT_ESTIMABLE)

    def around(self, position: int) -> tuple[FittedModel, int]:
        """The fitted models of the features with the samples of one, and its position there."""
        if not isinstance(self.stats, PatternedStats):
            return self, position
        pattern = int(self.stats.pattern[position])
        there = int(np.searchsorted(self.stats.members(pattern), position))
        return self.of_pattern(pattern), there

    def by_pattern(
        self, positions: IntArray, call: Callable[[FittedModel, IntArray], xr.Dataset]
    ) -> xr.Dataset:
        """What ``call`` says of the fitted models of each pattern and of positions in them.

        NaN for features that cannot be estimated.
        """
        stats = self.stats
        assert isinstance(stats, PatternedStats)
        places, parts = [], []
        lost = np.flatnonzero(self._not_estimable[positions])
        left = np.setdiff1d(np.arange(positions.size), lost)
        if lost.size:
            donor = np.flatnonzero(~self._not_estimable)[:1] if left.size == 0 else left[:1]
            chosen = donor if left.size == 0 else positions[donor]
            like = self.by_pattern(chosen, call).isel(feature=np.zeros(lost.size, dtype=np.intp))
            places.append(lost)
            parts.append((like * np.nan).assign_coords(feature=self.names[positions[lost]]))
        for pattern in np.unique(stats.pattern[positions[left]]):
            here = left[stats.pattern[positions[left]] == pattern]
            members = stats.members(int(pattern))
            one = self.of_pattern(int(pattern))
            parts.append(call(one, np.searchsorted(members, positions[here])))
            places.append(here)
        order = np.argsort(np.concatenate(places))
        return xr.concat(parts, "feature").isel(feature=order)

    @property
    def lacks_values(self) -> bool:
        """Whether the fit left out missing values, which its data may still hold."""
        by_feature = isinstance(self.stats, PatternedStats) or self.whole is not None
        return by_feature or self.options.n_dropped > 0

    def one_design(self, what: str) -> SummaryStats:
        """The statistics, where all features have the same samples, which ``what`` needs."""
        if isinstance(self.stats, PatternedStats):
            raise InputError(
                f"{what} needs features that have the same samples, weights and covariates; here "
                "features have their own (missing='feature', or weights or covariates of each). "
                "results.of_pattern(feature) holds those that share them with one, and can do it."
            )
        return self.stats

    def estimated_residual(self, what: str, instead: str = "") -> None:
        """Raise where the residual variance is known, which ``what`` has no use for."""
        if self.options.known_residual:
            raise InputError(
                f"{what} needs residual variances that were estimated; in this fit they are known "
                f"(residual_variance=). {instead}".rstrip()
            )

    def one_residual(self, what: str, instead: str = "") -> None:
        """Raise where groups of samples have residual variances of their own."""
        if self.options.residual_by:
            raise InputError(
                f"{what} takes one residual variance; this fit has one for each group of "
                f"{self.options.residual_by!r}. {instead}".rstrip()
            )

    def shared_samples(self, what: str, instead: str = "") -> None:
        """Raise where features with samples of their own have residual variances by group."""
        own = isinstance(self.stats, PatternedStats)
        if self.options.residual_by and (own or self.absent is not None):
            why = "features with samples, weights or covariates of their own"
            raise InputError(
                f"{what} takes one residual variance, or features that share their samples and "
                "have some of every group; this fit has one variance for each group of "
                f"{self.options.residual_by!r}, and {why if own else 'no samples of some'}. "
                f"{instead}".rstrip()
            )

    def linear(self, what: str, instead: str) -> None:
        """Raise where structures are not linear in their parameters, which ``what`` needs."""
        terms = self.stats.structure.terms
        names = [f"{term.name!r} ({term.covariance})" for term in terms if term.curve is not None]
        if names:
            raise InputError(
                f"{what} is there for covariances that are linear in their parameters; that of "
                f"{', '.join(names)} is not. {instead}"
            )

    def of_groups(self, what: str) -> SummaryStats:
        """The statistics, which may have sums by group, that ``what`` needs."""
        if isinstance(self.stats, PatternedStats) or self.whole is not None:
            raise InputError(
                f"{what} needs sums by group of samples that all features share; here features "
                "have samples, weights or covariates of their own (missing='feature', or weights "
                "or covariates of each). Build the model with missing='drop', or with filled in "
                "values, and sums_by."
            )
        return self.stats

    # ---- new data ----------------------------------------------------------------------------

    def known_recipe(self) -> DesignRecipe:
        """The recipe; an error where there is none."""
        if self.recipe is None:
            raise InputError(
                "These results do not know how X and Z are made of data: the model was built from "
                "matrices or summary statistics, or its formulas hold what a file cannot keep. "
                "Pass matrices: X and Z to `predict`, contrasts to `t_test`."
            )
        return self.recipe

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of all columns of X, those that were left out because of its rank included."""
        aliased = self.stats.aliased
        return self.stats.coef_names if aliased is None else aliased.names

    def fixed_rows(self, data: Any, context: Mapping[str, Any] | None) -> FloatArray:
        """Rows of X for new data, over the `columns`."""
        recipe = self.known_recipe()
        rows = recipe.fixed_rows(data, context)
        position = {name: i for i, name in enumerate(recipe.fixed.names)}
        return rows[:, [position[name] for name in self.columns]]

    def offset_rows(self, data: Any, context: Mapping[str, Any] | None) -> FloatArray:
        """The offset of new data, shape (c,); zeros where the formula has none."""
        return self.known_recipe().offset_rows(data, context)


class OfFittedModel:
    """Where the methods of a results class stand: they know `fitted`, and nothing of each other.

    Parameters
    ----------
    fitted
        The fitted models of all features.
    """

    def __init__(self, fitted: FittedModel) -> None:
        self.fitted = fitted

    @classmethod
    def _of(cls, fitted: FittedModel) -> Self:
        """Results around a fitted model, whatever the class takes to make others."""
        results = cls.__new__(cls)
        results.fitted = fitted
        return results
