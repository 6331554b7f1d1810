"""From summary statistics to the coordinates in which the likelihood is small.

With R = I - X (X'X)^-1 X' and Z'RZ = K K' (K is q x r, from its eigenvectors), everything
that REML needs of y is u (r numbers, Z'Ry = K u) and the residual sum of squares of y on
[X, Z]: u ~ N(0, M), M = sigma2 I + sum_i theta_i K'G_i K. So P, T = Z'PZ = K M^-1 K' and
r = Z'Py = K M^-1 u follow from M alone, which is symmetric, and positive definite exactly
where the restricted likelihood exists.

Internally each feature is scaled to unit residual variance of y on X, and each effect to unit
mean square of its columns of Z; theta is scaled along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from flashmm.exceptions import InputError, listing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.design import CovarianceStructure
    from flashmm.summary_stats import SummaryStats

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["Projection", "project"]

_RANK_TOLERANCE = 1e-10
_CONFOUNDED = 1e-9
# Sums of squares carry relative rounding errors of this order.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Projection:
    """Summary statistics projected off X, in the eigenbasis of Z'RZ, scaled.

    Parameters
    ----------
    n, p
        Samples and fixed effects.
    structure
        Random terms; k parameters of D.
    K
        Root of the scaled Z'RZ, shape (q, r).
    A
        K'G_iK for the parameters of D, shape (k, r, r).
    K_full, A_full
        The same for Z'Z, shapes (q, r_full) and (k, r_full, r_full).
    u
        Scaled coordinates of Z'Ry, shape (m, r).
    rss
        Scaled residual sums of squares of y on [X, Z], shape (m,).
    scale
        Residual variance of y on X, the unit of theta, shape (m,).
    column_scale
        Root mean square of the effects' columns of Z, shape (q,).
    param_scale
        What internal theta is multiplied by, besides ``scale``, to give theta; shape (k + 1,).
    XX_inverse
        (X'X)^-1, shape (p, p).
    H
        Scaled Z'X (X'X)^-1, shape (q, p).
    beta_ols
        Least-squares coefficients of y, shape (p, m).
    log_det_XX
        log |X'X|.
    zero_variance, perfect_fit, non_finite
        Features that X alone explains, that [X, Z] explain, or whose sums are not finite;
        each shape (m,).
    """

    n: int
    p: int
    structure: CovarianceStructure
    K: FloatArray
    A: FloatArray
    K_full: FloatArray
    A_full: FloatArray
    u: FloatArray
    rss: FloatArray
    scale: FloatArray
    column_scale: FloatArray
    param_scale: FloatArray
    XX_inverse: FloatArray
    H: FloatArray
    beta_ols: FloatArray
    log_det_XX: float
    zero_variance: BoolArray
    perfect_fit: BoolArray
    non_finite: BoolArray

    @property
    def r(self) -> int:
        """Rank of Z'RZ."""
        return int(self.K.shape[1])

    @property
    def r_full(self) -> int:
        """Rank of Z'Z."""
        return int(self.K_full.shape[1])

    @property
    def usable(self) -> BoolArray:
        """Features that have a likelihood to maximise, shape (m,)."""
        return ~(self.zero_variance | self.perfect_fit | self.non_finite)

    @property
    def unit(self) -> FloatArray:
        """Square root of ``scale``, the unit of y, shape (m,)."""
        return np.sqrt(self.scale)

    def to_internal(self, theta: FloatArray) -> FloatArray:
        """Scale theta (m, k + 1) in the units of Y to the internal units."""
        return theta / (self.param_scale * self.scale[:, None])

    def to_natural(self, theta: FloatArray) -> FloatArray:
        """Scale internal theta (m, k + 1) back to the units of Y."""
        return theta * (self.param_scale * self.scale[:, None])


