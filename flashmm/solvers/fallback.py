"""A second solver for features that the first leaves unfinished."""

from __future__ import annotations

from flashmm.arrays.namespaces import FloatArray, IntArray, flatnonzero, put, take
from flashmm.likelihood.base import Likelihood
from flashmm.solvers.base import Solution, Solver, maximise
from flashmm.solvers.em import EM
from flashmm.solvers.newton_raphson import NewtonRaphson
from flashmm.solvers.space import ParameterSpace
from flashmm.solvers.verdict_texts import Status

__all__ = ["fallback_of", "maximise_in_stages"]

# Steps of a later stage, as multiples of the first's. Newton's method needs them where the
# likelihood is unbounded, to follow it to the edge of its domain: the way is narrow and bent.
_STEPS_OF_EM = 10
_STEPS_OF_OTHERS = 4


def fallback_of(solver: str | Solver, parameter_space: str, epsilon: float) -> Solver | None:
    """What goes on with features that a solver leaves unfinished; a user's solver stands alone."""
    name = "em" if parameter_space == "psd" else "newton_raphson"
    if not isinstance(solver, str) or solver == name:
        return None
    return EM(epsilon=epsilon) if name == "em" else NewtonRaphson(epsilon=epsilon)


def maximise_in_stages(
    likelihood: Likelihood,
    space: ParameterSpace,
    stages: tuple[Solver, ...],
    theta0: FloatArray,
    features: IntArray,
    *,
    max_iter: int,
    first: int | None = None,
) -> Solution:
    """Maximise by the first solver; each further one goes on where features are unfinished.

    Parameters
    ----------
    likelihood, space, theta0, features
        As for `flashmm.solvers.base.maximise`.
    stages
        Solvers.
    max_iter
        Limit on the number of steps of each feature in the first stage; later ones may take four
        times as many, EM, sure and slow, ten times.
    first
        A lower limit for the first stage.

    Returns
    -------
    Solution
        Steps of all stages count. A later stage's end counts where it is no lower than that of
        the stage before.
    """
    limit = max_iter if first is None else min(first, max_iter)
    solution = maximise(likelihood, space, stages[0], theta0, features, max_iter=limit)
    for solver in stages[1:]:
        status = solution.status
        rows = flatnonzero(
            (status == int(Status.ITERATION_LIMIT)) | (status == int(Status.STALLED))
        )
        if rows.shape[0] == 0:
            break
        before = solution.evaluation.take(rows)
        again = maximise(
            likelihood,
            space,
            solver,
            take(solution.theta, rows),
            take(features, rows),
            max_iter=max_iter * (_STEPS_OF_EM if isinstance(solver, EM) else _STEPS_OF_OTHERS),
        )
        put(solution.n_iter, rows, take(solution.n_iter, rows) + again.n_iter)
        rounding = before.rounding + again.evaluation.rounding
        kept = flatnonzero(again.evaluation.loglik >= before.loglik - rounding)
        rows = take(rows, kept)
        put(solution.theta, rows, take(again.theta, kept))
        put(solution.status, rows, take(again.status, kept))
        solution.evaluation.put(rows, again.evaluation.take(kept))
    return solution
