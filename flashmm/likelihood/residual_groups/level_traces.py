"""Traces for residual variances by group, of one variance component whose Z'Z is diagonal.

REML takes from each trace of V^-1 what lies along X. Those corrections come in two kinds: the
score's, tr K^-1 W and tr K^-1 J_h (see `flashmm.likelihood.residual_groups.levels`), and those of
the information, which cost several times as much and are small beside what they correct, about p of
n. On its way to a maximum a search needs the first exactly, and of the second the size:
`approximated` takes them as products of the first, times ratios that `typical_ratios` finds once
for a design. Where the search ends they are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.likelihood.residual_groups.levels import DiagonalAt, DiagonalSums
from flashmm.likelihood.residual_groups.tables import Tables

__all__ = ["Ratios", "Traces", "approximated", "exact", "typical_ratios"]

# Fixed effects, as a share of the levels and of the samples of each group, up to which corrections
# of the information may be approximate: more of them, and searches take more steps than they save.
_FEW = 0.1


@dataclass(frozen=True)
class Traces:
    """tr T and tr TT, (B,); tr N S_h, tr Z'P I_h P Z, (B, H); tr N S_h N S_g, (B, H, H)."""

    first: FloatArray
    second: FloatArray
    NS: FloatArray
    mixed: FloatArray
    both: FloatArray


@dataclass(frozen=True)
class Ratios:
    """Corrections of the information over products of those of the score, at one theta.

    Parameters
    ----------
    second, mixed, both
        Shape (), (H,) and (H, H).
    """

    second: FloatArray
    mixed: FloatArray
    both: FloatArray


def typical_ratios(sums: DiagonalSums) -> Ratios | None:
    """The ratios where both variances are of one size; None where they are not to be used."""
    H, q, p = sums.U.shape
    if p == 0 or p > _FEW * min(q, float(sums.n.min())):
        return None
    size = sums.d.sum(axis=0)
    theta = np.ones((1, 1 + H))
    theta[0, 0] = 1.0 / np.median(size[size > 0])
    with np.errstate(all="ignore"):
        at = DiagonalAt.of(sums, theta)
        plain, full = _of_V(at), exact(at, reml=True)
        first, NS, second = _along_X(at)
        found = Ratios(
            ((full.second - plain.second + second) / first**2)[0],
            ((full.mixed - plain.mixed) / (first[:, None] * NS))[0],
            ((full.both - plain.both) / (NS[:, :, None] * NS[:, None, :]))[0],
        )
    fine = all(np.isfinite(part).all() for part in (found.second, found.mixed, found.both))
    return found if fine else None


def approximated(at: DiagonalAt, ratios: Ratios) -> Traces:
    """REML's traces, those of the information to about a tenth of its corrections."""
    plain = _of_V(at)
    first, NS, second = _along_X(at)
    return Traces(
        plain.first - first,
        plain.second - second + ratios.second * first**2,
        plain.NS + NS,
        plain.mixed + ratios.mixed * first[:, None] * NS,
        plain.both + ratios.both * NS[:, :, None] * NS[:, None, :],
    )


def exact(at: DiagonalAt, *, reml: bool) -> Traces:
    """Traces with P, or with V^-1 where not ``reml``."""
    plain = _of_V(at)
    if not reml or at.sums.U.shape[2] == 0:
        return plain
    tables = at.sums.tables
    return _by_level(at, plain) if tables is None else _by_tables(at, plain, tables)


def _of_V(at: DiagonalAt) -> Traces:
    """Traces with V^-1."""
    sums, f, v, tables = at.sums, at.f, at.v, at.sums.tables
    H, B, tau = sums.n.size, f.shape[0], at.d * v
    n, counts = (sums.d.T, np.ones(v.shape[1]))
    if tables is not None:
        n, counts = tables.n, tables.counts
    n = n * counts[:, None]
    first = tau @ counts
    second = (tau * tau) @ counts
    mixed = (v * v) @ n
    NS = f @ n
    squares = (n[:, :, None] * (sums.d.T if tables is None else tables.n)[:, None]).reshape(
        n.shape[0], H * H
    )
    both = ((f * f) @ squares).reshape(B, H, H)
    return Traces(first, second, mixed=mixed, NS=NS, both=both)


