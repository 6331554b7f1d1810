"""Several components: the largest made diagonal, the others a narrow border.

In the eigenbasis of the component with most columns, M = D + C T C' with D = sigma2 +
theta_1 Lambda diagonal (r entries), C (r x w, orthonormal columns) shared by all features and
T(theta) the w x w covariance of the other components. Everything then follows from w x w matrices
and from sums sum_l g_l(theta) c_l c_l' over the r eigendirections. The outer products c_l c_l'
are the same for all features, only the weights g differ, so the sums of all features are one
matrix product (B x r) @ (r x w(w+1)/2). X is gone: the projection took it out beforehand.

(Woodbury's identity in the coordinates of FaST-LMM, Lippert et al. 2011.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from flashmm.arrays import cholesky
from flashmm.likelihood.base import (
    SINGULAR,
    SMALL_RESIDUAL,
    Evaluation,
    RandomEffects,
    StandardErrorKind,
    rounding_errors,
    standard_errors,
)
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.projection import DENSE_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.projection import Projection

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["BorderedLikelihood", "border_applies"]

_RANK_TOLERANCE = 1e-10
# Variances of estimates are what is left of terms in theta^2 / sigma2; at a residual variance
# below this share of y's on X too few digits are left, and the general likelihood takes over.
_CANCELLING = 1e-3


@dataclass(frozen=True)
class Border:
    """Matrices A_i of one basis, rotated so that the main one is diagonal.

    Parameters
    ----------
    rotation
        Eigenvectors of the main A, shape (r, r).
    eigenvalues
        Its eigenvalues, shape (r,).
    main
        Position of the main component among the parameters.
    C
        Orthonormal basis of the other components' range, rotated, shape (r, w).
    T
        C'A_iC of the k - 1 other parameters, shape (k - 1, w, w).
    outer
        Upper triangles of c_l c_l', shape (r, w (w + 1) / 2).
    """

    rotation: FloatArray
    eigenvalues: FloatArray
    main: int
    C: FloatArray
    T: FloatArray
    outer: FloatArray

    @property
    def width(self) -> int:
        """Number of border columns w."""
        return int(self.C.shape[1])

    @property
    def others(self) -> IntArray:
        """Positions in theta of the border's parameters."""
        return np.delete(np.arange(self.T.shape[0] + 1), self.main)

    def sums(self, weights: FloatArray) -> FloatArray:
        """sum_l g_l c_l c_l' for weights g (B, r), shape (B, w, w)."""
        w = self.width
        full = np.empty((weights.shape[0], w, w))
        rows, columns = np.triu_indices(w)
        full[:, rows, columns] = weights @ self.outer
        full[:, columns, rows] = full[:, rows, columns]
        return full

    def covariance(self, theta: FloatArray) -> FloatArray:
        """T(theta) of the border, shape (B, w, w)."""
        flat = self.T.reshape(self.T.shape[0], -1)
        return np.asarray((theta[:, self.others] @ flat).reshape(-1, self.width, self.width))


def _make_border(A: FloatArray, main: int, is_variance: BoolArray) -> Border:
    values, rotation = np.linalg.eigh(A[main])
    values = np.where(np.abs(values) < 1e-12 * np.abs(values).max(), 0.0, values)
    others = np.delete(np.arange(A.shape[0]), main)
    rotated = np.matmul(np.matmul(rotation.T, A[others]), rotation)
    # The range of the variances' matrices holds that of the covariances' too.
    spread, vectors = np.linalg.eigh(rotated[is_variance[others]].sum(axis=0))
    C = vectors[:, spread > _RANK_TOLERANCE * spread[-1]]
    rows, columns = np.triu_indices(C.shape[1])
    return Border(
        rotation, values, main, C, np.matmul(np.matmul(C.T, rotated), C), C[:, rows] * C[:, columns]
    )


def main_component(projection: Projection) -> int | None:
    """The parameter to make diagonal: the single variance with most columns; None if none."""
    structure = projection.structure
    best, most = None, 0
    for i, parameter in enumerate(structure.parameters):
        rows, _ = structure.columns(parameter)
        alone = sum(p.term == parameter.term for p in structure.parameters) == 1
        if alone and rows.size > most:
            best, most = i, rows.size
    return best


