"""Maximum likelihood of the distribution of variances whose degrees of freedom differ.

Estimates s^2 on d degrees of freedom, of variances drawn from d0 s0^2 / chi2_d0, follow s0^2 times
an F distribution with d and d0 degrees of freedom (Smyth 2004, Stat Appl Genet Mol Biol 3:3,
section 4). Where d is small log s^2 is noisy: var(log s^2) = psi'(d / 2) + psi'(d0 / 2). The
moments of log s^2 count such a feature as much as any other; here each counts as much as it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from flashmm.arrays.lazy import lazy
from flashmm.arrays.types import FloatArray
from flashmm.inference.lowess import weighted_lowess

if TYPE_CHECKING:
    from scipy import optimize

else:
    optimize = lazy("scipy.optimize")

__all__ = ["HIGHEST_DF", "fit_scaled_f", "scaled_f_loglik"]

# A variance below this share of the median is raised to it where its logarithm is taken.
_FLOOR = 1e-12
# Degrees of freedom so few that a variance says nothing.
_TOO_FEW = 0.01
# Prior degrees of freedom that are tried. Above them the prior is a point.
_LOWEST, HIGHEST_DF = 2e-3, 9998.0
_POINTS = 60
# All features are in each local line of the trend up to so many; then the share falls to _SPAN.
_SMALL, _SPAN = 500, 0.3


def fit_scaled_f(
    variance: FloatArray,
    df: FloatArray,
    covariate: FloatArray | None = None,
    weights: FloatArray | None = None,
) -> tuple[FloatArray, float]:
    """Location s0^2 of each feature and prior degrees of freedom d0.

    The location is, up to a shift that d0 determines, the mean of the logarithms, corrected for
    their bias and weighted by 1 / psi'(d / 2); d0 maximises the likelihood, the location moving
    along.

    Parameters
    ----------
    variance, df
        Estimates and their degrees of freedom, both not negative, shape (m,).
    covariate
        What the location follows, along weighted local lines, shape (m,).
    weights
        How much each feature counts, shape (m,); ones by default.

    Returns
    -------
    location, df_prior
        Shape (m,), and a number that may be infinite.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> df = np.tile([1.0, 2.0, 8.0], 2000)
    >>> variance = 3.0 * 4.0 / rng.chisquare(4, 6000) * rng.chisquare(df) / df
    >>> location, df_prior = fit_scaled_f(variance, df)
    >>> bool(abs(location[0] - 3.0) < 0.3 and abs(df_prior - 4.0) < 0.4)
    True
    """
    counts = np.ones(df.shape) if weights is None else weights
    counts = np.where(df < _TOO_FEW, 0.0, counts)
    d = np.where(df < _TOO_FEW, 1.0, df)
    informed = (counts > 0) & (variance > 0)
    x = np.maximum(variance, _FLOOR * float(np.median(variance[informed])))
    e = np.log(x) + _bias(d / 2)
    known = counts / special.polygamma(1, d / 2)
    if covariate is None or informed.sum() < 3:
        mean = np.full(d.shape, float(known @ e) / float(known.sum()))
    else:
        relative = np.clip(known / np.quantile(known, 0.75), 1e-8, 1e2)
        share = min(1.0, _SPAN + (1.0 - _SPAN) * (_SMALL / d.size) ** (1.0 / 3.0))
        mean = weighted_lowess(covariate, e, relative, span=share)

    def fall(log_df: float) -> float:
        """Minus the log-likelihood at the prior df of that logarithm."""
        d0 = float(np.exp(log_df))
        return -float(counts @ scaled_f_loglik(x, d, mean - _bias(d0 / 2), d0))

    grid = np.linspace(np.log(_LOWEST), np.log(HIGHEST_DF), _POINTS)
    best = int(np.argmin([fall(float(point)) for point in grid]))
    if best == _POINTS - 1:
        return np.exp(mean), np.inf
    bounds = (grid[max(best - 1, 0)], grid[best + 1])

    def slope(log_df: float) -> float:
        """Derivative of the log-likelihood by half the prior df, at its logarithm."""
        a, b = d / 2, float(np.exp(log_df)) / 2
        # The location moves along: log(b s0^2) is the mean + digamma(b).
        apart = np.log(a * x) - mean - special.digamma(b)
        each = special.digamma(a + b) - special.digamma(b) - np.logaddexp(0.0, apart)
        moves = (a + b) * special.expit(apart) - a
        return float(counts @ (each + moves * special.polygamma(1, b)))

    if slope(bounds[0]) > 0.0 > slope(bounds[1]):
        # A root of the slope has twice as many digits as a maximum of the likelihood.
        log_df = optimize.brentq(slope, *bounds, xtol=1e-12)
    else:
        log_df = optimize.minimize_scalar(fall, bounds=bounds, method="bounded").x
    d0 = float(np.exp(log_df))
    return np.exp(mean - _bias(d0 / 2)), d0


def scaled_f_loglik(
    variance: FloatArray, df: FloatArray, log_location: FloatArray, df_prior: float
) -> FloatArray:
    """Log density of variances s0^2 F(df, df_prior), but for a constant of each.

    The constant, a function of the variance and its df alone, does not move the maximum.

    Parameters
    ----------
    variance, df, log_location
        Positive variances, their degrees of freedom, and log s0^2, shape (m,).
    df_prior
        Finite.
    """
    a, b = df / 2, df_prior / 2
    log_scale = np.log(b) + log_location
    tail = special.gammaln(a + b) - special.gammaln(b) - a * log_scale
    return np.asarray(tail - (a + b) * np.logaddexp(0.0, np.log(a * variance) - log_scale))


def _bias(half: FloatArray | float) -> FloatArray:
    """By how much E log(chi2_d / d) is below zero; half is d / 2."""
    return np.asarray(np.log(half) - special.digamma(half))