def _along_X(at: DiagonalAt) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What X takes from tr T and tr N S_h, (B,) and (B, H), and, to first order, from tr TT."""
    sums, c, f, v, tables = at.sums, at.c, at.f, at.v, at.sums.tables
    H, q, p = sums.U.shape
    B = f.shape[0]
    if tables is None or at.pairs is None:
        assert at.U is not None
        uK = np.matmul(at.U, at.K_inverse)
        uu = (uK * at.U).sum(axis=2)
        crossed = (f[:, :, None] * uK).reshape(B, q * p) @ sums.U.reshape(H, q * p).T
        own = at.K_inverse.reshape(B, p * p) @ sums.X.reshape(H, p * p).T
        n = sums.d.T
    else:
        K = tables.packing.packed(at.K_inverse) * tables.packing.twice
        weights = (tables.products_of(c)[:, :, None] * K[:, None]).reshape(B, -1)
        uu = weights @ tables.products.T
        by_pair = np.matmul(at.pairs, K[:, :, None])
        crossed = 0.5 * np.matmul(tables.slopes_of(c), by_pair)[:, :, 0]
        own = K @ tables.packing.packed(sums.X).T
        n = tables.n
    vvuu = v * v * uu
    first = vvuu.sum(axis=1)
    second = 2.0 * np.einsum("bk,bk,bk->b", at.d, v, vvuu)
    return first, own - 2.0 * crossed + (f * f * uu) @ n, second


def _by_tables(at: DiagonalAt, plain: Traces, tables: Tables) -> Traces:
    """The traces of V^-1 less what P takes from them, by the tables."""
    sums, c, f, v, pairs = at.sums, at.c, at.f, at.v, at.pairs
    assert pairs is not None
    H, B, packing, n = sums.n.size, f.shape[0], tables.packing, tables.n
    K = packing.packed(at.K_inverse) * packing.twice
    square, slopes = tables.products_of(c), tables.slopes_of(c)
    across = tables.of_pairs(v * v)
    triples = tables.of_triples(f * f)
    of_group = (tables.group == np.arange(H)[:, None]).astype(np.float64)  # (H, T)
    products = square[:, None, tables.pair] * of_group
    J = packing.packed(sums.X) - np.matmul(slopes, pairs) + np.matmul(products, triples)
    W = np.matmul(square[:, None], across)
    matrices = packing.unpacked(np.concatenate([W, J], axis=1))
    KJ = np.matmul(at.K_inverse[:, None], matrices)  # (B, 1 + H, p, p)
    trace = np.trace(KJ, axis1=2, axis2=3)
    flat = KJ.reshape(B, 1 + H, -1)
    turned = np.swapaxes(KJ, 2, 3).reshape(B, 1 + H, -1)
    second = np.matmul(flat, np.swapaxes(turned, 1, 2))
    # u'K^-1u summed over the levels of a kind, (B, k)
    weights = (square[:, :, None] * K[:, None]).reshape(B, -1)
    uu = weights @ tables.products.T
    v2, fuu = v * v, f * uu
    by_pair = np.matmul(pairs, K[:, :, None])[:, :, 0]  # sums of f u_g'K^-1u_h, twice if g < h
    cross = np.zeros((B, H, H))
    half = np.where(tables.first == tables.second, 1.0, 0.5) * by_pair
    cross[:, tables.first, tables.second] = half
    cross[:, tables.second, tables.first] = half
    by_triple = np.matmul(triples, K[:, :, None])[:, :, 0]
    # sums of f^2 n_h u'K^-1u_g, (B, H, H)
    between = 0.5 * np.matmul(
        by_triple[:, None] * of_group, np.swapaxes(slopes[:, :, tables.pair], 1, 2)
    )
    squares = (n[:, :, None] * n[:, None]).reshape(n.shape[0], -1)
    cross += ((f * f * fuu) @ squares).reshape(B, H, H) - between - np.swapaxes(between, 1, 2)
    vu = 0.5 * np.matmul(slopes, np.matmul(across, K[:, :, None]))[:, :, 0]
    return Traces(
        plain.first - trace[:, 0],
        plain.second - 2.0 * np.einsum("bk,bk,bk->b", at.d * v, v2, uu) + second[:, 0, 0],
        plain.NS + trace[:, 1:],
        plain.mixed - 2.0 * (vu - (v2 * fuu) @ n) + second[:, 0, 1:],
        plain.both + 2.0 * cross + second[:, 1:, 1:],
    )


def _by_level(at: DiagonalAt, plain: Traces) -> Traces:
    """The same level by level."""
    sums, c, f, v = at.sums, at.c, at.f, at.v
    (H, q, p), B, tau = sums.U.shape, f.shape[0], at.d * v
    R = _root(at.K_inverse)
    UhR = np.matmul(sums.U.reshape(H * q, p), R).reshape(B, H, q, p)
    UR = np.matmul(c[:, None], UhR.reshape(B, H, q * p)).reshape(B, q, p)
    vwR = v[:, :, None] ** 2 * UR
    ww = np.matmul(np.swapaxes(UR, 1, 2), vwR)
    wtw = (tau[:, :, None] * vwR * UR).sum(axis=(1, 2))
    Y = UhR - (f[:, None] * sums.d)[..., None] * UR[:, None]
    fUR = np.swapaxes(f[:, :, None] * UR, 1, 2)
    J = np.matmul(np.swapaxes(R, 1, 2)[:, None], np.matmul(sums.X, R[:, None]))
    J -= np.matmul(fUR[:, None], Y)
    J -= np.swapaxes(np.matmul(fUR[:, None], UhR), 2, 3)
    fY = (f[:, None, :, None] * Y).reshape(B, H, q * p)
    flat = J.reshape(B, H, p * p)
    both = plain.both + 2.0 * np.matmul(fY, np.swapaxes(Y.reshape(B, H, q * p), 1, 2))
    both += np.matmul(flat, np.swapaxes(flat, 1, 2))
    mixed = np.matmul(Y.reshape(B, H, q * p), vwR.reshape(B, q * p, 1))[..., 0]
    return Traces(
        plain.first - np.trace(ww, axis1=1, axis2=2),
        plain.second - 2.0 * wtw + (ww**2).sum(axis=(1, 2)),
        plain.NS + np.trace(J, axis1=2, axis2=3),
        plain.mixed - 2.0 * mixed + (J * ww[:, None]).sum(axis=(2, 3)),
        both,
    )


def _root(inverse: FloatArray) -> FloatArray:
    """R with R R' the matrix, shape (B, p, p); anything where that is not definite."""
    try:
        return np.asarray(np.linalg.cholesky(inverse))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(np.where(np.isfinite(inverse), inverse, 0.0))
        return np.asarray(vectors * np.sqrt(values)[:, None, :])
