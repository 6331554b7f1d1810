"""MultiLMM: one design, many features, and fit(); the work is done elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.blas import LARGE, one_blas_thread
from flashmm.arrays.labels import in_order
from flashmm.arrays.types import FloatArray
from flashmm.constructors import ModelData
from flashmm.exceptions import (
    ConvergenceWarning,
    InputError,
    MissingSamplesWarning,
    check_option,
    listing,
    nearest,
    warn,
)
from flashmm.inference.names import coefficients_of
from flashmm.likelihood import (
    ENGINES,
    AnyProjection,
    make_likelihood,
    project_any,
)
from flashmm.progress import Progress
from flashmm.results import FitOptions, MultiLMMResults, at_theta
from flashmm.results.explained_groups import explained_groups
from flashmm.results.fitting import FitPlan, fit_features
from flashmm.results.fitting_curves import check_curved
from flashmm.results.on_workers import fit_on_workers
from flashmm.results.summary import without_samples
from flashmm.results.trust import doubt
from flashmm.slips.answers import answer_calls, no_index, no_such_attribute
from flashmm.slips.attributes import MODELS
from flashmm.slips.cures import ATTRIBUTES, UNFITTED, known
from flashmm.slips.refusals import AnsweringClass, no_operator
from flashmm.solvers import EM, SOLVERS
from flashmm.solvers.base import Solver
from flashmm.solvers.batches import usable_cores
from flashmm.solvers.fallback import fallback_of
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.groups import coarser_of, with_residual_groups
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MultiLMM"]

log = logging.getLogger("flashmm")

METHODS = ("REML", "ML")
SPACES = ("unconstrained", "psd")


@answer_calls
class MultiLMM(ModelData, metaclass=AnsweringClass):
    """Linear mixed models of many features that share one design.

    For every feature j, ``y_j = X beta_j + Z b_j + e_j`` with ``b_j ~ N(0, D(theta_j))`` and
    ``e_j ~ N(0, sigma2_j I)``. Build one with `from_formula`, `from_anndata`,
    `from_arrays` or `from_summary_stats`.

    Parameters
    ----------
    stats
        Summary statistics of the data; they carry the labels and the covariance structure.
    fixed, random
        Formulas as text, for printing.
    n_dropped
        Samples left out because of missing values.
    recipe
        How X and Z are made of data, for predictions; None when built from matrices.

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

    __getitem__ = no_index("A model", "features are those of its fit, model.fit()['GENE']")
    __iter__ = None
    __array_ufunc__ = None  # arrays and their numbers ask here
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = no_operator(
        "Models",
        "sums are added, MultiLMM.from_summary_stats(a.stats + b.stats), and a smaller model is "
        "model.drop(fixed='x')",
    )

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            of_results = hasattr(MultiLMMResults, name) or known(ATTRIBUTES, name)
            cure = UNFITTED if of_results and not hasattr(type(self), name) else ""
            return no_such_attribute(self, name, "Models", cure, own=MODELS)

    def drop(self, *, fixed: Any = None, random: Any = None, features: Any = None) -> MultiLMM:
        """A smaller model of the same data, which are not needed again.

        Parameters
        ----------
        fixed
            Coefficients in any spelling, or terms of the formula (``"cls:trt"``) with all of
            their coefficients.
        random
            Random terms, or variances: ``"Subject[Days]"`` for the effect Days of Subject.
        features
            Names, a mask or a slice.

        Returns
        -------
        MultiLMM

        Raises
        ------
        InputError
            If a name is unknown.

        Examples
        --------
        >>> import flashmm as fm
        >>> sim = fm.simulate.rnaseq(n_genes=20, n_cells=300, n_samples=6, n_clusters=2, rng=1)
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ log(libsize) + cls + trt", "~ 0 + sam", sim.metadata, sim.counts,
        ...     transform="log2p1")
        >>> options = {"method": "ML", "parameter_space": "psd"}
        >>> fits = {term: model.drop(fixed=term).fit(**options) for term in ("cls", "trt")}
        >>> model.fit(**options).compare_lr_test(fits["trt"]).columns.tolist()
        ['statistic', 'df', 'p', 'p_adjusted']
        """
        return self._smaller(self.stats.drop(**self._names(fixed, random, features)))

    def keep(self, *, fixed: Any = None, random: Any = None, features: Any = None) -> MultiLMM:
        """A smaller model with only what is named; arguments as in `drop`, None for all.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.keep(fixed="Intercept", features=["gene2", "gene5"]).fit().params.shape
        (2, 1)
        """
        return self._smaller(self.stats.keep(**self._names(fixed, random, features)))

    def _names(self, fixed: Any, random: Any, features: Any) -> dict[str, Any]:
        names = None if fixed is None else coefficients_of(fixed, self.stats.coef_names)
        return {"fixed": names, "random": random, "features": features}

    def _smaller(self, stats: SummaryStats | PatternedStats) -> MultiLMM:
        return MultiLMM(
            stats,
            fixed=reduced_formula(self.fixed, self.stats.coef_names, stats.coef_names),
            random=reduced_formula(
                self.random, self.stats.structure.param_names, stats.structure.param_names
            ),
            n_dropped=self.n_dropped,
            recipe=self.recipe,
        )

    @cached_property
    def projection(self) -> AnyProjection:
        """The statistics projected off X (computed once; checks that the model can be fitted)."""
        return project_any(self.stats)

    def _by_residual(
        self, by: Any, residual: FloatArray | None, device: Any, client: Any
    ) -> tuple[SummaryStats | PatternedStats, str, str]:
        """The statistics with residual variances by group, the groups' name and `coarser_of`."""
        if residual is not None:
            raise InputError("Pass `residual_variance` or `residual_by`, one of the two.")
        if device is not None or client is not None:
            raise InputError("`residual_by` is fitted here: leave out `device` and `client`.")
        stats = with_residual_groups(self.stats, by)
        assert stats.groups is not None
        return stats, stats.groups.name, coarser_of(self.stats, by)

    @cached_property
    def _with_known_residual(self) -> AnyProjection:
        """The same where no component can be mistaken for the residual, whose variance is known."""
        return project_any(self.stats, known_residual=True)

    def loglike(self, theta: Any, method: Literal["REML", "ML"] = "REML") -> pd.Series[Any]:
        """Log-likelihood at given variances, the fixed effects maximised out, for every feature.

        Parameters
        ----------
        theta
            Variances and covariances in squared units of Y, the residual last: one vector for all
            features; a Series labelled by parameter; an array (m, n_params) or a DataFrame,
            features x parameters, matched by label; or the results of a fit.
        method
            ``"REML"``: the restricted log-likelihood; ``"ML"``: that of all data. Constants are
            those of lme4, as in ``result.llf``.

        Returns
        -------
        Series
            Indexed by feature. -inf where theta is outside the likelihood's domain (V not
            positive definite); NaN for a feature that cannot be fitted, or that ``theta`` lacks.

        Raises
        ------
        InputError
            If ``theta`` has another length, or labels that are no parameters.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> result = model.fit()
        >>> bool(np.allclose(model.loglike(result), result.llf))
        True
        >>> bool((model.loglike({"Z1": 1.0, "Residual": 1.0}) < result.llf).all())
        True
        """
        check_option("method", method, METHODS)
        return at_theta.loglike(self.stats, self.projection, theta, method)

    def score(self, theta: Any, method: Literal["REML", "ML"] = "REML") -> pd.DataFrame:
        """Derivatives of `loglike` by theta, for every feature.

        Parameters
        ----------
        theta, method
            As in `loglike`.

        Returns
        -------
        DataFrame
            Features x parameters, per squared unit of Y; NaN outside the likelihood's domain.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> bool((model.score([0.0, 0.01]) > 0).all().all())
        True
        """
        check_option("method", method, METHODS)
        return at_theta.score(self.stats, self.projection, theta, method)

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
        n_jobs: int | None = None,
        device: Any = None,
        engine: str = "auto",
        client: Any = None,
        residual_variance: Any = None,
        residual_by: Any = None,
        progress: Progress = None,
    ) -> MultiLMMResults:
        """Fit all features.

        Parameters
        ----------
        method
            ``"REML"`` (default) or ``"ML"``.
        solver
            ``"fisher_scoring"`` (default), ``"average_information"``, ``"newton_raphson"``,
            ``"em"`` (psd space only; slow), or an object with the methods of
            `flashmm.solvers.Solver`. Features that a solver known by name leaves unfinished go on
            with EM in the psd space and with Newton-Raphson in the unconstrained one, unless that
            is what left them.
        theta0
            Starting values in squared units of Y, the residual last: one vector for all
            features, an array or DataFrame (m, n_params), or another fit's results. Default:
            zero random-effect variances and the residual variance of the fixed effects alone.
            Features that come from there to the boundary of the psd space, or to a negative
            variance without it, are searched again from large variances by a solver known by name,
            and so are those that a grid of variance ratios shows other maxima of; the best end
            counts.
        max_iter
            Limit on the number of iterations of each feature in one search by the solver; the one
            that it falls back on may take four times as many (EM: ten times). ``n_iter`` counts
            the steps of all.
        epsilon
            A feature has converged when its score, divided by its standard error, is below
            epsilon in every component and every combination of them.
        parameter_space
            ``"unconstrained"``: variances may be negative, as in FLASHMM; ``"psd"``: D is
            positive semi-definite, as in lme4 and statsmodels. Tests of fixed effects want
            ``"psd"``, with few groups together with ``t_test(..., df="integrated")``; tests of
            the variances themselves the unconstrained space.
        memory
            Bytes that the arrays of the batches of features that are fitted at once may take.
        n_jobs
            Threads that fit batches of features side by side; None or -1: one for each usable
            core, at most 16. The answer is the same to the last bit whatever the number.
        device
            Where the likelihood is computed: None (default), here with numpy; ``"cuda"``,
            ``"cpu"`` or another device of PyTorch (the extra ``torch``), to which the projected
            statistics are moved in float64. Results are numpy's in any case. Not for features
            that lack samples or have weights or covariates of their own.
        engine
            How the likelihood is computed: ``"spectral"`` (one variance component),
            ``"bordered"`` (several, one with most of the columns), ``"blocked"`` (slopes, very
            many levels, large crossed factors), ``"nested"`` (one factor within another),
            ``"general"`` (any), or ``"auto"``, which takes the fastest that applies. All give
            the same answer to rounding.
        client
            A ``distributed.Client``: its workers fit the features, in partitions that depend on
            the statistics alone, each in one thread unless ``n_jobs`` says otherwise. The answer
            is the same to the last bit on any number of workers, and that of a fit here to
            rounding; a lost worker costs a retry. Worth it where a fit here takes minutes.
        residual_variance
            Known residual variance, in squared units of Y: one positive number for all features,
            or one for each (an array; a Series or dict, by label). It is then no parameter:
            sample i has the variance ``residual_variance / weight_i``, and a random effect may have
            a level per sample. ``1.0`` with weights 1 / s^2 is random-effects meta-analysis of all
            features, see `MultiLMMResults.heterogeneity`. Default: estimated.
        residual_by
            Groups of samples with residual variances of their own: the name that the statistics
            have sums by (``sums_by="Sex"``, or ``"Sex:Age"``), some of the factors that it joins,
            or a mapping that makes coarser groups of them. The parameters are then
            ``"Residual[Male]"`` and so on, and `compare_lr_test` with a fit without it tests that
            they are equal. Where a feature has no samples of a group, that variance is NaN.
            Default: one.
        progress
            Of a fit here: None (default) for a bar on a terminal once it has taken a few seconds
            (needs tqdm), True for one at once, False for none, or a function of the numbers of
            features done and in all.

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
        MissingSamplesWarning
            Once, with a count per group, if features lack all samples of groups of
            ``residual_by``.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Z = np.kron(np.eye(8), np.ones((5, 1)))
        >>> model = fm.MultiLMM.from_arrays(rng.normal(size=(3, 40)), np.ones((40, 1)), Z)
        >>> model.fit(method="ML", parameter_space="psd").status.tolist()
        ['converged', 'boundary', 'converged']
        """
        check_option("method", method, METHODS)
        check_option("parameter_space", parameter_space, SPACES)
        _check_numbers(max_iter, epsilon, memory)
        threads = _number_of_threads(n_jobs, alone=client is None)
        check_option("engine", engine, ("auto", *ENGINES))
        chosen = _make_solver(solver, epsilon)
        _check_em(solver, parameter_space)
        residual = known_residual_variance(residual_variance, self.stats.feature_names)
        stats, by, finer = self.stats, "", ""
        if stats.structure.curved is not None:
            check_curved(stats.structure, parameter_space, solver, device)
        if residual_by is not None:
            stats, by, finer = self._by_residual(residual_by, residual, device, client)
        with one_blas_thread(self.stats.q):
            projection = self.projection if residual is None else self._with_known_residual
            if by:
                projection = project_any(stats)
        likelihood = make_likelihood(projection, method, engine)
        log.info("%s of %d features: engine %r", method, self.stats.m, likelihood.engine)
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
            residual_variance="estimated" if residual is None else "known",
            residual_by=by,
            residual_groups=finer,
        )
        fallback = fallback_of(solver, parameter_space, epsilon)
        known, told = isinstance(solver, str), progress if client is None else False
        plan = FitPlan(options, chosen, fallback, threads, device, known, told)
        if client is None:
            with one_blas_thread(self.stats.q if device is None else LARGE):
                found: Any = fit_features(stats, projection, likelihood, plan, theta0, residual)
        else:
            found = fit_on_workers(client, self.stats, plan, theta0, residual)
        results = MultiLMMResults(found, stats, options, projection, self.recipe)
        results.fitted.know(likelihood)
        groups = explained_groups(results.fitted) if by else ""
        _warn_about(results.fitted.array("status"), groups, psd=parameter_space == "psd")
        if by and (lacking := without_samples(results.fitted)):
            warn(lacking, MissingSamplesWarning)
        if log.isEnabledFor(logging.INFO) and (reason := doubt(results.fitted)):
            log.info(reason)
        return results


