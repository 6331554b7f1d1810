"""Log-likelihood, score and informations of residual variances by group, block by block.

Formulas and names of `flashmm.likelihood.residual_groups.blocks`. With T = Z'PZ, tau_h = g't_h,
Y_h = (S_h g)_l and J_h = g'S_h g the sums over levels are, for parameters i, j of blocks,

    tr T G_i T G_j    = sum_l tr T_ll G_i T_ll G_j - tr X_l G_i X_l G_j + tr N_r Q_i N_r Q_j
                        with X_l = U_l N_r U_l', T_ll = W_l - X_l, Q_i = sum_l U_l'G_i U_l
    Z_l'P I_h P Z_l   = E_l S_h E_l' - E_l Y_h N_r U_l' - U_l N_r Y_h'E_l' + U_l N_r J_h N_r U_l'
                        with E_l = I - C_ll F_l, times 1 / sigma2_h^2
    tr N S_h          = sum_l tr F_l S_h + tr N_r J_h
    tr N S_h N S_g    = sum_l tr F_l S_h F_l S_g + 2 tr N_r Y_h'F_l Y_g + tr N_r J_h N_r J_g

and in the border, with M = I - K_r N_r, Z_b'PZ_b = M K_r and Z_b'P I_h P Z_b = M J_h M' likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.base import Evaluation, rounding_errors
from flashmm.likelihood.residual_groups.block_sums import Vectors
from flashmm.likelihood.residual_groups.blocks import BlockAt

__all__ = ["evaluated_by_block"]


def evaluated_by_block(at: BlockAt, s: FloatArray, yy: FloatArray, *, reml: bool) -> Evaluation:
    """Log-likelihood, score and informations.

    Parameters
    ----------
    at
        What theta (B, k + H) makes of the sums.
    s, yy
        A'I_h y, shape (B, H, q + p), and the sums of squares, shape (B, H).
    reml
        Whether to restrict the likelihood.
    """
    sums, c, n = at.sums, at.c, at.sums.n
    k, H, B = len(sums.entries), sums.H, c.shape[0]
    forms = _Forms.of(at, sums.split(s), yy)
    found = _traces(at, at.border.N if reml else at.border.N_ml)
    score, E, A = np.empty((B, k + H)), np.empty((B, k + H, k + H)), np.empty((B, k + H, k + H))
    score[:, :k] = forms.first - found.first
    score[:, k:] = c**2 * (forms.ee + found.NS) - c * n
    E[:, :k, :k], A[:, :k, :k] = found.second, forms.second
    E[:, :k, k:] = c[:, None] ** 2 * found.mixed
    A[:, :k, k:] = c[:, None] ** 2 * forms.mixed
    for information in (E, A):
        information[:, k:, :k] = np.swapaxes(information[:, :k, k:], 1, 2)
    c2 = c[:, :, None] ** 2 * c[:, None, :] ** 2
    E[:, k:, k:], A[:, k:, k:] = c2 * found.both, -c2 * forms.both
    each = np.arange(k, k + H)
    E[:, each, each] += c**2 * n - 2.0 * c**3 * found.NS
    A[:, each, each] += c**3 * forms.ee
    log_det = at.log_det - (n * np.log(c)).sum(axis=1)
    df = n.sum()
    if reml:
        df, log_det = df - at.K_inverse.shape[1], log_det + at.border.log_det_K
    loglik = -0.5 * (df * math.log(2.0 * math.pi) + log_det + forms.yPy)
    rounding = rounding_errors(int(n.sum()), at.theta[:, k:].min(axis=1))
    return Evaluation(loglik, 0.5 * score, 0.5 * E, 0.5 * A, rounding)


@dataclass(frozen=True)
class _Forms:
    """Forms of y: y'P V_i P y by D's parameters (B, k), e'I_h e (B, H), y'PV_iPV_jPy, y'Py.

    ``second`` (B, k, k); ``mixed`` (B, k, H), ``both`` (B, H, H) but for powers of the sigma2_h.
    """

    first: FloatArray
    ee: FloatArray
    second: FloatArray
    mixed: FloatArray
    both: FloatArray
    yPy: FloatArray

    @classmethod
    def of(cls, at: BlockAt, s: Vectors, yy: FloatArray) -> _Forms:
        """Of A'I_h y (s, B, H, L) and (B, H, w)."""
        sums, c, b = at.sums, at.c, at.sums.b
        total = Vectors(np.matmul(c[:, None], s.f), np.matmul(c[:, None], s.r))
        beta = at.times_N(total)
        fitted = sums.times_S(beta)
        t = Vectors(s.f - fitted.f[:, :, 0], s.r - fitted.r[:, 0])

        def along(v: Vectors) -> FloatArray:
            inner = (v.f * beta.f).sum(axis=(0, 3)) + (v.r * beta.r).sum(axis=2)
            return np.asarray(inner)

        explained = along(s)
        ee = yy - explained - along(t)
        r = Vectors(np.matmul(c[:, None], t.f), np.matmul(c[:, None], t.r)[..., :b])
        tau = at.g_times(t)
        Nt = Vectors(at.times_F(t.f), np.matmul(tau, at.border.N))
        both = (t.f[:, :, :, None] * Nt.f[:, :, None]).sum(axis=(0, 4))
        both += np.matmul(tau, Nt.r.swapaxes(1, 2))
        # A'P t and T G_i r, for A'P = I - C N
        Pt = at.less_CN(t)
        G = [Vectors(e.of_planes(r.f), e.of_border(r.r)) for e in sums.entries]
        k, B, H = len(G), c.shape[0], sums.H
        first, second = np.empty((B, k)), np.empty((B, k, k))
        mixed = np.empty((B, k, H))
        if k:
            Gf = np.concatenate([g.f for g in G], axis=2)
            Gr = np.concatenate([g.r for g in G], axis=1)
            first[:] = (r.f * Gf).sum(axis=(0, 3)) + (r.r * Gr).sum(axis=2)
            wide = np.concatenate([Gr, np.zeros((B, k, sums.w - b))], axis=2)
            TG = at.less_CN(at.times_C(Vectors(Gf, wide)))
            second[:] = np.einsum("ibkl,ibjl->bkj", Gf, TG.f)
            second += np.matmul(Gr, TG.r[..., :b].swapaxes(1, 2))
            mixed[:] = np.einsum("ibkl,ibhl->bkh", Gf, Pt.f)
            mixed += np.matmul(Gr, Pt.r[..., :b].swapaxes(1, 2))
        yPy = (c * (yy - explained)).sum(axis=1)
        return cls(first, ee, second, mixed, both, yPy)


