"""Projection: summary statistics with the fixed effects taken out, scaled.

With R = I - X (X'X)^-1 X', everything that REML needs of y is Z'Ry, y'Ry and the shared Z'RZ.
Each feature is scaled to unit residual variance on X and each effect to unit mean square of
its columns of Z; theta is scaled along ("internal units").

Dense likelihoods work in the eigenbasis of Z'RZ = K K' (K is q x r): Z'Ry = K u with
u ~ N(0, M), M = sigma2 I + sum_i theta_i K'G_iK, and independently a residual sum of squares on
n - p - r degrees of freedom. So P, T = Z'PZ = K M^-1 K' and r = Z'Py = K M^-1 u follow from M
alone, which is symmetric, and positive definite exactly where the restricted likelihood exists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.eigen import divide_and_conquer
from flashmm.arrays.namespaces import Array, like, namespace
from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError
from flashmm.likelihood.centring import Turn, centring
from flashmm.likelihood.design_checks import check_components, check_sample_size, whiten
from flashmm.likelihood.units import UNDERFLOW, InUnits
from flashmm.stats.fields import GroupSums
from flashmm.stats.known_levels import RootMap, in_roots
from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "ROUNDING",
    "UNDERFLOW",
    "Basis",
    "Projection",
    "have_room",
    "parameter_scale",
    "project",
    "scale_of_columns",
]

_RANK_TOLERANCE = 1e-10
# Sums of squares carry relative rounding errors of this order.
ROUNDING = 1e-12
# Variances in their units may be far above one.
_LARGEST = 1e-3 * float(np.finfo(np.float64).max)
_EPS = float(np.finfo(np.float64).eps)
# Up to this many random effects a dense eigenbasis is cheap.
DENSE_LIMIT = 3000
# Arrays of a projection that go to a device; the sparse Z'Z stays.
_MOVED = (
    *(
        "XX",
        "whitening",
        "ZX",
        "ZRy",
        "rounding",
        "scale",
        "column_scale",
        "param_scale",
        "beta_ols",
    ),
    *("zero_variance", "non_finite"),
)


@dataclass(frozen=True)
class Basis:
    """An eigenbasis of Z'RZ or Z'Z.

    Parameters
    ----------
    K
        Root of the matrix, K K' = Z'RZ, shape (q, r).
    left_inverse
        Its left inverse, transposed: Z'Ry = K u gives u = left_inverse' Z'Ry, shape (q, r).
    A
        K'G_iK for the parameters of D, shape (k, r, r).
    """

    K: FloatArray
    left_inverse: FloatArray
    A: FloatArray

    def on(self, example: Array) -> Basis:
        """The same in arrays like ``example``."""
        return Basis(*(like(array, example) for array in (self.K, self.left_inverse, self.A)))


@dataclass(frozen=True)
class Projection(InUnits):
    """Summary statistics projected off X and scaled.

    Parameters
    ----------
    n, p
        Samples and fixed effects.
    structure
        Random terms; k parameters of D.
    XX
        X'X, shape (p, p).
    whitening
        W with W'X'XW = I, shape (p, p); (X'X)^-1 = W W'.
    exact
        Whether W was found without X'X, which has then too few digits.
    log_det_XX
        log |X'X|.
    log_weights
        Sum of the logarithms of the samples' weights; half of it belongs to a log-likelihood.
    ZX
        Scaled Z'X, shape (q, p).
    ZZ
        Scaled Z'Z, sparse, shape (q, q).
    ZRy
        Scaled Z'Ry, shape (m, q).
    scale
        Residual variance of y on X, the unit of theta, shape (m,).
    column_scale
        Root mean square of the effects' columns of Z, shape (q,).
    param_scale
        What internal theta is multiplied by, besides ``scale``, to give theta; shape (k + 1,).
    beta_ols
        Least-squares coefficients of y, shape (p, m).
    rounding
        What rounding may leave of the sum of squares of a feature that X and Z explain, scaled
        (y'Ry is n - p), shape (m,).
    zero_variance, non_finite
        Features that X alone explains, or whose sums are not finite; each shape (m,).
    turn
        The coordinates of the random effects that Z and theta are in here, where they are not those
        of the design; to scale back means to turn back.
    roots
        How effects of the levels follow from those of ``structure`` where terms have known
        covariances between their levels; None where none has.
    origin
        The projection in numpy arrays that this one is a copy of; None for that one itself.
    """

    n: int
    p: int
    structure: CovarianceStructure
    XX: FloatArray
    whitening: FloatArray
    exact: bool
    log_det_XX: float
    log_weights: float
    ZX: FloatArray
    ZZ: sp.csr_array
    ZRy: FloatArray
    scale: FloatArray
    column_scale: FloatArray
    param_scale: FloatArray
    beta_ols: FloatArray
    rounding: FloatArray
    zero_variance: BoolArray
    non_finite: BoolArray
    turn: Turn | None = None
    roots: RootMap | None = None
    origin: Projection | None = None

    @property
    def in_numpy(self) -> Projection:
        """The projection in numpy arrays: itself, or what it was copied from."""
        return self if self.origin is None else self.origin

    def on(self, example: Array) -> Projection:
        """A copy in arrays of the library and on the device of ``example``; ZZ stays in scipy's."""
        origin = self.in_numpy
        moved = {name: like(getattr(origin, name), example) for name in _MOVED}
        return replace(origin, origin=origin, **moved)

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.scale.shape[0])

    @cached_property
    def H(self) -> FloatArray:
        """Scaled Z'X (X'X)^-1, shape (q, p)."""
        return (self.ZX @ self.whitening) @ self.whitening.T

    @cached_property
    def XX_inverse(self) -> FloatArray:
        """(X'X)^-1, shape (p, p)."""
        return self.whitening @ self.whitening.T

    @cached_property
    def basis(self) -> Basis:
        """Eigenbasis of the scaled Z'RZ."""
        if self.origin is not None:
            return self.origin.basis.on(self.scale)
        ZXW = self.ZX @ self.whitening
        return _make_basis(self.ZZ.toarray() - ZXW @ ZXW.T, self.structure)

    @cached_property
    def basis_full(self) -> Basis:
        """Eigenbasis of the scaled Z'Z."""
        if self.origin is not None:
            return self.origin.basis_full.on(self.scale)
        return _make_basis(self.ZZ.toarray(), self.structure)

    def apply_pseudoinverse(self, vectors: FloatArray) -> FloatArray:
        """(Z'RZ)^+ v for the rows of vectors (B, c, q), same shape."""
        left = self.basis.left_inverse
        return (vectors @ left) @ left.T

    @property
    def K(self) -> FloatArray:
        """Root of Z'RZ, shape (q, r)."""
        return self.basis.K

    @property
    def A(self) -> FloatArray:
        """K'G_iK for the parameters of D, shape (k, r, r)."""
        return self.basis.A

    @property
    def K_full(self) -> FloatArray:
        """Root of Z'Z, shape (q, r_full)."""
        return self.basis_full.K

    @property
    def A_full(self) -> FloatArray:
        """K'G_iK in the basis of Z'Z, shape (k, r_full, r_full)."""
        return self.basis_full.A

    @property
    def r(self) -> int:
        """Rank of Z'RZ."""
        return int(self.K.shape[1])

    @property
    def r_full(self) -> int:
        """Rank of Z'Z."""
        return int(self.K_full.shape[1])

    @cached_property
    def u(self) -> FloatArray:
        """Coordinates of Z'Ry in the basis, shape (m, r)."""
        return self.ZRy @ self.basis.left_inverse

    @cached_property
    def rss(self) -> FloatArray:
        """Scaled residual sums of squares of y on [X, Z], shape (m,)."""
        xp, df = namespace(self.scale), self.n - self.p
        zero: FloatArray = xp.zeros_like(self.scale)
        return zero if df == self.r else df - xp.vecdot(self.u, self.u)

    @cached_property
    def perfect_fit(self) -> BoolArray:
        """Features that X and Z together explain exactly, shape (m,)."""
        if self.n - self.p == self.r:
            return self.scale < 0
        return (self.rss <= self.rounding) & self.varies

    @property
    def varies(self) -> BoolArray:
        """Features that vary about X and whose sums are finite, shape (m,)."""
        return ~(self.zero_variance | self.non_finite)

    def prediction_units(self, features: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        """What rows of Z are divided by and weights of theta multiplied, for some features."""
        del features  # they share both
        return self.column_scale, self.param_scale


@dataclass(frozen=True)
class GroupedProjection(Projection):
    """A projection of samples whose groups have residual variances of their own.

    Parameters
    ----------
    groups
        The sums of each group.
    """

    groups: GroupSums | None = None

    @property
    def absent(self) -> BoolArray | None:
        """Which of theta are residual variances of groups without samples; None for none."""
        assert self.groups is not None
        lost = np.array([part.n == 0 for part in self.groups.parts])
        if not lost.any():
            return None
        return np.concatenate([np.zeros(len(self.structure.parameters), dtype=bool), lost])


def project_groups(stats: SummaryStats, scale: FloatArray | None = None) -> GroupedProjection:
    """Project statistics whose structure has a residual variance for each of their groups.

    ``scale``: units of the effects, shape (q,); those of the design by default.
    """
    stats, roots = in_roots(stats, by_group=True)
    structure = stats.structure
    # Given units: the effects stay as they are, and so do those of the groups.
    scale = scale_of_columns(stats.ZZ.diagonal(), structure) if scale is None else scale
    whole = project(stats, scale)
    units = np.concatenate([whole.param_scale, np.ones(len(structure.residuals) - 1)])
    fields = {name: getattr(whole, name) for name in whole.__match_args__}
    return GroupedProjection(
        **(fields | {"param_scale": units, "roots": roots}), groups=stats.groups
    )


def project(
    stats: SummaryStats, column_scale: FloatArray | None = None, *, known_residual: bool = False
) -> Projection:
    """Project summary statistics off X and check that the model can be fitted.

    Parameters
    ----------
    stats
        The statistics.
    column_scale
        Units of the effects, shape (q,); those of the design by default.
    known_residual
        Whether the residual variance is known: a component may then have a level per sample.

    Raises
    ------
    InputError
        If X has not full column rank, n <= p, a component lies in the span of X, or the
        variance components cannot be told apart.
    """
    stats, roots = in_roots(stats)
    n, p, structure = stats.n, stats.p, stats.structure
    check_sample_size(n, p)
    white = whiten(stats.XX, stats.XX_root, stats.coef_names)
    XY, ZY, yy, a = stats.centred()
    non_finite = ~(np.isfinite(XY).all(axis=0) & np.isfinite(ZY).all(axis=0) & np.isfinite(yy))
    if non_finite.any():
        XY, ZY, yy = XY.copy(), ZY.copy(), yy.copy()
        XY[:, non_finite], ZY[:, non_finite], yy[non_finite] = 0.0, 0.0, 0.0

    ZX, ZZ, turn = stats.ZX, stats.ZZ, None
    if column_scale is None:
        turn = centring(ZZ, structure)
        if turn is not None:
            ZX, ZY = turn.A.T @ ZX, turn.A.T @ ZY
            ZZ = sp.csr_array(turn.A.T @ ZZ @ turn.A)
        column_scale = scale_of_columns(ZZ.diagonal(), structure)
    ZX = ZX / column_scale[:, None]
    shrink = 1.0 / column_scale
    each = np.repeat(shrink, np.diff(ZZ.indptr)) * ZZ.data * shrink[ZZ.indices]
    # Copies: whoever sorts the indices of this matrix must not disorder the statistics' own.
    ZZ = sp.csr_array((each, ZZ.indices.copy(), ZZ.indptr.copy()), shape=ZZ.shape)
    ZXW = ZX @ white.W
    check_components(ZXW, ZXW, ZZ, n - p, structure, known_residual=known_residual)

    WXY = white.W.T @ XY
    yRy = yy - (WXY**2).sum(axis=0)
    rounding = max(ROUNDING, _EPS * white.amplification)
    floor = rounding * yy + (0.1 * ROUNDING) ** 2 * stats.yy
    zero_variance = ~non_finite & ((yRy <= floor) | (yRy < UNDERFLOW * (n - p)))
    units = parameter_scale(structure, column_scale)
    non_finite |= ~zero_variance & ~have_room(yRy / (n - p), units)
    scale = np.where(zero_variance | non_finite, 1.0, yRy / (n - p))
    ZRy = (ZY / column_scale[:, None] - ZXW @ WXY) / np.sqrt(scale)
    beta_ols = white.W @ WXY + a
    beta_ols[:, non_finite] = np.nan
    return Projection(
        n=n,
        p=p,
        structure=structure,
        XX=stats.XX,
        whitening=white.W,
        exact=stats.XX_root is not None,
        log_det_XX=white.log_det,
        log_weights=stats.log_weights,
        ZX=ZX,
        ZZ=ZZ,
        ZRy=np.ascontiguousarray(ZRy.T),
        scale=scale,
        column_scale=column_scale,
        param_scale=units,
        beta_ols=beta_ols,
        rounding=np.maximum(ROUNDING * (n - p), 2.0 * _EPS * white.amplification * yy / scale),
        zero_variance=zero_variance,
        non_finite=non_finite,
        turn=turn,
        roots=roots,
    )


def have_room(scale: FloatArray, units: FloatArray) -> BoolArray:
    """For which features variances in the units of Y are numbers with all their digits, (m,)."""
    with np.errstate(over="ignore", under="ignore"):
        least, most = scale * units.min(axis=-1), scale * units.max(axis=-1)
    return np.asarray((least > UNDERFLOW) & (most < _LARGEST))


def parameter_scale(structure: CovarianceStructure, column_scale: FloatArray) -> FloatArray:
    """What internal theta is multiplied by to give theta, but for the features' scale."""
    return np.array(
        [
            1.0 / (column_scale[rows[0]] * column_scale[columns[0]])
            for rows, columns in map(structure.columns, structure.parameters)
        ]
        + [1.0]
    )


def scale_of_columns(diagonal: FloatArray, structure: CovarianceStructure) -> FloatArray:
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


def _make_basis(gram: FloatArray, structure: CovarianceStructure) -> Basis:
    """Eigenbasis of a q x q matrix and the parameters' matrices in it."""
    if gram.shape[0] == 0:
        return Basis(gram, gram, np.empty((len(structure.parameters), 0, 0)))
    values, vectors = divide_and_conquer(gram, overwrite=True)
    keep = values > _RANK_TOLERANCE * max(float(values[-1]), 1.0)  # columns have mean square 1
    root = np.sqrt(values[keep])
    K = vectors[:, keep] * root
    products = np.empty((len(structure.parameters), K.shape[1], K.shape[1]))
    for i, parameter in enumerate(structure.parameters):
        rows, columns = structure.columns(parameter)
        if parameter.is_variance and rows.size == K.shape[0]:
            products[i] = np.diag(values[keep])  # the only component: K'K
            continue
        product = K[rows].T @ K[columns]
        products[i] = product if parameter.is_variance else product + product.T
    return Basis(K, vectors[:, keep] / root, products)