def reduced_formula(formula: str, names: Sequence[str], left: Sequence[str]) -> str:
    """A formula as text, with what was dropped since: ``~ a + b, without 'b'``."""
    gone = [name for name in names if name not in set(left)]
    return f"{formula}, without {listing(gone)}" if formula and gone else formula


def _as_text(key: Any) -> str:
    """A feature's name as text, of a whole number without its point."""
    whole = isinstance(key, float | np.floating) and float(key).is_integer()
    return str(int(key)) if whole else str(key)


def known_residual_variance(given: Any, names: NDArray[Any]) -> FloatArray | None:
    """Known residual variances of the features, shape (m,); None where they are estimated.

    Raises
    ------
    InputError
        If they are no positive numbers, or none for each feature.
    """
    if given is None:
        return None
    what = "`residual_variance`"
    if isinstance(given, Mapping):
        named = {_as_text(key): value for key, value in given.items()}
        if len(named) < len(given):
            raise InputError(f"{what} holds a feature more than once, as text and as a number.")
        absent = [str(name) for name in names if str(name) not in named]
        if absent:
            raise InputError(f"{what} says nothing of the features {listing(absent)}.")
        given = [named[str(name)] for name in names]
    values = in_order(given, names, what, of="features", by_text=True)
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"{what} must be a positive number, or one for each feature, not {given!r:.80}."
        ) from None
    if isinstance(given, bool | np.bool_) or numbers.shape not in ((), (names.size,)):
        raise InputError(
            f"{what} must be a positive number, or one for each of {names.size} features; it is "
            f"{given!r:.80}."
        )
    numbers = np.broadcast_to(numbers, names.size).copy()
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if wrong.size:
        where = "" if np.ndim(values) == 0 else f" (feature {str(names[wrong[0]])!r})"
        raise InputError(
            f"{what} must be positive and finite; it is {float(numbers[wrong[0]])!r}{where}. "
            "Samples without a value have weight 0, and sampling variances that differ by sample "
            "are weights 1 / s^2."
        )
    return numbers