@dataclass(frozen=True)
class _Traces:
    """tr T G_i (B, k); tr T G_i T G_j (B, k, k); tr N S_h (B, H); the mixed ones and those of N.

    ``mixed`` (B, k, H), ``both`` (B, H, H) but for powers of the sigma2_h.
    """

    first: FloatArray
    second: FloatArray
    NS: FloatArray
    mixed: FloatArray
    both: FloatArray


def _traces(at: BlockAt, N: FloatArray) -> _Traces:
    """With N_r (B, w, w) of P or of V^-1."""
    sums, b = at.sums, at.sums.b
    H, k, B = sums.H, len(sums.entries), at.c.shape[0]
    NS, both, J, Y = _by_groups(at, N)
    M, T_b = at.T_border(N)
    P_b = np.matmul(np.matmul(M[:, None], J), M.swapaxes(1, 2)[:, None])[..., :b, :b]
    first, second, mixed = np.zeros((B, k)), np.zeros((B, k, k)), np.zeros((B, k, H))
    UN = np.matmul(at.U, N[None])
    E, T, X = at.T_blocks(N)
    own = [i for i, entries in enumerate(sums.entries) if entries.blocks]
    outer = [i for i, entries in enumerate(sums.entries) if entries.border]
    turned, moved, shared = {}, {}, {}
    for i in own:
        entries = sums.entries[i]
        turned[i], moved[i] = (entries.of_planes(part.swapaxes(0, 1)) for part in (T, X))
        first[:, i] += np.trace(turned[i]).sum(axis=1)
        GU = entries.of_planes(at.U.swapaxes(2, 3)).swapaxes(2, 3)
        shared[i] = np.matmul(at.U.swapaxes(2, 3), GU).sum(axis=0)  # Q_i
    border = {i: sums.entries[i].of_border(T_b) for i in outer}
    for i in outer:
        first[:, i] += np.trace(border[i], axis1=1, axis2=2)
    NQ = {i: np.matmul(N, shared[i]) for i in own}
    MQM = {i: np.matmul(np.matmul(M, shared[i]), M.swapaxes(1, 2))[:, :b, :b] for i in own}
    for i in own:
        for j in own[: own.index(i) + 1]:
            value = np.einsum("ijbl,jibl->b", turned[i], turned[j])
            value -= np.einsum("ijbl,jibl->b", moved[i], moved[j])
            value += (NQ[i] * NQ[j].swapaxes(1, 2)).sum(axis=(1, 2))
            second[:, i, j] += value
            if i != j:
                second[:, j, i] += value
        for j in outer:
            value = np.trace(sums.entries[j].of_border(MQM[i]), axis1=1, axis2=2)
            second[:, i, j] += value
            second[:, j, i] += value
    for i in outer:
        for j in outer:
            second[:, i, j] += (border[i] * border[j].swapaxes(1, 2)).sum(axis=(1, 2))
    if own:
        EY = np.einsum("ijbl,jbhlw->ibhlw", E, Y)
        UNJ = np.matmul(UN[:, :, None], J[None])
        half = UN[:, :, None]
        ES = np.einsum("ijbl,jkhl->ikbhl", E, sums.S_ff)
        for i, j in sorted({(x, y) for e in sums.entries for x, y, _ in e.blocks}):
            plane = np.einsum("kbhl,kbl->bhl", ES[i], E[j])
            plane -= (EY[i] * half[j]).sum(axis=3) + (EY[j] * half[i]).sum(axis=3)
            plane += (UNJ[i] * half[j]).sum(axis=3)
            for at_i, entries in enumerate(sums.entries):
                for x, y, mask in entries.blocks:
                    if (x, y) == (i, j):
                        mixed[:, at_i] += (plane if mask is None else plane * mask).sum(axis=2)
    for i in outer:
        mixed[:, i] += np.trace(sums.entries[i].of_border(P_b), axis1=2, axis2=3)
    return _Traces(first, second, NS, mixed, both)


