"""Cluster-robust covariances of the fixed effects, from sums by cluster, for many features.

With V block-diagonal over the clusters, W = V^-1 and C = (X'WX)^-1,

    V_robust = C [ sum_i X_i'W_i A_i e_i e_i'A_i W_i X_i ] C

where e_i are the residuals and A_i is the identity (CR0, times a factor in CR1 and CR1S), makes the
estimate unbiased if V is right (CR2; Bell & McCaffrey 2002, Pustejovsky & Tipton 2018), or comes
close to the jackknife (CR3). Outside the span of [X_i, Z_i] V_i is sigma2 and A_i the identity, so
all of it happens in an orthonormal basis Q_i of that span, of p + q_i columns or fewer, which the
Gram matrix of [X_i, Z_i] gives, as it gives Q_i'X_i, Q_i'Z_i and Q_i'y_i.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.designs.design import CovarianceStructure

__all__ = [
    "KINDS",
    "Cluster",
    "ClusterDesign",
    "Robust",
    "RobustKind",
    "Scores",
    "cluster_design",
    "robust",
    "robust_f",
    "robust_t",
    "root",
    "scores",
]

RobustKind = Literal["CR0", "CR1", "CR1S", "CR2", "CR3"]
KINDS: tuple[RobustKind, ...] = ("CR0", "CR1", "CR1S", "CR2", "CR3")

# Directions of [X_i, Z_i], columns scaled to length one, with less than this are none; and
# eigenvalues of a working covariance below this share of its largest.
_NO_DIRECTION = 1e-11
_SINGULAR = 1e-11


@dataclass(frozen=True)
class ClusterDesign:
    """The rows of one cluster in an orthonormal basis Q of [X_i, Z_i], of r columns.

    Parameters
    ----------
    X
        Q'X_i, shape (r, p).
    G
        Q'Z_i G_h Z_i'Q for the parameters of D, shape (k, r, r).
    turn
        What [X_i, Z_i]'e is multiplied by to give Q'e, shape (r, p + q_i).
    """

    X: FloatArray
    G: FloatArray
    turn: FloatArray


@dataclass(frozen=True)
class Cluster:
    """One cluster of m features.

    Parameters
    ----------
    design
        Its rows.
    left
        [X_i, Z_i]'e_i for the residuals e_i at the estimates, shape (m, p + q_i).
    """

    design: ClusterDesign
    left: FloatArray


def cluster_design(
    XX: FloatArray, ZX: FloatArray, ZZ: FloatArray, structure: CovarianceStructure
) -> ClusterDesign:
    """The basis of one cluster from X_i'X_i (p, p), Z_i'X_i (q_i, p) and Z_i'Z_i (q_i, q_i)."""
    p = XX.shape[0]
    gram = np.block([[XX, ZX.T], [ZX, ZZ]])
    length = np.sqrt(np.maximum(np.diag(gram), 0.0))
    unit = np.where(length > 0, length, 1.0)
    values, vectors = np.linalg.eigh(gram / np.outer(unit, unit))
    there = values > _NO_DIRECTION * max(float(values[-1]), 0.0)
    root = np.sqrt(values[there])
    rows = (vectors[:, there] * root).T * unit  # Q'[X, Z]
    turn = (vectors[:, there] / root).T / unit
    Z = rows[:, p:]
    G = np.zeros((len(structure.parameters), root.size, root.size))
    for i, parameter in enumerate(structure.parameters):
        first, second = structure.columns(parameter)
        product = Z[:, first] @ Z[:, second].T
        G[i] = product if parameter.is_variance else product + product.T
    return ClusterDesign(rows[:, :p], G, turn)