def _check_numbers(max_iter: int, epsilon: float, memory: int) -> None:
    if isinstance(max_iter, bool) or not isinstance(max_iter, (int, np.integer)) or max_iter < 1:
        raise InputError(f"`max_iter` must be a positive integer, not {max_iter!r}.")
    if not isinstance(epsilon, Real) or not 0 < epsilon < 1:
        raise InputError(f"`epsilon` must be between 0 and 1 standard errors, not {epsilon!r}.")
    if not isinstance(memory, Real) or not memory >= 1:
        raise InputError(f"`memory` must be a positive number of bytes, not {memory!r}.")


def _number_of_threads(n_jobs: int | None, *, alone: bool) -> int:
    if n_jobs is None and not alone:
        return 1
    if n_jobs is None or n_jobs == -1:
        return usable_cores()
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, (int, np.integer)) or n_jobs < 1:
        raise InputError(
            f"`n_jobs` must be a positive number of threads, or None or -1 for all usable cores "
            f"(here {usable_cores()}), not {n_jobs!r}."
        )
    return int(n_jobs)


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


def _check_em(solver: str | Solver, parameter_space: str) -> None:
    if (solver == "em" or isinstance(solver, EM)) and parameter_space != "psd":
        raise InputError(
            "solver='em' updates covariance matrices of the random effects, which never leave the "
            "psd space: use it with parameter_space='psd', or another solver with 'unconstrained'."
        )


