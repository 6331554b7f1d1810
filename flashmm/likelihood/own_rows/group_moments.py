"""How variances of hypotheses depend on theta where groups have residual variances of their own.

With V^-1 X C L' = V_1^-1 F x, x = Q_x L' of the columns of Q that are X's, and the matrices of
`flashmm.likelihood.own_rows.group_algebra`, the derivative of L C L' by sigma2_h is
c_h^2 x'J_h x, and Kenward and Roger's (1997) L C (Q_ij - P_i C P_j) C L' is for two groups

    [h = g] c_h^3 x'J_h x - c_h^2 c_g^2 ((Y_h x)'N_1 Y_g x + (J_h x)'Q J_g x).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import ContrastMoments
from flashmm.likelihood.own_rows import elimination as el
from flashmm.likelihood.own_rows.group_algebra import GroupsAt
from flashmm.likelihood.own_rows.own_rows import applied_T

__all__ = ["group_moments"]


def group_moments(
    at: GroupsAt, LW: FloatArray, k: int, q: int, *, adjustment: bool
) -> ContrastMoments:
    """The moments of hypotheses LW (B, g, r, p) on the whitened X.

    ``k`` parameters of D, whose effects are ``q``.
    """
    parts = _Parts.of(at, LW)
    B, g, r = LW.shape[:3]
    H = at.H
    variance = np.matmul(np.matmul(LW, at.border.N[:, None]), np.swapaxes(LW, 2, 3))
    gradient = np.empty((B, g, k + H, r, r))
    for i, fine, Gw in parts.turned:
        own = parts.inside if fine else parts.outer
        gradient[:, :, i] = _by(parts.each(Gw), parts.each(own))
    c2 = (at.c**2)[:, None, :, None, None]
    gradient[:, :, k:] = c2 * parts.xJx
    if not adjustment:
        return ContrastMoments(variance, gradient, None)
    second = np.empty((B, g, k + H, k + H, r, r))
    inside, outer = at.into_Z(parts.Yx, parts.Jx)  # (B, H, g r, s, L), (B, H, g r, q2)
    layout = at.layout
    for i, fine, Gw in parts.turned:
        full = np.zeros((B, g * r, q))
        full[:, :, layout.fine.T if fine else layout.border] = Gw
        TG = applied_T(layout, at.blocks, at.effects, at.border, full)
        for j, other, Gv in parts.turned:
            part = TG[:, :, layout.fine.T if other else layout.border]
            second[:, :, i, j] = _by(parts.each(part), parts.each(Gv))
        own = (inside if fine else outer).reshape(B, H, g, r, -1).swapaxes(1, 2)
        mixed = c2 * _by(parts.each(Gw)[:, :, None], own)
        second[:, :, i, k:] = mixed
        second[:, :, k:, i] = np.swapaxes(mixed, -1, -2)
    _put_groups(second, at, parts, k)
    return ContrastMoments(variance, gradient, second)


def _put_groups(second: FloatArray, at: GroupsAt, parts: _Parts, k: int) -> None:
    """Put what two groups make of Kenward and Roger's term in its place."""
    (B, H, _, s, L), (g, r) = parts.Yx.shape, parts.shape
    c, c2 = at.c, (at.c**2)[:, None, :, None, None]
    NY = el.times(at.N1, parts.Yx.reshape(B, H * g * r, s, L))
    NY = NY.reshape(B, H, g, r, -1).swapaxes(1, 2)
    Yf = parts.Yx.reshape(B, H, g, r, -1).swapaxes(1, 2)
    JQ = np.matmul(parts.by_group, at.border.Q[:, None, None])
    for h in range(H):
        across = _by(Yf[:, :, h, None], NY) + _by(parts.by_group[:, :, h, None], JQ)
        second[:, :, k + h, k:] = -c2[:, :, h, None] * c2 * across
        second[:, :, k + h, k + h] += c[:, None, h, None, None] ** 3 * parts.xJx[:, :, h]


def _by(left: FloatArray, right: FloatArray) -> FloatArray:
    return np.asarray(np.matmul(left, np.swapaxes(right, -1, -2)))


@dataclass(frozen=True)
class _Parts:
    """What the moments of g hypotheses of r contrasts share.

    Parameters
    ----------
    shape
        g and r.
    inside, outer
        Z_1'V^-1 X C L' (B, g r, s, L), and that of Z_2 (B, g r, q2).
    turned
        For each parameter of D its position, whether it is of Z_1, and G_i times the former.
    Yx, Jx
        Shapes (B, H, g r, s, L) and (B, H, g r, w + 1).
    by_group, xJx
        J_h x (B, g, H, r, w) and x'J_h x (B, g, H, r, r).
    """

    shape: tuple[int, int]
    inside: FloatArray
    outer: FloatArray
    turned: list[tuple[int, bool, FloatArray]]
    Yx: FloatArray
    Jx: FloatArray
    by_group: FloatArray
    xJx: FloatArray

    @classmethod
    def of(cls, at: GroupsAt, LW: FloatArray) -> _Parts:
        """For hypotheses LW (B, g, r, p)."""
        layout = at.layout
        (B, g, r, p), q2, w = LW.shape, layout.q2, at.psi.shape[1] - 1
        flat = LW.reshape(B, g * r, p)
        x = np.matmul(at.border.Q[:, :, q2:], np.swapaxes(flat, 1, 2))  # (B, w, g r)
        whole = np.concatenate([x, np.zeros((B, 1, g * r))], axis=1)
        Yx, Jx = at.along(whole)
        rows = np.swapaxes(x, 1, 2)
        inside = el.combined(rows, np.ascontiguousarray(at.effects.R[:, :w]))
        outer = np.matmul(rows, at.blocks.S[:, :w, :q2])
        turned = [(i, True, el.joined(pairs, inside)) for i, pairs in layout.fine_params]
        for i, ones in layout.border_params:
            Gw = np.zeros_like(outer)
            for a, b in ones:  # a row may have several partners
                np.add.at(Gw.transpose(2, 0, 1), a, outer[:, :, b].transpose(2, 0, 1))
            turned.append((i, False, Gw))
        by_group = np.swapaxes(Jx[..., :w].reshape(B, at.H, g, r, w), 1, 2)
        xJx = _by(rows.reshape(B, g, 1, r, w), by_group)
        return cls((g, r), inside, outer, turned, Yx, Jx, by_group, xJx)

    def each(self, values: FloatArray) -> FloatArray:
        """(B, g r, ...) as (B, g, r, everything else)."""
        return values.reshape(values.shape[0], *self.shape, -1)
