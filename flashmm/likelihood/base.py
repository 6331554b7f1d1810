"""What a likelihood offers: to a solver loglik, score and information; to results the estimates.

Every theta here is in the internal units of `flashmm.likelihood.projection`; estimates come
out in the units of Y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import array_api_compat
import numpy as np

from flashmm.arrays.namespaces import Array, namespace, put, take
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.projection import Projection

# A covariance matrix is singular when its smallest eigenvalue is below this share of the
# largest: what lies beyond is rounding.
SINGULAR = 1e-13

# Residual variances below such a share of the residual variance of y on X: fast likelihoods, which
# divide by its square, lose digits there that the general likelihood keeps (about 1e-14 over
# the share's square), and which it is called in for where q is at most the first number.
_SMALL_RESIDUAL = ((128, 1e-2), (512, 1e-3), (math.inf, 1e-6))
# Bytes that features handed on to the general likelihood may take at once.
_HANDED_ON = 2**27

__all__ = [
    "SINGULAR",
    "ContrastMoments",
    "Estimator",
    "Evaluation",
    "Forms",
    "Likelihood",
    "OfProjection",
    "RandomEffects",
    "StandardErrorKind",
    "assembled",
    "evaluate_in_parts",
    "log_of_product",
    "rounding_errors",
    "rows_of",
    "small_residual",
    "standard_errors",
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
        with np.errstate(invalid="ignore"):
            return 2.0 * self.average - self.expected

    @classmethod
    def empty(cls, count: int, k: int, example: Array | None = None) -> Evaluation:
        """The evaluation of ``count`` features outside the space, in arrays like ``example``."""
        example = np.zeros(1) if example is None else example
        xp, device = namespace(example), array_api_compat.device(example)

        def full(value: float, *shape: int) -> Array:
            return xp.full(shape, value, dtype=xp.float64, device=device)

        return cls(
            full(-np.inf, count),
            full(np.nan, count, k),
            full(np.nan, count, k, k),
            full(np.nan, count, k, k),
            full(0.0, count),
        )

    def take(self, index: IntArray | BoolArray) -> Evaluation:
        """The same for some of the features."""
        return Evaluation(*(take(getattr(self, name), index) for name in self.__match_args__))

    def put(self, index: IntArray | BoolArray, values: Evaluation) -> None:
        """Overwrite the features at ``index``."""
        for name in self.__match_args__:
            put(getattr(self, name), index, getattr(values, name))

    def spread(self, inside: BoolArray) -> Evaluation:
        """Evaluation of the features ``inside`` the space among all, (B,), others outside."""
        if self.loglik.shape[0] == inside.shape[0]:
            return self
        result = Evaluation.empty(inside.shape[0], self.score.shape[1], self.score)
        result.put(inside, self)
        return result


@dataclass(frozen=True)
class Forms:
    """A function of theta and its derivatives by the parameters, the residual last.

    Parameters
    ----------
    value
        Shape (B,).
    first
        Shape (B, k).
    second
        Shape (B, k, k).
    """

    value: FloatArray
    first: FloatArray
    second: FloatArray

    def repeated(self, count: int) -> Forms:
        """The same for ``count`` features, where one stands for all."""
        if self.value.shape[0] == count:
            return self
        xp = namespace(self.value)
        parts = (self.value, self.first, self.second)
        return Forms(*(xp.repeat(part, count, axis=0) for part in parts))


# Next to sigma2 = 0 this overflows; a point that is not finite is one that no step takes.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def assembled(
    quadratic: Forms,
    trace: Forms,
    sigma2: FloatArray,
    *,
    n: int | FloatArray,
    df: int | FloatArray,
    rss: FloatArray | None,
    df_trace: int,
) -> Evaluation:
    """The evaluation that quadratic forms and traces on the span of Z make up.

    What lies outside that span has variance sigma2 and is added here. The arrays of
    ``quadratic`` and ``trace`` are overwritten.

    Parameters
    ----------
    quadratic
        u'M^-1u, then y'P V_i P y and y'P V_i P V_j P y, without ``rss``.
    trace
        log |M|, then tr(P V_i) and tr(P V_i P V_j) (V^-1 in place of P under ML), without the
        ``df_trace`` contrasts of variance sigma2.
    sigma2
        Residual variances, shape (B,).
    n
        Samples; a number, or one for each feature.
    df
        n - p under REML, n under ML; likewise.
    rss
        Residual sums of squares of y on [X, Z], shape (B,); None where [X, Z] spans everything.
    df_trace
        Contrasts of variance sigma2 that the log determinant lacks.
    """
    xp = namespace(sigma2)
    value, log_det = quadratic.value, trace.value
    if rss is not None:
        part = rss / sigma2
        value = value + part
        quadratic.first[:, -1] += part / sigma2
        quadratic.second[:, -1, -1] += part / sigma2**2
    if df_trace > 0:
        log_det = log_det + df_trace * xp.log(sigma2)
        trace.first[:, -1] += df_trace / sigma2
        trace.second[:, -1, -1] += df_trace / sigma2**2
    return Evaluation(
        -0.5 * (df * math.log(2.0 * math.pi) + log_det + value),
        0.5 * (quadratic.first - trace.first),
        0.5 * trace.second,
        0.5 * quadratic.second,
        rounding_errors(n, sigma2),
    )


def log_of_product(values: Array) -> Array:
    """sum_l log d_l for positive d (B, r), shape (B,), with one logarithm for eight factors.

    Logarithms cost several times what products do. Factors whose product leaves the range of
    floating-point numbers are taken one by one.
    """
    xp = namespace(values)
    product, rest = values, []
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        for _ in range(3):
            half = product.shape[1] // 2
            if product.shape[1] % 2:
                rest.append(product[:, -1])
            product = product[:, :half] * product[:, half : 2 * half]
        total = xp.sum(xp.log(product), axis=1) + sum(xp.log(part) for part in rest)
    lost = ~xp.isfinite(total)
    if bool(xp.any(lost)):
        total[lost] = xp.sum(xp.log(values[lost]), axis=1)
    return total


def rounding_errors(n: int | Array, sigma2: Array) -> Array:
    """Rounding errors of a log-likelihood: sums of n terms, sums of squares over sigma2.

    In internal units y'Ry is n - p, so what is left of it after cancellation carries an
    absolute error of about n eps, divided by sigma2.
    """
    xp = namespace(sigma2)
    return 1e-14 * n * (1.0 + 1.0 / xp.where(sigma2 == 0, 1e-300, xp.abs(sigma2)))


def small_residual(q: int) -> float:
    """The residual variance, in internal units, below which fast likelihoods lose digits."""
    return next(share for most, share in _SMALL_RESIDUAL if q <= most)


def evaluate_in_parts(likelihood: Likelihood, theta: Array, features: Array) -> Evaluation:
    """Evaluate as many features at once as fit into a modest part of memory."""
    size = likelihood.batch_size(_HANDED_ON)
    if features.shape[0] <= size:
        return likelihood.evaluate(theta, features)
    result = Evaluation.empty(features.shape[0], theta.shape[1], theta)
    for start in range(0, features.shape[0], size):
        here = slice(start, start + size)
        part = likelihood.evaluate(theta[here, :], features[here])
        for name in part.__match_args__:
            getattr(result, name)[here, ...] = getattr(part, name)
    return result


def standard_errors(variance: Array) -> Array:
    """Square roots; rounding below zero is zero, a truly negative variance is NaN."""
    xp = namespace(variance)
    positive = xp.where(variance > 0, variance, 0.0)
    return xp.sqrt(xp.where(variance < -1e-12, xp.nan, positive))


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


@dataclass(frozen=True)
class ContrastMoments:
    """Variances of hypotheses of r contrasts each, and how they depend on theta.

    All in internal units (`flashmm.likelihood.projection`), so y has unit residual variance.

    Parameters
    ----------
    variance
        L C L', shape (B, g, r, r).
    gradient
        Its derivatives by the k parameters, the residual last, shape (B, g, k, r, r).
    adjustment
        L C (Q_ij - P_i C P_j) C L' of Kenward & Roger (1997), shape (B, g, k, k, r, r); None
        when not asked for.
    """

    variance: FloatArray
    gradient: FloatArray
    adjustment: FloatArray | None


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
    def projection(self) -> Projection:
        """The projected statistics."""
        ...

    @property
    def engine(self) -> str:
        """Name of the algorithm, e.g. ``"spectral"``."""
        ...

    @property
    def perfect_fit(self) -> BoolArray:
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

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape.

        This and the methods below say nothing of features, which share their design; where they
        do not, `rows_of` gives the likelihoods of those that the rows of theta belong to.
        """
        ...

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k)."""
        ...

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        ...

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,).

        Smallest over largest eigenvalue of V under ML, of the error contrasts' covariance
        under REML.
        """
        ...


class OfProjection:
    """How many features and parameters a likelihood has, by its projection."""

    projection: Any

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.projection.m)

    @property
    def n_params(self) -> int:
        """Number of variance parameters, the residual included."""
        return len(self.projection.structure.parameters) + 1


def rows_of(likelihood: Any, features: IntArray) -> Any:
    """The likelihoods of features (B,), one for each row of theta; where they share it, itself."""
    of = getattr(likelihood, "of", None)
    return likelihood if of is None else of(features)
