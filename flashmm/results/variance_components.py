"""Inference on the variance components: tables, tests, shares, limits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from scipy.stats import chi2

from flashmm.exceptions import ConvergenceWarning, InputError, nearest
from flashmm.inference.constrained import Maximiser
from flashmm.inference.exact_lrt import SimulatedNull, simulate_exact_null
from flashmm.inference.names import term_name
from flashmm.inference.profile import Estimate, profile_limits
from flashmm.inference.statistics import resolve_alternative
from flashmm.inference.variance_fractions import (
    column_sums,
    component_weights,
    fixed_shares,
    sample_covariance,
    variance_fractions,
)
from flashmm.inference.variance_tests import (
    Gain,
    ZeroHypothesis,
    asymptotic_null,
    likelihood_ratio,
    wald_limits,
    z_statistics,
    zero_hypotheses,
)
from flashmm.likelihood import Projection
from flashmm.results.estimates import Estimates
from flashmm.solvers import FisherScoring
from flashmm.solvers.space import make_space
from flashmm.solvers.status import Status
from flashmm.stats.own_rows import PatternedStats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

__all__ = ["VarianceComponentInference"]

NULLS = ("asymptotic", "exact")


class VarianceComponentInference(Estimates):
    """Tests, shares and limits of the variance components; part of `MultiLMMResults`."""

    def variance_components(
        self, *, alternative: str = "two-sided", features: Any = None
    ) -> xr.Dataset:
        """Variances and covariances with standard errors and, unconstrained, z-tests.

        Parameters
        ----------
        alternative
            ``"two-sided"``, ``"greater"`` or ``"less"``.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        Dataset
            Dims feature, param: ``estimate`` and ``se`` in squared units of Y, the standard error
            from the expected information; in the unconstrained space ``z``, estimate / se, and its
            normal p-value ``p``. In the psd space a variance of zero is on the boundary, where z
            is not normal: use `variance_test`.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> list(result.variance_components())
        ['estimate', 'se', 'z', 'p']
        """
        side = resolve_alternative(alternative)
        positions = self._positions(features)
        dims = ("feature", "param")
        theta = self.ds["theta"].to_numpy()[positions]
        se = self.ds["se_theta"].to_numpy()[positions]
        table = {"estimate": (dims, theta), "se": (dims, se)}
        if self.options.parameter_space == "unconstrained":
            z, p = z_statistics(theta, se, side)
            table |= {"z": (dims, z), "p": (dims, p)}
        coords = {"feature": self._features.to_numpy()[positions], **self._coords("param")}
        return xr.Dataset(table, coords=coords, attrs={"alternative": side})

    def variance_test(
        self,
        components: str | Sequence[str] | None = None,
        *,
        null: Literal["asymptotic", "exact"] = "asymptotic",
        n_sim: int = 10_000,
        rng: Any = None,
        features: Any = None,
    ) -> xr.Dataset:
        """Likelihood-ratio tests that random effects are absent, for every feature.

        Every feature is fitted again without the component, from the same statistics. The
        fixed effects stay, so the test is valid under REML too.

        Parameters
        ----------
        components
            Names of variances, ``"Subject[Days]"``, whose covariances go with them, or of
            terms, ``"Subject"``, which go whole. Every variance by default.
        null
            ``"asymptotic"``: chi-square in the unconstrained space; in the psd space a mixture
            of chi-squares (Self & Liang 1987, Stram & Lee 1994). ``"exact"``: the finite-sample
            distribution of Crainiceanu & Ruppert (2004), for models with one variance component,
            against a positive variance.
        n_sim
            Draws from the exact null distribution; one set serves all features.
        rng
            Random numbers for them: a Generator or a seed.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        Dataset
            Dims feature, component: ``statistic``, twice the gain in log-likelihood; ``p``;
            ``loglik_null``; with the exact null ``p_se``, the Monte Carlo standard error of p.
            The coordinate ``null`` says what distribution each component has.

        Raises
        ------
        InputError
            If a component is unknown, or the exact distribution does not apply.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> test = model.fit(parameter_space="psd").variance_test()
        >>> test["null"].item()
        '0.5 chi2_0 + 0.5 chi2_1'
        """
        hypotheses = zero_hypotheses(self.stats.structure, components)
        if null not in NULLS:
            raise InputError(f"Unknown null={null!r}. {nearest(str(null), NULLS)}")
        exact = self._exact_null(n_sim, rng) if null == "exact" else None
        positions = self._positions(features)
        shape = (positions.size, len(hypotheses))
        statistic, p, p_se, loglik_null = (np.full(shape, np.nan) for _ in range(4))
        labels = []
        for j, hypothesis in enumerate(hypotheses):
            gain = self._gain(hypothesis, positions)
            statistic[:, j], loglik_null[:, j] = gain.statistic, gain.loglik_null
            if gain.lost:
                warnings.warn(
                    f"The fit without {hypothesis.label!r} did not converge for {gain.lost} of "
                    f"{positions.size} features: their test is NaN.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
            if exact is not None:
                negative = self.ds["theta"].to_numpy()[positions, 0] < 0
                statistic[negative, j] = np.minimum(statistic[negative, j], 0.0)
                p[:, j], p_se[:, j] = exact.sf(statistic[:, j])
                labels.append(f"exact, {n_sim} draws")
            else:
                mixture = asymptotic_null(hypothesis, self.options.parameter_space)
                p[:, j] = mixture.sf(statistic[:, j])
                labels.append(str(mixture))
        dims = ("feature", "component")
        table = {"statistic": (dims, statistic), "p": (dims, p), "loglik_null": (dims, loglik_null)}
        if exact is not None:
            table["p_se"] = (dims, p_se)
        return xr.Dataset(
            table,
            coords={
                "feature": self._features.to_numpy()[positions],
                "component": np.array([h.label for h in hypotheses], dtype=object),
                "null": (("component",), np.array(labels, dtype=object)),
            },
            attrs={"method": self.options.method, "parameter_space": self.options.parameter_space},
        )

    def icc(self, *, features: Any = None) -> xr.Dataset:
        """Intra-class correlations: each random effect's share of the random variance.

        The fixed effects are left out of the total, which makes this the adjusted
        repeatability of Nakagawa & Schielzeth (2010, Biol Rev 85:935). A correlated term counts as
        one component, with its variance averaged over the samples.

        Parameters
        ----------
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        Dataset
            Dims feature, component (the residual last): ``estimate`` and ``se``, by the delta
            method; NaN where the total is not positive.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> bool(np.allclose(result.icc()["estimate"].sum("component"), 1.0))
        True
        """
        self._refuse_weights()
        positions = self._positions(features)
        if isinstance(self.stats, PatternedStats):
            return self._by_pattern(positions, lambda one, here: one.icc(features=here))
        names, weights = component_weights(self.stats)
        parts = self.ds["theta"].to_numpy()[positions] @ weights.T
        covariance = np.matmul(np.matmul(weights, self._theta_covariance(positions)), weights.T)
        shares = variance_fractions(parts, covariance, np.ones(len(names)))
        return self._shares(positions, names, shares.estimate, shares.se)

    def variance_fractions(
        self,
        *,
        by: Literal["term", "coef"] = "term",
        column_means: ArrayLike | None = None,
        features: Any = None,
    ) -> xr.Dataset:
        """Shares of the total variance: every fixed term, random effect and the residual.

        As variancePartition defines them (Hoffman & Schadt 2016, BMC Bioinformatics 17:483): a
        fixed term has the variance over the samples of its part of the linear predictor, and
        these are scaled to add up to that of all fixed effects together. A random effect with
        slopes has its variance averaged over the samples (Johnson 2014).

        Parameters
        ----------
        by
            ``"term"``: the coefficients of one term of the formula together; ``"coef"``: each
            alone, as variancePartition does for mixed models.
        column_means
            Means of the columns of X over the samples, shape (p,). They follow from the
            statistics where the model has an intercept, indicators of all levels of a factor
            (``0 + group``) or a random intercept ``(1 | group)``.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        Dataset
            Dims feature, component (fixed, then random, the residual last): ``estimate``,
            adding up to one, and ``se``, by the delta method.

        Raises
        ------
        InputError
            If the means of the columns of X are needed and not known.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=9, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> result = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1").fit()
        >>> result.variance_fractions()["component"].values.tolist()
        ['log(libsize)', 'cls', 'sam', 'Residual']
        """
        if by not in ("term", "coef"):
            raise InputError(f"Unknown by={by!r}. {nearest(str(by), ['term', 'coef'])}")
        self._refuse_weights()
        positions = self._positions(features)
        if isinstance(self.stats, PatternedStats):
            if column_means is not None:
                self._one_design("`column_means`")
            return self._by_pattern(
                positions, lambda one, here: one.variance_fractions(by=by, features=here)
            )
        S = sample_covariance(self.stats.XX, self._column_sums(column_means), self.stats.n)
        terms: dict[str, list[int]] = {}
        for i, name in enumerate(self.stats.coef_names):
            if S[i, i] > 0:
                terms.setdefault(term_name(name) if by == "term" else name, []).append(i)
        names, weights = component_weights(self.stats)
        repeated = set(names) & set(terms)
        labels = [f"{name} (fixed)" if name in repeated else name for name in terms]
        theta = self.ds["theta"].to_numpy()[positions]
        fixed = fixed_shares(self.ds["beta"].to_numpy()[positions], S, list(terms.values()))
        parts = np.concatenate([fixed.value, theta @ weights.T], axis=1)
        c, t = parts.shape[1], len(terms)
        covariance = np.zeros((positions.size, c, c))
        random = np.matmul(np.matmul(weights, self._theta_covariance(positions)), weights.T)
        covariance[:, t:, t:] = random
        for rows in self._chunks(positions.size, self.stats.p**2 + t * self.stats.p):
            g = fixed.gradient[rows]
            C = self._on_request.covariance(positions[rows])
            covariance[rows, :t, :t] = np.matmul(np.matmul(g, C), np.swapaxes(g, 1, 2))
        shares = variance_fractions(parts, covariance, np.ones(c))
        return self._shares(positions, (*labels, *names), shares.estimate, shares.se)

    def conf_int_theta(
        self,
        alpha: float = 0.05,
        *,
        method: Literal["wald", "profile"] = "wald",
        scale: Literal["variance", "sd"] = "variance",
        params: str | Sequence[str] | None = None,
        features: Any = None,
    ) -> xr.DataArray:
        """Confidence limits of the variances and covariances.

        Parameters
        ----------
        alpha
            One minus the coverage.
        method
            ``"wald"``: estimate -/+ z se; in the psd space limits of a variance are symmetric on
            the log scale, theta exp(-/+ z se / theta), and NaN for a variance of zero.
            ``"profile"``: where the log-likelihood that was fitted (restricted for REML), maximised
            over the other variance parameters, has fallen by half the chi-square quantile.
        scale
            ``"variance"``, or ``"sd"`` for the square roots of the variances' limits (0 for a
            negative lower limit), covariances left out.
        params
            Names of variance parameters; all by default.
        features
            Names, positions or a mask; all by default.

        Returns
        -------
        DataArray
            Dims feature, param, bound (lower, upper). The profile of a variance in the psd
            space ends at 0. NaN where a limit was not found.

        Raises
        ------
        InputError
            If an option or a parameter is unknown.

        Warns
        -----
        ConvergenceWarning
            Once, with the number of features that lack a profile limit.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> result = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z).fit()
        >>> result.conf_int_theta(method="profile", scale="sd").dims
        ('feature', 'param', 'bound')
        """
        for name, value, options in (
            ("method", method, ("wald", "profile")),
            ("scale", scale, ("variance", "sd")),
        ):
            if value not in options:
                raise InputError(f"Unknown {name}={value!r}. {nearest(str(value), options)}")
        if not isinstance(alpha, Real) or not 0.0 < alpha < 1.0:
            raise InputError(f"`alpha` must lie between 0 and 1, not {alpha!r}.")
        chosen = self._param_positions(params)
        if scale == "sd":
            chosen = chosen[self.stats.structure.is_variance[chosen]]
        positions = self._positions(features)
        if method == "profile":
            limits = self._profiled(positions, chosen, alpha)
        else:
            limits = wald_limits(
                self.ds["theta"].to_numpy()[np.ix_(positions, chosen)],
                self.ds["se_theta"].to_numpy()[np.ix_(positions, chosen)],
                alpha,
                self.stats.structure.is_variance[chosen] & (self.options.parameter_space == "psd"),
            )
        if scale == "sd":
            limits = np.sqrt(np.where(np.isnan(limits), np.nan, np.maximum(limits, 0.0)))
        return xr.DataArray(
            limits,
            dims=("feature", "param", "bound"),
            coords={
                "feature": self._features.to_numpy()[positions],
                "param": self.ds["param"].to_numpy()[chosen],
                "bound": ["lower", "upper"],
            },
            name="conf_int_theta",
            attrs={"method": method, "scale": scale, "alpha": float(alpha)},
        )

    # ---- helpers ---------------------------------------------------------------------------

    @cached_property
    def _maximiser(self) -> Maximiser:
        options, structure = self.options, self.stats.structure
        # Refits start near their maximum, where the observed information serves from the start.
        solver = FisherScoring(epsilon=options.epsilon, newton_within=10.0)
        return Maximiser(
            self._likelihood,
            make_space(options.parameter_space, structure.blocks(), len(structure.param_names)),
            solver,
            max(options.max_iter, 100),
            options.memory,
        )

    def _gain(self, hypothesis: ZeroHypothesis, positions: IntArray) -> Gain:
        """What the features at ``positions`` gain by a component in log-likelihood."""
        request = self._on_request
        known = np.flatnonzero(request.known[positions] & self._converged[positions])
        chosen = positions[known]
        null = self._maximiser.at(request.theta[chosen], chosen, zeros=hypothesis.zeros)
        found = np.asarray(null.status <= Status.INDEFINITE) | (null.status == Status.STALLED)
        natural = self._projection.natural_loglik(null.loglik, self.options.method, chosen)
        loglik = np.where(found, natural, np.nan)
        statistic, loglik_null = np.full(positions.size, np.nan), np.full(positions.size, np.nan)
        statistic[known] = likelihood_ratio(self.ds["loglik"].to_numpy()[chosen], loglik)
        loglik_null[known] = loglik
        return Gain(statistic, loglik_null, int((~found).sum()))

    @property
    def _converged(self) -> NDArray[np.bool_]:
        return np.asarray(self.ds["status"].to_numpy() <= Status.INDEFINITE)

    def _param_positions(self, params: str | Sequence[str] | None) -> IntArray:
        names = [str(name) for name in self.ds["param"].to_numpy()]
        if params is None:
            return np.arange(len(names))
        asked = [params] if isinstance(params, str) else [str(name) for name in params]
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise InputError(f"No variance parameter {unknown[0]!r}. {nearest(unknown[0], names)}")
        return np.array([names.index(name) for name in asked], dtype=np.intp)

    def _profiled(self, positions: IntArray, params: IntArray, alpha: float) -> FloatArray:
        """Profile limits in the units of Y, shape (B, c, 2); NaN without a regular fit."""
        limits = np.full((positions.size, params.size, 2), np.nan)
        known = np.flatnonzero(self._on_request.known[positions] & self._converged[positions])
        at = positions[known]
        unit = self._projection.units(at)
        maximiser = self._maximiser
        estimate = Estimate(
            self._on_request.theta[at],
            self.ds["se_theta"].to_numpy()[at] / unit,
            maximiser.loglik(self._on_request.theta[at], at),
            at,
        )
        quantile = float(chi2.isf(alpha, 1))
        for j, i in enumerate(params):
            found = profile_limits(maximiser, estimate, int(i), quantile)
            limits[known, j] = found * unit[:, i, None]
        lost = int(np.isnan(limits[known]).any(axis=(1, 2)).sum())
        if lost:
            warnings.warn(
                f"For {lost} of {known.size} features a profile limit was not found and is NaN: "
                "their likelihood has no regular maximum with the parameter held.",
                ConvergenceWarning,
                stacklevel=3,
            )
        return limits

    def _exact_null(self, n_sim: int, rng: Any) -> SimulatedNull:
        if len(self.stats.structure.parameters) != 1:
            raise InputError(
                "null='exact' is known for models with one variance component; this one has "
                f"{len(self.stats.structure.parameters)}. Use null='asymptotic' or a parametric "
                "bootstrap."
            )
        if isinstance(n_sim, bool) or not isinstance(n_sim, (int, np.integer)) or n_sim < 1:
            raise InputError(f"`n_sim` must be a positive whole number, not {n_sim!r}.")
        self._one_design("null='exact'")
        p = self._projection
        assert isinstance(p, Projection)
        eigenvalues = np.diag(p.A[0])
        reml = self.options.method == "REML"
        return simulate_exact_null(
            eigenvalues,
            p.n - p.p * reml,
            p.n - p.p - p.r,
            eigenvalues if reml else np.diag(p.A_full[0]),
            int(n_sim),
            np.random.default_rng(rng),
        )

    def _theta_covariance(self, positions: IntArray) -> FloatArray:
        """Inverse expected information of theta in the units of Y, shape (B, k, k)."""
        k = self.ds.sizes["param"]
        result = np.full((positions.size, k, k), np.nan)
        expected = self._on_request.theta_information(positions)
        known = np.isfinite(expected).all(axis=(1, 2))
        length = np.sqrt(np.diagonal(expected[known], axis1=1, axis2=2))
        pairs = length[:, :, None] * length[:, None, :]
        result[known] = np.linalg.pinv(expected[known] / pairs, hermitian=True) / pairs
        return result

    def _chunks(self, count: int, numbers: int) -> list[slice]:
        """Slices of ``count`` rows of so many numbers each, to the memory budget."""
        size = int(max(1, self.options.memory // (32 * max(numbers, 1))))
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]

    def _column_sums(self, column_means: ArrayLike | None) -> FloatArray:
        if column_means is not None:
            means = np.asarray(column_means, dtype=np.float64)
            if means.shape != (self.stats.p,) or not np.isfinite(means).all():
                raise InputError(
                    f"`column_means` must be {self.stats.p} finite numbers, one for each column of "
                    f"X; its shape is {means.shape}."
                )
            return means * self.stats.n
        sums = column_sums(self._one_design("Column sums"))
        if sums is None:
            raise InputError(
                "The variance of a fixed effect needs the means of the columns of X, which these "
                "statistics do not tell: the model has no intercept, no full set of indicators of "
                "a factor and no random intercept. Give `column_means`, X.mean(axis=0)."
            )
        return sums

    def _refuse_weights(self) -> None:
        if self.stats.log_weights != 0.0:
            raise InputError(
                "Shares of the variance are not defined for weighted samples: the residual "
                "variance differs between them. Compute them from `theta` for the weight you mean."
            )

    def _shares(
        self, positions: IntArray, names: Sequence[str], estimate: FloatArray, se: FloatArray
    ) -> xr.Dataset:
        dims = ("feature", "component")
        return xr.Dataset(
            {"estimate": (dims, estimate), "se": (dims, se)},
            coords={
                "feature": self._features.to_numpy()[positions],
                "component": np.array(names, dtype=object),
            },
        )
