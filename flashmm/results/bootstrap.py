"""The parametric bootstrap, in the space of summary statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.linalg
import xarray as xr

from flashmm.exceptions import InputError
from flashmm.inference.contrasts import parse_contrasts
from flashmm.inference.draws import FeatureStreams, Sampler
from flashmm.inference.statistics import resolve_alternative
from flashmm.inference.variance_tests import zero_hypotheses
from flashmm.results.bootstrap_results import BootstrapResults, monte_carlo_p
from flashmm.results.fixed_effects import FixedEffectInference
from flashmm.results.refit import Progress, refit, replicate_fits
from flashmm.results.variance_components import VarianceComponentInference
from flashmm.solvers.status import Status
from flashmm.stats.root import restrict_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.designs.design import CovarianceStructure
    from flashmm.stats.summary_stats import SummaryStats

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["ParametricBootstrap"]


@dataclass(frozen=True)
class _Statistic:
    """A function of results: labels, and values (features, statistics)."""

    labels: tuple[str, ...]
    evaluate: Callable[[Any], FloatArray]


class ParametricBootstrap(FixedEffectInference, VarianceComponentInference):
    """Bootstrap intervals and tests; part of `MultiLMMResults`."""

    def draw(self, n: int = 1, *, rng: Any = None, features: Any = None) -> SummaryStats:
        """Draw statistics of new data from the fitted models.

        Parameters
        ----------
        n
            Replicates of each feature.
        rng
            A Generator or a seed.
        features
            Names, positions or a mask; all that have an estimate by default.

        Returns
        -------
        SummaryStats
            Its features are the replicates, named ``"feature#replicate"``.

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
        _check_count("n", n)
        positions = self._positions(features)
        usable = self._drawable(positions)
        if features is not None and not usable.all():
            lost = self._features.to_numpy()[positions[~usable]]
            raise InputError(
                f"Feature {str(lost[0])!r} has no estimate with a positive definite V to draw from."
            )
        positions = positions[usable]
        streams = FeatureStreams.spawn(np.random.default_rng(rng), self.stats.m).take(positions)
        theta = self.ds["theta"].to_numpy()[positions]
        beta = self.ds["beta"].to_numpy()[positions]
        drawn = Sampler(self._one_design("`draw`")).draw(theta, beta, n, streams)
        names = self._features.to_numpy()[positions]
        labels = [f"{name}#{r}" for name in names for r in range(n)]
        return replace(drawn, feature_names=labels)

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
            Names, positions or a mask; all by default.
        progress
            True for a bar on a terminal (needs tqdm), or a function of the numbers of replicates
            done and in all.

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
        _check_count("n", n)
        chosen = _statistic(statistic, self._one_design("The bootstrap"))
        positions = self._positions(features)
        estimate = _values(chosen.evaluate(self), self.stats.m)[positions]
        values = np.full((positions.size, n, estimate.shape[1]), np.nan)
        theta = self.ds["theta"].to_numpy()[positions]
        beta = self.ds["beta"].to_numpy()[positions]
        for rows, columns, fitted in self._replicates(theta, beta, positions, n, rng, progress):
            found = _values(chosen.evaluate(fitted), fitted.stats.m)
            found[~fitted._converged] = np.nan
            values[rows, columns] = found.reshape(rows.size, -1, found.shape[1])
        labels = chosen.labels or tuple(f"statistic {j + 1}" for j in range(estimate.shape[1]))
        return BootstrapResults(
            xr.Dataset(
                {
                    "replicates": (("feature", "replicate", "statistic"), values),
                    "estimate": (("feature", "statistic"), estimate),
                },
                coords={
                    "feature": self._features.to_numpy()[positions],
                    "replicate": np.arange(n),
                    "statistic": np.array(labels, dtype=object),
                },
            )
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
        _check_count("n", n)
        side = resolve_alternative(alternative)
        if (contrast is None) == (component is None):
            raise InputError("Give a `contrast` or a `component` to test, one of the two.")
        positions = self._positions(features)
        if component is not None:
            theta, beta = self._without(component, positions)
            measure = _gain_without(component)
        else:
            theta, beta = self._restricted(contrast, positions)
            measure = _t_of(contrast, side)
        statistic = measure(self)[positions]
        exceed, draws = (np.zeros(positions.size, dtype=np.int64) for _ in range(2))
        for rows, _, fitted in self._replicates(theta, beta, positions, n, rng, progress):
            found = np.where(fitted._converged, measure(fitted), np.nan).reshape(rows.size, -1)
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
            coords={"feature": self._features.to_numpy()[positions]},
            attrs={"hypothesis": str(component if component is not None else contrast)},
        )

    # ---- helpers ---------------------------------------------------------------------------

    def _drawable(self, positions: IntArray) -> NDArray[np.bool_]:
        """Which features have a theta that a normal distribution has."""
        status = self.ds["status"].to_numpy()[positions]
        theta = self.ds["theta"].to_numpy()[positions]
        return np.asarray((status < Status.INDEFINITE) & np.isfinite(theta).all(axis=1))

    def _replicates(
        self,
        theta: FloatArray,
        beta: FloatArray,
        positions: IntArray,
        n: int,
        rng: Any,
        progress: Progress,
    ) -> Iterator[tuple[IntArray, slice, Any]]:
        """Fits of replicates, in batches: rows of ``positions``, replicates, results."""
        streams = FeatureStreams.spawn(np.random.default_rng(rng), self.stats.m).take(positions)
        theta = np.where(self._drawable(positions)[:, None], theta, np.nan)
        fits = replicate_fits(
            Sampler(self._one_design("The bootstrap")),
            theta,
            beta,
            n,
            streams,
            self.options,
            progress,
        )
        for fit in fits:
            results = type(self)(fit.ds, fit.stats, self.options, fit.projection)
            yield fit.rows, fit.columns, results

    def _without(self, component: str, positions: IntArray) -> tuple[FloatArray, FloatArray]:
        """Theta and beta under the hypothesis that a component is absent."""
        hypothesis = zero_hypotheses(self.stats.structure, component)[0]
        theta = np.full((positions.size, self.ds.sizes["param"]), np.nan)
        beta = np.full((positions.size, self.stats.p), np.nan)
        known = np.flatnonzero(self._on_request.known[positions] & self._converged[positions])
        at = positions[known]
        null = self._maximiser.at(self._on_request.theta[at], at, zeros=hypothesis.zeros)
        found = np.isfinite(null.loglik)
        known, at, internal = known[found], at[found], null.theta[found]
        unit = self._projection.units(at)
        theta[known] = internal * unit
        size = self._likelihood.batch_size(self.options.memory)
        for first in range(0, at.size, size):
            here = slice(first, first + size)
            beta[known[here]] = self._likelihood.beta(internal[here], at[here])
        return theta, beta

    def _restricted(self, contrast: Any, positions: IntArray) -> tuple[FloatArray, FloatArray]:
        """Theta and beta of the fit in which a contrast has its hypothesised value."""
        parsed = parse_contrasts(contrast, self.stats.coef_names)
        if parsed.matrix.shape[0] != 1:
            raise InputError(
                f"bootstrap_test takes one contrast at a time, not {parsed.matrix.shape[0]}."
            )
        if self.stats.p == 1:
            raise InputError(
                "Without its only fixed effect the model cannot be fitted: a bootstrap test of it "
                "is not available."
            )
        basis = scipy.linalg.null_space(parsed.matrix)
        inverse = np.linalg.pinv(parsed.matrix)
        fixed = inverse[:, 0] * parsed.values[0]
        stats = self._one_design("The bootstrap").take(positions)
        # y - X fixed = (y - X a) + X move + X basis rest: the last part is left to the fit.
        XY, ZY, yy, a = stats.centred()
        move = inverse @ (parsed.matrix @ a - parsed.values[:, None])
        rest = basis.T @ (a - fixed[:, None])
        moved_XY = XY + stats.XX @ move
        restricted = type(stats)(
            n=stats.n,
            XX=basis.T @ stats.XX @ basis,
            XX_root=restrict_root(stats.XX_root, basis),
            XY=basis.T @ moved_XY,
            ZX=stats.ZX @ basis,
            ZY=ZY + stats.ZX @ move,
            ZZ=stats.ZZ,
            yy=yy + (move * (XY + moved_XY)).sum(axis=0),
            structure=stats.structure,
            log_weights=stats.log_weights,
        )
        ds, _ = refit(restricted, self.options)
        beta = fixed + (ds["beta"].to_numpy() + rest.T) @ basis.T
        converged = ds["status"].to_numpy() < Status.INDEFINITE
        theta = np.where(converged[:, None], ds["theta"].to_numpy(), np.nan)
        return theta, beta


