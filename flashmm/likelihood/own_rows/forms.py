"""Quadratic forms and traces of features with rows of their own, the blocks being eliminated.

Sums over the blocks of products of R (see `flashmm.likelihood.own_rows.elimination`) and matrices
of the border's size make up the derivatives of the likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.likelihood.base import Forms
from flashmm.likelihood.own_rows.elimination import (
    Border,
    Effects,
    Eliminated,
    inner,
    joined,
    times,
)
from flashmm.likelihood.own_rows.layout import OwnLayout

__all__ = ["Products", "coupling", "products", "quadratic_forms", "traces"]


@dataclass(frozen=True)
class Products:
    """Sums over blocks of products of R, for the parameters i <= j of the blocks.

    Parameters
    ----------
    M
        R'G_i R, each (B, w + 1, w + 1).
    K
        R'G_i t G_j R, each (B, w + 1, w + 1).
    first
        tr(G_i t), each (B,).
    second
        tr(G_i t G_j t), each (B,).
    """

    M: list[FloatArray]
    K: dict[tuple[int, int], FloatArray]
    first: list[FloatArray]
    second: dict[tuple[int, int], FloatArray]


def products(layout: OwnLayout, effects: Effects) -> Products:
    """The sums over blocks that traces and quadratic forms share."""
    R, t = effects.R, effects.t
    pairs = [pairs for _, pairs in layout.fine_params]
    GR = [joined(one, R) for one in pairs]
    Gt = [joined(one, t) for one in pairs]
    M, K, first = [], {}, []
    second: dict[tuple[int, int], FloatArray] = {}
    for i, mine in enumerate(GR):
        M.append(inner(R, mine))
        first.append(np.einsum("bssl->b", Gt[i]))
        tGR = times(t, mine)
        for j in range(i + 1):
            K[j, i] = inner(GR[j], tGR)
            second[j, i] = np.einsum("bacl,bcal->b", Gt[j], Gt[i])
    return Products(M, K, first, second)


def quadratic_forms(
    layout: OwnLayout,
    blocks: Eliminated,
    border: Border,
    found: Products,
    coupled: tuple[FloatArray, FloatArray] | None = None,
) -> Forms:
    """y'Py, y'P V_i P y and y'P V_i P V_j P y; the residual last.

    ``coupled`` is the `coupling` of the border, if it is known.
    """
    S = blocks.S
    w, q2, theta = S.shape[1] - 1, layout.q2, blocks.theta
    B, k = theta.shape
    phi = np.matmul(border.Q, S[:, :w, w:])
    psi = np.concatenate([-phi, np.ones((B, 1, 1))], axis=1)  # P y = V_1^-1 [F, y] psi
    value = np.matmul(S[:, w:, :], psi)[:, 0, 0]
    first, second = np.zeros((B, k)), np.zeros((B, k, k))
    loads = []  # F'V_1^-1 Z_1 G_i r_1 of the blocks' parameters, (B, w, 1)
    for (i, _), M in zip(layout.fine_params, found.M, strict=True):
        Mpsi = np.matmul(M, psi)
        first[:, i] = np.matmul(np.swapaxes(psi, 1, 2), Mpsi)[:, 0, 0]
        loads.append(Mpsi[:, :w])
    for (a, b), K in found.K.items():
        i, j = layout.fine_params[a][0], layout.fine_params[b][0]
        part = np.matmul(np.swapaxes(psi, 1, 2), np.matmul(K, psi))[:, 0, 0]
        part -= np.matmul(np.swapaxes(loads[a], 1, 2), np.matmul(border.Q, loads[b]))[:, 0, 0]
        second[:, i, j] = second[:, j, i] = part
    if q2:
        r2 = np.matmul(S[:, :q2], psi)[:, :, 0]
        Phi, T22 = coupling(S, border.Q, q2) if coupled is None else coupled
        turned = np.zeros((B, len(layout.border_params), q2))
        for number, (i, pairs) in enumerate(layout.border_params):
            for rows, columns in pairs:  # a row may have several partners
                np.add.at(turned[:, number].T, rows, r2[:, columns].T)
            first[:, i] = (turned[:, number] * r2).sum(axis=1)
        inside = np.matmul(np.matmul(turned, T22), np.swapaxes(turned, 1, 2))
        at = np.array([i for i, _ in layout.border_params], dtype=np.intp)
        second[np.ix_(np.arange(B), at, at)] = inside
        for (i, _), load in zip(layout.fine_params, loads, strict=True):
            across = np.matmul(np.swapaxes(load, 1, 2), Phi)
            part = np.matmul(across, np.swapaxes(turned, 1, 2))[:, 0]
            second[:, i, at] = part
            second[:, at, i] = part
    forms = Forms(value, first, second)
    _add_residual(forms, theta, value)
    return forms


def coupling(S: FloatArray, Q: FloatArray, q2: int) -> tuple[FloatArray, FloatArray]:
    """Phi (B, w, q2) and T_22 (B, q2, q2): T_12 = R Phi."""
    w = S.shape[1] - 1
    QS = np.matmul(Q, S[:, :w, :q2])
    Phi = -QS
    Phi[:, np.arange(q2), np.arange(q2)] += 1.0
    T22 = np.matmul(S[:, :q2, :w], Phi)
    return Phi, 0.5 * (T22 + np.swapaxes(T22, 1, 2))


def traces(
    layout: OwnLayout,
    blocks: Eliminated,
    Q: FloatArray,
    found: Products,
    log_det: FloatArray,
    df: FloatArray,
    coupled: tuple[FloatArray, FloatArray] | None = None,
) -> Forms:
    """A log determinant, tr(P V_i) and tr(P V_i P V_j) for the P of Q; the residual last.

    ``coupled`` is the `coupling` with Q, if it is known.
    """
    theta = blocks.theta
    w, q2 = blocks.S.shape[1] - 1, layout.q2
    B, k = theta.shape
    first, second = np.zeros((B, k)), np.zeros((B, k, k))
    QM = [np.matmul(Q, M[:, :w, :w]) for M in found.M]
    for (i, _), raw, product in zip(layout.fine_params, found.first, QM, strict=True):
        first[:, i] = raw - np.einsum("bii->b", product)
    for (a, b), K in found.K.items():
        i, j = layout.fine_params[a][0], layout.fine_params[b][0]
        part = found.second[a, b] - 2.0 * np.einsum("bij,bji->b", Q, K[:, :w, :w])
        part += np.einsum("bij,bji->b", QM[a], QM[b])
        second[:, i, j] = second[:, j, i] = part
    if q2:
        Phi, T22 = coupling(blocks.S, Q, q2) if coupled is None else coupled
        for number, (i, mine) in enumerate(layout.border_params):
            for row, column in mine:
                first[:, i] += T22[:, row, column].sum(axis=1)
            for j, theirs in layout.border_params[: number + 1]:
                for row, column in mine:
                    for c, d in theirs:
                        left, right = _entries(T22, column, c), _entries(T22, row, d)
                        second[:, i, j] += np.einsum("bij,bij->b", left, right)
                second[:, j, i] = second[:, i, j]
        for (i, _), M in zip(layout.fine_params, found.M, strict=True):
            across = np.matmul(M[:, :w, :w], Phi)
            for j, theirs in layout.border_params:
                for c, d in theirs:
                    left, right = _columns(Phi, c), _columns(across, d)
                    second[:, i, j] += np.einsum("bwi,bwi->b", left, right)
                second[:, j, i] = second[:, i, j]
    forms = Forms(log_det, first, second)
    _add_residual(forms, theta, df)
    return forms


def _columns(A: FloatArray, index: IntArray) -> FloatArray:
    """Columns of matrices (B, c, q2); the matrices themselves where these are all."""
    everything = index.size == A.shape[2] and bool((np.diff(index) == 1).all())
    return A if everything else A[:, :, index]


def _entries(A: FloatArray, rows: IntArray, columns: IntArray) -> FloatArray:
    """Entries of symmetric matrices (B, q2, q2) at all pairs of rows and columns."""
    part = _columns(A, columns)
    return np.swapaxes(_columns(np.swapaxes(part, 1, 2), rows), 1, 2)


def _add_residual(forms: Forms, theta: FloatArray, total: FloatArray) -> None:
    """Fill in the residual's entries: sum_i theta_i V_i = V, and P V P = P."""
    sigma2, first, second = theta[:, -1], forms.first, forms.second
    rest = theta[:, :-1]
    first[:, -1] = (total - (rest * first[:, :-1]).sum(axis=1)) / sigma2
    mixed = first[:, :-1] - (second[:, :-1, :-1] * rest[:, None, :]).sum(axis=2)
    mixed /= sigma2[:, None]
    second[:, :-1, -1] = second[:, -1, :-1] = mixed
    second[:, -1, -1] = (first[:, -1] - (rest * mixed).sum(axis=1)) / sigma2
