"""Sign flips of the groups' scores: p-values of each feature, and of all features together.

Under the null hypothesis the contributions of independent groups to the score of a contrast have
mean zero, so that flipping their signs leaves its distribution as it is to first order, whatever
the groups' variances (Hemerik, Goeman & Finos 2020). The largest statistic over the features, flip
by flip, gives p-values adjusted for all of them at once and for how they depend on each other
(Westfall & Young 1993).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.inference.cluster_robust import Scores, root

__all__ = ["Contributions", "Flipped", "contributions", "flip_tests", "sign_flips"]

Statistic = Callable[["FloatArray"], "FloatArray"]
Alternative = Literal["two-sided", "greater", "less"]

# Statistics of so many bytes are worked on at once.
_BATCH = 2**25
# Equal statistics of different flips differ by rounding.
_TIED = 1e-9
# A flip that leaves less than this share of a score's variance leaves none.
_NOTHING = 1e-10


@dataclass(frozen=True)
class Contributions:
    """What k groups contribute to the effective score of a contrast of m features.

    Parameters
    ----------
    score
        Contributions, shape (k, m); they sum to l'beta minus its hypothesised value.
    nuisance
        What the other coefficients take of them: under the working model the sum of the
        contributions times signs f has the variance ``variance`` - |sum_g f_g nuisance_g|^2; shape
        (p - 1, k, m).
    variance
        Variance of the sum, shape (m,).
    """

    score: FloatArray
    nuisance: FloatArray
    variance: FloatArray


def contributions(found: Scores, contrast: FloatArray, difference: FloatArray) -> Contributions:
    """Contributions to the score of l'beta, the other coefficients estimated under the null.

    Parameters
    ----------
    found
        Contributions to the estimating equations at the estimates.
    contrast
        The contrast l, shape (p,).
    difference
        l'beta minus its hypothesised value, shape (m,).
    """
    C = found.covariance
    c = C @ contrast  # (m, p)
    variance = c @ contrast
    shift = c * (difference / variance)[:, None]  # beta minus beta under the null
    u = np.matmul(found.information, c[..., None])[..., 0]  # (k, m, p)
    null = found.score + np.matmul(found.information, shift[..., None])[..., 0]
    R = root(C)
    h = np.matmul(np.swapaxes(R, 1, 2), contrast[:, None])
    safe = np.where(np.isfinite(h), h, 1.0)
    other = np.linalg.qr(safe, mode="complete").Q[:, :, 1:]
    basis = np.matmul(R, other)  # (m, p, p - 1): basis basis' = C - C l l'C / l'Cl
    nuisance = np.matmul(u[:, :, None, :], basis)[:, :, 0, :]
    return Contributions((null * c).sum(axis=2), np.moveaxis(nuisance, 2, 0), variance)


def sign_flips(k: int, n: int, rng: np.random.Generator, alternative: Alternative) -> FloatArray:
    """Signs of k groups, shape (F, k), those of the data first.

    All that differ where there are no more than n (of two flips with all signs turned only one
    for a two-sided test), else n of them at random.
    """
    free = k - 1 if alternative == "two-sided" else k
    if free < 60 and 2**free <= n:
        codes = np.arange(2**free)
        every = 1.0 - 2.0 * ((codes[:, None] >> np.arange(free)) & 1).astype(np.float64)
        return np.hstack([np.ones((codes.size, k - free)), every])
    signs: FloatArray = 1.0 - 2.0 * rng.integers(0, 2, size=(n, k)).astype(np.float64)
    signs[0] = 1.0
    return signs


@dataclass(frozen=True)
class Flipped:
    """Tests of m features.

    Parameters
    ----------
    statistic
        Of the data, shape (m,).
    p
        Share of the flips with a statistic at least as large, shape (m,).
    adjusted
        p-values adjusted for all features by step-down max-T, shape (m,).
    """

    statistic: FloatArray
    p: FloatArray
    adjusted: FloatArray


def flip_tests(
    found: Contributions,
    signs: FloatArray,
    alternative: Alternative,
    statistic: Statistic | None = None,
) -> Flipped:
    """Tests by sign flips, and their step-down max-T adjustment.

    The statistic of a flip f is sum_g f_g s_g over its standard deviation: sqrt(sum_g s_g^2) times
    the share that, by the working model, the other coefficients leave of it (De Santis et al.
    2022).

    Parameters
    ----------
    found
        Contributions of k groups; features that are not finite have no test.
    signs
        Shape (F, k), those of the data first.
    alternative
        Which statistics are large.
    statistic
        What is made of the statistics of all features (f, m), flip by flip; None for nothing.
    """
    size = np.sqrt((found.score**2).sum(axis=0))
    known = np.isfinite(size) & (size > 0) & (found.variance > 0)
    known &= np.isfinite(found.nuisance).all(axis=(0, 1))
    m = size.size
    unit = np.where(known, size, 1.0)
    score = np.where(known, found.score / unit, 0.0)
    spread = np.sqrt(np.where(known, found.variance, 1.0))
    nuisance = np.where(known, found.nuisance / spread, 0.0)

    def statistics(rows: FloatArray) -> FloatArray:
        T = _standardised(rows, score, nuisance)
        if statistic is not None:
            T = _made(statistic, T)
        if alternative == "two-sided":
            return np.abs(T, out=T)
        return np.negative(T, out=T) if alternative == "less" else T

    signed = _standardised(signs[:1], score, nuisance)
    shown = (signed if statistic is None else _made(statistic, signed))[0]
    observed = statistics(signs[:1])[0]
    floor = observed - _TIED * np.abs(observed)
    tested = np.flatnonzero(known)
    order = tested[np.argsort(-observed[tested], kind="stable")][::-1]  # ascending
    count, largest = np.ones(m), np.ones(order.size)
    step = max(1, _BATCH // (8 * max(m, 1)))
    for start in range(1, signs.shape[0], step):
        T = statistics(signs[start : start + step])
        count += np.count_nonzero(floor <= T, axis=0)
        ascending = T[:, order]
        np.maximum.accumulate(ascending, axis=1, out=ascending)
        largest += np.count_nonzero(ascending >= floor[order], axis=0)
    adjusted = np.full(m, np.nan)
    adjusted[order] = np.maximum.accumulate(largest[::-1])[::-1] / signs.shape[0]
    p = np.where(known, count / signs.shape[0], np.nan)
    return Flipped(np.where(known, shown, np.nan), p, adjusted)


def _standardised(signs: FloatArray, score: FloatArray, nuisance: FloatArray) -> FloatArray:
    """Statistics of flips (f, k), shape (f, m)."""
    T = signs @ score
    if nuisance.shape[0] == 0:
        return T
    left = np.ones_like(T)
    for part in nuisance:
        taken = signs @ part
        left -= np.multiply(taken, taken, out=taken)
    np.sqrt(np.maximum(left, _NOTHING, out=left), out=left)
    T[left <= np.sqrt(_NOTHING)] = 0.0
    return np.divide(T, left, out=T)


def _made(statistic: Statistic, T: FloatArray) -> FloatArray:
    made = np.array(statistic(T.copy()), dtype=np.float64)
    if made.shape != T.shape or np.isnan(made).any():
        raise ValueError(f"of shape {made.shape} where {T.shape} went in, or not numbers")
    return made
