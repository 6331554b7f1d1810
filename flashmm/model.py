"""MultiLMM: one design, many features. Constructors and fit(); the work is done elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from flashmm.design_arrays import as_structure
from flashmm.exceptions import (
    ConvergenceWarning,
    InputError,
    MissingSamplesWarning,
    listing,
    nearest,
)
from flashmm.formula import build_design
from flashmm.likelihood import ENGINES, Projection, make_likelihood, project
from flashmm.results import FitOptions, MultiLMMResults, assemble_results
from flashmm.solvers import SOLVERS
from flashmm.solvers.base import Solver
from flashmm.solvers.batches import maximise_in_batches
from flashmm.solvers.space import make_space
from flashmm.solvers.start import starting_values
from flashmm.solvers.status import Status
from flashmm.sources import Transform, make_source
from flashmm.summary_stats import SummaryStats

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["MultiLMM"]

METHODS = ("REML", "ML")
SPACES = ("unconstrained", "psd")


class MultiLMM:
    """Linear mixed models of many features that share one design.

    For every feature j, ``y_j = X beta_j + Z b_j + e_j`` with ``b_j ~ N(0, D(theta_j))`` and
    ``e_j ~ N(0, sigma2_j I)``. Build one with `from_formula`, `from_arrays` or
    `from_summary_stats`.

    Parameters
    ----------
    stats
        Summary statistics of the data; they carry the labels and the covariance structure.
    fixed, random
        Formulas as text, for printing.
    n_dropped
        Samples left out because of missing values.

    Examples
    --------
    >>> import flashmm as fm
    >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
    >>> model = fm.MultiLMM.from_formula(
    ...     "~ 0 + log(libsize) + cls + cls:trt", "~ 0 + sam", sim.metadata, sim.counts,
    ...     transform="log2p1")
    >>> result = model.fit()
    >>> result.params.shape
    (20, 5)
    """

    def __init__(
        self, stats: SummaryStats, *, fixed: str = "", random: str = "", n_dropped: int = 0
    ) -> None:
        self.stats = stats
        self.fixed = fixed
        self.random = random
        self.n_dropped = n_dropped

    def __repr__(self) -> str:
        formulas = f"fixed={self.fixed!r}, random={self.random!r}, " if self.fixed else ""
        s = self.stats
        return f"<MultiLMM: {formulas}n={s.n}, m={s.m}, p={s.p}, q={s.q}>"

    @classmethod
    def from_formula(
        cls,
        fixed: str,
        random: str | Sequence[str] | Mapping[str, str] | None = None,
        data: pd.DataFrame | None = None,
        Y: Any = None,
        *,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        missing: Literal["raise", "drop"] = "raise",
        context: Mapping[str, Any] | None = None,
    ) -> MultiLMM:
        """Build a model from formulas.

        Parameters
        ----------
        fixed
            One-sided formula of the fixed effects, ``"~ age + group"``; it may hold the
            random effects too, ``"~ age + (1 | donor)"``.
        random
            Random effects: a formula whose columns are one component with independent
            effects (``"~ 0 + sam"``), lme4 bars (``"(1 + x | g) + (1 | h)"``), a list of
            such, or a dict ``{name: formula}``; left out when ``fixed`` holds the bars.
        data
            One row per sample, n rows.
        Y
            Features x samples, shape (m, n): ndarray (1-D is one feature), Series, DataFrame
            (columns matched to ``data.index`` by label when both carry labels),
            scipy.sparse, or xarray.DataArray (dims told apart by name).
        transform
            Applied to Y block by block: ``"log2p1"`` (log2(1 + y), FLASHMM's is.counts),
            ``"log1p"``, or a callable that acts on each element alone.
        feature_names
            Labels of the m features, for a Y that carries none (a sparse matrix, say).
        missing
            What to do about missing values in ``data`` or Y: ``"raise"``, or ``"drop"`` the
            samples concerned, for all features alike.
        context
            Names that the formulas may use besides the columns of ``data``. The caller's
            variables are not seen.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If the formulas, ``data`` and Y do not make a model; the message names the culprit.

        Examples
        --------
        >>> import numpy as np, pandas as pd, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
        >>> model = fm.MultiLMM.from_formula("~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)))
        >>> model.stats.coef_names
        ('Intercept', 'x')
        """
        if missing not in ("raise", "drop"):
            raise InputError(
                f"Unknown missing={missing!r}. {nearest(str(missing), ['raise', 'drop'])}"
            )
        if data is None or Y is None:
            raise InputError("from_formula needs `data` (one row per sample) and `Y`.")
        build = build_design(fixed, random, data, context=context, missing=missing)
        source = make_source(
            Y, transform=transform, samples=getattr(data, "index", None), n=len(build.dropped)
        )
        dropped = build.dropped
        if missing == "drop":
            dropped = dropped | source.missing_samples()
            if dropped.all():
                raise InputError(
                    f"All {dropped.size} samples have a missing value: nothing is left to fit."
                )
            if dropped.any():
                source = source.restricted(~dropped)
                frame = pd.DataFrame(data).loc[~dropped]
                build = build_design(fixed, random, frame, context=context, missing="raise")
                warnings.warn(
                    f"{int(dropped.sum())} of {dropped.size} samples have a missing value and "
                    "were dropped for all features.",
                    MissingSamplesWarning,
                    stacklevel=2,
                )
        design = build.design
        stats = SummaryStats.from_design(source, design)
        return cls(
            stats if feature_names is None else replace(stats, feature_names=feature_names),
            fixed=design.fixed,
            random=design.random,
            n_dropped=int(dropped.sum()),
        )

    @classmethod
    def from_arrays(
        cls,
        Y: Any,
        X: ArrayLike,
        Z: Any,
        *,
        components: Any = None,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
    ) -> MultiLMM:
        """Build a model from matrices, as FLASHMM's lmmfit(Y, X, Z, d).

        Parameters
        ----------
        Y
            Features x samples, shape (m, n).
        X
            Fixed-effects design, shape (n, p).
        Z
            Random-effects design, shape (n, q), dense or sparse.
        components
            Number of columns of each variance component, summing to q (FLASHMM's ``d``), or a
            dict ``{name: size}``; one component by default.
        transform
            As in `from_formula`.
        feature_names, coef_names
            Labels that override those of Y and X.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If the shapes do not match or a value is missing or infinite.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> model
        <MultiLMM: n=40, m=3, p=1, q=8>
        """
        return cls(
            SummaryStats.from_arrays(
                Y,
                X,
                Z,
                components=components,
                transform=transform,
                feature_names=feature_names,
                coef_names=coef_names,
            )
        )

    @classmethod
    def from_summary_stats(
        cls,
        stats: SummaryStats | Mapping[str, Any],
        *,
        components: Any = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
    ) -> MultiLMM:
        """Build a model from summary statistics, as FLASHMM's lmm(XX, XY, ZX, ZY, ZZ, ...).

        Parameters
        ----------
        stats
            `SummaryStats`, or a mapping with n, XX, XY, ZX, ZY, ZZ and yy (or Ynorm).
        components
            Sizes of the components (FLASHMM's ``d``), a dict ``{name: size}``, or None to
            keep those of ``stats``.
        feature_names, coef_names
            Labels that override those of ``stats``.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If a statistic is absent or has the wrong shape.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Y, X = rng.normal(size=(3, 40)), np.ones((40, 1))
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> stats = fm.SummaryStats(
        ...     n=40, XX=X.T @ X, XY=X.T @ Y.T, ZX=Z.T @ X, ZY=Z.T @ Y.T, ZZ=Z.T @ Z,
        ...     yy=(Y * Y).sum(axis=1))
        >>> bool(fm.MultiLMM.from_summary_stats(stats).fit().converged.all())
        True
        """
        if isinstance(stats, Mapping):
            stats = _stats_from_mapping(stats)
        if not isinstance(stats, SummaryStats):
            raise InputError(
                "`stats` must be a SummaryStats or a mapping with n, XX, XY, ZX, ZY, ZZ and yy; "
                f"it is {type(stats).__name__}."
            )
        structure = stats.structure if components is None else as_structure(components, stats.q)
        return cls(
            SummaryStats(
                n=stats.n,
                XX=stats.XX,
                XY=stats.XY,
                ZX=stats.ZX,
                ZY=stats.ZY,
                ZZ=stats.ZZ,
                yy=stats.yy,
                feature_names=stats.feature_names if feature_names is None else feature_names,
                coef_names=stats.coef_names if coef_names is None else coef_names,
                structure=structure,
                shift=stats.shift,
            )
        )

    @cached_property
    def projection(self) -> Projection:
        """The statistics projected off X (computed once; checks that the model can be fitted)."""
        return project(self.stats)

    def fit(
        self,
        method: Literal["REML", "ML"] = "REML",
        *,
        solver: str | Solver = "fisher_scoring",
        theta0: Any = None,
        max_iter: int = 50,
        epsilon: float = 1e-5,
        parameter_space: Literal["unconstrained", "psd"] = "unconstrained",
        memory: int = 2**30,
        engine: str = "auto",
    ) -> MultiLMMResults:
        """Fit all features.

        Parameters
        ----------
        method
            ``"REML"`` (default) or ``"ML"``.
        solver
            ``"fisher_scoring"`` (default), ``"average_information"``, ``"newton_raphson"``,
            or an object with the methods of `flashmm.solvers.Solver`.
        theta0
            Starting values in squared units of Y, the residual last: one vector for all
            features, an array or DataFrame (m, n_params), or another fit's results. Default:
            zero random-effect variances and the residual variance of the fixed effects alone.
        max_iter
            Limit on the number of iterations of each feature.
        epsilon
            A feature has converged when every component of its score, divided by its standard
            error, is below epsilon.
        parameter_space
            ``"unconstrained"``: variances may be negative, as in FLASHMM; ``"psd"``: D is
            positive semi-definite, as in lme4 and statsmodels.
        memory
            Bytes that the arrays of one batch of features may take.
        engine
            How the likelihood is computed: ``"spectral"`` (one variance component),
            ``"bordered"`` (several, one with most of the columns), ``"blocked"`` (slopes, very
            many levels, large crossed factors), ``"general"`` (any), or ``"auto"``, which takes
            the fastest that applies. All give the same answer to rounding.

        Returns
        -------
        MultiLMMResults

        Raises
        ------
        InputError
            If an option is unknown or the design cannot be fitted.

        Warns
        -----
        ConvergenceWarning
            Once, with a count per verdict, if some features did not converge.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> model.fit(method="ML", parameter_space="psd").status.tolist()
        ['converged', 'boundary', 'converged']
        """
        _check_option("method", method, METHODS)
        _check_option("parameter_space", parameter_space, SPACES)
        _check_numbers(max_iter, epsilon, memory)
        _check_option("engine", engine, ("auto", *ENGINES))
        chosen = _make_solver(solver, epsilon)
        projection = self.projection
        structure = self.stats.structure
        space = make_space(parameter_space, structure.blocks(), len(structure.param_names))
        likelihood = make_likelihood(projection, method, engine)
        start = starting_values(likelihood, projection, space, theta0, self.stats.feature_names)
        solution = maximise_in_batches(
            likelihood,
            space,
            chosen,
            start,
            projection.varies & ~likelihood.perfect_fit,
            max_iter=max_iter,
            memory=memory,
        )
        options = FitOptions(
            method=method,
            solver=solver if isinstance(solver, str) else type(solver).__name__,
            parameter_space=parameter_space,
            max_iter=max_iter,
            epsilon=epsilon,
            memory=memory,
            engine=likelihood.engine,
            fixed=self.fixed,
            random=self.random,
            n_dropped=self.n_dropped,
        )
        results = assemble_results(self.stats, projection, likelihood, solution, options)
        _warn_about(results.ds["status"].to_numpy())
        return results


def _stats_from_mapping(values: Mapping[str, Any]) -> SummaryStats:
    names = dict(values)
    if "Ynorm" in names:
        names["yy"] = names.pop("Ynorm")
    required = ("n", "XX", "XY", "ZX", "ZY", "ZZ", "yy")
    absent = [name for name in required if name not in names]
    if absent:
        raise InputError(f"`stats` lacks {listing(absent)}; it needs {listing(required, 7)}.")
    known = set(SummaryStats.__dataclass_fields__)
    return SummaryStats(**{name: value for name, value in names.items() if name in known})


def _check_option(name: str, value: object, options: Sequence[str]) -> None:
    if value not in options:
        raise InputError(f"Unknown {name}={value!r}. {nearest(str(value), options)}")


def _check_numbers(max_iter: int, epsilon: float, memory: int) -> None:
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
        raise InputError(f"`max_iter` must be a positive integer, not {max_iter!r}.")
    if not isinstance(epsilon, Real) or not epsilon > 0:
        raise InputError(f"`epsilon` must be positive, not {epsilon!r}.")
    if not isinstance(memory, Real) or memory < 1:
        raise InputError(f"`memory` must be a positive number of bytes, not {memory!r}.")


def _make_solver(solver: str | Solver, epsilon: float) -> Solver:
    if isinstance(solver, str):
        if solver not in SOLVERS:
            raise InputError(f"Unknown solver={solver!r}. {nearest(solver, list(SOLVERS))}")
        return SOLVERS[solver](epsilon=epsilon)
    absent = [name for name in ("init", "step", "terminate") if not hasattr(solver, name)]
    if absent:
        raise InputError(
            f"`solver` must be one of {listing(SOLVERS)} or an object with the methods init, step "
            f"and terminate; {type(solver).__name__} lacks {listing(absent)}."
        )
    return solver


def _warn_about(status: np.ndarray[Any, Any]) -> None:
    """One counted warning for all features whose verdict is not a good one."""
    counts = {
        verdict: int((status == verdict).sum())
        for verdict in Status
        if verdict not in (Status.CONVERGED, Status.BOUNDARY)
    }
    found = {verdict: count for verdict, count in counts.items() if count}
    if found:
        detail = ", ".join(f"{count} {verdict.label}" for verdict, count in found.items())
        hint = (
            " Where V is indefinite some standard errors are NaN; parameter_space='psd' avoids it."
            if Status.INDEFINITE in found
            else ""
        )
        warnings.warn(
            f"{sum(found.values())} of {status.size} features ended without a regular fit: "
            f"{detail}. See results.status.{hint}",
            ConvergenceWarning,
            stacklevel=3,
        )
