"""The general likelihood: any covariance structure, dense algebra, one matrix per feature.

Exact for every design that `flashmm.designs.design` can express. Faster likelihoods for special
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

import array_api_compat

from flashmm.arrays.namespaces import (
    BoolArray,
    FloatArray,
    IntArray,
    cholesky,
    inverse_of_triangular,
    namespace,
    solved,
    take,
)
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import (
    SINGULAR,
    Evaluation,
    Forms,
    RandomEffects,
    StandardErrorKind,
    standard_errors,
)
from flashmm.likelihood.one_design import OneDesign

__all__ = ["GeneralLikelihood", "factored", "inverse_of", "root_and_diagonal", "weighted_sum"]


@dataclass(frozen=True)
class GeneralLikelihood(OneDesign):
    """REML or ML log-likelihood of theta, in the internal units of a `Projection`.

    REML is the likelihood of n - p error contrasts: u ~ N(0, M) and, independently, n - p - r
    contrasts of variance sigma2 (Patterson & Thompson 1971). ML takes the same quadratic
    forms, but log |V| and its derivatives from Z'Z in place of Z'RZ.
    """

    engine: str = "general"

    def batch_size(self, memory: int) -> int:
        """How many features fit into ``memory`` bytes.

        A matrix and its factors, k products, and both of their stacks; ML has three more.
        """
        p = self.projection
        rank = max(p.r, p.r_full if self.method == "ML" else 0, 1)
        matrices = 3 * self.n_params + (7 if self.method == "ML" else 4)
        return max(1, memory // (8 * (matrices * rank**2 + 4 * p.p * (rank + p.p))))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p, ml = self.projection, self.method == "ML"
        inside, factor = factored(_combine(p.A, theta))
        trace_factor = factor
        if ml:
            inside_full, trace_factor = factored(_combine(p.A_full, theta))
            inside = inside & inside_full
        if self.df_trace > 0:
            inside = inside & (theta[:, -1] > 0)
        if not bool(namespace(theta).all(inside)):
            theta, features = theta[inside], features[inside]
            factor, trace_factor = factor[inside], trace_factor[inside]
        W = inverse_of(factor)
        sigma2 = theta[:, -1]
        quadratic = _quadratic_forms(p.A, W, take(p.u, features))
        if ml:
            trace = _traces(p.A_full, trace_factor, inverse_of(trace_factor))
        else:
            trace = _traces(p.A, factor, W)
        return self.on_span(quadratic, trace, sigma2, features).spread(inside)

    @cached_property
    def products(self) -> tuple[FloatArray, FloatArray]:
        """H'G_iH, shape (k, p, p), and K'G_iH, shape (k, r, p)."""
        p = self.projection
        xp, H, K, structure = namespace(p.H), p.H, p.K, p.structure
        HGH = [xp.zeros_like(p.XX)[None, :, :][:0, :, :]]
        KGH = [xp.zeros_like(K.T @ H)[None, :, :][:0, :, :]]
        for parameter in structure.parameters:
            HG, KG = xp.zeros_like(p.XX), xp.zeros_like(K.T @ H)
            for rows, columns in structure.slices(parameter):
                HG, KG = HG + H[rows, :].T @ H[columns, :], KG + K[rows, :].T @ H[columns, :]
                if not parameter.is_variance:
                    HG, KG = HG + H[columns, :].T @ H[rows, :], KG + K[columns, :].T @ H[rows, :]
            HGH.append(HG[None, :, :])
            KGH.append(KG[None, :, :])
        return xp.concat(HGH), xp.concat(KGH)

    def _loadings(self, theta: FloatArray) -> FloatArray:
        """K'DH, shape (B, r, p)."""
        return weighted_sum(theta[:, :-1], self.products[1])

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        xp = namespace(theta)
        w = solved(_combine(p.A, theta), take(p.u, features)[:, :, None])
        correction = xp.matmul(xp.matrix_transpose(self._loadings(theta)), w)[:, :, 0]
        return take(p.beta_ols.T, features) - take(p.unit, features)[:, None] * correction

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p, (HGH, _) = self.projection, self.products
        xp = namespace(theta)
        F = self._loadings(theta)
        C = weighted_sum(theta[:, :-1], HGH)
        C += theta[:, -1, None, None] * p.XX_inverse
        C -= xp.matmul(xp.matrix_transpose(F), solved(_combine(p.A, theta), F))
        return 0.5 * (C + xp.matrix_transpose(C)) * take(p.scale, features)[:, None, None]

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        xp = namespace(theta)
        C = self.covariance(theta, features)
        return xp.sum(xp.matmul(C, L.T) * L.T, axis=1)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p = self.projection
        xp, structure = namespace(theta), p.structure
        unit = take(p.unit, features)[:, None] / p.column_scale
        w = solved(_combine(p.A, theta), take(p.u, features)[:, :, None])[:, :, 0]
        blup = structure.multiply(theta, w @ p.K.T) * unit
        if se is None:
            return RandomEffects(blup, None)
        A, K = (p.A, p.K) if se == "prediction" else (p.A_full, p.K_full)
        variance, DK = root_and_diagonal(structure, theta, K)
        W = solved(_combine(A, theta), _identities(theta, A.shape[1]))
        variance -= xp.sum(xp.matmul(DK, W) * DK, axis=2)
        return RandomEffects(blup, standard_errors(variance) * unit)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v = K M^-1 K'v for the rows of vectors (B, c, q), same shape."""
        p = self.projection
        xp = namespace(theta)
        u = xp.matrix_transpose(xp.matmul(vectors, p.K))
        w = solved(_combine(p.A, theta), u)
        return xp.matmul(xp.matrix_transpose(w), p.K.T)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        p = self.projection
        _, definite = cholesky(_combine(p.A_full, theta))
        return definite if p.n == p.r_full else definite & (theta[:, -1] > 0)

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        p = self.projection
        if self.method == "ML":
            return _relative_definiteness(p.A_full, theta, p.n > p.r_full)
        return _relative_definiteness(p.A, theta, p.n - p.p > p.r)


