"""The mean-variance trend of log-counts, and the weights that it gives every observation.

Law, Chen, Shi & Smyth (2014), Genome Biology 15:R29: the root of a feature's residual standard
deviation is a smooth function of its mean log-count, and so is that of an observation of its
fitted log-count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.lowess import lowess

__all__ = ["Trend", "log2_cpm", "mean_variance_trend", "trend_weights"]

# What is added to a count, and to a sample's total, before the logarithm is taken.
_OFFSET = 0.5
_MILLION = float(np.log2(1e6))


@dataclass(frozen=True)
class Trend:
    """Points of the trend, by ascending mean log-count.

    Parameters
    ----------
    x
        Mean log2-count of each feature used, shape (f,).
    y
        Root of its residual standard deviation, shape (f,).
    fitted
        The smooth curve at x, shape (f,).
    features
        Positions of the features, shape (f,).
    """

    x: FloatArray
    y: FloatArray
    fitted: FloatArray
    features: IntArray


def log2_cpm(counts: FloatArray, lib_size: FloatArray) -> FloatArray:
    """Log2 counts per million of counts (m, n) with totals (n,), shape (m, n)."""
    return np.asarray(np.log2((counts + _OFFSET) / (lib_size + 1.0)) + _MILLION)


def mean_variance_trend(
    log2cpm: FloatArray,
    lib_size: FloatArray,
    sigma: FloatArray,
    usable: BoolArray,
    *,
    span: float,
) -> Trend:
    """The trend of the usable features.

    Parameters
    ----------
    log2cpm
        Shape (m, n).
    lib_size
        Totals of the samples, shape (n,).
    sigma
        Residual standard deviations, shape (m,).
    usable
        Features that make up the trend, shape (m,).
    span
        Share of them in each local line.
    """
    x = log2cpm.mean(axis=1) + np.log2(lib_size + 1.0).mean() - _MILLION
    features = np.flatnonzero(usable & np.isfinite(sigma))
    features = features[np.argsort(x[features], kind="stable")]
    y = np.sqrt(sigma[features])
    return Trend(x[features], y, lowess(x[features], y, span=span), features)


def trend_weights(trend: Trend, fitted: FloatArray, lib_size: FloatArray) -> FloatArray:
    """Weights of observations whose log2 counts per million are fitted, both (m, n)."""
    log_count = fitted + np.log2(lib_size + 1.0) - _MILLION
    return np.asarray(np.interp(log_count, trend.x, trend.fitted) ** -4.0)
