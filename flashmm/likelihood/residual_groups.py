"""A residual variance for each group of samples: sums by group, weighted by their precisions.

V = Z D Z' + sum_h sigma2_h I_h, with I_h the samples of group h. With A = [Z, X] and
S_h = A'I_h A the sums of a group, A'R^-1A is C = sum_h S_h / sigma2_h, and

    V^-1 = R^-1 - R^-1 Z F Z'R^-1,          F = D (I + C_zz D)^-1
    P    = R^-1 - R^-1 A N A'R^-1,          N = F + g K^-1 g',  g = [-F C_zx; I],  K = X'V^-1X

so that with M = I - C N, e = y - A b, b = N A'R^-1 y and t_h = A'I_h e every trace and every form
follows from matrices of size q + p (F alone stands for N under ML's traces):

    A'P A           = M C,       A'P I_h P A = M S_h M' / sigma2_h^2
    tr(P I_h)       = n_h / sigma2_h - tr(N S_h) / sigma2_h^2
    tr(P I_h P I_g) = tr(N S_h N S_g) / (sigma2_h sigma2_g)^2
                      + [h = g] (n_h / sigma2_h^2 - 2 tr(N S_h) / sigma2_h^3)

The model is that of Pinheiro & Bates (2000, section 5.2). The parameters are those of D and then
the sigma2_h, in which V is linear, so that Satterthwaite's and Kenward and Roger's formulas hold as
they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import (
    SINGULAR,
    ContrastMoments,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
    standard_errors,
)
from flashmm.likelihood.moments import apply_G
from flashmm.likelihood.projection import Projection
from flashmm.likelihood.residual_groups_diagonal import DiagonalAt, DiagonalSums
from flashmm.stats.fields import GroupSums

__all__ = ["ResidualGroups", "lost_digits"]

# Bytes of the arrays of features that are evaluated at once.
_CACHE = 2**21
# Rounding of a score, in standard errors, from which it says nothing of a maximum.
_LOST = 1e-4
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class _At:
    """All matrices at theta; ``N`` is of P, ``N_trace`` of what the traces are of.

    Shapes: c, (B, H); C, N, N_trace, (B, a, a) with a = q + p; D, (B, q, q); g, (B, a, p);
    K, K_inverse, (B, p, p); log_det and lowest, the least eigenvalue of V in its units, (B,).
    """

    c: FloatArray
    C: FloatArray
    D: FloatArray
    N: FloatArray
    N_trace: FloatArray
    g: FloatArray
    K: FloatArray
    K_inverse: FloatArray
    log_det: FloatArray
    lowest: FloatArray


@dataclass(frozen=True)
class ResidualGroups:
    """REML or ML log-likelihood of theta with a residual variance per group, an `Estimator`.

    Parameters
    ----------
    projection
        Of all samples; its parameters are those of D and the H residual variances.
    method
        ``"REML"`` or ``"ML"``.
    n
        Samples of each group, shape (H,).
    S
        A'I_h A in internal units, X whitened, shape (H, a, a).
    s
        A'I_h y of the residuals of least squares, scaled, shape (m, H, a).
    yy
        Their sums of squares, shape (m, H).
    """

    projection: Projection
    method: str
    n: FloatArray
    S: FloatArray
    s: FloatArray
    yy: FloatArray
    engine: str = "groups"

    @classmethod
    def make(cls, projection: Projection, groups: GroupSums, method: str) -> ResidualGroups:
        """The likelihood of projected statistics and their sums by group."""
        p, q = projection.p, projection.structure.q
        names = {name: i for i, name in enumerate(projection.structure.column_names)}
        H, m, a = groups.k, projection.m, p + q
        S, s, yy = np.zeros((H, a, a)), np.empty((m, H, a)), np.empty((m, H))
        W, unit = projection.whitening, np.sqrt(projection.scale)
        for h, part in enumerate(groups.parts):
            here = np.array([names[name] for name in part.structure.column_names], dtype=np.intp)
            size = projection.column_scale[here]
            ZZ = part.ZZ.toarray() / size[:, None] / size
            S[h][np.ix_(here, here)] = ZZ
            S[h][here, q:] = part.ZX @ W / size[:, None]
            S[h][q:, here] = S[h][here, q:].T
            S[h][q:, q:] = W.T @ part.XX @ W
            XY, ZY, sums, at = part.centred()
            change = np.nan_to_num(projection.beta_ols - at)
            left_X, left_Z = XY - part.XX @ change, ZY - part.ZX @ change
            left_Z /= size[:, None]
            left_Z /= unit
            if np.array_equal(here, np.arange(q)):
                s[:, h, :q] = left_Z.T
            else:
                s[:, h, :q] = 0.0
                s[:, h, here] = left_Z.T
            s[:, h, q:] = (W.T @ left_X / unit).T
            yy[:, h] = (sums - ((XY + left_X) * change).sum(axis=0)) / projection.scale
        lost = ~projection.varies
        s[lost], yy[lost] = 0.0, 1.0
        n = np.array([part.n for part in groups.parts], dtype=np.float64)
        return cls(projection, method, n, S, s, yy)

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.projection.m)

    @property
    def H(self) -> int:
        """Number of residual variances."""
        return int(self.n.size)

    @property
    def n_params(self) -> int:
        """Number of variance parameters, residual variances included."""
        return len(self.projection.structure.parameters) + self.H

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features of which a group's samples are explained exactly by X and Z, shape (m,)."""
        p = self.projection
        if self.diagonal is not None:
            rss = self.diagonal.least_squares(self.s, self.yy)
            return np.asarray((rss.min(axis=1) <= p.rounding) & p.varies)
        rss = np.full(self.m, np.inf)
        for h in range(self.H):
            values, vectors = np.linalg.eigh(self.S[h])
            held = values > 1e-10 * values[-1]
            if held.sum() >= self.n[h]:
                continue
            along = self.s[:, h] @ (vectors[:, held] / np.sqrt(values[held]))
            rss = np.minimum(rss, self.yy[:, h] - (along**2).sum(axis=1))
        return np.asarray((rss <= p.rounding) & p.varies)

    def batch_size(self, memory: int) -> int:
        """How many features may be evaluated at once within ``memory`` bytes."""
        a = int(self.S.shape[1])
        if self.diagonal is not None:
            return max(1, memory // (8 * (6 * self.H * a + self.diagonal.numbers)))
        return max(1, min(memory, 2**28) // (8 * a * a * (3 * self.n_params + 12)))

    @cached_property
    def diagonal(self) -> DiagonalSums | None:
        """The sums where a single variance's Z'Z is diagonal in every group; else None."""
        q = self.projection.structure.q
        ZZ = self.S[:, :q, :q]
        d = np.diagonal(ZZ, axis1=1, axis2=2)
        alone = len(self.projection.structure.parameters) == 1
        if not alone or np.count_nonzero(ZZ) != np.count_nonzero(d):
            return None
        d, U, X = (np.array(part) for part in (d, self.S[:, :q, q:], self.S[:, q:, q:]))
        return DiagonalSums.make(d, U, X, self.n)

    @cached_property
    def first_start(self) -> FloatArray | None:
        """Where searches begin, shape (m, k + H); None for zero variances and equal residuals."""
        return None if self.diagonal is None else self.diagonal.moments(self.s, self.yy)

    def _at(self, theta: FloatArray, *, trace: str | None = None) -> _At:
        """The matrices at theta (B, k + H)."""
        structure, q = self.projection.structure, self.projection.structure.q
        k, B, a = len(structure.parameters), theta.shape[0], self.S.shape[1]
        sigma2 = theta[:, k:]
        c = 1.0 / sigma2
        C = (c @ self.S.reshape(self.H, -1)).reshape(B, a, a)
        D = np.zeros((B, q, q))
        for i in range(k):
            D += theta[:, i, None, None] * apply_G(structure, i, np.eye(q))
        # Far outside the domain rounding and overflow leave matrices that have no inverse.
        finite = np.asarray(np.isfinite(C).all(axis=(1, 2)) & np.isfinite(D).all(axis=(1, 2)))
        C, D = (np.where(finite[:, None, None], part, 0.0) for part in (C, D))
        inner, left = self._inner(C[:, :q, :q], D)
        finite &= np.isfinite(inner).all(axis=(1, 2))
        inner = np.where(finite[:, None, None], inner, np.eye(q))
        eigen = np.linalg.eigvalsh(inner) if q else np.ones((B, 1))
        share = sigma2.min(axis=1) / np.abs(sigma2).max(axis=1)
        lowest = np.where(finite, np.minimum(eigen.min(axis=1), share), -1.0)
        singular = np.abs(eigen).min(axis=1) <= 1e-300 + _EPS * np.abs(eigen).max(axis=1)
        inner = np.where(singular[:, None, None], np.eye(q), inner)
        lowest = np.where(singular, np.minimum(lowest, 0.0), lowest)
        F = left @ _solved(inner, np.swapaxes(left, 1, 2))
        others = ~self._is_root(D)
        F[others] = D[others] - F[others]
        g = np.concatenate(
            [-F @ C[:, :q, q:], np.broadcast_to(np.eye(a - q), (B, a - q, a - q))], axis=1
        )
        K = C[:, q:, q:] + C[:, q:, :q] @ g[:, :q]
        K = 0.5 * (K + np.swapaxes(K, 1, 2))
        K_inverse = _inverse(K)
        N_ml = np.zeros((B, a, a))
        N_ml[:, :q, :q] = F
        N = N_ml + g @ K_inverse @ np.swapaxes(g, 1, 2)
        log_det = (self.n * np.log(np.abs(sigma2))).sum(axis=1)
        log_det += np.log(np.abs(eigen)).sum(axis=1) if q else 0.0
        reml = (self.method if trace is None else trace) == "REML"
        if reml:
            log_det += np.linalg.slogdet(K)[1]
        return _At(c, C, D, N, N if reml else N_ml, g, K, K_inverse, log_det, lowest)

    def _is_root(self, D: FloatArray) -> BoolArray:
        """Of which D (B, q, q) roots are taken: diagonal ones without a negative variance."""
        structure = self.projection.structure
        diagonal = np.diagonal(D, axis1=1, axis2=2)
        alone = all(parameter.is_variance for parameter in structure.parameters)
        return np.asarray((diagonal >= 0).all(axis=1) & alone)

    def _inner(self, C: FloatArray, D: FloatArray) -> tuple[FloatArray, FloatArray]:
        """A matrix M with |M| = |V| |R|^-1 and B with F = B M^-1 B', or D - B M^-1 B'; (B, q, q).

        The first form, of a root of D, keeps its digits where D is large beside the residual
        variances; the second, of a root of C (B, q, q), needs no positive semi-definite D.
        """
        one, rooted = np.eye(C.shape[1]), self._is_root(D)
        inner, left = np.empty_like(C), np.empty_like(C)
        root = np.sqrt(np.where(rooted[:, None, None], D, 0.0))
        inner[rooted] = (one + root @ C @ root)[rooted]
        left[rooted] = root[rooted]
        others = np.flatnonzero(~rooted)
        if others.size:
            values, vectors = np.linalg.eigh(C[others])
            root = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
            inner[others] = one + np.swapaxes(root, 1, 2) @ D[others] @ root
            left[others] = D[others] @ root
        return inner, left

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and informations at theta (B, k + H) for chosen features."""
        k = len(self.projection.structure.parameters)
        result = Evaluation.empty(features.size, self.n_params)
        inside = np.isfinite(theta).all(axis=1) & (theta[:, k:] > 0).all(axis=1)
        rows = np.flatnonzero(inside)
        size = rows.size
        if self.diagonal is not None:
            # A few at a time: their arrays are gone through often, and fit a core's cache.
            size = _CACHE // (8 * (self.H * self.S.shape[1] + self.diagonal.numbers))
        for start in range(0, rows.size, max(size, 1)):
            here = rows[start : start + size]
            with np.errstate(all="ignore"):
                found, good = self._inside(theta[here], features[here])
            result.put(here[good], found.take(np.flatnonzero(good)))
        return result

    def _inside(self, theta: FloatArray, features: IntArray) -> tuple[Evaluation, BoolArray]:
        """The same of features with positive residual variances, and where V is definite, (B,)."""
        at: _At | DiagonalAt
        if self.diagonal is None:
            at = self._at(theta)
            found = self._evaluated(theta, features, at)
        else:
            at = DiagonalAt.of(self.diagonal, theta)
            reml = self.method == "REML"
            found = at.evaluate(theta, self.s[features], self.yy[features], reml=reml)
        return found, np.asarray((at.lowest > SINGULAR) & np.isfinite(found.loglik))

    def _evaluated(self, theta: FloatArray, features: IntArray, at: _At) -> Evaluation:
        structure, q = self.projection.structure, self.projection.structure.q
        k, H, B = len(structure.parameters), self.H, theta.shape[0]
        c, S = at.c, self.S
        s, yy = self.s[features], self.yy[features]
        b = np.matmul(at.N, (c[:, :, None] * s).sum(axis=1)[:, :, None])[:, :, 0]
        Sb = np.einsum("hij,bj->bhi", S, b)
        t = s - Sb
        ee = yy - 2.0 * np.matmul(s, b[:, :, None])[:, :, 0] + np.matmul(Sb, b[:, :, None])[:, :, 0]
        r = (c[:, :, None] * t).sum(axis=1)[:, :q]
        yPy = (c * (yy - np.matmul(s, b[:, :, None])[:, :, 0])).sum(axis=1)
        one = np.eye(S.shape[1])
        M, M_trace = one - at.C @ at.N, one - at.C @ at.N_trace
        T = (M @ at.C)[:, :q, :q]
        T_trace = (M_trace @ at.C)[:, :q, :q]
        score = np.empty((B, k + H))
        E, A = np.empty((B, k + H, k + H)), np.empty((B, k + H, k + H))
        NS = np.matmul(at.N_trace[:, None], S)  # (B, H, a, a)
        tr_NS = np.trace(NS, axis1=2, axis2=3)
        score[:, k:] = c**2 * ee - (c * self.n - c**2 * tr_NS)
        turned = [apply_G(structure, i, T_trace) for i in range(k)]  # T G_i
        Gr = [apply_G(structure, i, r) for i in range(k)]
        MS = np.matmul(M_trace[:, None, :q], S)
        Q = np.matmul(MS, np.swapaxes(M_trace, 1, 2)[:, None, :, :q])
        Mt = np.matmul(M[:, None, :q], t[..., None])[..., 0] * (c**2)[:, :, None]
        for i in range(k):
            score[:, i] = (r * Gr[i]).sum(axis=1) - np.trace(turned[i], axis1=1, axis2=2)
            TGr = np.matmul(T, Gr[i][:, :, None])[:, :, 0]
            for j in range(i + 1):
                E[:, i, j] = E[:, j, i] = (turned[i] * np.swapaxes(turned[j], 1, 2)).sum(
                    axis=(1, 2)
                )
                A[:, i, j] = A[:, j, i] = (TGr * Gr[j]).sum(axis=1)
            traces = np.trace(apply_G(structure, i, Q), axis1=2, axis2=3) * c**2
            E[:, i, k:] = E[:, k:, i] = traces
            A[:, i, k:] = A[:, k:, i] = (Mt * Gr[i][:, None]).sum(axis=2)
        flat = NS.reshape(B, H, -1)
        across = np.swapaxes(NS, 2, 3).reshape(B, H, -1)
        c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
        E[:, k:, k:] = c2 * np.matmul(flat, np.swapaxes(across, 1, 2))
        Nt = np.matmul(t, at.N)
        A[:, k:, k:] = -c2 * np.matmul(Nt, np.swapaxes(t, 1, 2))
        each = np.arange(k, k + H)
        E[:, each, each] += c**2 * self.n - 2.0 * c**3 * tr_NS
        A[:, each, each] += c**3 * ee
        df = self.projection.n - (self.projection.p if self.method == "REML" else 0)
        loglik = -0.5 * (df * math.log(2.0 * math.pi) + at.log_det + yPy)
        smallest = theta[:, k:].min(axis=1)
        rounding = rounding_errors(self.projection.n, smallest)
        return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)

    # ---- what theta implies ------------------------------------------------------------------

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p, q = self.projection, self.projection.structure.q
        if self.diagonal is not None:
            b = DiagonalAt.of(self.diagonal, theta).fixed(self.s[features])
        else:
            at = self._at(theta)
            total = (at.c[:, :, None] * self.s[features]).sum(axis=1)
            b = np.matmul(at.N, total[:, :, None])[:, q:, 0]
        return np.asarray(
            p.beta_ols.T[features] + np.sqrt(p.scale[features])[:, None] * (b @ p.whitening.T)
        )

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p)."""
        p = self.projection
        at = self._at(theta) if self.diagonal is None else DiagonalAt.of(self.diagonal, theta)
        C = p.whitening @ at.K_inverse @ p.whitening.T
        return np.asarray(0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None])

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        C = self.covariance(theta, features)
        return np.asarray((np.matmul(L, C) * L).sum(axis=2))

    def fixed_effects(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, FloatArray]:
        """Coefficients and their variances at theta, each (B, p): of what the two share, once."""
        p, q = self.projection, self.projection.structure.q
        if self.diagonal is None:
            return self.beta(theta, features), np.diagonal(
                self.covariance(theta, features), axis1=1, axis2=2
            )
        beta, variance = np.empty((features.size, p.p)), np.empty((features.size, p.p))
        size = max(1, _CACHE // (8 * (self.H * (p.p + q) + self.diagonal.numbers)))
        for start in range(0, features.size, size):
            here = slice(start, start + size)
            at = DiagonalAt.of(self.diagonal, theta[here])
            scale = p.scale[features[here], None]
            b = np.sqrt(scale) * (at.fixed(self.s[features[here]]) @ p.whitening.T)
            beta[here] = p.beta_ols.T[features[here]] + b
            half = np.matmul(p.whitening, at.K_inverse)
            variance[here] = scale * (half * p.whitening).sum(axis=2)
        return beta, variance

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, q = self.projection, self.projection.structure.q
        at = self._at(theta)
        unit = np.sqrt(p.scale[features])[:, None] / p.column_scale
        total = (at.c[:, :, None] * self.s[features]).sum(axis=1)
        r = total - np.matmul(at.C @ at.N, total[:, :, None])[:, :, 0]
        blup = np.matmul(at.D, r[:, :q, None])[:, :, 0] * unit
        if se is None:
            return RandomEffects(blup, None)
        N = self._at(theta, trace="ML" if se == "conditional" else "REML").N_trace
        T = (at.C - at.C @ N @ at.C)[:, :q, :q]
        variance = np.diagonal(at.D - at.D @ T @ at.D, axis1=1, axis2=2)
        return RandomEffects(blup, standard_errors(variance) * unit)

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v with T = Z'PZ at theta for the rows of vectors (B, c, q), same shape."""
        q, at = self.projection.structure.q, self._at(theta, trace="REML")
        T = (at.C - at.C @ at.N @ at.C)[:, :q, :q]
        return np.asarray(np.matmul(vectors, T))

    def contrast_moments(
        self, theta: FloatArray, L: FloatArray, *, adjustment: bool
    ) -> ContrastMoments:
        """How the variances of hypotheses L (g, r, p) depend on theta (B, k + H)."""
        structure, q = self.projection.structure, self.projection.structure.q
        k, H, B = len(structure.parameters), self.H, theta.shape[0]
        (groups, r, _), at = L.shape, self._at(theta, trace="REML")
        W = self.projection.whitening
        CL = np.matmul(at.K_inverse[:, None], np.swapaxes(L @ W, 1, 2))  # (B, g, p, r)
        variance = np.matmul((L @ W)[None], CL)
        gX = np.matmul(at.g[:, None], CL)  # A-coordinates of V^-1 X C L', (B, g, a, r)
        w = np.matmul(at.C[:, None, :q], gX)
        pieces = np.swapaxes(w, 2, 3)  # rows (B, g, r, q)
        Gw = [apply_G(structure, i, pieces) for i in range(k)]
        Sg = np.einsum("hij,bgjr->bghir", self.S, gX)
        of = np.swapaxes(gX, 2, 3)[:, :, None]
        gSg = np.matmul(of, Sg)  # (B, g, H, r, r)
        c = at.c[:, None, :, None, None]
        gradient = np.empty((B, groups, k + H, r, r))
        for i in range(k):
            gradient[:, :, i] = np.matmul(Gw[i], w)
        gradient[:, :, k:] = c**2 * gSg
        if not adjustment:
            return ContrastMoments(variance, gradient, None)
        result = np.empty((B, groups, k + H, k + H, r, r))
        M = np.eye(self.S.shape[1]) - at.C @ at.N
        T = (M @ at.C)[:, :q, :q]
        MSg = c**2 * np.matmul(M[:, None, None, :q], Sg)
        for i in range(k):
            left = np.matmul(Gw[i], T[:, None])
            for j in range(k):
                result[:, :, i, j] = np.matmul(left, np.swapaxes(Gw[j], 2, 3))
            mixed = np.matmul(Gw[i][:, :, None], MSg)
            result[:, :, i, k:] = mixed
            result[:, :, k:, i] = np.swapaxes(mixed, -1, -2)
        for h in range(H):
            NSg = np.matmul(at.N[:, None, None], Sg)
            cross = np.matmul(np.swapaxes(Sg[:, :, h], 2, 3)[:, :, None], NSg)
            both = (at.c[:, h, None] ** 2 * at.c**2)[:, None, :, None, None]
            result[:, :, k + h, k:] = -both * cross
            result[:, :, k + h, k + h] += at.c[:, None, h, None, None] ** 3 * gSg[:, :, h]
        return ContrastMoments(variance, gradient, result)

    def lost_in_rounding(self, theta: FloatArray, expected: FloatArray) -> BoolArray:
        """Whose scores of residual variances may be rounding alone, shape (B,).

        What is left of a group's sum of squares carries an error of about n eps in internal units,
        and the score by its variance that times c^2. It drowns where samples tell little of so
        small a variance, as in a group of levels that are seen once in it. ``expected``: the
        information at theta (B, k + H), shape (B, k + H, k + H).
        """
        k = len(self.projection.structure.parameters)
        return lost_digits(theta[:, k:], expected[:, k:, k:], self.projection.n)

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        return self.distance_to_edge(theta) > 0

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """How near the edge of the likelihood's domain theta lies, shape (B,)."""
        k = len(self.projection.structure.parameters)
        result = np.full(theta.shape[0], -1.0)
        rows = np.flatnonzero(np.isfinite(theta).all(axis=1) & (theta[:, k:] > 0).all(axis=1))
        if rows.size:
            with np.errstate(all="ignore"):
                if self.diagonal is None:
                    result[rows] = self._at(theta[rows]).lowest
                else:
                    result[rows] = DiagonalAt.of(self.diagonal, theta[rows]).lowest
        return result


def lost_digits(
    sigma2: FloatArray,
    expected: FloatArray,
    n: int | FloatArray,
    there: BoolArray | None = None,
) -> BoolArray:
    """Which scores by residual variances (B, H) drown in the rounding of n samples, shape (B,).

    ``expected``: information on them, shape (B, H, H); ``there``: which have samples, (B, H).
    """
    with np.errstate(all="ignore"):
        unit = np.sqrt(np.diagonal(expected, axis1=1, axis2=2))
        error = 1e-15 * np.reshape(n, (-1, 1)) / sigma2**2
        lost = error > _LOST * unit
        return np.asarray((lost if there is None else lost & there).any(axis=1))


def _solved(matrices: FloatArray, right: FloatArray) -> FloatArray:
    """Symmetric matrices' inverses times ``right``, both (B, q, q); not finite without one."""
    try:
        return np.asarray(np.linalg.solve(matrices, right))
    except np.linalg.LinAlgError:  # numpy says this of all where it holds for one
        return np.asarray(np.matmul(_inverse(matrices), right))


def _inverse(matrices: FloatArray) -> FloatArray:
    """Inverses of symmetric matrices (B, p, p), NaN for one that has none."""
    good = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    safe = np.where(good[:, None, None], matrices, np.eye(matrices.shape[1]))
    try:
        result = np.linalg.inv(safe)
    except np.linalg.LinAlgError:  # numpy says this of all where it holds for one
        values, vectors = np.linalg.eigh(safe)
        values = np.where(values == 0.0, np.nan, values)
        result = np.matmul(vectors / values[:, None, :], np.swapaxes(vectors, 1, 2))
    return np.asarray(np.where(good[:, None, None], result, np.nan))
