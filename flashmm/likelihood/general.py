"""The general likelihood: any covariance structure, dense algebra, one matrix per feature.

Exact for every design that `flashmm.design` can express. Faster likelihoods for special
structures are checked against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.likelihood.base import Evaluation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["GeneralLikelihood", "batched_cholesky", "combine"]


@dataclass(frozen=True)
class GeneralLikelihood:
    """REML or ML log-likelihood of theta, in the internal units of a `Projection`.

    REML is the likelihood of n - p error contrasts: u ~ N(0, M) and, independently, n - p - r
    contrasts of variance sigma2 (Patterson & Thompson 1971). ML takes the same quadratic
    forms, but log |V| and its derivatives from Z'Z in place of Z'RZ.
    """

    projection: Projection
    method: Literal["REML", "ML"]

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.projection.rss.size)

    @property
    def n_params(self) -> int:
        """Number of variance parameters, the residual included."""
        return int(self.projection.A.shape[0]) + 1

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes: k + 4 matrices of r x r each."""
        p = self.projection
        per_feature = (
            8 * (self.n_params + 4) * max(p.r, p.r_full if self.method == "ML" else 1) ** 2
        )
        return max(1, memory // max(per_feature, 1))

    def evaluate(self, theta: FloatArray, features: NDArray[np.intp]) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k + 1) for chosen features."""
        p = self.projection
        count, k = theta.shape[0], self.n_params
        M = combine(p.A, theta)
        feasible, log_det, W = inverse(M)
        sigma2 = theta[:, -1]
        outside = p.n - p.p - p.r
        if self.method == "ML":
            M_full = combine(p.A_full, theta)
            inside, log_det, W_trace = inverse(M_full)
            feasible = feasible & inside
            A_trace, df_trace, df = p.A_full, p.n - p.r_full, p.n
        else:
            W_trace, A_trace, df_trace, df = W, p.A, outside, p.n - p.p
        if df_trace > 0:
            feasible = feasible & (sigma2 > 0)

        loglik = np.full(count, -np.inf)
        score = np.full((count, k), np.nan)
        expected = np.full((count, k, k), np.nan)
        average = np.full((count, k, k), np.nan)
        ok = np.flatnonzero(feasible)
        if ok.size:
            quadratic = _quadratic_forms(
                p.A, W[ok], p.u[features[ok]], p.rss[features[ok]], sigma2[ok], outside
            )
            trace = _traces(A_trace, W_trace[ok], sigma2[ok], df_trace)
            total_log_det = log_det[ok]
            if df_trace > 0:
                total_log_det = total_log_det + df_trace * np.log(sigma2[ok])
            loglik[ok] = -0.5 * (df * np.log(2.0 * np.pi) + total_log_det + quadratic.value)
            score[ok] = 0.5 * (quadratic.first - trace.first)
            expected[ok] = 0.5 * trace.second
            average[ok] = 0.5 * quadratic.second
        return Evaluation(loglik, score, expected, average)

    def distance_to_singular(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V on the span of Z, per theta, shape (B,)."""
        values = np.linalg.eigvalsh(combine(self.projection.A_full, theta))
        return np.asarray(values[:, 0] / np.abs(values[:, -1]))


@dataclass(frozen=True)
class _Forms:
    """A function of theta with derivatives: value (B,), first (B, k), second (B, k, k)."""

    value: FloatArray
    first: FloatArray
    second: FloatArray


def combine(A: FloatArray, theta: FloatArray) -> FloatArray:
    """M = sigma2 I + sum_i theta_i A_i for each feature, shape (B, r, r)."""
    k, r = A.shape[0], A.shape[1]
    M = (theta[:, :k] @ A.reshape(k, r * r)).reshape(-1, r, r)
    diagonal = np.arange(r)
    M[:, diagonal, diagonal] += theta[:, -1:]
    return M


def inverse(M: FloatArray) -> tuple[BoolArray, FloatArray, FloatArray]:
    """Which matrices are positive definite, log |M| and M^-1 (NaN where not)."""
    L, ok = batched_cholesky(M)
    if M.shape[-1] == 0:
        return ok, np.zeros(M.shape[0]), M
    diagonal = np.diagonal(L, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_det = 2.0 * np.log(diagonal).sum(axis=-1)
    W = np.full_like(M, np.nan)
    W[ok] = np.linalg.inv(M[ok])
    return ok, log_det, 0.5 * (W + np.swapaxes(W, -1, -2))


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
    count, r = u.shape
    k = A.shape[0]
    w = np.matmul(W, u[:, :, None])[:, :, 0]
    Aw = np.matmul(w[:, None, None, :], A)[:, :, 0, :] if k else np.zeros((count, 0, r))
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
