"""A feature's posterior on the grid, its residual variance integrated out.

With sigma2 ~ d0 s0^2 / chi2_d0 the restricted likelihood of the ratios is, up to a constant,

    -1/2 (log|V| + log|X'V^-1X|) - (n - p + d0) / 2 log(d0 s0^2 + Q),

and given the ratios sigma2 ~ (d0 s0^2 + Q) / chi2 on n - p + d0 degrees of freedom.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray

__all__ = ["Posterior", "log_evidence", "posterior", "share_of_prior"]


@dataclass(frozen=True)
class Posterior:
    """What the data of B features leave of the ratios and of sigma2.

    Parameters
    ----------
    weights
        Posterior probabilities of the grid points, shape (B, G).
    variance
        (d0 s0^2 + Q) / (n - p + d0) at each, shape (B, G).
    df
        n - p + d0, shape (B,); infinite where d0 is.
    """

    weights: FloatArray
    variance: FloatArray
    df: FloatArray

    def mean(self, values: FloatArray) -> FloatArray:
        """Posterior means of values (B, ..., G) given at the grid points, shape (B, ...)."""
        if values.ndim == 2:
            return np.asarray((values * self.weights).sum(axis=1))
        return np.asarray(np.matmul(values, self.weights[:, :, None])[..., 0])


def log_evidence(
    Q: FloatArray, log_det: FloatArray, df: FloatArray, d0: FloatArray, s0: FloatArray
) -> FloatArray:
    """Log restricted likelihoods at the grid points, their maximum over the grid zero.

    Parameters
    ----------
    Q
        Shape (B, G).
    log_det
        Shape (G,), or (B, G) where designs differ.
    df
        n - p, shape (B,).
    d0, s0
        Prior degrees of freedom and location of sigma2 in the units of Q, shape (B,). Infinite d0
        fixes sigma2; d0 of zero leaves it flat.
    """
    d0, s0, known = d0[:, None], s0[:, None], np.isinf(d0)[:, None]
    # Beside the smallest form: no unit, and no d0 however small or large, leaves the range.
    least = Q.min(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        own = np.where(known | (d0 == 0), 0.0, d0 * s0)
        power = 0.5 * (df[:, None] + np.where(known, 0.0, d0))
        form = np.log1p((Q - least) / (own + least)) * power
        fixed = 0.5 * np.where(least < Q, (Q - least) / s0, 0.0)
        log = -0.5 * log_det - np.where(known, fixed, form)
    log -= log.max(axis=1, keepdims=True)
    return np.asarray(log)


def posterior(
    Q: FloatArray,
    log_det: FloatArray,
    df: FloatArray,
    d0: FloatArray,
    s0: FloatArray,
    prior: FloatArray,
) -> Posterior:
    """Posterior under a prior (G,) of the grid points; other arguments as in `log_evidence`."""
    weights = np.exp(log_evidence(Q, log_det, df, d0, s0)) * prior
    total = weights.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = weights / total
    share = share_of_prior(d0, df)[:, None]
    location = np.where(d0 == 0, 0.0, s0)[:, None]
    variance = share * location + (1.0 - share) * (Q / df[:, None])
    return Posterior(weights, variance, d0 + df)


def share_of_prior(d0: FloatArray, df: FloatArray) -> FloatArray:
    """What the prior's location weighs in a moderated variance: d0 / (d0 + df), shape (B,)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(np.isinf(d0), 1.0, d0 / (d0 + df)))
