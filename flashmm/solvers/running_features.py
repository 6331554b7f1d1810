"""Where the running features of a fit are, and the likelihood that they climb."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from flashmm.arrays.namespaces import (
    BoolArray,
    FloatArray,
    IntArray,
    flatnonzero,
    namespace,
    take,
)
from flashmm.likelihood.base import Evaluation, Likelihood
from flashmm.solvers.space import ParameterSpace

__all__ = ["Objective", "State"]


@dataclass(frozen=True)
class Objective:
    """The likelihood of the features still running, and the space their theta lives in.

    Parameters
    ----------
    likelihood
        Likelihood of all features.
    space
        Parameter space.
    features
        Positions of the B running features.
    """

    likelihood: Likelihood
    space: ParameterSpace
    features: IntArray

    @property
    def approximates(self) -> bool:
        """Whether evaluations on the way have an approximate expected information."""
        return bool(getattr(self.likelihood, "approximates", False))

    def evaluate(self, theta: FloatArray, last: BoolArray | None = None) -> Evaluation:
        """Evaluate theta (B, k) for the running features.

        A likelihood may have a cheaper evaluation for all but those that end there, ``last``
        (B,): its log-likelihood and score are exact, its information need only make good steps.
        """
        if not self.approximates:
            return self.likelihood.evaluate(theta, self.features)
        last = namespace(theta).zeros_like(theta[:, 0]) > 0 if last is None else last
        likelihood: Any = self.likelihood
        result: Evaluation = likelihood.evaluate_on_the_way(theta, self.features, last)
        return result

    def completed(self, theta: FloatArray, evaluation: Evaluation, rows: BoolArray) -> Evaluation:
        """The evaluation at theta (B, k), exact in ``rows`` (B,) as well."""
        chosen = flatnonzero(rows)
        if self.approximates and chosen.shape[0]:
            exact = self.likelihood.evaluate(take(theta, chosen), take(self.features, chosen))
            evaluation.put(chosen, exact)
        return evaluation

    def take(self, index: IntArray | BoolArray) -> Objective:
        """The same for some of the running features."""
        return replace(self, features=take(self.features, index))


@dataclass(frozen=True)
class State:
    """Where the running features are.

    Parameters
    ----------
    theta
        Current parameters, shape (B, k).
    evaluation
        Likelihood and derivatives at theta.
    step
        Proposed step, shape (B, k); set by the solver.
    scoring
        `scoring_step`, shape (B, k), for a solver that has it at hand.
    """

    theta: FloatArray
    evaluation: Evaluation
    step: FloatArray
    scoring: FloatArray | None = None

    def take(self, index: IntArray | BoolArray) -> State:
        """The state of some of the running features."""
        kept = None if self.scoring is None else take(self.scoring, index)
        return State(
            take(self.theta, index), self.evaluation.take(index), take(self.step, index), kept
        )
