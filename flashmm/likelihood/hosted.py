"""A likelihood on a device, for callers whose arrays are numpy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from flashmm.arrays.namespaces import Array, like, to_numpy
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Estimator, Evaluation, RandomEffects, StandardErrorKind
from flashmm.likelihood.moments import ContrastMoments, contrast_moments
from flashmm.likelihood.projection import Projection

__all__ = ["HostedLikelihood"]


@dataclass(frozen=True)
class HostedLikelihood:
    """An `Estimator` that takes and gives numpy arrays and computes elsewhere.

    Only theta goes to the device, and only what is asked for comes back: (B, k) and (B, k, k)
    arrays for a solver.

    Parameters
    ----------
    inner
        The likelihood of a projection that was moved by `Projection.on`.
    example
        An array on the device.
    """

    inner: Estimator
    example: Array

    @property
    def projection(self) -> Projection:
        """The statistics projected off X, in numpy."""
        return self.inner.projection.in_numpy

    @property
    def engine(self) -> str:
        """Name of the algorithm."""
        return self.inner.engine

    @property
    def m(self) -> int:
        """Number of features."""
        return self.inner.m

    @property
    def n_params(self) -> int:
        """Number of variance parameters, the residual included."""
        return self.inner.n_params

    @property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return to_numpy(self.inner.perfect_fit)

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        return self.inner.batch_size(memory)

    def _moved(self, *arrays: Array) -> list[Array]:
        return [like(array, self.example) for array in arrays]

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Evaluate ``theta`` (B, k) for the features at the positions ``features`` (B,)."""
        found = self.inner.evaluate(*self._moved(theta, features))
        return Evaluation(*(_writable(getattr(found, name)) for name in found.__match_args__))

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Fixed effects at theta, shape (B, p)."""
        return to_numpy(self.inner.beta(*self._moved(theta, features)))

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        return to_numpy(self.inner.contrast_variance(*self._moved(theta, features, L)))

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        return to_numpy(self.inner.covariance(*self._moved(theta, features)))

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Predictions of the random effects, with standard errors if asked for."""
        theta, features = self._moved(theta, features)
        found = self.inner.random_effects(theta, features, se)
        return RandomEffects(to_numpy(found.blup), None if se is None else to_numpy(found.se))

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        return to_numpy(self.inner.apply_T(*self._moved(theta, vectors)))

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k)."""
        return contrast_moments(self, theta, L, adjustment=adjustment)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return to_numpy(self.inner.is_definite(*self._moved(theta)))

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        return to_numpy(self.inner.distance_to_edge(*self._moved(theta)))


def _writable(array: Array) -> NDArray[Any]:
    """A numpy array of one's own."""
    values = to_numpy(array)
    return values if values.flags.writeable else values.copy()