def project(stats: SummaryStats) -> Projection:
    """Project summary statistics off X and check that the model can be fitted.

    Raises
    ------
    InputError
        If X has not full column rank, n <= p, a component lies in the span of X, or the
        variance components cannot be told apart.
    """
    n, p, structure = stats.n, stats.p, stats.structure
    _check_sample_size(n, p)
    XX_inverse, log_det = _inverse_of_XX(stats.XX, stats.coef_names)
    XY, ZY, yy, a = stats.centred()
    non_finite = ~(np.isfinite(XY).all(axis=0) & np.isfinite(ZY).all(axis=0) & np.isfinite(yy))
    if non_finite.any():
        XY, ZY, yy = XY.copy(), ZY.copy(), yy.copy()
        XY[:, non_finite], ZY[:, non_finite], yy[non_finite] = 0.0, 0.0, 0.0

    column_scale = _column_scale(stats.ZZ.diagonal(), structure)
    H = (stats.ZX / column_scale[:, None]) @ XX_inverse
    ZX = stats.ZX / column_scale[:, None]
    ZZ = stats.ZZ.toarray() / np.outer(column_scale, column_scale)
    ZRZ = ZZ - H @ ZX.T
    ZRZ = 0.5 * (ZRZ + ZRZ.T)
    basis_K, K, A = _root(ZRZ, ZZ.diagonal(), structure)
    _, K_full, A_full = _root(ZZ, ZZ.diagonal(), structure)
    _check_components(ZRZ, ZZ, A, n - p, structure)

    beta_left = XX_inverse @ XY
    yRy = yy - (XY * beta_left).sum(axis=0)
    floor = _ROUNDING * yy + _ROUNDING**2 * stats.yy
    zero_variance = ~non_finite & (yRy <= floor)
    scale = np.where(zero_variance | non_finite, 1.0, yRy / (n - p))
    unit = np.sqrt(scale)
    ZRy = (ZY / column_scale[:, None] - H @ XY) / unit
    u = (basis_K.T @ ZRy).T
    rss = yRy / scale - (u * u).sum(axis=1)
    saturated = n - p == K.shape[1]
    perfect_fit = ~zero_variance & ~non_finite & (rss <= _ROUNDING * (n - p))
    if saturated:
        rss, perfect_fit = np.zeros_like(rss), np.zeros_like(perfect_fit)
    param_scale = np.array(
        [
            1.0 / (column_scale[rows[0]] * column_scale[columns[0]])
            for rows, columns in map(structure.columns, structure.parameters)
        ]
        + [1.0]
    )
    beta_ols = beta_left + a
    beta_ols[:, non_finite] = np.nan
    return Projection(
        n=n,
        p=p,
        structure=structure,
        K=K,
        A=A,
        K_full=K_full,
        A_full=A_full,
        u=u,
        rss=rss,
        scale=scale,
        column_scale=column_scale,
        param_scale=param_scale,
        XX_inverse=XX_inverse,
        H=H,
        beta_ols=beta_ols,
        log_det_XX=log_det,
        zero_variance=zero_variance,
        perfect_fit=perfect_fit,
        non_finite=non_finite,
    )


def _check_sample_size(n: int, p: int) -> None:
    if p == 0:
        raise InputError("`fixed` has no coefficients; a model needs at least one.")
    if n <= p:
        raise InputError(
            f"There are {n} samples for {p} fixed effects; a fit needs more samples than "
            "coefficients."
        )


def _inverse_of_XX(XX: FloatArray, names: tuple[str, ...]) -> tuple[FloatArray, float]:
    """(X'X)^-1 and log |X'X|, after scaling the columns of X to unit length."""
    length = np.sqrt(np.diag(XX))
    p = length.size
    empty = length == 0
    scaled = XX / np.outer(np.where(empty, 1.0, length), np.where(empty, 1.0, length))
    values, vectors = np.linalg.eigh(scaled)
    tolerance = p * 1e-13 * values[-1]
    rank = int((values > tolerance).sum())
    if rank < p:
        raise InputError(_rank_message(scaled, names, rank, empty))
    inverse = (vectors / values) @ vectors.T / np.outer(length, length)
    return inverse, float(np.log(values).sum() + 2.0 * np.log(length).sum())


