"""The general likelihood: any covariance structure, dense algebra, one matrix per feature.

Exact for every design that `flashmm.design` can express. Faster likelihoods for special
structures are checked against it.

What theta implies follows from the projected statistics too: with r = Z'Py and T = Z'PZ,

    beta = (X'X)^-1 X'(y - Z D r)
    C = cov(beta) = sigma2 (X'X)^-1 + H'(D - D T D) H,   H = Z'X (X'X)^-1
    b = D r,   var(b - b_hat) = D - D T D,   var(b | y, beta) = D - D Z'V^-1Z D

(Henderson 1975; the first two lines are X'PX = 0 written out). No inverse of D is taken: it may
be singular or indefinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["GeneralLikelihood", "batched_cholesky"]


@dataclass(frozen=True)
class GeneralLikelihood:
    """REML or ML log-likelihood of theta, in the internal units of a `Projection`.

    REML is the likelihood of n - p error contrasts: u ~ N(0, M) and, independently, n - p - r
    contrasts of variance sigma2 (Patterson & Thompson 1971). ML takes the same quadratic
    forms, but log |V| and its derivatives from Z'Z in place of Z'RZ.
    """

    projection: Projection
    method: Literal["REML", "ML"]
    engine: str = "general"

    @property
    def m(self) -> int:
        """Number of features."""
        return self.projection.m

    @property
    def n_params(self) -> int:
        """Number of variance parameters, the residual included."""
        return len(self.projection.structure.parameters) + 1

    @property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        return self.projection.perfect_fit

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: k + 5 matrices of r x r each."""
        p = self.projection
        rank = max(p.r, p.r_full, 1)
        return max(1, memory // (8 * ((self.n_params + 5) * rank**2 + 4 * p.p * (rank + p.p))))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p = self.projection
        M = _combine(p.A, theta)
        feasible, log_det, W = _inverse(M)
        sigma2 = theta[:, -1]
        outside = p.n - p.p - p.r
        if self.method == "ML":
            inside, log_det, W_trace = _inverse(_combine(p.A_full, theta))
            feasible = feasible & inside
            A_trace, df_trace, df = p.A_full, p.n - p.r_full, p.n
        else:
            W_trace, A_trace, df_trace, df = W, p.A, outside, p.n - p.p
        if df_trace > 0:
            feasible = feasible & (sigma2 > 0)

        result = Evaluation.empty(theta.shape[0], self.n_params)
        ok = np.flatnonzero(feasible)
        if ok.size == 0:
            return result
        chosen = features[ok]
        quadratic = _quadratic_forms(p.A, W[ok], p.u[chosen], p.rss[chosen], sigma2[ok], outside)
        trace = _traces(A_trace, W_trace[ok], sigma2[ok], df_trace)
        total = log_det[ok] + df * np.log(2.0 * np.pi) + quadratic.value
        if df_trace > 0:
            total = total + df_trace * np.log(sigma2[ok])
        result.put(
            ok,
            Evaluation(
                -0.5 * total,
                0.5 * (quadratic.first - trace.first),
                0.5 * trace.second,
                0.5 * quadratic.second,
                rounding_errors(p.n, sigma2[ok]),
            ),
        )
        return result

    @cached_property
    def products(self) -> tuple[FloatArray, FloatArray]:
        """H'G_iH, shape (k, p, p), and K'G_iH, shape (k, r, p)."""
        p = self.projection
        H, K, structure = p.H, p.K, p.structure
        k = len(structure.parameters)
        HGH, KGH = np.empty((k, p.p, p.p)), np.empty((k, p.r, p.p))
        for i, parameter in enumerate(structure.parameters):
            rows, columns = structure.columns(parameter)
            HGH[i], KGH[i] = H[rows].T @ H[columns], K[rows].T @ H[columns]
            if not parameter.is_variance:
                HGH[i] += HGH[i].T.copy()
                KGH[i] += K[columns].T @ H[rows]
        return HGH, KGH

    def _loadings(self, theta: FloatArray) -> FloatArray:
        """K'DH, shape (B, r, p)."""
        p, (_, KGH) = self.projection, self.products
        return (theta[:, :-1] @ KGH.reshape(KGH.shape[0], -1)).reshape(-1, p.r, p.p)

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        w = np.linalg.solve(_combine(p.A, theta), p.u[features][:, :, None])
        correction = np.matmul(np.swapaxes(self._loadings(theta), 1, 2), w)[:, :, 0]
        beta: FloatArray = p.beta_ols[:, features].T - p.unit[features, None] * correction
        return beta

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, (HGH, _) = self.projection, self.products
        F = self._loadings(theta)
        C = (theta[:, :-1] @ HGH.reshape(HGH.shape[0], -1)).reshape(-1, p.p, p.p)
        C += theta[:, -1, None, None] * p.XX_inverse
        C -= np.matmul(np.swapaxes(F, 1, 2), np.linalg.solve(_combine(p.A, theta), F))
        C = 0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None]
        return np.asarray(C)

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(C, L.T) * L.T).sum(axis=1))

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        structure = p.structure
        unit = p.unit[features, None] / p.column_scale
        w = np.linalg.solve(_combine(p.A, theta), p.u[features][:, :, None])[:, :, 0]
        blup = structure.multiply(theta, w @ p.K.T) * unit
        if se is None:
            return RandomEffects(blup, None)
        A, K = (p.A, p.K) if se == "prediction" else (p.A_full, p.K_full)
        DK = np.zeros((theta.shape[0], *K.shape))
        variance = np.zeros((theta.shape[0], K.shape[0]))
        for i, parameter in enumerate(structure.parameters):
            rows, columns = structure.columns(parameter)
            weight = theta[:, i, None, None]
            DK[:, rows] += weight * K[columns]
            if parameter.is_variance:
                variance[:, rows] += theta[:, i, None]
            else:
                DK[:, columns] += weight * K[rows]
        W = np.linalg.inv(_combine(A, theta))
        variance -= (np.matmul(DK, W) * DK).sum(axis=2)
        return RandomEffects(blup, standard_errors(variance) * unit)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v = K M^-1 K'v for the rows of vectors (B, c, q), same shape."""
        p = self.projection
        w = np.linalg.solve(_combine(p.A, theta), np.swapaxes(np.matmul(vectors, p.K), 1, 2))
        return np.asarray(np.matmul(np.swapaxes(w, 1, 2), p.K.T))

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        p = self.projection
        _, definite = batched_cholesky(_combine(p.A_full, theta))
        return np.asarray(definite & ((theta[:, -1] > 0) | (p.n == p.r_full)))

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        p = self.projection
        if self.method == "ML":
            return _relative_definiteness(p.A_full, theta, p.n > p.r_full)
        return _relative_definiteness(p.A, theta, p.n - p.p > p.r)