@dataclass(frozen=True)
class _Working:
    """V_i in the basis of one cluster, for m features: Q'V_iQ = U diag(values) U'.

    Parameters
    ----------
    values
        Shape (m, r); NaN where V_i is not positive definite.
    vectors
        U, shape (m, r, r), or (1, r, r) where the features share it.
    """

    values: FloatArray
    vectors: FloatArray

    @classmethod
    def of(cls, design: ClusterDesign, theta: FloatArray) -> _Working:
        r = design.X.shape[0]
        if theta.shape[1] == 2:  # sigma2 I + theta G: eigenvectors that the features share
            of_G, shared = np.linalg.eigh(design.G[0])
            return cls(_positive(theta[:, :1] * of_G + theta[:, 1:]), shared[None])
        flat = theta[:, :-1] @ design.G.reshape(design.G.shape[0], r * r)
        V = flat.reshape(-1, r, r) + theta[:, -1, None, None] * np.eye(r)
        values, vectors = np.linalg.eigh(V)
        return cls(_positive(values), vectors)

    def inverse(self, right: FloatArray) -> FloatArray:
        """V_i^-1 B for B (r, c) or (m, r, c), shape (m, r, c)."""
        turned = np.matmul(np.swapaxes(self.vectors, 1, 2), right)
        return np.asarray(np.matmul(self.vectors, turned / self.values[:, :, None]))

    def root(self) -> FloatArray:
        """The symmetric root of V_i, shape (m, r, r)."""
        scaled = self.vectors * np.sqrt(self.values)[:, None, :]
        return np.asarray(np.matmul(scaled, np.swapaxes(self.vectors, 1, 2)))


def _positive(values: FloatArray) -> FloatArray:
    """Eigenvalues (m, r), NaN where one of them is not positive."""
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    bad = (values <= _SINGULAR * largest).any(axis=1)
    return np.where(bad[:, None], np.nan, values)


@dataclass(frozen=True)
class Scores:
    """Contributions of k clusters to the estimating equations of m features.

    Parameters
    ----------
    information
        X_i'V_i^-1 X_i, shape (k, m, p, p).
    score
        X_i'V_i^-1 e_i, shape (k, m, p).
    covariance
        C = (X'V^-1X)^-1, shape (m, p, p).
    """

    information: FloatArray
    score: FloatArray
    covariance: FloatArray


def scores(clusters: list[Cluster], theta: FloatArray) -> Scores:
    """Contributions of the clusters at theta (m, k); NaN where V is not positive definite."""
    information, score = [], []
    for cluster in clusters:
        design, working = cluster.design, _Working.of(cluster.design, theta)
        WX = working.inverse(design.X)
        residual = cluster.left @ design.turn.T
        information.append(np.matmul(design.X.T, WX))
        score.append(np.matmul(np.swapaxes(WX, 1, 2), residual[:, :, None])[..., 0])
    total = np.stack(information)
    return Scores(total, np.stack(score), inverse(total.sum(axis=0)))


@dataclass(frozen=True)
class Robust:
    """A cluster-robust covariance of m features and what its distribution depends on.

    Parameters
    ----------
    covariance
        V_robust, shape (m, p, p).
    model
        C = (X'V^-1X)^-1, shape (m, p, p).
    weights
        X_i'A_iW_iX_i: with c = C l for a contrast l, p_i = A_iW_iX_i c weighs the residuals
        of cluster i, and this is X_i'p_i = weights c, shape (k, m, p, p).
    spread
        X_i'W_iA_iV_iA_iW_iX_i, so that p_i'V_ip_i = c'spread c, shape (k, m, p, p).
    """

    covariance: FloatArray
    model: FloatArray
    weights: FloatArray
    spread: FloatArray


def robust(clusters: list[Cluster], theta: FloatArray, kind: RobustKind, n: int) -> Robust:
    """Cluster-robust covariances.

    Parameters
    ----------
    clusters
        The k clusters.
    theta
        Estimates of the m features, shape (m, number of parameters), of the working covariance V.
    kind
        Which adjustment.
    n
        Samples in all, for CR1S.

    Returns
    -------
    Robust
        NaN where V is not positive definite, or the adjustment does not exist.
    """
    working = [_Working.of(cluster.design, theta) for cluster in clusters]
    WX = [w.inverse(c.design.X) for w, c in zip(working, clusters, strict=True)]
    information = [np.matmul(c.design.X.T, one) for one, c in zip(WX, clusters, strict=True)]
    C = inverse(np.sum(information, axis=0))
    p, k = C.shape[1], len(clusters)
    meat = np.zeros_like(C)
    weights, spread = [], []
    for cluster, w, own, G in zip(clusters, working, WX, information, strict=True):
        X = cluster.design.X
        P = _adjusted(kind, X, w, own, C, G)
        residual = cluster.left @ cluster.design.turn.T
        score = np.matmul(np.swapaxes(P, 1, 2), residual[:, :, None])[..., 0]
        meat += score[:, :, None] * score[:, None, :]
        weights.append(np.matmul(X.T, P))
        scaled = np.sqrt(w.values)[:, :, None] * np.matmul(np.swapaxes(w.vectors, 1, 2), P)
        spread.append(np.matmul(np.swapaxes(scaled, 1, 2), scaled))
    factor = 1.0
    if kind in ("CR1", "CR1S"):
        factor = k / (k - 1.0)
        factor *= (n - 1.0) / (n - p) if kind == "CR1S" else 1.0
    covariance = factor * np.matmul(np.matmul(C, meat), C)
    return Robust(covariance, C, np.stack(weights), np.stack(spread))