def _rank_message(
    scaled: FloatArray, names: tuple[str, ...], rank: int, empty: NDArray[np.bool_]
) -> str:
    """Name the columns of X that depend on the columns before them."""
    basis: list[int] = []
    clauses: list[str] = []
    for j in range(len(names)):
        if empty[j]:
            clauses.append(f"{names[j]!r} is zero in every sample (an empty cell of the design)")
            continue
        if not basis:
            basis.append(j)
            continue
        gram = scaled[np.ix_(basis, basis)]
        weights = np.linalg.lstsq(gram, scaled[basis, j], rcond=1e-12)[0]
        left = scaled[j, j] - scaled[basis, j] @ weights
        if left > 1e-11 and len(basis) < rank:
            basis.append(j)
        else:
            used = [
                names[b] for b, weight in zip(basis, weights, strict=True) if abs(weight) > 1e-6
            ]
            clauses.append(f"{names[j]!r} is a linear combination of {listing(used, 6)}")
    shown = "; ".join(clauses[:3]) + ("; ..." if len(clauses) > 3 else "")
    return (
        f"`fixed` has rank {rank} but {len(names)} columns: {shown}. Drop columns or change the "
        "formula."
    )


def _column_scale(diagonal: FloatArray, structure: CovarianceStructure) -> FloatArray:
    """Root mean square of the columns of Z of each effect, so that effects are comparable."""
    scale = np.ones(structure.q)
    for parameter in structure.parameters:
        if parameter.is_variance:
            rows, _ = structure.columns(parameter)
            mean_square = float(diagonal[rows].mean())
            if mean_square == 0.0:
                raise InputError(
                    f"The random effect {parameter.name!r} is zero in every sample. Remove it "
                    "from `random`."
                )
            scale[rows] = np.sqrt(mean_square)
    return scale


def _root(
    gram: FloatArray, reference: FloatArray, structure: CovarianceStructure
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """K with K K' = gram, its left inverse transposed, and K'G_iK for each parameter."""
    values, vectors = scipy.linalg.eigh(gram)
    keep = values > _RANK_TOLERANCE * max(float(values[-1]), float(reference.mean()))
    root = np.sqrt(values[keep])
    K = vectors[:, keep] * root
    products = np.empty((len(structure.parameters), K.shape[1], K.shape[1]))
    for i, parameter in enumerate(structure.parameters):
        rows, columns = structure.columns(parameter)
        product = K[rows].T @ K[columns]
        products[i] = product if parameter.is_variance else product + product.T
    return vectors[:, keep] / root, K, products


def _check_components(
    ZRZ: FloatArray, ZZ: FloatArray, A: FloatArray, df: int, structure: CovarianceStructure
) -> None:
    """Raise if a component has nothing left beside X, or components cannot be told apart."""
    for parameter in structure.parameters:
        if parameter.is_variance:
            rows, _ = structure.columns(parameter)
            left = np.diagonal(ZRZ)[rows].sum()
            if left <= _CONFOUNDED * np.diagonal(ZZ)[rows].sum():
                raise InputError(
                    f"The random effect {parameter.name!r} lies in the span of the fixed effects: "
                    "nothing is left of it once `fixed` is taken out. Remove it from `random`, "
                    "or the terms that absorb it from `fixed`."
                )
    k, r = A.shape[0], A.shape[1]
    traces = np.array([np.trace(a) for a in A])
    flat = A.reshape(k, r * r)
    information = np.empty((k + 1, k + 1))
    information[:k, :k] = flat @ flat.T
    information[:k, k] = information[k, :k] = traces
    information[k, k] = df
    length = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(length, length))
    if values[0] < _CONFOUNDED:
        names = np.array(structure.param_names)
        involved = names[np.abs(vectors[:, 0]) > 1e-3]
        raise InputError(
            f"The variance components {listing(involved)} cannot be told apart in this design. "
            "A grouping factor needs fewer levels than samples, and no two terms may group "
            "alike; remove one of them."
        )
