"""Where the running features of a fit are, and the likelihood that they climb."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flashmm.arrays.namespaces import BoolArray, FloatArray, IntArray, take
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

    def evaluate(self, theta: FloatArray) -> Evaluation:
        """Evaluate theta (B, k) for the running features."""
        return self.likelihood.evaluate(theta, self.features)

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