def _gain_without(component: str) -> Callable[[Any], FloatArray]:
    """Twice the gain in log-likelihood over the model without a component, for all features."""

    def gain(results: ParametricBootstrap) -> FloatArray:
        hypothesis = zero_hypotheses(results.stats.structure, component)[0]
        return results._gain(hypothesis, np.arange(results.stats.m)).statistic

    return gain


def _t_of(contrast: Any, side: str) -> Callable[[Any], FloatArray]:
    """The t statistic of a contrast, large where the alternative is believed."""

    def t(results: ParametricBootstrap) -> FloatArray:
        found: FloatArray = results.t_test(contrast, df="residual").ds["t"].to_numpy()[:, 0]
        return {"two-sided": np.abs(found), "greater": found, "less": -found}[side]

    return t


def _statistic(spec: Any, stats: SummaryStats) -> _Statistic:
    """What a user asked to bootstrap."""
    coefs, structure = list(stats.coef_names), stats.structure
    params = list(structure.param_names)
    if spec is None:
        labels = [*coefs, *(f"{name} (variance)" if name in coefs else name for name in params)]
        return _Statistic(tuple(labels), _everything)
    if callable(spec):
        return _Statistic((), spec)
    names = [spec] if isinstance(spec, str) else list(spec)
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError("`statistic` must be names, or a function of the results of a fit.")
    return _named(names, stats, structure)


def _named(names: list[str], stats: SummaryStats, structure: CovarianceStructure) -> _Statistic:
    params = list(structure.param_names)
    weights = np.zeros((len(names), stats.p + len(params)))
    for row, name in zip(weights, names, strict=True):
        if name in params and name not in stats.coef_names:
            row[stats.p + params.index(name)] = 1.0
        else:
            row[: stats.p] = parse_contrasts(name, stats.coef_names).matrix[0]
    return _Statistic(tuple(names), lambda results: _everything(results) @ weights.T)


def _everything(results: Any) -> FloatArray:
    return np.concatenate([results.ds["beta"].to_numpy(), results.ds["theta"].to_numpy()], axis=1)


def _values(found: Any, m: int) -> FloatArray:
    """What a statistic gave, as an array (m, c) that may be written to."""
    values = found.to_numpy() if isinstance(found, pd.Series | pd.DataFrame) else found
    values = np.array(values, dtype=np.float64)
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