def border_applies(projection: Projection) -> bool:
    """Whether the border is narrow enough beside r for this to pay."""
    main = main_component(projection)
    if main is None or len(projection.structure.parameters) < 2:
        return False
    rows, _ = projection.structure.columns(projection.structure.parameters[main])
    q = projection.structure.q
    return q <= DENSE_LIMIT and q - rows.size <= 0.6 * q


@dataclass(frozen=True)
class _Pieces:
    """What one evaluation works with, per feature.

    d (B, r); with S = C'D^-1C = L L' and F = I + L'T L: Q = T (I + S T)^-1, left = I - S Q and
    CWC = C'M^-1C, all (B, w, w); log |M| (B,).
    """

    d: FloatArray
    Q: FloatArray
    left: FloatArray
    CWC: FloatArray
    log_det: FloatArray


@dataclass(frozen=True)
class BorderedLikelihood:
    """REML or ML log-likelihood for several components, one of them made diagonal.

    Where D itself is not positive definite (a very negative main variance held up by the
    others) the general likelihood takes over, feature by feature.
    """

    projection: Projection
    method: Literal["REML", "ML"]
    engine: str = "bordered"

    @cached_property
    def general(self) -> GeneralLikelihood:
        """The yardstick, for what the border cannot do."""
        return GeneralLikelihood(self.projection, self.method)

    @cached_property
    def border(self) -> Border:
        """The border of the error contrasts' covariance."""
        return _make_border(self.projection.A, self._main, self._is_variance)

    @cached_property
    def border_full(self) -> Border:
        """The border of V on the span of Z."""
        return _make_border(self.projection.A_full, self._main, self._is_variance)

    @cached_property
    def _main(self) -> int:
        main = main_component(self.projection)
        assert main is not None
        return main

    @property
    def _is_variance(self) -> BoolArray:
        return self.projection.structure.is_variance[:-1]

    @cached_property
    def _u(self) -> FloatArray:
        return self.projection.u @ self.border.rotation

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
        """How many features fit into ``memory`` bytes: some (w, w) matrices and (r,) vectors."""
        r, w, k = self.projection.r_full, self.border.width, self.n_params
        return max(1, memory // (8 * ((14 + 2 * k) * w * w + (10 + 4 * k) * r)))

    def evaluate(self, theta: FloatArray, features: IntArray) -> Evaluation:
        """Log-likelihood, score and information at theta (B, k) for chosen features."""
        p, ml = self.projection, self.method == "ML"
        result = Evaluation.empty(theta.shape[0], self.n_params)
        outside, df = p.n - p.p - p.r, p.n - p.p
        df_trace = outside
        pieces, inside, unknown = _pieces(self.border, theta)
        trace_border, trace_pieces = self.border, pieces
        if ml:
            df_trace, df, trace_border = p.n - p.r_full, p.n, self.border_full
            trace_pieces, inside_full, unknown_full = _pieces(self.border_full, theta)
            inside, unknown = inside & inside_full, unknown | unknown_full
        unknown = unknown | (theta[:, -1] <= SMALL_RESIDUAL)
        if df_trace > 0:
            inside &= theta[:, -1] > 0
        if unknown.any():
            result.put(unknown, self.general.evaluate(theta[unknown], features[unknown]))
        ok = np.flatnonzero(inside & ~unknown)
        if ok.size == 0:
            return result
        theta, sigma2, chosen = theta[ok], theta[ok, -1], features[ok]
        value, first, second = _quadratic(self.border, _take(pieces, ok), self._u[chosen])
        trace_pieces = _take(trace_pieces, ok)
        trace_first, trace_second = _traces(trace_border, trace_pieces)
        log_det = trace_pieces.log_det
        if outside > 0:
            rss = p.rss[chosen]
            value += rss / sigma2
            first[:, -1] += rss / sigma2**2
            second[:, -1, -1] += rss / sigma2**3
        if df_trace > 0:
            log_det = log_det + df_trace * np.log(sigma2)
            trace_first[:, -1] += df_trace / sigma2
            trace_second[:, -1, -1] += df_trace / sigma2**2
        result.put(
            ok,
            Evaluation(
                -0.5 * (df * np.log(2.0 * np.pi) + log_det + value),
                0.5 * (first - trace_first),
                0.5 * trace_second,
                0.5 * second,
                rounding_errors(p.n, sigma2),
            ),
        )
        return result

    # What theta implies is asked for once per fit, and M^-1 is needed in factored form only.

    @cached_property
    def _loadings(self) -> FloatArray:
        """K'G_iH of each parameter in the rotated basis, shape (k, r, p)."""
        _, KGH = self.general.products
        return np.asarray(np.matmul(self.border.rotation.T, KGH))

    def _weighted(self, theta: FloatArray, L: FloatArray) -> FloatArray:
        """K'DH l for the rows l of L, shape (B, r, c)."""
        loaded = self._loadings @ L.T
        k, r, c = loaded.shape
        return np.asarray((theta[:, :-1] @ loaded.reshape(k, r * c)).reshape(-1, r, c))

    def beta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Generalised least squares at theta, shape (B, p)."""
        p = self.projection
        w, bad = self._solve_u(theta, features)
        k, r, _ = self._loadings.shape
        by_parameter = w @ np.swapaxes(self._loadings, 0, 1).reshape(r, -1)
        correction = (by_parameter.reshape(-1, k, p.p) * theta[:, :-1, None]).sum(axis=1)
        beta: FloatArray = p.beta_ols[:, features].T - p.unit[features, None] * correction
        if bad.any():
            beta[bad] = self.general.beta(theta[bad], features[bad])
        return beta

    def contrast_variance(self, theta: FloatArray, features: IntArray, L: FloatArray) -> FloatArray:
        """Variances l'Cl of the rows of L (c, p), shape (B, c)."""
        p = self.projection
        HGH, _ = self.general.products
        pieces, _, bad = _pieces(self.border, theta)
        bad |= theta[:, -1] <= _CANCELLING
        variance = theta[:, -1:] * ((p.XX_inverse @ L.T) * L.T).sum(axis=0)
        variance += theta[:, :-1] @ (np.matmul(HGH, L.T) * L.T).sum(axis=1)
        F = self._weighted(theta, L)
        scaled = F / pieces.d[:, :, None]
        variance -= (scaled * F).sum(axis=1)
        CF = np.matmul(self.border.C.T, scaled)
        variance += (np.matmul(pieces.Q, CF) * CF).sum(axis=1)
        variance *= p.scale[features, None]
        if bad.any():
            variance[bad] = self.general.contrast_variance(theta[bad], features[bad], L)
        return np.asarray(variance)

    def covariance(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects, shape (B, p, p); indefinite where V is."""
        p = self.projection
        HGH, _ = self.general.products
        pieces, _, bad = _pieces(self.border, theta)
        bad |= theta[:, -1] <= _CANCELLING
        F = self._weighted(theta, np.eye(p.p))
        scaled = F / pieces.d[:, :, None]
        CF = np.matmul(self.border.C.T, scaled)
        C = (theta[:, :-1] @ HGH.reshape(HGH.shape[0], -1)).reshape(-1, p.p, p.p)
        C += theta[:, -1, None, None] * p.XX_inverse
        C -= np.matmul(np.swapaxes(F, 1, 2), scaled)
        C += np.matmul(np.swapaxes(CF, 1, 2), np.matmul(pieces.Q, CF))
        C = 0.5 * (C + np.swapaxes(C, 1, 2)) * p.scale[features, None, None]
        if bad.any():
            C[bad] = self.general.covariance(theta[bad], features[bad])
        return np.asarray(C)

    def random_effects(
        self, theta: FloatArray, features: IntArray, se: StandardErrorKind | None
    ) -> RandomEffects:
        """Best linear unbiased predictions, with standard errors if asked for."""
        p, structure = self.projection, self.projection.structure
        unit = p.unit[features, None] / p.column_scale
        w, bad = self._solve_u(theta, features)
        blup = structure.multiply(theta, w @ (p.K @ self.border.rotation).T) * unit
        errors = None
        if se is not None:
            border, K = self.border, p.K
            if se == "conditional":
                border, K = self.border_full, p.K_full
            pieces, _, unknown = _pieces(border, theta)
            bad = bad | unknown | (theta[:, -1] <= _CANCELLING)
            errors = standard_errors(self._variances(theta, border, pieces, K @ border.rotation))
            errors *= unit
        if bad.any():
            exact = self.general.random_effects(theta[bad], features[bad], se)
            blup[bad] = exact.blup
            if errors is not None and exact.se is not None:
                errors[bad] = exact.se
        return RandomEffects(blup, errors)

    def _variances(
        self, theta: FloatArray, border: Border, pieces: _Pieces, K: FloatArray
    ) -> FloatArray:
        """Diagonal of D - D K M^-1 K'D, shape (B, q)."""
        structure = self.projection.structure
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
        scaled = DK / pieces.d[:, None, :]
        variance -= (scaled * DK).sum(axis=2)
        DKC = np.matmul(scaled, border.C)
        variance += (np.matmul(DKC, pieces.Q) * DKC).sum(axis=2)
        return variance

    def _solve_u(self, theta: FloatArray, features: IntArray) -> tuple[FloatArray, BoolArray]:
        """M^-1 u in the rotated basis, and where it could not be had."""
        pieces, _, bad = _pieces(self.border, theta)
        return _solve(self.border, pieces, self._u[features][:, None, :])[:, 0], bad

    def is_definite(self, theta: FloatArray) -> BoolArray:
        """Whether V is positive definite, shape (B,)."""
        p = self.projection
        _, definite, unknown = _pieces(self.border_full, theta)
        definite &= (theta[:, -1] > 0) | (p.n == p.r_full)
        if unknown.any():
            definite[unknown] = self.general.is_definite(theta[unknown])
        return np.asarray(definite)

    def distance_to_edge(self, theta: FloatArray) -> FloatArray:
        """Smallest over largest eigenvalue of V (ML) or the error contrasts' covariance."""
        return np.asarray(self.general.distance_to_edge(theta))


def _pieces(border: Border, theta: FloatArray) -> tuple[_Pieces, BoolArray, BoolArray]:
    """The pieces; where M is positive definite; where only the general likelihood can tell."""
    main = theta[:, border.main, None]
    d = main * border.eigenvalues + theta[:, -1:]
    lowest, highest = d.min(axis=1), np.abs(d).max(axis=1)
    unknown = lowest <= SINGULAR * highest
    d = np.where(unknown[:, None], 1.0, d)
    T = border.covariance(theta)
    S = border.sums(1.0 / d)
    # With S = L L', M is positive definite exactly when I + L'T L is.
    L, fine = cholesky(S)
    L = np.where(fine[:, None, None], L, np.eye(border.width))
    unknown |= ~fine
    transposed = np.swapaxes(L, 1, 2)
    K = np.matmul(np.matmul(transposed, T), L)
    inner = K.copy()
    diagonal = np.arange(border.width)
    inner[:, diagonal, diagonal] += 1.0
    factor, inside = cholesky(inner)
    pivots = np.diagonal(factor, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        log_det = np.log(d).sum(axis=1) + 2.0 * np.log(pivots).sum(axis=1)
        if border.width:
            inside &= pivots.min(axis=1) ** 2 > SINGULAR * np.maximum(pivots.max(axis=1) ** 2, 1.0)
    # Written with F^-1 and K = L'T L = F - I, nothing cancels when T S is large or small.
    eye = np.eye(border.width)
    F_inverse = np.linalg.inv(np.where(inside[:, None, None], inner, eye))
    L_inverse = np.linalg.inv(L)
    Q = np.matmul(np.matmul(np.swapaxes(L_inverse, 1, 2), np.matmul(F_inverse, K)), L_inverse)
    LF = np.matmul(L, F_inverse)
    pieces = _Pieces(
        d,
        0.5 * (Q + np.swapaxes(Q, 1, 2)),
        np.matmul(LF, L_inverse),
        np.matmul(LF, transposed),
        log_det,
    )
    return pieces, inside, unknown


def _take(pieces: _Pieces, index: IntArray) -> _Pieces:
    return _Pieces(
        pieces.d[index],
        pieces.Q[index],
        pieces.left[index],
        pieces.CWC[index],
        pieces.log_det[index],
    )


def _solve(border: Border, pieces: _Pieces, vectors: FloatArray) -> FloatArray:
    """M^-1 v for row vectors (B, c, r): D^-1 v - D^-1 C Q C'D^-1 v."""
    scaled = vectors / pieces.d[:, None, :]
    inner = np.matmul(np.matmul(scaled, border.C), pieces.Q)
    return np.asarray(scaled - np.matmul(inner, border.C.T) / pieces.d[:, None, :])


def _quadratic(
    border: Border, pieces: _Pieces, u: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """y'Py, y'P V_i P y and y'P V_i P V_j P y, the residual last."""
    k = border.T.shape[0] + 2
    w = _solve(border, pieces, u[:, None, :])[:, 0]
    V = np.empty((u.shape[0], k, u.shape[1]))
    V[:, border.main] = border.eigenvalues * w
    V[:, -1] = w
    Cw = w @ border.C
    for i, position in enumerate(border.others):
        V[:, position] = (Cw @ border.T[i]) @ border.C.T
    first = np.matmul(V, w[:, :, None])[:, :, 0]
    second = np.matmul(_solve(border, pieces, V), np.swapaxes(V, 1, 2))
    return (w * u).sum(axis=1), first, second


def _traces(border: Border, pieces: _Pieces) -> tuple[FloatArray, FloatArray]:
    """tr(W A_i) and tr(W A_i W A_j) with W = M^-1, the residual (A = I) last."""
    d, Q, left = pieces.d, pieces.Q, pieces.left
    count, k = d.shape[0], border.T.shape[0] + 2
    values, main, last = border.eigenvalues, border.main, k - 1
    first, second = np.empty((count, k)), np.empty((count, k, k))
    inverse = 1.0 / d
    powers = np.vander(values, 3)  # lambda^2, lambda, 1
    S_main, S_last = border.sums(values * inverse**2), border.sums(inverse**2)
    QS_main, QS_last = np.matmul(Q, S_main), np.matmul(Q, S_last)
    once = inverse @ powers[:, 1:]
    first[:, main] = once[:, 0] - np.trace(QS_main, axis1=1, axis2=2)
    first[:, last] = once[:, 1] - np.trace(QS_last, axis1=1, axis2=2)
    # sum_l g_l c_l'Q c_l for the third-order weights, without forming their (w, w) sums
    CQC = np.matmul(_pack(Q), border.outer.T)
    twice = (inverse**2 - 2.0 * inverse**3 * CQC) @ powers
    second[:, main, main] = twice[:, 0] + _trace_of_product(QS_main, QS_main)
    second[:, main, last] = twice[:, 1] + _trace_of_product(QS_main, QS_last)
    second[:, last, last] = twice[:, 2] + _trace_of_product(QS_last, QS_last)
    second[:, last, main] = second[:, main, last]

    right = np.swapaxes(left, 1, 2)
    crossed = {
        main: np.matmul(np.matmul(left, S_main), right),
        last: np.matmul(np.matmul(left, S_last), right),
    }
    flat = border.T.reshape(border.T.shape[0], -1)
    first[:, border.others] = pieces.CWC.reshape(count, -1) @ flat.T
    products = [np.matmul(pieces.CWC, T) for T in border.T]
    for i, row in enumerate(border.others):
        for position, matrix in crossed.items():
            second[:, row, position] = matrix.reshape(count, -1) @ flat[i]
            second[:, position, row] = second[:, row, position]
        for j in range(i + 1):
            column = border.others[j]
            second[:, row, column] = _trace_of_product(products[i], products[j])
            second[:, column, row] = second[:, row, column]
    return first, second


def _pack(Q: FloatArray) -> FloatArray:
    """Upper triangles with off-diagonal entries doubled, so that pack(Q) . outer = c'Qc."""
    rows, columns = np.triu_indices(Q.shape[1])
    return np.where(rows == columns, 1.0, 2.0) * Q[:, rows, columns]


def _trace_of_product(left: FloatArray, right: FloatArray) -> FloatArray:
    """tr(L R) of two stacks, shape (B,)."""
    return np.asarray((left * np.swapaxes(right, 1, 2)).sum(axis=(1, 2)))