def _relative_definiteness(A: FloatArray, theta: FloatArray, with_residual: bool) -> FloatArray:
    """Smallest over largest eigenvalue of M, and of sigma2 where it stands alone."""
    xp = namespace(theta)
    values = xp.linalg.eigvalsh(_combine(A, theta))
    if with_residual:
        values = xp.concat([values, theta[:, -1:]], axis=1)
    return xp.min(values, axis=1) / xp.max(xp.abs(values), axis=1)


def root_and_diagonal(
    structure: CovarianceStructure, theta: FloatArray, K: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Diagonal of D, shape (B, q), and D K, shape (B, q, r)."""
    xp, device = namespace(theta), array_api_compat.device(theta)
    count = theta.shape[0]
    diagonal = xp.zeros((count, K.shape[0]), dtype=xp.float64, device=device)
    DK = xp.zeros((count, *K.shape), dtype=xp.float64, device=device)
    for i, parameter in enumerate(structure.parameters):
        weight = theta[:, i, None, None]
        for rows, columns in structure.slices(parameter):
            DK[:, rows, :] += weight * K[columns, :]
            if parameter.is_variance:
                diagonal[:, rows] += theta[:, i, None]
            else:
                DK[:, columns, :] += weight * K[rows, :]
    return diagonal, DK


def weighted_sum(weights: FloatArray, matrices: FloatArray) -> FloatArray:
    """sum_i w_i M_i for weights (B, k) and matrices (k, a, b), shape (B, a, b)."""
    xp = namespace(weights)
    k, a, b = matrices.shape
    return xp.reshape(weights @ xp.reshape(matrices, (k, a * b)), (weights.shape[0], a, b))


def _combine(A: FloatArray, theta: FloatArray) -> FloatArray:
    """M = sigma2 I + sum_i theta_i A_i for each feature, shape (B, r, r)."""
    xp, (k, r, _) = namespace(theta), A.shape
    M = theta[:, :k] @ xp.reshape(A, (k, r * r))
    M[:, :: r + 1] += theta[:, -1:]
    return xp.reshape(M, (theta.shape[0], r, r))


def _identities(theta: FloatArray, r: int) -> FloatArray:
    """One for each row of theta (B, k), shape (B, r, r)."""
    xp, device = namespace(theta), array_api_compat.device(theta)
    return xp.broadcast_to(xp.eye(r, dtype=xp.float64, device=device), (theta.shape[0], r, r))


def factored(M: FloatArray) -> tuple[BoolArray, FloatArray]:
    """Which matrices are positive definite and not too close to singular; Cholesky factors."""
    xp = namespace(M)
    L, ok = cholesky(M)
    if M.shape[-1]:
        pivots = xp.linalg.diagonal(L)
        ok = ok & (xp.min(pivots, axis=-1) ** 2 > SINGULAR * xp.max(pivots, axis=-1) ** 2)
    return ok, L


def inverse_of(L: FloatArray) -> FloatArray:
    """M^-1 from M's Cholesky factors."""
    xp, inverse = namespace(L), inverse_of_triangular(L)
    return xp.matmul(xp.matrix_transpose(inverse), inverse)


def _quadratic_forms(A: FloatArray, W: FloatArray, u: FloatArray) -> Forms:
    """U'Wu and its derivatives, of y'Py on the span of Z, the residual (V_i = I) last."""
    xp = namespace(W)
    w = xp.matmul(W, u[:, :, None])[:, :, 0]
    V = xp.stack([*(w @ A[i, :, :] for i in range(A.shape[0])), w], axis=1)
    first = xp.matmul(V, w[:, :, None])[:, :, 0]
    second = xp.matmul(xp.matmul(V, W), xp.matrix_transpose(V))
    return Forms(xp.vecdot(w, u), first, second)


def _traces(A: FloatArray, L: FloatArray, W: FloatArray) -> Forms:
    """Log |M|, tr(W A_i) and tr(W A_i W A_j) with W = M^-1, the residual (A = I) last."""
    xp, (k, r, _) = namespace(W), A.shape
    count = W.shape[0]
    log_det = 2.0 * xp.sum(xp.log(xp.linalg.diagonal(L)), axis=-1)
    products = xp.concat([xp.matmul(W[:, None, :, :], A), W[:, None, :, :]], axis=1)
    flat = xp.reshape(products, (count, k + 1, r * r))
    transposed = xp.reshape(xp.matrix_transpose(products), (count, k + 1, r * r))
    second = xp.matmul(flat, xp.matrix_transpose(transposed))
    return Forms(log_det, xp.linalg.trace(products), second)
