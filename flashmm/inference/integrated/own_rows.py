"""What features with rows of their own say at every point of a grid of ratios, all at once.

Each feature has a V of its own at a grid point, but eliminating the blocks of a layout (see
`flashmm.likelihood.own_rows`) makes it products over all features. For one variance component of
blocks of one effect, all points are one product: with d_l = z_l'z_l and U_l = z_l'[X, y],

    [X, y]'V^-1 [X, y] = [X, y]'[X, y] - sum_l gamma / (1 + gamma d_l) U_l'U_l.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.inference.integrated.grid import RatioGrid
from flashmm.inference.integrated.shared import RatioEstimates
from flashmm.likelihood.elimination import small
from flashmm.likelihood.own_rows import elimination as el
from flashmm.likelihood.own_rows.own_rows import OwnRowsLikelihood, at_zero_ratios, within_samples

__all__ = ["OwnDesigns", "OwnPart"]

# Coefficients up to which matrices are factorised entry by entry.
_FEW = 6
# Determinants that are multiplied before a logarithm is taken.
_TOGETHER = 8


@dataclass(frozen=True)
class OwnPart:
    """Features with rows of their own; names as in `Part`.

    Parameters
    ----------
    likelihood
        Of the F features.
    members
        Where they are among all features, shape (F,).
    param_scale
        Units of their ratios, shape (F, k).
    known
        Features that can be tested, shape (F,).
    """

    likelihood: OwnRowsLikelihood
    members: IntArray
    param_scale: FloatArray
    known: BoolArray

    @property
    def structure(self) -> CovarianceStructure:
        """Random terms."""
        return self.likelihood.projection.structure

    @property
    def scale(self) -> FloatArray:
        """Units of the squares of each feature, shape (F,)."""
        return self.likelihood.projection.scale

    def within(self) -> tuple[FloatArray, FloatArray]:
        """Residual variances of y on [X, Z] in the units of Y and their df, shapes (F,)."""
        p = self.likelihood.projection
        rss, rank = within_samples(self.likelihood)
        df = p.designs.n - rank
        there = self.known & (df > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(there, rss * p.scale / df, np.nan), np.where(there, df, np.nan)

    def ratios(self, pooled: FloatArray) -> RatioEstimates:
        """Typical ratios and the features' estimates, in internal units; shapes (F, k).

        ``pooled``: residual variances in units of ``scale``, NaN where none are known, shape (F,).
        """
        trace, square, forms = at_zero_ratios(self.likelihood)
        typical, pooled = np.abs(trace) / square, pooled[:, None]
        estimate = forms / pooled / square
        return RatioEstimates(typical, estimate, trace * trace / square, self.param_scale)

    def on(self, grid: RatioGrid, memory: int) -> OwnDesigns:
        """The same with a grid of ratios."""
        del memory  # nothing is factorised ahead
        return OwnDesigns(self, grid)


@dataclass(frozen=True)
class OwnTurned:
    """The data and designs of B features at G points; sigma2 is one.

    Parameters
    ----------
    Q
        y'Py, shape (B, G).
    log_det
        log |V| + log |X'V^-1 X| up to a constant, shape (B, G).
    df
        n - p, shape (B,).
    unit
        Root of ``scale``, shape (B,).
    beta_ols
        Shape (B, p).
    whitening
        W with W'X'XW = I, shape (B, p, p).
    move
        W^-1 (beta - beta_ols) in units of ``unit``, shape (B, G, p).
    N
        (W'X'V^-1XW)^-1, shape (B, G, p, p).
    """

    Q: FloatArray
    log_det: FloatArray
    df: FloatArray
    unit: FloatArray
    beta_ols: FloatArray
    whitening: FloatArray
    move: FloatArray
    N: FloatArray


@dataclass(frozen=True)
class OwnFunctions:
    """c linear functions of beta.

    Parameters
    ----------
    X
        Their coefficients, shape (c, p).
    added
        What is added to their variances over sigma2, shape (c, G), or None.
    joint
        Whether covariances between them are wanted.
    """

    X: FloatArray
    added: FloatArray | None
    joint: bool


@dataclass(frozen=True)
class OwnDesigns:
    """Features with rows of their own, with a grid of ratios; names as in `SharedDesign`.

    Parameters
    ----------
    part
        The features.
    grid
        The ratios, in the units of Z.
    """

    part: OwnPart
    grid: RatioGrid

    @property
    def rank(self) -> int:
        """Numbers per function and point that functions keep: none."""
        return 0

    @property
    def data_size(self) -> int:
        """Numbers that the data of a feature take."""
        owner = self.part.likelihood
        layout, p = owner.layout, owner.projection.p
        w = layout.q2 + p + 1
        pieces = layout.L * layout.s * (w + layout.s) + w * w
        return self.grid.size * (layout.L + 3 * (p + 2) ** 2) + 4 * pieces

    def features(self, positions: IntArray) -> OwnTurned:
        """What the data and designs of features (B,) say at all points."""
        owner = self.part.likelihood
        p = owner.projection
        pieces = owner.pieces(positions)
        # gamma of each feature at each point, (B, G, k)
        ratios = self.grid.ratios / self.part.param_scale[positions][:, None, :]
        layout = owner.layout
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if layout.s == 1 and layout.q2 == 0 and ratios.shape[2] == 1:
                Q, log_det, move, N = _one_component(pieces, ratios[:, :, 0])
            else:
                Q, log_det, move, N = _point_by_point(owner, pieces, ratios)
        return OwnTurned(
            np.maximum(Q, 0.0),
            log_det,
            pieces.n - p.p,
            np.sqrt(p.scale[positions]),
            p.beta_ols[positions],
            p.whitening[positions],
            move,
            N,
        )

    def quadratic_forms(self, features: OwnTurned) -> FloatArray:
        """Q of B features, in units of their ``scale``, shape (B, G)."""
        return features.Q

    def log_dets(self, features: OwnTurned) -> FloatArray:
        """Log |V| + log |X'V^-1 X| up to a constant, shape (B, G)."""
        return features.log_det

    def degrees(self, features: OwnTurned) -> FloatArray:
        """Residual degrees of freedom n - p, shape (B,)."""
        return features.df

    def functions(
        self,
        X: FloatArray,
        Z: FloatArray | None = None,
        added: FloatArray | None = None,
        *,
        joint: bool = False,
    ) -> OwnFunctions:
        """Linear functions X beta; see `SharedDesign.functions`. Z must be None."""
        assert Z is None
        if added is not None:
            added = added @ np.hstack([self.grid.ratios, np.ones((self.grid.size, 1))]).T
        return OwnFunctions(X, added, joint)

    def covariance(self, functions: OwnFunctions, features: OwnTurned) -> FloatArray:
        """Variances over sigma2 (B, c, G), or covariances (B, c, c, G)."""
        XW = np.matmul(functions.X, features.whitening)[:, None]  # (B, 1, c, p)
        half = np.matmul(XW, features.N)
        if functions.joint:
            whole = np.matmul(half, np.swapaxes(XW, 2, 3))
            result = np.moveaxis(0.5 * (whole + np.swapaxes(whole, 2, 3)), 1, 3)
            if functions.added is not None:
                index = np.arange(XW.shape[2])
                result[:, index, index] += functions.added
            return np.asarray(result)
        result = np.swapaxes((half * XW).sum(axis=3), 1, 2)
        return np.asarray(result if functions.added is None else result + functions.added)

    def estimates(self, functions: OwnFunctions, features: OwnTurned) -> FloatArray:
        """Estimates of linear functions for B features, in the units of Y, shape (B, c, G)."""
        XW = np.matmul(functions.X, features.whitening)
        result: FloatArray = np.matmul(XW, np.swapaxes(features.move, 1, 2))
        result *= features.unit[:, None, None]
        result += (features.beta_ols @ functions.X.T)[:, :, None]
        return result


