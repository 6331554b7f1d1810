"""What a likelihood offers to a solver: loglik, score and information for a batch of features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["Evaluation", "Likelihood"]


@dataclass(frozen=True)
class Evaluation:
    """The likelihood and its derivatives at one theta per feature.

    Outside the space, loglik is -inf and the rest NaN.

    Parameters
    ----------
    loglik
        Log-likelihoods, shape (B,).
    score
        First derivatives, shape (B, k).
    expected
        Expected (Fisher) information, shape (B, k, k).
    average
        Average information, shape (B, k, k).
    """

    loglik: FloatArray
    score: FloatArray
    expected: FloatArray
    average: FloatArray

    @property
    def observed(self) -> FloatArray:
        """Observed information 2 A - E (Gilmour, Thompson & Cullis 1995), shape (B, k, k)."""
        return 2.0 * self.average - self.expected

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Evaluation:
        """The same for some of the features."""
        return Evaluation(
            self.loglik[index], self.score[index], self.expected[index], self.average[index]
        )

    def replaced(self, index: NDArray[np.intp] | NDArray[np.bool_], by: Evaluation) -> Evaluation:
        """A copy in which the features at ``index`` carry the values of ``by``."""
        parts = []
        for name in ("loglik", "score", "expected", "average"):
            values = getattr(self, name).copy()
            values[index] = getattr(by, name)
            parts.append(values)
        return Evaluation(*parts)


class Likelihood(Protocol):
    """A log-likelihood of theta (variance parameters, the residual last) for many features."""

    @property
    def m(self) -> int:
        """Number of features."""
        ...

    @property
    def n_params(self) -> int:
        """Number of variance parameters k, the residual included."""
        ...

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        ...

    def evaluate(self, theta: FloatArray, features: NDArray[np.intp]) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        ...
