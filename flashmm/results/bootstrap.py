"""The parametric bootstrap, in the space of summary statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import xarray as xr
from numpy.typing import NDArray

from flashmm.arrays.labels import as_pandas, axis_labels, label_positions
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError
from flashmm.inference.draws import FeatureStreams
from flashmm.inference.own_draws import sampler_of
from flashmm.inference.statistics import resolve_alternative
from flashmm.inference.variance_tests import zero_hypotheses
from flashmm.results.bootstrap_results import BootstrapResults, monte_carlo_p
from flashmm.results.estimability import only_estimable
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import t_test
from flashmm.results.refit import Progress, refit, replicate_fits
from flashmm.results.variance_tests import gain, maximiser
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.fields import Sums
from flashmm.stats.own_designs import OwnColumns
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.root import restrict_root
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["bootstrap", "bootstrap_test", "draw", "restricted"]


@dataclass(frozen=True)
class _Statistic:
    """A function of a fitted model: labels, and values (features, statistics)."""

    labels: tuple[str, ...]
    evaluate: Callable[[FittedModel], FloatArray]


def draw(
    fitted: FittedModel, positions: IntArray, n: int = 1, *, rng: Any = None, every: bool = False
) -> SummaryStats | PatternedStats:
    """Statistics of new data from the fitted models; see `MultiLMMResults.draw`."""
    _check_samples(fitted, "draw")
    _check_count("n", n)
    usable = _drawable(fitted, positions)
    if every and not usable.all():
        lost = fitted.names[positions[~usable]]
        raise InputError(
            f"Feature {str(lost[0])!r} has no estimate with a positive definite V to draw from."
        )
    positions = positions[usable]
    streams = FeatureStreams.spawn(np.random.default_rng(rng), fitted.stats.m).take(positions)
    theta = fitted.values("theta", positions)
    beta = fitted.values("beta", positions)
    drawn = sampler_of(fitted.stats.at(positions)).draw(theta, beta, n, streams)
    labels = [f"{name}#{r}" for name in fitted.names[positions] for r in range(n)]
    if isinstance(drawn, PatternedStats):
        return replace(drawn, sums=replace(drawn.sums, feature_names=labels))
    return replace(drawn, feature_names=labels)


def bootstrap(
    fitted: FittedModel,
    positions: IntArray,
    n: int = 999,
    *,
    statistic: str | Sequence[str] | Callable[[Any], Any] | None = None,
    results_of: Callable[[FittedModel], Any],
    rng: Any = None,
    progress: Progress = None,
) -> BootstrapResults:
    """Draw new statistics and fit again; see `MultiLMMResults.bootstrap`.

    ``results_of`` makes the results that a function as ``statistic`` takes.
    """
    _check_samples(fitted, "bootstrap")
    _check_count("n", n)
    chosen = _statistic(statistic, fitted.stats, results_of)
    estimate = _values(chosen.evaluate(fitted), fitted.names)[positions]
    values = np.full((positions.size, n, estimate.shape[1]), np.nan)
    theta = fitted.values("theta", positions)
    beta = fitted.values("beta", positions)
    for rows, columns, drawn in _replicates(fitted, theta, beta, positions, n, rng, progress):
        found = _values(chosen.evaluate(drawn), drawn.names)
        found[~drawn.converged] = np.nan
        values[rows, columns] = found.reshape(rows.size, -1, found.shape[1])
    labels = chosen.labels or tuple(f"statistic {j + 1}" for j in range(estimate.shape[1]))
    return BootstrapResults(
        xr.Dataset(
            {
                "replicates": (("feature", "replicate", "statistic"), values),
                "estimate": (("feature", "statistic"), estimate),
            },
            coords={
                "feature": fitted.features[positions],
                "replicate": np.arange(n),
                "statistic": pd.Index(labels),
            },
        )
    )


def bootstrap_test(
    fitted: FittedModel,
    positions: IntArray,
    contrast: Any = None,
    *,
    component: str | None = None,
    n: int = 999,
    alternative: str = "two-sided",
    rng: Any = None,
    progress: Progress = None,
) -> xr.Dataset:
    """Test of a contrast or a component by refits; see `MultiLMMResults.bootstrap_test`."""
    _check_samples(fitted, "bootstrap_test")
    _check_count("n", n)
    side = resolve_alternative(alternative)
    if (contrast is None) == (component is None):
        raise InputError("Give a `contrast` or a `component` to test, one of the two.")
    if component is not None:
        theta, beta = _without(fitted, positions, component)
        measure = _gain_without(component)
    else:
        theta, beta = restricted(fitted, positions, contrast)
        measure = _t_of(contrast, side)
    statistic = measure(fitted)[positions]
    exceed, draws = (np.zeros(positions.size, dtype=np.int64) for _ in range(2))
    for rows, _, drawn in _replicates(fitted, theta, beta, positions, n, rng, progress):
        found = np.where(drawn.converged, measure(drawn), np.nan).reshape(rows.size, -1)
        exceed[rows] += (found >= statistic[rows, None]).sum(axis=1)
        draws[rows] += np.isfinite(found).sum(axis=1)
    draws[np.isnan(statistic)] = 0
    p, p_se = monte_carlo_p(exceed, draws)
    return xr.Dataset(
        {
            "statistic": (("feature",), statistic),
            "p": (("feature",), p),
            "p_se": (("feature",), p_se),
            "n_replicates": (("feature",), draws),
        },
        coords={"feature": fitted.features[positions]},
        attrs={"hypothesis": str(component if component is not None else contrast)},
    )


def _check_samples(fitted: FittedModel, what: str) -> None:
    """Raise where features with samples of their own have residual variances by group."""
    fitted.shared_samples(what, "Fit without `residual_by`.")


def _drawable(fitted: FittedModel, positions: IntArray) -> BoolArray:
    """Which features have a theta that a normal distribution has."""
    status = fitted.values("status", positions)
    theta = fitted.values("theta", positions)
    return np.asarray((status < Status.INDEFINITE) & np.isfinite(theta).all(axis=1))


def _replicates(
    fitted: FittedModel,
    theta: FloatArray,
    beta: FloatArray,
    positions: IntArray,
    n: int,
    rng: Any,
    progress: Progress,
) -> Iterator[tuple[IntArray, slice, FittedModel]]:
    """Fits of replicates, in batches: rows of ``positions``, replicates, fitted models."""
    streams = FeatureStreams.spawn(np.random.default_rng(rng), fitted.stats.m).take(positions)
    theta = np.where(_drawable(fitted, positions)[:, None], theta, np.nan)
    fits = replicate_fits(
        sampler_of(fitted.stats.at(positions)),
        theta,
        beta,
        n,
        streams,
        fitted.options,
        progress,
    )
    for fit in fits:
        drawn = FittedModel(fit.ds, fit.stats, fitted.options, fit.projection)
        yield fit.rows, fit.columns, drawn


def _without(
    fitted: FittedModel, positions: IntArray, component: str
) -> tuple[FloatArray, FloatArray]:
    """Theta and beta under the hypothesis that a component is absent."""
    hypothesis = zero_hypotheses(fitted.stats.structure, component)[0]
    turn = getattr(fitted.projection, "turn", None)
    if turn is not None and not turn.keeps(np.array(hypothesis.zeros)):
        raise InputError(
            f"The effects of {component!r} are almost collinear, and its absence cannot be held "
            "while they are fitted. Centre the variable of the slope."
        )
    theta = np.full((positions.size, fitted.ds.sizes["param"]), np.nan)
    beta = np.full((positions.size, fitted.stats.p), np.nan)
    known = np.flatnonzero(fitted.on_request.known[positions] & fitted.converged[positions])
    at = positions[known]
    null = maximiser(fitted).at(fitted.on_request.theta[at], at, zeros=hypothesis.zeros)
    found = np.isfinite(null.loglik)
    known, at, internal = known[found], at[found], null.theta[found]
    theta[known] = fitted.projection.natural_theta(internal, at)
    size = fitted.likelihood.batch_size(fitted.options.memory)
    for first in range(0, at.size, size):
        here = slice(first, first + size)
        beta[known[here]] = fitted.likelihood.beta(internal[here], at[here])
    return theta, beta


def restricted(
    fitted: FittedModel, positions: IntArray, contrast: Any
) -> tuple[FloatArray, FloatArray]:
    """Theta and beta of the fit in which a contrast has its hypothesised value."""
    parsed = only_estimable(fitted.stats, contrast, "bootstrap_test")
    if parsed.matrix.shape[0] != 1:
        raise InputError(
            f"bootstrap_test takes one contrast at a time, not {parsed.matrix.shape[0]}."
        )
    if fitted.stats.p == 1:
        raise InputError(
            "Without its only fixed effect the model cannot be fitted: a bootstrap test of it "
            "is not available."
        )
    basis = scipy.linalg.null_space(parsed.matrix)
    inverse = np.linalg.pinv(parsed.matrix)
    fixed = inverse[:, 0] * parsed.values[0]
    stats = fitted.stats.at(positions)
    # y - X fixed = (y - X at) + X basis rest, at = a - move: the last part is left to the fit.
    one = stats.sums if isinstance(stats, PatternedStats) else stats
    a = one.centred()[3]
    at = a - inverse @ (parsed.matrix @ a - parsed.values[:, None])
    rest = basis.T @ (a - fixed[:, None])
    sums = _less(stats, one, at, basis)
    if one.groups is not None:
        sums = replace(sums, groups=one.groups.each(lambda part: _less(part, part, at, basis)))
    restricted: SummaryStats | PatternedStats = sums
    if isinstance(stats, PatternedStats):
        own = OwnColumns(stats.own.names, ((),) * basis.shape[1])
        restricted = PatternedStats(sums, stats.designs.turned(basis), stats.pattern, own)
    residual = fitted.values("theta", positions)[:, -1]
    ds, _ = refit(restricted, fitted.options, residual=residual)
    beta = fixed + (ds["beta"].to_numpy() + rest.T) @ basis.T
    converged = ds["status"].to_numpy() < Status.INDEFINITE
    theta = np.where(converged[:, None], ds["theta"].to_numpy(), np.nan)
    return theta, beta


def _less(
    stats: Sums | PatternedStats, sums: Sums, at: FloatArray, basis: FloatArray
) -> SummaryStats:
    """The sums of y - X at, at (p, m), over the columns X basis, (p, r); those of ``stats``."""
    XY, ZY, yy, a = sums.centred()
    move = a - at
    moved_XY, moved_ZY = XY + _products(stats, "XX", move), ZY + _products(stats, "ZX", move)
    return SummaryStats(
        n=sums.n,
        XX=basis.T @ sums.XX @ basis,
        XX_root=restrict_root(sums.XX_root, basis),
        XY=basis.T @ moved_XY,
        ZX=sums.ZX @ basis,
        ZY=moved_ZY,
        ZZ=sums.ZZ,
        yy=yy + (move * (XY + moved_XY)).sum(axis=0),
        structure=sums.structure,
        log_weights=sums.log_weights,
    )


def _products(stats: Sums | PatternedStats, name: str, a: FloatArray) -> FloatArray:
    """X'X a or Z'X a of each feature, a (p, m)."""
    if not isinstance(stats, PatternedStats):
        return np.asarray(getattr(stats, name) @ a)
    own = getattr(stats.designs, name)[stats.pattern]
    return np.ascontiguousarray(np.matmul(own, a.T[:, :, None])[:, :, 0].T)


def _gain_without(component: str) -> Callable[[FittedModel], FloatArray]:
    """Twice the gain in log-likelihood over the model without a component, for all features."""

    def of(fitted: FittedModel) -> FloatArray:
        hypothesis = zero_hypotheses(fitted.stats.structure, component)[0]
        return gain(fitted, fitted.positions(), hypothesis).statistic

    return of


def _t_of(contrast: Any, side: str) -> Callable[[FittedModel], FloatArray]:
    """The t statistic of a contrast, large where the alternative is believed."""

    def t(fitted: FittedModel) -> FloatArray:
        test = t_test(fitted, fitted.positions(), contrast, df="residual")
        found: FloatArray = test.ds["t"].to_numpy()[:, 0]
        return {"two-sided": np.abs(found), "greater": found, "less": -found}[side]

    return t


def _statistic(
    spec: Any, stats: SummaryStats | PatternedStats, results_of: Callable[[FittedModel], Any]
) -> _Statistic:
    """What a user asked to bootstrap."""
    coefs, structure = list(stats.coef_names), stats.structure
    params = list(structure.param_names)
    if spec is None:
        labels = [*coefs, *(f"{name} (variance)" if name in coefs else name for name in params)]
        return _Statistic(tuple(labels), _everything)
    if callable(spec):
        return _Statistic((), lambda fitted: spec(results_of(fitted)))
    names = [spec] if isinstance(spec, str) else list(spec)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("`statistic` must be names, or a function of the results of a fit.")
    return _named(names, stats, structure)


def _named(
    names: list[str], stats: SummaryStats | PatternedStats, structure: CovarianceStructure
) -> _Statistic:
    params = list(structure.param_names)
    weights = np.zeros((len(names), stats.p + len(params)))
    for row, name in zip(weights, names, strict=True):
        if name in params and name not in stats.coef_names:
            row[stats.p + params.index(name)] = 1.0
        else:
            row[: stats.p] = only_estimable(stats, name, "bootstrap").matrix[0]
    return _Statistic(tuple(names), lambda fitted: _everything(fitted) @ weights.T)


def _everything(fitted: FittedModel) -> FloatArray:
    return np.concatenate([fitted.ds["beta"].to_numpy(), fitted.ds["theta"].to_numpy()], axis=1)


def _values(found: Any, names: NDArray[Any]) -> FloatArray:
    """What a statistic gave of the features, as an array (m, c) that may be written to."""
    m, found = names.size, as_pandas(found)
    if isinstance(found, pd.Series | pd.DataFrame) and axis_labels(found, 0) is not None:
        what = "What the statistic gave"
        found = found.iloc[label_positions(found.index, names, what, of="features", by_text=True)]
    values = np.array(found, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[0] != m:
        raise InputError(
            f"The statistic must give one row of numbers per feature, {m} here; it gave an array "
            f"of shape {values.shape}."
        )
    return values


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"`{name}` must be a positive whole number, not {value!r}.")