def _adjusted(
    kind: RobustKind,
    X: FloatArray,
    working: _Working,
    WX: FloatArray,
    C: FloatArray,
    information: FloatArray,
) -> FloatArray:
    """A_i W_i X_i of one cluster in its basis, shape (m, r, p)."""
    if kind == "CR3":  # (I - X C X'W)^-1 transposed, by the p x p matrix I - C X'WX
        p = C.shape[1]
        left = np.eye(p) - np.matmul(C, information)
        return np.asarray(np.matmul(WX, _solved_from_right(left)))
    if kind != "CR2":
        return WX
    # A = S (S (V - X C X') S)^-1/2 S with the symmetric root S of V (Pustejovsky & Tipton 2018, 9).
    S = working.root()
    SX = np.matmul(S, X)
    B = np.matmul(working.vectors * working.values[:, None, :] ** 2, _transposed(working.vectors))
    B = B - np.matmul(np.matmul(SX, C), _transposed(SX))
    return np.asarray(np.matmul(S, np.matmul(_inverse_root(B), np.matmul(S, WX))))


def _transposed(matrices: FloatArray) -> FloatArray:
    return np.swapaxes(matrices, -1, -2)


def _solved_from_right(matrices: FloatArray) -> FloatArray:
    """Inverses of matrices (m, p, p), NaN where they have none."""
    result = np.full_like(matrices, np.nan)
    known = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    condition = np.full(known.shape, np.inf)
    condition[known] = np.linalg.cond(matrices[known])
    known &= condition < 1.0 / _SINGULAR
    result[known] = np.linalg.inv(matrices[known])
    return result