def _warn_about(status: np.ndarray[Any, Any], groups: str = "", psd: bool = False) -> None:
    """One counted warning for all features whose verdict is not a good one.

    ``groups``: what is to be said of groups with residual variances of their own; ``psd``: whether
    that is the space, where V can be singular by a residual variance of zero alone.
    """
    if bool(((status == Status.CONVERGED) | (status == Status.BOUNDARY)).all()):
        if groups:
            warn(groups, ConvergenceWarning)
        return
    counts = {
        verdict: int((status == verdict).sum())
        for verdict in Status
        if verdict not in (Status.CONVERGED, Status.BOUNDARY)
    }
    found = {verdict: count for verdict, count in counts.items() if count}
    if found:
        detail = ", ".join(f"{count} {verdict.label}" for verdict, count in found.items())
        hint = (
            " Where V is indefinite the estimate is a stationary point (`converged`), but some "
            "standard errors are NaN and tests mean nothing; "
            if Status.INDEFINITE in found
            else ""
        )
        if hint:
            cure = "here a group's residual variance is zero: join it with another."
            hint += cure if psd else "parameter_space='psd' avoids it."
        warn(
            f"{sum(found.values())} of {status.size} features ended without a regular fit: "
            f"{detail}. See results.status.{hint} {groups}".rstrip(),
            ConvergenceWarning,
        )
