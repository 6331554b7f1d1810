"""Expectation-maximisation, accelerated: slow and sure, within the psd space."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashmm.arrays.namespaces import Array, FloatArray, namespace
from flashmm.exceptions import InputError
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.base import Objective, State, newton_where
from flashmm.solvers.space import PSD
from flashmm.solvers.stopping import scoring_step, standardised_score, verdicts, within

__all__ = ["EM", "em_map"]

# Share of sigma2 that variances start from where D is singular, which EM cannot leave.
_LIFT = 0.1


@dataclass(frozen=True)
class EM:
    """EM (Dempster, Laird & Rubin 1977) with SQUAREM steps (Varadhan & Roland 2008).

    Every step ends at least as high as two plain EM steps' first, which never fall. Close to
    the maximum, and on the boundary, where EM itself hardly moves, steps are those of scoring and
    Newton's method, as always damped so that the likelihood does not fall.

    Parameters
    ----------
    epsilon
        Tolerance on the standardised score, as for `FisherScoring`.
    newton_within
        Where every component of that score is below this EM ends.
    """

    epsilon: float = 1e-5
    newton_within: float = 0.1

    def init(self, objective: Objective, theta0: FloatArray) -> State:
        """Evaluate the starting values, singular ones moved inside."""
        xp, space = namespace(theta0), _psd(objective)
        algebra = space.algebra(theta0)
        singular = space.on_boundary(theta0)[:, None]
        variance = xp.astype(algebra.factor == 1.0, xp.float64)
        lifted = theta0 + _LIFT * theta0[:, -1:] * variance
        theta = xp.where(singular, lifted, theta0)
        theta[:, -1] = theta0[:, -1]
        return State(theta, objective.evaluate(theta), xp.zeros_like(theta))

    def step(self, objective: Objective, state: State) -> State:
        """Propose a SQUAREM step, or one of scoring where EM has done its work."""
        xp, space = namespace(state.theta), _psd(objective)
        scoring = scoring_step(objective, state)
        proposed = replace(state, step=scoring, scoring=scoring)
        score = standardised_score(objective, proposed)
        close = xp.max(xp.abs(score), axis=1) < self.newton_within
        far = ~(close | space.on_boundary(state.theta))
        if bool(xp.any(far)):
            step = xp.asarray(scoring, copy=True)
            step[far] = _squarem(objective.take(far), space, state.take(far))
            proposed = replace(proposed, step=step)
        return newton_where(objective, proposed, close)[0]

    def terminate(self, objective: Objective, state: State) -> Array:
        """Converged when the standardised score is below epsilon."""
        return verdicts(objective, state, within(objective, state, self.epsilon))


def _psd(objective: Objective) -> PSD:
    space = objective.space
    if not isinstance(space, PSD) or not space.levels:
        raise InputError(
            "solver='em' works with covariance matrices of the random effects, so it needs "
            "parameter_space='psd'; variances may be negative in 'unconstrained'."
        )
    return space


def em_map(space: PSD, theta: FloatArray, evaluation: Evaluation) -> FloatArray:
    """One EM step: D + D S D / L for each block, sigma2 + 2 sigma2^2 score / n.

    S holds twice the derivatives by the block, L is its number of levels (Laird & Ware 1982,
    equations 3.7 and 3.8, in terms of the score).

    Parameters
    ----------
    space
        With levels per block and the number of samples.
    theta
        Shape (B, k).
    evaluation
        At theta.

    Returns
    -------
    array
        Shape (B, k).
    """
    xp, algebra, n = namespace(theta), space.algebra(theta), space.levels[-1]
    score = evaluation.score
    sigma2 = theta[:, -1]
    result = xp.asarray(theta, copy=True)
    result[:, -1] = sigma2 + 2.0 * sigma2**2 * score[:, -1] / n
    larger = iter(algebra.larger)
    for indices, levels in zip(space.blocks, space.levels[:-1], strict=True):
        if indices.shape[0] == 1:
            i = int(indices[0, 0])
            result[:, i] = theta[:, i] + 2.0 * theta[:, i] ** 2 * score[:, i] / levels
            continue
        block = next(larger)
        D = algebra.matrices(block, theta * algebra.factor)
        S = 2.0 * algebra.matrices(block, score / algebra.factor)
        change = xp.matmul(xp.matmul(D, S), D) / levels
        result = result + algebra.coordinates(block, change) / algebra.factor
    return result


def _squarem(objective: Objective, space: PSD, state: State) -> FloatArray:
    """Steps extrapolated from two EM steps, or those two where that is no better, (B, k)."""
    xp, start = namespace(state.theta), state.theta
    first = em_map(space, start, state.evaluation)
    at_first = objective.evaluate(first)
    second = em_map(space, first, at_first)
    unit = xp.sqrt(xp.linalg.diagonal(state.evaluation.expected))
    r, v = first - start, second - 2.0 * first + start
    length, bend = (xp.sum((unit * d) ** 2, axis=1) for d in (r, v))
    alpha = xp.sqrt(length / xp.where(bend > 0, bend, 1.0))
    alpha = xp.where((bend > 0) & (alpha > 1.0), alpha, 1.0)[:, None]
    far = start + 2.0 * alpha * r + alpha**2 * v
    inside = space.contains(far) & (far[:, -1] > 0)
    far = xp.where(inside[:, None], far, second)
    higher = objective.evaluate(far).loglik >= at_first.loglik
    return xp.where(higher[:, None], far, second) - start