def _inverse_root(matrices: FloatArray) -> FloatArray:
    """Generalised inverse roots of positive semi-definite matrices (m, r, r)."""
    known = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    safe = np.where(known[:, None, None], matrices, np.eye(matrices.shape[1]))
    values, vectors = np.linalg.eigh(0.5 * (safe + _transposed(safe)))
    floor = _SINGULAR * np.abs(values).max(axis=1, keepdims=True, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = np.where(values > floor, 1.0 / np.sqrt(values), 0.0)
    root[~known] = np.nan
    return np.asarray(np.matmul(vectors * root[:, None, :], _transposed(vectors)))


def inverse(matrices: FloatArray) -> FloatArray:
    """Inverses of positive definite matrices (m, p, p), scaled meanwhile; NaN for others."""
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
        scale = length[:, :, None] * length[:, None, :]
        scaled = matrices / scale
    result = np.full_like(matrices, np.nan)
    known = np.isfinite(scaled).all(axis=(1, 2))
    values, vectors = np.linalg.eigh(scaled[known])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(values > 0.0, values, np.nan)
        result[known] = np.matmul(vectors / values[:, None, :], _transposed(vectors))
        result /= scale
    return result


@dataclass(frozen=True)
class RobustTests:
    """Variances of contrasts and their degrees of freedom, both (m, c)."""

    variance: FloatArray
    df: FloatArray


def robust_t(found: Robust, L: FloatArray) -> RobustTests:
    """Variances of the contrasts in the rows of L (c, p) and their Satterthwaite df.

    The variance of a contrast is a sum of squares z_i = p_i'e_i over the clusters, whose
    covariances under the working model are P_ij = d_i [i = j] - u_i'C u_j; the df are
    (sum P_ii)^2 / sum P_ij^2 (Bell & McCaffrey 2002; Pustejovsky & Tipton 2018, equation 17).
    """
    variance = ((L @ found.covariance) * L).sum(axis=2)
    c = np.matmul(L, found.model)  # (m, c, p), the rows C l
    C_root = root(found.model)
    diagonal = total = 0.0
    T = np.zeros((*c.shape, c.shape[2]))
    off: FloatArray = np.zeros(variance.shape)
    for weights, spread in zip(found.weights, found.spread, strict=True):
        d = (np.matmul(c, spread) * c).sum(axis=2)
        a = np.matmul(np.matmul(c, _transposed(weights)), C_root)  # (m, c, p): C^(1/2)'u_i
        own = (a * a).sum(axis=2)
        P = d - own
        diagonal = diagonal + P
        total = total + P**2
        off = off + own**2
        T += a[..., :, None] * a[..., None, :]
    spread_all = total + (T**2).sum(axis=(2, 3)) - off
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(spread_all > 0, diagonal**2 / spread_all, np.nan)
    return RobustTests(variance, df)


def root(matrices: FloatArray) -> FloatArray:
    """R with R R' = C for positive definite C (m, p, p); NaN for others."""
    known = np.isfinite(matrices).all(axis=(1, 2))
    result = np.full_like(matrices, np.nan)
    length = np.sqrt(np.diagonal(matrices[known], axis1=1, axis2=2))
    scaled = matrices[known] / (length[:, :, None] * length[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    result[known] = roots * length[:, :, None]
    return result


@dataclass(frozen=True)
class RobustF:
    """F statistics and their denominator degrees of freedom, both (m,)."""

    F: FloatArray
    df: FloatArray


def robust_f(found: Robust, L: FloatArray, difference: FloatArray) -> RobustF:
    """Approximate Hotelling tests (HTZ) that L beta equals its hypothesised values.

    Q = d'(L V L')^-1 d is referred to Hotelling's distribution on eta df, that is
    (eta - s + 1) / (eta s) Q to F(s, eta - s + 1), with eta = s (s + 1) / sum of the variances of
    the entries of L V L' in units in which it is the identity on average (Pustejovsky & Tipton
    2018, section 3.2).

    Parameters
    ----------
    found
        Covariances.
    L
        Linearly independent contrasts, shape (s, p).
    difference
        L beta minus those values, shape (m, s).
    """
    s = L.shape[0]
    c = np.matmul(L, found.model)
    pieces = []
    omega: FloatArray = np.zeros((c.shape[0], s, s))
    for weights, spread in zip(found.weights, found.spread, strict=True):
        u = np.matmul(c, _transposed(weights))
        D = np.matmul(np.matmul(c, spread), _transposed(c))
        omega = omega + D - np.matmul(np.matmul(u, found.model), _transposed(u))
        pieces.append((u, D))
    N = _inverse_root(omega)
    C_root = root(found.model)
    T = np.zeros((c.shape[0], s, s, c.shape[2], c.shape[2]))
    variance: FloatArray = np.zeros(c.shape[0])
    for u, D in pieces:
        a = np.matmul(np.matmul(N, u), C_root)
        own = np.matmul(a, _transposed(a))
        P = np.matmul(np.matmul(N, D), N) - own
        variance = variance + _entries(P) - _entries(own)
        T += a[:, :, None, :, None] * a[:, None, :, None, :]
    variance = variance + (T**2).sum(axis=(1, 2, 3, 4))
    variance = variance + (T * np.swapaxes(T, 1, 2)).sum(axis=(1, 2, 3, 4))
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = s * (s + 1.0) / variance
        covariance = np.matmul(np.matmul(L, found.covariance), L.T)
        Q = (np.matmul(inverse(covariance), difference[..., None])[..., 0] * difference).sum(axis=1)
        df = eta - s + 1.0
        F = df / (eta * s) * Q
    good = (df > 0) & (Q >= 0)
    return RobustF(np.where(good, F, np.nan), np.where(good, df, np.nan))


def _entries(P: FloatArray) -> FloatArray:
    """(tr P)^2 + tr(P P) of matrices (m, s, s): what P_ii adds to the sum of variances."""
    trace = np.trace(P, axis1=1, axis2=2)
    return np.asarray(trace**2 + (P * _transposed(P)).sum(axis=(1, 2)))