def _by_groups(at: BlockAt, N: FloatArray) -> tuple[FloatArray, ...]:
    """Tr N S_h (B, H), tr N S_h N S_g (B, H, H), J_h (B, H, w, w) and Y_h (s, B, H, L, w)."""
    sums = at.sums
    s, L, w, H, B = sums.s, sums.L, sums.w, sums.H, at.c.shape[0]
    S_ff, S_fr = sums.S_ff, sums.S_fr
    Y = np.empty((s, B, H, L, w))
    for i in range(s):
        Y[i] = S_fr[i]
        for j in range(s):
            Y[i] -= S_ff[i, j][:, :, None] * at.H[j][:, None]
    J = np.broadcast_to(sums.S_rr, (B, H, w, w)).copy()
    for i in range(s):
        turned = at.H[i].swapaxes(1, 2)[:, None]  # (B, 1, w, L)
        J -= np.matmul(S_fr[i].swapaxes(1, 2), at.H[i][:, None])
        J -= np.matmul(turned, Y[i])
    J = 0.5 * (J + J.swapaxes(2, 3))
    NJ = np.matmul(N[:, None], J)
    NS = np.trace(NJ, axis1=2, axis2=3)
    FS = np.einsum("ijbl,jkhl->ikbhl", at.F, S_ff)
    for i in range(s):
        NS = NS + FS[i, i].sum(axis=2)
    both = np.matmul(NJ.reshape(B, H, w * w), NJ.swapaxes(2, 3).reshape(B, H, w * w).swapaxes(1, 2))
    for i in range(s):
        for j in range(s):
            both += np.matmul(FS[i, j], FS[j, i].swapaxes(1, 2))
    FY = np.einsum("ijbl,jbhlw->ibhlw", at.F, Y)
    YN = np.matmul(Y, N[None, :, None])
    for i in range(s):
        both += 2.0 * np.matmul(
            YN[i].reshape(B, H, L * w), FY[i].reshape(B, H, L * w).swapaxes(1, 2)
        )
    return NS, both, J, Y
