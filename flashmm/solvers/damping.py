"""Proposed steps, shortened until the likelihood exists and does not fall."""

from __future__ import annotations

from dataclasses import dataclass, replace

import array_api_compat
import numpy as np

from flashmm.arrays.namespaces import BoolArray, FloatArray, IntArray, namespace, put, take
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.running_features import Objective, State

__all__ = ["damped", "last_digit"]

_SUFFICIENT_INCREASE = 1e-4
_HALVINGS = 25
# A full step that leaves the domain of the likelihood is first cut to this share of itself: next
# to the edge each step then comes twenty times as close, where halving would only come twice.
_TO_THE_EDGE = 0.95
# After that, to this many times the length up to which a step cannot leave the domain.
_SAFE_LENGTHS = 4.0
# A fall of the log-likelihood by less than so many of its last digits is not a fall.
_DIGITS = 1e3


def last_digit(evaluation: Evaluation) -> FloatArray:
    """The last digit of the log-likelihood, shape (B,)."""
    return 1e-15 * (1.0 + namespace(evaluation.loglik).abs(evaluation.loglik))


@dataclass(frozen=True)
class _Slopes:
    """What a line search needs to know of the points that it starts from.

    Parameters
    ----------
    before
        Likelihood at these points.
    step
        Full steps, shape (B, k).
    slope
        Rise that a full step promises to first order, shape (B,).
    rounding
        A smaller fall of the log-likelihood is not a fall, shape (B,).
    """

    before: Evaluation
    step: FloatArray
    slope: FloatArray
    rounding: FloatArray

    def refuse(
        self, after: Evaluation, inside: BoolArray, index: IntArray, share: FloatArray
    ) -> BoolArray:
        """Which features (b,) of ``index`` may not take a ``share`` (b,) of their steps.

        ``after`` is the likelihood there, and ``inside`` says whether that is in the space.
        """
        xp = namespace(share)
        slope, step = take(self.slope, index), take(self.step, index)
        with np.errstate(invalid="ignore"):  # from outside the domain, by rounding, to outside
            gain = after.loglik - take(self.before.loglik, index)
        allowed = xp.all(xp.isfinite(after.score), axis=1) & inside
        # Near the maximum the gain drowns in rounding; the slope along the step does not
        # (the approximate Wolfe condition of Hager & Zhang 2005).
        flatter = xp.abs(xp.sum(after.score * step, axis=1)) <= 0.5 * slope
        close = flatter & (gain >= -take(self.rounding, index) - after.rounding)
        return ~(allowed & ((gain >= _SUFFICIENT_INCREASE * share * slope) | close))


def damped(
    objective: Objective, state: State, last: BoolArray | None = None
) -> tuple[State, BoolArray]:
    """Take the proposed steps, shortened until the likelihood exists and does not fall.

    The eigenvalues mu of the change of V relative to V (under REML of the error contrasts'
    covariance) have sum mu^2 = 2 d'Ed, so no step with 2 d'Ed < 1 leaves the domain (Dikin's
    ellipsoid): next to the edge that saves many halvings.

    A shortened step that promises less than the last digit of the log-likelihood is not tried.
    ``last`` (B,): the features that end with this step, see `Objective.evaluate`.

    Returns the new state and which features found no such step and stayed where they were.
    """
    xp, space = namespace(state.theta), objective.space
    before, step = state.evaluation, state.step
    slope = xp.clip(xp.sum(before.score * step, axis=1), min=0.0)
    slopes = _Slopes(before, step, slope, before.rounding + _DIGITS * last_digit(before))
    theta = space.tidied(state.theta + step)
    evaluation = objective.evaluate(theta, last)

    one = xp.ones_like(slope)
    everyone = xp.arange(one.shape[0], device=array_api_compat.device(one))
    pending = everyone[slopes.refuse(evaluation, space.contains(theta), everyone, one)]
    exists = xp.isfinite(evaluation.loglik)
    share = take(xp.where(exists, 0.5 * one, _TO_THE_EDGE * one), pending)
    square = xp.sum(xp.matmul(before.expected, step[:, :, None])[:, :, 0] * step, axis=1)
    safe = _SAFE_LENGTHS / xp.sqrt(xp.clip(2.0 * square, min=1.0))
    least = last_digit(before)
    stalled = one < 0.0
    for _ in range(_HALVINGS):
        if pending.shape[0] == 0:
            break
        shorter = space.tidied(take(state.theta, pending) + share[:, None] * take(step, pending))
        put(theta, pending, shorter)
        ends = None if last is None else take(last, pending)
        after = objective.take(pending).evaluate(shorter, ends)
        evaluation.put(pending, after)
        left = slopes.refuse(after, space.contains(shorter), pending, share)
        pending, share, exists = pending[left], 0.5 * share[left], xp.isfinite(after.loglik)[left]
        share = xp.where(exists, share, xp.minimum(share, take(safe, pending)))
        trying = share * take(slope, pending) > take(least, pending)
        put(stalled, pending, ~trying)
        pending, share = pending[trying], share[trying]
    put(stalled, pending, pending >= 0)
    stayed = everyone[stalled]
    put(theta, stayed, take(state.theta, stayed))
    evaluation.put(stayed, before.take(stayed))
    moved = replace(
        state, theta=theta, evaluation=evaluation, step=xp.zeros_like(theta), scoring=None
    )
    return moved, stalled
