"""The exact null distribution of the likelihood-ratio test of a single variance component.

Crainiceanu & Ruppert (2004, JRSS-B 66:165, theorem 1): with mu the non-zero eigenvalues of Z'RZ,
w standard normal and c chi-square on n - p - r degrees of freedom, twice the gain in
log-likelihood is distributed as

    sup_{lambda >= 0}  d log(S / D(lambda)) - sum_s log(1 + lambda xi_s)
    D(lambda) = sum_s w_s^2 / (1 + lambda mu_s) + c,   S = D(0)

with d = n - p and xi = mu under REML, d = n and xi the eigenvalues of Z'Z under ML. Nothing in
it depends on y: one simulation serves all features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = ["SimulatedNull", "simulate_exact_null"]

_GRID = 120
_REFINEMENTS = 40
_CHUNK = 2**26  # bytes of normal variates drawn at once


@dataclass(frozen=True)
class SimulatedNull:
    """Draws from a null distribution.

    Parameters
    ----------
    draws
        Sorted, shape (n_sim,).
    """

    draws: FloatArray

    def sf(self, statistic: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Monte Carlo p-values (1 + #{draws >= statistic}) / (1 + n_sim) and standard errors.

        (Davison & Hinkley 1997, section 4.2.) A statistic of zero has p = 1.
        """
        n_sim = self.draws.size
        above = n_sim - np.searchsorted(self.draws, statistic, side="left")
        p = np.where(statistic <= 0.0, 1.0, (1.0 + above) / (1.0 + n_sim))
        p = np.where(np.isnan(statistic), np.nan, p)
        return p, np.sqrt(p * (1.0 - p) / n_sim)


def simulate_exact_null(
    eigenvalues: FloatArray,
    df: int,
    df_outside: int,
    eigenvalues_det: FloatArray,
    n_sim: int,
    rng: np.random.Generator,
) -> SimulatedNull:
    """Draw the statistic under the hypothesis that the variance is zero.

    Parameters
    ----------
    eigenvalues
        Non-zero eigenvalues of Z'RZ, shape (r,).
    df
        n - p (REML) or n (ML).
    df_outside
        n - p - r, degrees of freedom of the residual sum of squares on [X, Z].
    eigenvalues_det
        Eigenvalues in the determinant: those of Z'RZ (REML) or of Z'Z (ML).
    n_sim
        Number of draws.
    rng
        Random numbers.

    Returns
    -------
    SimulatedNull

    Examples
    --------
    >>> import numpy as np
    >>> null = simulate_exact_null(
    ...     np.full(5, 5.0), 29, 24, np.full(5, 5.0), 2000, np.random.default_rng(1))
    >>> bool(0.5 < np.mean(null.draws == 0) < 0.7)  # more than the asymptotic half
    True
    """
    unit = float(eigenvalues.mean())
    mu, xi = eigenvalues / unit, eigenvalues_det / unit
    grid = np.concatenate([[0.0], np.geomspace(1e-5, 1e7, _GRID)])
    penalty = np.log1p(grid[:, None] * xi).sum(axis=1)
    shrinkage = 1.0 / (1.0 + np.outer(mu, grid))
    draws = np.empty(n_sim)
    size = max(1, _CHUNK // (8 * max(mu.size, grid.size)))
    for start in range(0, n_sim, size):
        count = min(size, n_sim - start)
        squares = rng.standard_normal((count, mu.size)) ** 2
        outside = rng.chisquare(df_outside, count) if df_outside > 0 else np.zeros(count)
        total = squares.sum(axis=1) + outside
        profile = df * np.log(total[:, None] / (squares @ shrinkage + outside[:, None])) - penalty
        best = profile.argmax(axis=1)
        low = grid[np.maximum(best - 1, 0)]
        high = grid[np.minimum(best + 1, grid.size - 1)]
        value = _refined(squares, outside, mu, xi, df, low, high)
        draws[start : start + count] = np.maximum(value, profile.max(axis=1))
    draws[draws < 1e-10] = 0.0
    return SimulatedNull(np.sort(draws))


def _refined(
    squares: FloatArray,
    outside: FloatArray,
    mu: FloatArray,
    xi: FloatArray,
    df: int,
    low: FloatArray,
    high: FloatArray,
) -> FloatArray:
    """The maximum within brackets of lambda (count,), by bisection on its derivative's sign."""
    total = squares.sum(axis=1) + outside
    for _ in range(_REFINEMENTS):
        middle = 0.5 * (low + high)
        weight = 1.0 / (1.0 + middle[:, None] * mu)
        D = (squares * weight).sum(axis=1) + outside
        fall = (squares * weight**2) @ mu
        slope = df * fall / D - (xi / (1.0 + middle[:, None] * xi)).sum(axis=1)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
        if np.all(high - low <= 1e-6 * high):
            break
    best = 0.5 * (low + high)
    D = (squares / (1.0 + best[:, None] * mu)).sum(axis=1) + outside
    return np.asarray(df * np.log(total / D) - np.log1p(best[:, None] * xi).sum(axis=1))
