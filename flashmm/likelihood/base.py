"""What a likelihood offers: to a solver loglik, score and information; to results the estimates.

Every theta here is in the internal units of `flashmm.likelihood.projection`; estimates come
out in the units of Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]

# A covariance matrix is singular when its smallest eigenvalue is below this share of the
# largest: what lies beyond is rounding.
SINGULAR = 1e-13

# A residual variance below this share of the residual variance of y on X: fast likelihoods,
# which divide by it, lose digits there that the general likelihood keeps.
SMALL_RESIDUAL = 1e-6

__all__ = [
    "SINGULAR",
    "SMALL_RESIDUAL",
    "Estimator",
    "Evaluation",
    "Likelihood",
    "RandomEffects",
    "StandardErrorKind",
    "rounding_errors",
]

StandardErrorKind = Literal["conditional", "prediction"]


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
    rounding
        Size of the rounding errors in loglik, shape (B,).
    """

    loglik: FloatArray
    score: FloatArray
    expected: FloatArray
    average: FloatArray
    rounding: FloatArray

    @property
    def observed(self) -> FloatArray:
        """Observed information 2 A - E (Gilmour, Thompson & Cullis 1995), shape (B, k, k)."""
        return 2.0 * self.average - self.expected

    @classmethod
    def empty(cls, count: int, k: int) -> Evaluation:
        """The evaluation of ``count`` features outside the space."""
        return cls(
            np.full(count, -np.inf),
            np.full((count, k), np.nan),
            np.full((count, k, k), np.nan),
            np.full((count, k, k), np.nan),
            np.zeros(count),
        )

    def take(self, index: IntArray | NDArray[np.bool_]) -> Evaluation:
        """The same for some of the features."""
        return Evaluation(
            self.loglik[index],
            self.score[index],
            self.expected[index],
            self.average[index],
            self.rounding[index],
        )

    def put(self, index: IntArray | NDArray[np.bool_], values: Evaluation) -> None:
        """Overwrite the features at ``index``."""
        for name in ("loglik", "score", "expected", "average", "rounding"):
            getattr(self, name)[index] = getattr(values, name)


def rounding_errors(n: int, sigma2: FloatArray) -> FloatArray:
    """Rounding errors of a log-likelihood: sums of n terms, sums of squares over sigma2.

    In internal units y'Ry is n - p, so what is left of it after cancellation carries an
    absolute error of about n eps, divided by sigma2.
    """
    return 1e-14 * n * (1.0 + 1.0 / np.maximum(np.abs(sigma2), 1e-300))


@dataclass(frozen=True)
class RandomEffects:
    """Predictions of the random effects in the units of Y.

    Parameters
    ----------
    blup
        Best linear unbiased predictions, shape (B, q).
    se
        Their standard errors, shape (B, q); None when not asked for.
    """

    blup: FloatArray
    se: FloatArray | None


class Likelihood(Protocol):
    """A log-likelihood of theta (variance parameters, the residual last) for many features.

    This is all that a solver sees.
    """

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

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        ...


class Estimator(Likelihood, Protocol):
    """A likelihood that also tells what theta implies; what `MultiLMM.fit` works with."""

    @property
    def engine(self) -> str:
        """Name of the algorithm, e.g. ``"spectral"``."""
        ...

    @property
    def perfect_fit(self) -> NDArray[np.bool_]:
        """Features that X and Z together explain exactly, shape (m,)."""
        ...

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Fixed effects at theta, shape (B, p)."""
        ...

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c); negative where undefined."""
        ...

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices C of the fixed effects, shape (B, p, p)."""
        ...

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Predictions of the random effects, with standard errors if asked for."""
        ...

    def is_definite(self, theta: FloatArray) -> NDArray[np.bool_]:
        """Whether V is positive definite, shape (B,)."""
        ...

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,).

        Smallest over largest eigenvalue of V under ML, of the error contrasts' covariance
        under REML.
        """
        ...
