"""The algebra of residual variances by group where features have rows of their own.

With c_h = 1 / sigma2_h, R the residual covariance and A = [Z_1, F], F = [Z_2, X] as in
`flashmm.likelihood.own_rows.elimination`, whose formulas hold for sums weighted by c_h and a
residual variance of one:

    V_1^-1 F = R^-1 A G          G = [-M; I],  M = N_1 Z_1'R^-1F,  N_1 = D_1 E
    P        = R^-1 - R^-1 A (N_1 + G Q G') A'R^-1

Of a group h they take Y_h = Z_1'I_h A G = U_h - d_h M and J_h = G'A'I_h A G, of the border's size,
with y a further column, P y = R^-1 A G psi:

    y'P I_h P y          = c_h^2 psi'J_h psi
    y'P I_h P I_g P y    = [h = g] c_h^3 psi'J_h psi
                           - c_h^2 c_g^2 ((Y_h psi)'N_1 Y_g psi + (J_h psi)'Q J_g psi)
    tr(N A'I_h A)        = tr(N_1 d_h) + tr(Q J_h)
    tr(N A'I_hA N A'I_gA) = tr(N_1 d_h N_1 d_g) + 2 tr(Q Y_h'N_1 Y_g) + tr(Q J_h Q J_g)
    Z_1'P I_h R P y / c_h^2 = E Y_h psi - R_1 Q J_h psi,  with R_1 = E Z_1'R^-1F
    Z_2'P I_h R P y / c_h^2 = Phi'J_h psi,                with Phi = [I; 0] - Q S_2

so that the work of a feature is that of products of Y_h: the number of groups times what one
residual variance takes. Q stands for V^-1 in the place of P where it is that of Z_2 alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.own_rows import elimination as el
from flashmm.likelihood.own_rows import forms as fo
from flashmm.likelihood.own_rows.group_pieces import GroupPieces
from flashmm.likelihood.own_rows.layout import OwnLayout

__all__ = ["GroupTraces", "GroupsAt"]


@dataclass(frozen=True)
class GroupTraces:
    """tr N A'I_hA, (B, H); of products of two, (B, H, H); tr(G_i Z'P I_h P Z) / c_h^2, (B, k, H).

    N is that of P, or of V^-1.
    """

    alone: FloatArray
    pairs: FloatArray
    mixed: FloatArray


@dataclass(frozen=True)
class GroupsAt:
    """What theta makes of the pieces of B features.

    Parameters
    ----------
    layout, pieces
        Of the features.
    c
        1 / sigma2_h, shape (B, H).
    blocks, effects, border
        Of the weighted sums, whose residual variance is one.
    E
        Inverses of I + d_l D_1, shape (B, s, s, L).
    N1
        D_1 E, shape (B, s, s, L).
    Y
        Shape (B, H, w + 1, s, L), y last.
    J
        Shape (B, H, w + 1, w + 1).
    psi
        Shape (B, w + 1).
    """

    layout: OwnLayout
    pieces: GroupPieces
    c: FloatArray
    blocks: el.Eliminated
    effects: el.Effects
    border: el.Border
    E: FloatArray
    N1: FloatArray
    Y: FloatArray
    J: FloatArray
    psi: FloatArray

    @classmethod
    def of(cls, layout: OwnLayout, pieces: GroupPieces, theta: FloatArray, p: int) -> GroupsAt:
        """At theta (B, k + H), with p fixed effects."""
        (B, H), s = pieces.n.shape, layout.s
        c = 1.0 / theta[:, -H:]
        one = np.ones(B)
        D = np.concatenate([theta[:, :-H], one[:, None]], axis=1)
        sums = pieces.weighted(c)
        D1 = el.covariance_of_blocks(layout, D)
        if layout.L:
            E, log_det, lowest, highest, negative = el.inverses(sums.d, D1, one)
        else:
            E, log_det, lowest, highest, negative = sums.d, 0.0 * one, one, one, 0.0 * one
        R = el.times(E, sums.U)
        M = el.times(D1[..., None], R)
        S = sums.FF - el.inner(sums.U, M)
        S = 0.5 * (S + np.swapaxes(S, 1, 2))
        blocks = el.Eliminated(D, D1, S, log_det, lowest, highest, negative)
        effects = el.Effects(el.times(E, sums.d), R)
        border = el.solve_border(layout, blocks, p)
        N1 = D1[..., None] * E if s == 1 else np.einsum("bae,bekl->bakl", D1, E)
        Y = pieces.U - _blockwise(pieces.d, M)
        w = S.shape[1]
        turned = np.swapaxes(M.reshape(B, 1, w, -1), 2, 3)
        both = pieces.U.reshape(B, H, w, -1) + Y.reshape(B, H, w, -1)
        J = np.matmul(0.5 * both, turned)
        J = pieces.FF - (J + np.swapaxes(J, 2, 3))
        phi = np.matmul(border.Q, S[:, : w - 1, w - 1 :])
        psi = np.concatenate([-phi, np.ones((B, 1, 1))], axis=1)[:, :, 0]
        return cls(layout, pieces, c, blocks, effects, border, E, N1, Y, J, psi)

    @property
    def H(self) -> int:
        """Number of groups."""
        return int(self.c.shape[1])

    def log_det(self, *, reml: bool) -> FloatArray:
        """Log |V|, and log |X'V^-1X| too under REML, shape (B,)."""
        value = self.blocks.log_det + self.border.log_det
        value = value - (self.pieces.n * np.log(np.abs(self.c))).sum(axis=1)
        return np.asarray(value + self.border.log_det_X if reml else value)

    def along(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Y_h x and J_h x for columns x (B, w + 1, r): (B, H, r, s, L) and (B, H, r, w + 1)."""
        B, H, w, s, L = self.Y.shape
        turned = np.swapaxes(x, 1, 2)[:, None]  # (B, 1, r, w + 1)
        Yx = np.matmul(turned, self.Y.reshape(B, H, w, s * L))
        return Yx.reshape(B, H, x.shape[2], s, L), np.matmul(turned, self.J)

    def into_Z(self, Yx: FloatArray, Jx: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Z'P I_h R P y / c_h^2 and its like from `along`'s: of Z_1 and of Z_2.

        Shapes (B, H, r, s, L) and (B, H, r, q2).
        """
        (B, H, r, s, L), Q = Yx.shape, self.border.Q
        w, q2 = self.psi.shape[1] - 1, self.layout.q2
        flat = Jx[..., :w].reshape(B, H * r, w)
        R = np.ascontiguousarray(self.effects.R[:, :w])
        inside = el.times(self.E, Yx.reshape(B, H * r, s, L))
        inside = inside - el.combined(np.matmul(flat, Q), R)
        Phi = self.phi_of(Q)
        outer = np.matmul(flat, Phi)
        return inside.reshape(B, H, r, s, L), outer.reshape(B, H, r, q2)

    def phi_of(self, Q: FloatArray) -> FloatArray:
        """[I; 0] - Q S_2, shape (B, w, q2)."""
        return fo.coupling(self.blocks.S, Q, self.layout.q2)[0]

    def between(self, Yx: FloatArray, Jx: FloatArray) -> FloatArray:
        """(Y_h x)'N_1 (Y_g x) + (J_h x)'Q (J_g x), shape (B, H r, H r)."""
        B, H, r, s, L = Yx.shape
        flat, w = Yx.reshape(B, H * r, s, L), self.psi.shape[1] - 1
        Jf = Jx[..., :w].reshape(B, H * r, w)
        found = np.matmul(np.matmul(Jf, self.border.Q), np.swapaxes(Jf, 1, 2))
        return np.asarray(el.inner(flat, el.times(self.N1, flat)) + found)

    def traces(self, Q: FloatArray, k: int) -> GroupTraces:
        """Of the N of Q, for k parameters of D."""
        B, H, w, s, L = self.Y.shape
        w = w - 1
        YF, JF = self.Y[:, :, :w], self.J[:, :, :w, :w]
        QJ = np.matmul(Q[:, None], JF)
        if s == 1:
            Nd = (self.N1[:, None] * self.pieces.d).reshape(B, H, L)
            alone, turned = Nd.sum(axis=2), Nd
        else:
            Nd = np.einsum("bael,bhekl->bhakl", self.N1, self.pieces.d)
            alone = np.einsum("bhaal->bh", Nd)
            turned = np.swapaxes(Nd, 2, 3).reshape(B, H, -1)
            Nd = Nd.reshape(B, H, -1)
        alone = alone + np.trace(QJ, axis1=2, axis2=3)
        pairs = np.matmul(Nd, np.swapaxes(turned, 1, 2))
        flat = QJ.reshape(B, H, w * w)
        across = np.swapaxes(QJ, 2, 3).reshape(B, H, w * w)
        pairs = pairs + np.matmul(flat, np.swapaxes(across, 1, 2))
        if L and w:
            NY = el.times(self.N1, YF.reshape(B, H * w, s, L)).reshape(B, H, -1)
            QY = np.matmul(Q[:, None], YF.reshape(B, H, w, s * L)).reshape(B, H, -1)
            pairs = pairs + 2.0 * np.matmul(NY, np.swapaxes(QY, 1, 2))
        return GroupTraces(alone, pairs, self._mixed(Q, YF, JF, k))

    def _mixed(self, Q: FloatArray, YF: FloatArray, JF: FloatArray, k: int) -> FloatArray:
        """tr(G_i Z'P I_h P Z) / c_h^2, shape (B, k, H)."""
        layout = self.layout
        (B, H, w, s), q2 = YF.shape[:4], layout.q2
        flat_J, result = JF.reshape(B, H, -1), np.zeros((B, k, H))
        if layout.fine_params:
            W = el.combined(Q, np.ascontiguousarray(self.effects.R[:, :w]))
            turned = np.swapaxes(self.E, 1, 2)
            flat_Y, flat_d = YF.reshape(B, H, -1), self.pieces.d.reshape(B, H, -1)
            for i, pairs in layout.fine_params:
                GW, GE = el.joined(pairs, W), _joined_rows(pairs, self.E)
                Omega = el.inner(W, GW)
                X = el.times(turned, GW)
                Xi = turned * GE if s == 1 else np.einsum("beal,bakl->bekl", turned, GE)
                result[:, i] = np.matmul(flat_J, Omega.reshape(B, -1, 1))[:, :, 0]
                result[:, i] -= 2.0 * np.matmul(flat_Y, X.reshape(B, -1, 1))[:, :, 0]
                result[:, i] += np.matmul(flat_d, Xi.reshape(B, -1, 1))[:, :, 0]
        if q2:
            Phi = self.phi_of(Q)
            for i, ones in layout.border_params:
                Omega = np.zeros((B, w, w))
                for rows, columns in ones:
                    Omega += np.matmul(Phi[:, :, rows], np.swapaxes(Phi[:, :, columns], 1, 2))
                result[:, i] = np.matmul(flat_J, Omega.reshape(B, -1, 1))[:, :, 0]
        return result

    def effects_of_y(self) -> tuple[FloatArray, FloatArray]:
        """Z'P y of Z_1 and of Z_2, shapes (B, s, L) and (B, q2)."""
        inside = el.combined(self.psi[:, None], self.effects.R)[:, 0]
        outer = np.matmul(self.blocks.S[:, : self.layout.q2], self.psi[:, :, None])[:, :, 0]
        return inside, outer


def _blockwise(d: FloatArray, M: FloatArray) -> FloatArray:
    """d_h M for blocks d (B, H, s, s, L) and M (B, w, s, L), shape (B, H, w, s, L)."""
    B, H, s, _, L = d.shape
    if s == 1:
        return np.asarray(d[:, :, 0, :, None].swapaxes(2, 3) * M[:, None])
    result = np.empty((B, H, M.shape[1], s, L))
    for a in range(s):
        np.multiply(d[:, :, a, None, 0], M[:, None, :, 0], out=result[:, :, :, a])
        for b in range(1, s):
            result[:, :, :, a] += d[:, :, a, None, b] * M[:, None, :, b]
    return result


def _joined_rows(pairs: tuple[tuple[int, int], ...], E: FloatArray) -> FloatArray:
    """G E for the blocks (B, s, s, L) and the symmetric g whose ones are ``pairs``."""
    result = np.zeros_like(E)
    for a, b in pairs:
        result[:, a] += E[:, b]
    return result