_Found = tuple["FloatArray", "FloatArray", "FloatArray", "FloatArray"]


def _one_component(pieces: el.Pieces, ratio: FloatArray) -> _Found:
    """Q, log determinants, moves and N of B features at their G ratios (B, G)."""
    d, U = pieces.d[:, 0, 0], pieces.U[:, :, 0]
    w = U.shape[1] - 1
    growth = 1.0 + ratio[:, :, None] * d[:, None, :]  # (B, G, L)
    firsts = np.arange(0, d.shape[1], _TOGETHER)
    log_det = np.log(np.multiply.reduceat(growth, firsts, axis=2)).sum(axis=2)
    np.divide(ratio[:, :, None], growth, out=growth)
    rows, columns = np.triu_indices(w + 1)
    outer = np.swapaxes(U[:, rows] * U[:, columns], 1, 2)
    S = pieces.FF[:, rows, columns][:, None] - np.matmul(growth, outer)  # (B, G, pairs)
    return _solved(np.ascontiguousarray(np.moveaxis(S, 2, 0)), w, log_det)


def _solved(S: FloatArray, p: int, log_det: FloatArray) -> _Found:
    """The same from the upper triangles (pairs, B, G) of [X, y]'V^-1 [X, y], row by row."""
    if p > _FEW:
        whole = np.empty((*S.shape[1:], p + 1, p + 1))
        for entry, (a, b) in zip(S, small.pairs(p + 1), strict=True):
            whole[..., a, b] = whole[..., b, a] = entry
        A, right = whole[..., :p, :p], whole[..., :p, p:]
        N = np.asarray(np.linalg.inv(A), dtype=np.float64)
        move = np.matmul(N, right)[..., 0]
        Q = whole[..., p, p] - (right[..., 0] * move).sum(axis=-1)
        return Q, log_det + np.linalg.slogdet(A)[1], move, N
    if p == 0:
        nothing = np.empty((*S.shape[1:], 0))
        return S[0], log_det, nothing, np.empty((*S.shape[1:], 0, 0))
    lower, pivots = small.factorise(list(S), p + 1)
    inverse = small.full(small.inverse_of_factors(lower[:p], pivots[:p]), p)
    c = [S[small.position(p + 1, a, p)] for a in range(p)]
    N = np.empty((*S.shape[1:], p, p))
    for a in range(p):
        for b in range(p):
            N[..., a, b] = inverse[a][b]
    move = np.stack(small.matvec(inverse, c), axis=-1)
    product = pivots[0]
    for pivot in pivots[1:p]:
        product = product * pivot
    return pivots[p], log_det + np.log(product), move, N


def _point_by_point(owner: OwnRowsLikelihood, pieces: el.Pieces, ratios: FloatArray) -> _Found:
    """The same for any layout and ratios (B, G, k)."""
    layout, p = owner.layout, owner.projection.p
    B, G, k = ratios.shape
    q2, w = layout.q2, layout.q2 + p
    Q, log_det = np.empty((B, G)), np.empty((B, G))
    move, N = np.empty((B, G, p)), np.empty((B, G, p, p))
    theta = np.ones((B, k + 1))
    for g in range(G):
        theta[:, :k] = ratios[:, g]
        blocks, _ = el.eliminate(layout, pieces, theta)
        border = el.solve_border(layout, blocks, p)
        load = blocks.S[:, :w, w:]
        found = np.matmul(border.Q, load)
        Q[:, g] = blocks.S[:, w, w] - (load * found).sum(axis=(1, 2))
        log_det[:, g] = blocks.log_det + border.log_det + border.log_det_X
        move[:, g], N[:, g] = found[:, q2:, 0], border.N
    return Q, log_det, move, N
