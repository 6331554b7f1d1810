"""One variance component whose Z'Z is diagonal, beside residual variances by group.

The formulas of `flashmm.likelihood.residual_groups` with every matrix over levels a vector: a level
l has d = sum_h d_h / sigma2_h, v = 1 / (1 + theta d), f = theta v, and S_h g has the rows
Y_h = U_h - f d_h U, with U_h = Z'I_h X and U = sum_h U_h / sigma2_h. Nothing of size q x q is
formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Evaluation, log_of_product, rounding_errors

__all__ = ["DiagonalAt", "DiagonalSums"]


@dataclass(frozen=True)
class DiagonalSums:
    """The groups' sums: d (H, q), U (H, q, p), X (H, p, p), n (H,)."""

    d: FloatArray
    U: FloatArray
    X: FloatArray
    n: FloatArray


@dataclass(frozen=True)
class _Traces:
    """tr T and tr TT, (B,); tr N S_h, tr Z'P I_h P Z, (B, H); tr N S_h N S_g, (B, H, H)."""

    first: FloatArray
    second: FloatArray
    NS: FloatArray
    mixed: FloatArray
    both: FloatArray


@dataclass(frozen=True)
class DiagonalAt:
    """What theta makes of them.

    Parameters
    ----------
    c
        1 / sigma2_h, shape (B, H).
    f, v
        Shape (B, q).
    d
        Shape (B, q).
    U
        Shape (B, q, p).
    R, K_inverse
        R with R R' = K^-1 for K = X'V^-1X, and that inverse, shape (B, p, p).
    log_det
        log |K|, shape (B,).
    lowest
        The least of 1 + theta d, and of the residual variances over their largest, shape (B,).
    """

    sums: DiagonalSums
    c: FloatArray
    f: FloatArray
    v: FloatArray
    d: FloatArray
    U: FloatArray
    R: FloatArray
    K_inverse: FloatArray
    log_det: FloatArray
    lowest: FloatArray

    @classmethod
    def of(cls, sums: DiagonalSums, theta: FloatArray) -> DiagonalAt:
        """At theta (B, 1 + H)."""
        H, q, p = sums.U.shape
        B, main, sigma2 = theta.shape[0], theta[:, :1], theta[:, 1:]
        c = 1.0 / sigma2
        d = c @ sums.d
        inner = 1.0 + main * d
        v = 1.0 / inner
        f = main * v
        U = (c @ sums.U.reshape(H, q * p)).reshape(B, q, p)
        K = (c @ sums.X.reshape(H, p * p)).reshape(B, p, p)
        K = K - np.matmul(np.swapaxes(U * f[:, :, None], 1, 2), U)
        share = sigma2.min(axis=1) / sigma2.max(axis=1)
        lowest = np.minimum(inner.min(axis=1), share)
        finite = np.isfinite(K).all(axis=(1, 2))
        values, vectors = np.linalg.eigh(np.where(finite[:, None, None], K, np.eye(p)))
        lowest = np.where(finite, lowest, -1.0)
        log_det = np.log(values).sum(axis=1)  # NaN where K is not positive definite
        R = vectors / np.sqrt(values)[:, None, :]
        inverse = np.matmul(R, np.swapaxes(R, 1, 2))
        return cls(sums, c, f, v, d, U, R, inverse, log_det, lowest)

    def solution(self, s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients b of Z, (B, q), and of X, (B, p), for A'I_h y (B, H, q + p)."""
        q = self.f.shape[1]
        total = np.matmul(self.c[:, None], s)[:, 0]
        z, x = total[:, :q], total[:, q:]
        x = x - np.matmul((self.f * z)[:, None], self.U)[:, 0]
        b_x = np.matmul(self.K_inverse, x[:, :, None])[:, :, 0]
        return self.f * (z - np.matmul(self.U, b_x[:, :, None])[:, :, 0]), b_x

    def _traces(self, w: FloatArray, *, reml: bool) -> _Traces:
        """Traces with P, or with V^-1 where not ``reml``; w (B, q, p)."""
        sums, f, v, U = self.sums, self.f, self.v, self.U
        (H, q, p), B, tau = sums.U.shape, f.shape[0], self.d * v
        first = tau.sum(axis=1)
        second = (tau**2).sum(axis=1)
        mixed = (v * v) @ sums.d.T
        NS = f @ sums.d.T
        pairs = (sums.d[:, None] * sums.d[None]).reshape(H * H, q)
        both = (f * f @ pairs.T).reshape(B, H, H)
        if reml and p:
            R = self.R
            wR, UR = np.matmul(w, R), np.matmul(U, R)
            ww = np.matmul(np.swapaxes(wR, 1, 2), wR)
            first = first - np.trace(ww, axis1=1, axis2=2)
            wtw = (tau[:, :, None] * wR**2).sum(axis=(1, 2))
            second += -2.0 * wtw + (ww**2).sum(axis=(1, 2))
            UhR = np.matmul(sums.U.reshape(H * q, p), R).reshape(B, H, q, p)
            Y = UhR - (f[:, None] * sums.d)[..., None] * UR[:, None]
            fUR = np.swapaxes(f[:, :, None] * UR, 1, 2)
            J = np.matmul(np.swapaxes(R, 1, 2)[:, None], np.matmul(sums.X, R[:, None]))
            J -= np.matmul(fUR[:, None], Y)
            J -= np.swapaxes(np.matmul(fUR[:, None], UhR), 2, 3)
            trace = np.trace(J, axis1=2, axis2=3)
            NS = NS + trace
            vwR = v[:, :, None] * wR
            mixed = (
                mixed - 2.0 * np.matmul(Y.reshape(B, H, q * p), vwR.reshape(B, q * p, 1))[..., 0]
            )
            mixed += (J * ww[:, None]).sum(axis=(2, 3))
            fY = (f[:, None, :, None] * Y).reshape(B, H, q * p)
            flat = J.reshape(B, H, p * p)
            both = both + 2.0 * np.matmul(fY, np.swapaxes(Y.reshape(B, H, q * p), 1, 2))
            both += np.matmul(flat, np.swapaxes(flat, 1, 2))
        return _Traces(first, second, NS, mixed, both)

    def evaluate(
        self, theta: FloatArray, s: FloatArray, yy: FloatArray, *, reml: bool
    ) -> Evaluation:
        """Log-likelihood, score and informations; s (B, H, q + p), yy (B, H)."""
        sums, c, f, v, d, U = self.sums, self.c, self.f, self.v, self.d, self.U
        (H, q, p), B, n = sums.U.shape, theta.shape[0], sums.n
        b_z, b_x = self.solution(s)
        b = np.concatenate([b_z, b_x], axis=1)
        U_b = (b_x @ sums.U.reshape(H * q, p).T).reshape(B, H, q)
        t_z = s[:, :, :q] - sums.d * b_z[:, None] - U_b
        b_U = (b_z @ sums.U.swapaxes(0, 1).reshape(q, H * p)).reshape(B, H, p)
        X_b = (b_x @ sums.X.swapaxes(0, 1).reshape(p, H * p)).reshape(B, H, p)
        t_x = s[:, :, q:] - b_U - X_b
        sb = np.matmul(s, b[:, :, None])[:, :, 0]
        tb = np.matmul(t_z, b_z[:, :, None])[:, :, 0] + np.matmul(t_x, b_x[:, :, None])[:, :, 0]
        ee = yy - sb - tb
        r = np.matmul(c[:, None], t_z)[:, 0]
        w = U * v[:, :, None]
        tau = d * v
        j = t_x - np.matmul(t_z * f[:, None], U)  # g't_h, (B, H, p)
        jK = np.matmul(j, self.K_inverse)
        wr = np.matmul(r[:, None], w)[:, 0]
        score, E, A = np.empty((B, 1 + H)), np.empty((B, 1 + H, 1 + H)), np.empty((B, 1 + H, 1 + H))
        wKr = np.matmul(wr[:, None], self.K_inverse)[:, 0]
        A[:, 0, 0] = (tau * r**2).sum(axis=1) - (wKr * wr).sum(axis=1)
        Mt = np.matmul(t_z, (v * r)[:, :, None])[:, :, 0] - np.matmul(jK, wr[:, :, None])[:, :, 0]
        A[:, 0, 1:] = A[:, 1:, 0] = c**2 * Mt
        c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
        inner = np.matmul(t_z * f[:, None], np.swapaxes(t_z, 1, 2))
        A[:, 1:, 1:] = -c2 * (inner + np.matmul(jK, np.swapaxes(j, 1, 2)))
        found = self._traces(w, reml=reml)
        score[:, 0] = (r**2).sum(axis=1) - found.first
        score[:, 1:] = c**2 * (ee + found.NS) - c * n
        E[:, 0, 0] = found.second
        E[:, 0, 1:] = E[:, 1:, 0] = c**2 * found.mixed
        E[:, 1:, 1:] = c2 * found.both
        each = np.arange(1, 1 + H)
        E[:, each, each] += c**2 * n - 2.0 * c**3 * found.NS
        A[:, each, each] += c**3 * ee
        log_det = -(n * np.log(c)).sum(axis=1) - log_of_product(v)
        df = n.sum()
        if reml:
            df = df - p
            log_det = log_det + self.log_det
        yPy = (c * (yy - sb)).sum(axis=1)
        loglik = -0.5 * (df * math.log(2.0 * math.pi) + log_det + yPy)
        rounding = rounding_errors(int(n.sum()), theta[:, 1:].min(axis=1))
        return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)
