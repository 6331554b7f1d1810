"""Elimination of blocks and border from V, for a batch of features.

V_F = sigma2 I + Z_F D_F Z_F' falls into the finest blocks, V_1 = V_F + Z_2 D_2 Z_2' into the coarse
ones, and V = V_1 + Z_z D_z Z_z'. With A = [O_2, W] as in `flashmm.likelihood.layout`,

    P = V_F^-1 - V_F^-1 A N_A A'V_F^-1,   N_A = blockdiag(G, 0) + R N R',   R = [-K; I]

where K = G O_2'V_F^-1 W, and N is w x w. Nothing of size q x q is formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashmm.arrays import Array, cholesky, like, namespace
from flashmm.likelihood import small
from flashmm.likelihood.base import SINGULAR

if TYPE_CHECKING:
    from flashmm.likelihood.layout import Blocks, Layout
    from flashmm.likelihood.small import Matrix, Symmetric

__all__ = ["Border", "Coarse", "Eliminated", "block_times", "eliminate", "eliminate_border"]


@dataclass(frozen=True)
class Coarse:
    """The coarse blocks when the finest are gone; planes of shape (L2, B).

    Parameters
    ----------
    S, G, T
        O_2'V_F^-1O_2, (D^-1 + S)^-1 and (S^-1 + D)^-1 of each block.
    H
        (I + S D)^-1, so that O_2'V_1^-1 = H O_2'V_F^-1.
    coupling
        O_2'V_F^-1W, shape (B, q_c, w).
    K, E
        G and H times the coupling, shape (B, q_c, w).
    """

    S: Symmetric
    G: Symmetric
    T: Symmetric
    H: Matrix
    coupling: Array
    K: Array
    E: Array


@dataclass(frozen=True)
class Eliminated:
    """A batch of features when the blocks are gone.

    Parameters
    ----------
    theta
        Shape (B, k); harmless values where the blocks are not positive definite.
    inverse
        F_l^-1 = O_l'V_F^-1O_l of the finest blocks, planes of shape (L, B).
    coarse
        None without coarse blocks.
    S
        W'V_F^-1W and W'V_1^-1W, shape (B, w, w) each.
    log_det
        log |V_1|, shape (B,).
    distance
        To the edge, about smallest over largest eigenvalue, -1 beyond it, shape (B,).
    """

    theta: Array
    inverse: Symmetric
    coarse: Coarse | None
    S_fine: Array
    S: Array
    log_det: Array
    distance: Array


@dataclass(frozen=True)
class Border:
    """A batch of features when the border is gone too.

    Parameters
    ----------
    N
        P = V_1^-1 - V_1^-1 W N W'V_1^-1, shape (B, w, w).
    K
        Z_z'P = K'W'V_1^-1, shape (B, w, q_z).
    T
        Z_z'PZ_z, shape (B, q_z, q_z).
    log_det
        log |X'V_1^-1X| if X is eliminated, and of the border's own factor, shape (B,).
    distance
        As in `Eliminated`.
    """

    N: Array
    K: Array
    T: Array
    log_det: Array
    distance: Array


def planes(blocks: Blocks, bases: Array, theta: Array) -> Symmetric:
    """sum_i theta_i basis_i of every block, planes of shape (L, B)."""
    xp = namespace(theta)
    k, count, L = bases.shape
    if k == 0:
        return [xp.zeros_like(theta[:, 0])[None, :] * like([[0.0]] * L, theta)] * count
    weights = xp.stack([theta[:, i] for i in blocks.parameters])
    flat = xp.matmul(xp.permute_dims(xp.reshape(bases, (k, count * L)), (1, 0)), weights)
    return [flat[i * L : (i + 1) * L, :] for i in range(count)]


def block_times(matrix: Matrix, values: Array) -> Array:
    """Each coarse block's matrix times its rows of values (B, q_c, c), shape (B, q_c, c)."""
    xp = namespace(values)
    s, L = len(matrix), values.shape[1] // len(matrix)
    parts = [values[:, b * L : (b + 1) * L, :] for b in range(s)]
    turned = [[xp.permute_dims(plane, (1, 0))[:, :, None] for plane in row] for row in matrix]
    rows = [small.matvec([row], parts)[0] for row in turned]
    return rows[0] if s == 1 else xp.concat(rows, axis=1)


def eliminate(layout: Layout, theta: Array, n: int) -> Eliminated:
    """Eliminate the blocks from V at theta (B, k); n samples."""
    xp, fine = namespace(theta), layout.fine
    safe = xp.zeros_like(theta)
    safe[:, -1] = 1.0
    outside = xp.zeros_like(theta[:, 0], dtype=xp.bool)
    while True:  # at most three times: once more for each kind of block beyond its domain
        F = planes(fine, like(fine.bases, theta), theta)
        diagonal = [small.position(fine.s, a, a) for a in range(fine.s)]
        F = [plane + theta[:, -1] if i in diagonal else plane for i, plane in enumerate(F)]
        lower, pivots = small.factorise(F, fine.s)
        distance = _distance(pivots)
        log_det = _log_det(pivots) if not bool(xp.any(beyond := ~(distance > SINGULAR))) else None
        if log_det is not None:
            inverse = small.inverse_of_factors(lower, pivots)
            packed = layout.sums(inverse) + like(layout.base, theta)[:, None] / theta[:, -1]
            S_fine = S = layout.border_of(packed)
            coarse = None
            if layout.coarse.L:
                coarse, more, near = _eliminate_coarse(layout, packed, theta)
                ...
    ...
