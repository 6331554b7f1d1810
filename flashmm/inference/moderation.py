"""Empirical-Bayes moderation of variances across features.

The true residual variance of a feature is taken as a draw from a scaled inverse chi-square
distribution, d0 s0^2 / chi2_d0, that all features share (Smyth 2004, Stat Appl Genet Mol Biol
3:3). An estimate s^2 on d degrees of freedom then becomes (d0 s0^2 + d s^2) / (d0 + d), on
d0 + d. d0 and s0^2 come from the mean and variance of log s^2 over the features. s0^2 may follow
a trend in a covariate, and d0 may be estimated so that a few features with outlying variances do
not distort it and are themselves moderated less (Phipson et al. 2016, Ann Appl Stat 10:946).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from flashmm.arrays.lazy import lazy
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError
from flashmm.inference.lowess import lowess
from flashmm.inference.variance_prior import HIGHEST_DF, fit_scaled_f
from flashmm.likelihood.moments import ContrastMoments

if TYPE_CHECKING:
    from scipy import optimize, stats

else:
    optimize, stats = lazy("scipy.optimize"), lazy("scipy.stats")

__all__ = [
    "ModeratedVariances",
    "VariancePrior",
    "moderate",
    "moderate_moments",
    "variance_prior",
]

# A variance below this share of the median is raised to it, so that its logarithm is no outlier.
_FLOOR, _ROBUST_FLOOR = 1e-5, 1e-12
# Tails that are cut before robust moments are taken, lower and upper.
_TAILS = (0.05, 0.1)
_SPAN = 0.4
# A false discovery rate above this says that a variance is no outlier.
_NO_OUTLIER = 0.3
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(128)


@dataclass(frozen=True)
class VariancePrior:
    """Distribution of the true variances over the features.

    Parameters
    ----------
    variance
        Its location s0^2 for each feature, shape (m,).
    df
        Its degrees of freedom d0 for each feature, shape (m,); smaller for outlying features
        where it was estimated robustly.
    df_common
        d0 of the features that are no outliers.
    """

    variance: FloatArray
    df: FloatArray
    df_common: float


@dataclass(frozen=True)
class ModeratedVariances:
    """Variances after moderation.

    Parameters
    ----------
    variance
        (d0 s0^2 + d s^2) / (d0 + d), shape (m,).
    df
        d0 + d, at most the sum of d over the features, shape (m,).
    """

    variance: FloatArray
    df: FloatArray


def moderate(variance: FloatArray, df: FloatArray, prior: VariancePrior) -> ModeratedVariances:
    """Moderated variances: means of estimate and prior, weighted by degrees of freedom.

    Parameters
    ----------
    variance, df
        Estimates and their degrees of freedom, shape (m,); NaN where unknown.
    prior
        Of the same features.

    Returns
    -------
    ModeratedVariances

    Examples
    --------
    >>> import numpy as np
    >>> prior = VariancePrior(np.array([1.0]), np.array([4.0]), 4.0)
    >>> moderate(np.array([3.0]), np.array([4.0]), prior).variance
    array([2.])
    """
    with np.errstate(invalid="ignore"):
        share = np.where(np.isinf(prior.df), 1.0, prior.df / (prior.df + df))
        pooled = float(np.nansum(np.where(df > 0, df, 0.0)))
        total = np.minimum(prior.df + df, pooled)
    return ModeratedVariances(share * prior.variance + (1.0 - share) * variance, total)


def moderate_moments(
    moments: ContrastMoments,
    covariance: FloatArray,
    residual: FloatArray,
    moderated: FloatArray,
    df: FloatArray,
) -> tuple[ContrastMoments, FloatArray]:
    """Variances of contrasts, and the covariance of theta, once residual variances are moderated.

    What is known of the residual variance s changes all of theta by its regression on s: with W
    the covariance of theta and w its column of s,

        theta~ = theta + w / W_ss (s~ - s)
        W~     = W - w w' / W_ss (1 - var(s~) / W_ss),    var(s~) = 2 s~^2 / df

    A contrast keeps its estimate, of which sum_i theta~_i dlCl'/dtheta_i is the variance, since
    that sum is l C X'V^-1 V(theta~) V^-1 X C l'. Satterthwaite's df follow from W~. So a contrast
    that is judged by the residual variance gains all of the prior df, and one that is judged by
    the variance between subjects none. Where s is at its bound of zero, W_ss is zero too and
    nothing is moderated. Several residual variances, each moderated by those of its group, are a
    vector s; they keep their correlations.

    Parameters
    ----------
    moments
        Of the hypotheses, at theta.
    covariance
        W, shape (B, k, k), the H residual variances last.
    residual, moderated, df
        s, s~ and the degrees of freedom of s~, shape (B, H).

    Returns
    -------
    moments, covariance
        With the variances and W replaced.
    """
    first = covariance.shape[1] - residual.shape[1]
    own = covariance[:, first:, first:]
    length = np.sqrt(np.abs(np.diagonal(own, axis1=1, axis2=2)))
    # At its bound of zero a residual variance tells, and is told, nothing.
    known = np.asarray(np.isfinite(covariance).all(axis=(1, 2)) & (length > 0).all(axis=1))
    unit = np.where(known[:, None], length, 1.0)
    correlation = np.where(
        known[:, None, None], own / (unit[:, :, None] * unit[:, None, :]), np.eye(unit.shape[1])
    )
    gain = covariance[:, :, first:] / unit[:, None, :]
    gain = np.matmul(gain, np.linalg.inv(correlation)) / unit[:, None, :]
    gain = np.where(known[:, None, None], gain, 0.0)
    # Of a feature in tiny units among others s~ may leave no room for its square: W~ is NaN.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        spread = np.sqrt(2.0 / df) * np.abs(moderated)
        after = correlation * spread[:, :, None] * spread[:, None, :]
        saved = np.where(known[:, None, None], own - after, 0.0)
        change = np.where(known[:, None], moderated - residual, 0.0)
        step = np.matmul(gain, change[:, :, None])[:, :, 0]
        variance = moments.variance + (step[:, None, :, None, None] * moments.gradient).sum(axis=2)
        updated = covariance - np.matmul(np.matmul(gain, saved), np.swapaxes(gain, 1, 2))
    updated[~np.isfinite(updated).all(axis=(1, 2))] = np.nan
    return replace(moments, variance=variance), updated


def variance_prior(
    variance: FloatArray,
    df: FloatArray,
    *,
    covariate: FloatArray | None = None,
    robust: bool = False,
    legacy: bool = True,
) -> VariancePrior:
    """Estimate the distribution of the true variances from those of all features.

    Parameters
    ----------
    variance, df
        Estimated variances and their degrees of freedom, shape (m,). Features where they are not
        finite, or not positive, do not count.
    covariate
        What the location of the prior follows a trend in, e.g. mean expression, shape (m,).
    robust
        Estimate d0 without the features with the smallest 5 % and largest 10 % of variances
        (winsorised), and moderate outliers less.
    legacy
        True: by the moments of log s^2, every feature counting alike. False: by maximum likelihood,
        features with more degrees of freedom counting more; ``robust`` then discounts features by
        their false discovery rate.

    Returns
    -------
    VariancePrior

    Raises
    ------
    InputError
        If fewer than two features have a variance to learn from.
    """
    with np.errstate(invalid="ignore"):
        known = np.isfinite(variance) & (variance >= 0) & np.isfinite(df) & (df > 0)
    if covariate is not None:
        known &= np.isfinite(covariate)
    count = int(known.sum())
    if count < 2:
        raise InputError(
            f"Moderation learns from the variances of all features, and only {count} "
            f"feature{' has' if count == 1 else 's have'} one. Fit more features together."
        )
    if not np.median(variance[known]) > 0:
        raise InputError("Most features have a residual variance of zero: there is no moderation.")
    at = None if covariate is None else covariate[known]
    if not legacy:
        found = _likelihood_prior(variance[known], df[known], at, robust and count > 2)
    elif robust and count > 2 and max(_TAILS) * count >= 1.0:
        found = _robust_prior(variance[known], df[known], at)
    else:
        found = _prior(variance[known], df[known], at)
    location, d0 = np.full(variance.shape, np.nan), np.full(variance.shape, found.df_common)
    location[known], d0[known] = found.variance, found.df
    if not known.all():
        location[~known] = found.variance[0]
        if covariate is not None and at is not None:
            order = np.argsort(at, kind="stable")
            logarithm = np.log(found.variance[order])
            location[~known] = np.exp(np.interp(covariate[~known], at[order], logarithm))
    return VariancePrior(location, d0, found.df_common)


# ---- moments of log variances -------------------------------------------------------------


def _prior(variance: FloatArray, df: FloatArray, covariate: FloatArray | None) -> VariancePrior:
    """Prior by the moments of log s^2 (Smyth 2004, section 6.2), with or without a trend."""
    m = variance.size
    x = np.maximum(variance, _FLOOR * float(np.median(variance)))
    e = np.log(x) - special.digamma(df / 2) + np.log(df / 2)
    design = np.ones((m, 1)) if covariate is None else _natural_spline(covariate)
    coefficients, _, rank, _ = np.linalg.lstsq(design, e, rcond=None)
    mean = design @ coefficients
    spread = float(((e - mean) ** 2).sum()) / max(m - int(rank), 1)
    spread -= float(special.polygamma(1, df / 2).mean())
    if spread <= 0:  # the variances differ no more than their estimation explains
        # Without a trend the pooled estimate is the mean of the variances themselves.
        s0 = np.full(m, x.mean()) if design.shape[1] == 1 else np.exp(mean)
        return VariancePrior(s0, np.full(m, np.inf), np.inf)
    d0 = 2.0 * _trigamma_inverse(spread)
    s0 = np.exp(mean + special.digamma(d0 / 2) - np.log(d0 / 2))
    return VariancePrior(s0, np.full(m, d0), d0)


def _trigamma_inverse(value: float) -> float:
    """The y with trigamma(y) = value > 0."""
    if value > 1e7:
        return float(1.0 / np.sqrt(value))
    if value < 1e-6:
        return 1.0 / value
    # trigamma lies between 1/y and 1/y + 1/y^2
    upper = (1.0 + np.sqrt(1.0 + 4.0 * value)) / (2.0 * value)
    root = optimize.brentq(
        lambda y: float(special.polygamma(1, y)) - value, 0.5 / value, 1.01 * upper, xtol=1e-14
    )
    return float(root)


def _natural_spline(x: FloatArray) -> FloatArray:
    """Basis of natural cubic splines in x with up to four degrees of freedom, shape (m, s).

    The knots are the extremes and, between them, quantiles (Hastie, Tibshirani & Friedman 2009,
    eq. 5.4 and 5.5).
    """
    size = min(1 + (x.size >= 3) + (x.size >= 6) + (x.size >= 30), np.unique(x).size)
    if size < 2:
        return np.ones((x.size, 1))
    low, high = float(x.min()), float(x.max())
    scaled = (x - low) / (high - low)
    # Quantiles may coincide: of means that one feature dwarfs, say.
    knots = np.unique(np.quantile(scaled, np.linspace(0.0, 1.0, size)))
    size = knots.size
    columns = [np.ones_like(scaled), scaled]

    def cubic(k: int) -> FloatArray:
        above = np.maximum(scaled - knots[k], 0.0) ** 3 - np.maximum(scaled - 1.0, 0.0) ** 3
        return np.asarray(above / (1.0 - knots[k]))

    columns += [cubic(k) - cubic(size - 2) for k in range(size - 2)]
    return np.stack(columns, axis=1)


# ---- maximum likelihood ------------------------------------------------------------------


def _likelihood_prior(
    variance: FloatArray, df: FloatArray, covariate: FloatArray | None, robust: bool
) -> VariancePrior:
    """Prior by maximum likelihood; robust: features count by their false discovery rate."""
    s0, d0 = fit_scaled_f(variance, df, covariate)
    plain = VariancePrior(s0, np.full(variance.shape, d0), d0)
    if not robust:
        return plain
    ratio = variance / s0
    tail = np.minimum(_f(df, d0).sf(ratio), _f(df, d0).cdf(ratio))
    rate = stats.false_discovery_control(np.minimum(2.0 * tail, 1.0))
    rate[rate > _NO_OUTLIER] = 1.0
    if (rate == 1.0).all():
        return plain
    s0, again = fit_scaled_f(variance, df, covariate, rate)
    # Outliers are told by the first fit, what they are given starts from the second.
    finite = min(again, HIGHEST_DF)
    own = _df_of_outliers(ratio, df, finite, min(d0, HIGHEST_DF))
    return VariancePrior(s0, np.where(own >= finite, again, own), again)


# ---- robust to outliers -------------------------------------------------------------------


def _robust_prior(
    variance: FloatArray, df: FloatArray, covariate: FloatArray | None
) -> VariancePrior:
    """Prior by winsorised moments; outliers get fewer prior df (Phipson et al. 2016)."""
    m = variance.size
    x = np.maximum(variance, _ROBUST_FLOOR * float(np.median(variance)))
    plain = _prior(x, df, covariate)
    d = float(df.max())
    x = _to_common_df(x, df, d, plain)
    z = np.log(x)
    if covariate is None:
        trend = np.full(m, stats.trim_mean(z, _TAILS[1]))
    else:
        trend = lowess(covariate, z, span=_SPAN)
    rest = z - trend
    low, high = np.quantile(rest, [_TAILS[0], 1.0 - _TAILS[1]])
    cut = np.clip(rest, low, high)
    mean, spread = float(cut.mean()), float(cut.var(ddof=1))

    def excess(u: float) -> float:
        """Log of observed over expected variance of the cut logarithms, d0 = u / (1 - u)."""
        return float(np.log(spread / _cut_moments(d, u / (1.0 - u) if u < 1.0 else np.inf)[1]))

    if excess(1.0) <= 0:
        s0 = np.exp(trend + mean - _cut_moments(d, np.inf)[0])
        return VariancePrior(s0, _outliers_of_none(x / s0, d), np.inf)
    if np.isinf(plain.df_common):
        return plain
    start = plain.df_common / (1.0 + plain.df_common)
    d0 = plain.df_common
    if excess(start) < 0:
        root = optimize.brentq(excess, start, 1.0, xtol=1e-14)
        d0 = root / (1.0 - root)
    s0 = np.exp(trend + mean - _cut_moments(d, d0)[0])
    return VariancePrior(s0, _df_of_outliers(x / s0, np.full(m, d), d0, d0), d0)


def _to_common_df(x: FloatArray, df: FloatArray, d: float, prior: VariancePrior) -> FloatArray:
    """Variances with the same tail probability on d degrees of freedom, shape (m,)."""
    short = df < d - 1e-14
    if not short.any():
        return x
    ratio, before, d0 = x[short] / prior.variance[short], df[short], prior.df_common
    upper, lower = _f(before, d0).sf(ratio), _f(before, d0).cdf(ratio)
    after = _f(np.full_like(before, d), d0)
    moved = np.where(upper < lower, after.isf(upper), after.ppf(lower))
    x = x.copy()
    x[short] = np.where(np.isfinite(moved), moved, ratio) * prior.variance[short]
    return x


def _f(df1: FloatArray | float, df2: float) -> stats.rv_frozen:
    """The F distribution; with infinite df2 that of chi2 / df1."""
    if np.isinf(df2):
        return stats.chi2(df1, scale=1.0 / np.asarray(df1))
    return stats.f(df1, df2)


def _cut_moments(df1: float, df2: float) -> tuple[float, float]:
    """Mean and variance of log F with its tails cut off, by Gauss-Legendre quadrature."""
    low, high = _TAILS[0], 1.0 - _TAILS[1]
    nodes = 0.5 * (low + high + (high - low) * _NODES)
    z = np.log(_f(df1, df2).ppf(np.concatenate([[low, high], nodes])))
    weights = np.concatenate([_TAILS, 0.5 * (high - low) * _WEIGHTS])
    mean = float(weights @ z)
    return mean, float(weights @ (z - mean) ** 2)


def _outliers_of_none(ratio: FloatArray, d: float) -> FloatArray:
    """Prior df where those of regular features are infinite, shape (m,)."""
    log_tail = np.log(np.maximum(_f(d, np.inf).sf(ratio), np.finfo(float).tiny))
    regular = np.exp(np.minimum(log_tail - _log_empirical_tail(ratio), 0.0))
    shrunk = np.where(regular < 1.0, regular * ratio.size * d, np.inf)
    order = np.argsort(-ratio, kind="stable")
    shrunk[order] = np.maximum.accumulate(shrunk[order])
    return shrunk


def _df_of_outliers(ratio: FloatArray, d: FloatArray, d0: float, told: float) -> FloatArray:
    """Prior df of each feature, by the probability that it is no outlier, shape (m,).

    A certain outlier has the df at which the least likely variance would be the median of its
    kind. Prior df never decrease with the tail probability of a variance. ``told`` is the prior df
    by which outliers are told, ``d0`` what a regular feature has.
    """
    log_tail = _f_logsf(ratio, d, told)
    excess = np.minimum(log_tail - _log_empirical_tail(ratio), 0.0)
    if not (excess < 0).any():
        return np.full(ratio.shape, d0)
    worst = int(np.argmin(log_tail))
    outlying = np.log(0.5) / float(log_tail[worst]) * d0
    again = float(_f_logsf(ratio[[worst]], d[[worst]], outlying)[0])
    outlying *= np.log(0.5) / again
    shrunk = np.exp(excess) * d0 - np.expm1(excess) * outlying
    order = np.argsort(log_tail, kind="stable")
    ordered = shrunk[order]
    running = np.cumsum(ordered) / np.arange(1, ratio.size + 1)
    lowest = int(np.argmin(running))
    ordered[: lowest + 1] = running[lowest]
    shrunk[order] = np.maximum.accumulate(ordered)
    return np.asarray(shrunk)


def _log_empirical_tail(ratio: FloatArray) -> FloatArray:
    return np.asarray(np.log(ratio.size - stats.rankdata(ratio) + 0.5) - np.log(ratio.size))


def _f_logsf(ratio: FloatArray, df1: FloatArray, df2: float) -> FloatArray:
    """Log survival function of F, beyond where the function itself underflows."""
    with np.errstate(divide="ignore"):
        result = np.log(stats.f.sf(ratio, df1, df2))
    far = result < -600.0
    if far.any():
        # I_x(a, b) by its hypergeometric series (DLMF 8.17.8)
        a, b = df2 / 2, df1[far] / 2
        x = df2 / (df2 + df1[far] * ratio[far])
        leading = a * np.log(x) + b * np.log1p(-x) - np.log(a) - special.betaln(a, b)
        result[far] = leading + np.log(special.hyp2f1(a + b, 1.0, a + 1.0, x))
    return np.asarray(result)