def _relative_definiteness(A: FloatArray, theta: FloatArray, with_residual: bool) -> FloatArray:
    """Smallest over largest eigenvalue of M, and of sigma2 where it stands alone."""
    values = np.linalg.eigvalsh(_combine(A, theta))
    if with_residual:
        values = np.concatenate([values, theta[:, -1:]], axis=1)
    return np.asarray(values.min(axis=1) / np.abs(values).max(axis=1))


def standard_errors(variance: FloatArray) -> FloatArray:
    """Square roots; rounding below zero is zero, a truly negative variance is NaN."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0)))


@dataclass(frozen=True)
class _Forms:
    """A function of theta with derivatives: value (B,), first (B, k), second (B, k, k)."""

    value: FloatArray
    first: FloatArray
    second: FloatArray


def _combine(A: FloatArray, theta: FloatArray) -> FloatArray:
    """M = sigma2 I + sum_i theta_i A_i for each feature, shape (B, r, r)."""
    k, r = A.shape[0], A.shape[1]
    M: FloatArray = (theta[:, :k] @ A.reshape(k, r * r)).reshape(-1, r, r)
    diagonal = np.arange(r)
    M[:, diagonal, diagonal] += theta[:, -1:]
    return M


def _inverse(M: FloatArray) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Which matrices are positive definite, log |M| and M^-1 (NaN where not)."""
    L, ok = batched_cholesky(M)
    diagonal = np.diagonal(L, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore"):
        log_det = 2.0 * np.log(diagonal).sum(axis=-1)
        if M.shape[-1]:
            ok &= diagonal.min(axis=-1) ** 2 > SINGULAR * diagonal.max(axis=-1) ** 2
    W = np.full_like(M, np.nan)
    inverse_L = np.linalg.inv(L[ok])
    W[ok] = np.matmul(np.swapaxes(inverse_L, -1, -2), inverse_L)
    return ok, np.asarray(log_det), W


def batched_cholesky(M: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Cholesky factors of a stack (B, r, r), and which matrices have one.

    numpy raises for a whole stack when one matrix fails; halving the stack isolates it.
    """
    finite = np.isfinite(M).all(axis=(-2, -1))
    L = np.full_like(M, np.nan)
    ok = np.zeros(M.shape[0], dtype=bool)
    pending = [np.flatnonzero(finite)]
    while pending:
        index = pending.pop()
        if index.size == 0:
            continue
        try:
            L[index] = np.linalg.cholesky(M[index])
            ok[index] = True
        except np.linalg.LinAlgError:
            if index.size > 1:
                half = index.size // 2
                pending += [index[:half], index[half:]]
    return L, ok


def _quadratic_forms(
    A: FloatArray, W: FloatArray, u: FloatArray, rss: FloatArray, sigma2: FloatArray, outside: int
) -> _Forms:
    """y'Py, y'P V_i P y and y'P V_i P V_j P y, the residual (V_i = I) last."""
    w = np.matmul(W, u[:, :, None])[:, :, 0]
    Aw = np.matmul(w[:, None, None, :], A)[:, :, 0, :]
    V = np.concatenate([Aw, w[:, None, :]], axis=1)
    first = np.matmul(V, w[:, :, None])[:, :, 0]
    second = np.matmul(np.matmul(V, W), np.swapaxes(V, 1, 2))
    value = (w * u).sum(axis=1)
    if outside > 0:
        value = value + rss / sigma2
        first[:, -1] += rss / sigma2**2
        second[:, -1, -1] += rss / sigma2**3
    return _Forms(value, first, second)


def _traces(A: FloatArray, W: FloatArray, sigma2: FloatArray, outside: int) -> _Forms:
    """tr(P V_i) and tr(P V_i P V_j), the residual (V_i = I) last; V^-1 for P under ML."""
    count, r = W.shape[0], W.shape[1]
    k = A.shape[0]
    products = np.empty((count, k + 1, r, r))
    for i in range(k):
        np.matmul(W, A[i], out=products[:, i])
    products[:, k] = W
    first = np.trace(products, axis1=-2, axis2=-1)
    flat = products.reshape(count, k + 1, r * r)
    transposed = np.swapaxes(products, -1, -2).reshape(count, k + 1, r * r)
    second = np.matmul(flat, np.swapaxes(transposed, 1, 2))
    if outside > 0:
        first[:, -1] += outside / sigma2
        second[:, -1, -1] += outside / sigma2**2
    return _Forms(np.zeros(count), first, second)
