"""Shape, spread and outliers of residuals, from sums that a pass over blocks of samples adds up.

Skewness and kurtosis are the third and fourth standardised moments (divisor n, kurtosis minus 3),
their joint p-value Jarque and Bera's (1987). Levene's (1960) test is the F test of the absolute
residuals between groups; the variance against the level is the correlation of the absolute
residuals with the fitted values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.inference.tails import chi2_sf, f_sf, t_sf

__all__ = ["OUTLYING", "ResidualSums", "Shape", "shape_of", "shape_of_moments"]

# Standardised residuals beyond this are counted as outlying.
OUTLYING = 3.0


@dataclass(frozen=True)
class Shape:
    """Skewness, kurtosis, and the p-value of normality; of one shape."""

    skewness: FloatArray
    kurtosis: FloatArray
    p: FloatArray


def shape_of_moments(n: FloatArray, sums: FloatArray) -> Shape:
    """From numbers of values (B,) and their sums of powers one to four, (4, B)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        m1, r2, r3, r4 = sums / n
        m2 = r2 - m1**2
        m3 = r3 - 3.0 * m1 * r2 + 2.0 * m1**3
        m4 = r4 - 4.0 * m1 * r3 + 6.0 * m1**2 * r2 - 3.0 * m1**4
        some = m2 > 1e-12 * r2
        skewness = np.where(some, m3 / m2**1.5, np.nan)
        kurtosis = np.where(some, m4 / m2**2 - 3.0, np.nan)
        statistic = n / 6.0 * (skewness**2 + kurtosis**2 / 4.0)
    return Shape(skewness, kurtosis, chi2_sf(statistic, 2))


def shape_of(values: FloatArray) -> Shape:
    """Of the rows of values (B, L)."""
    with np.errstate(invalid="ignore", over="ignore"):
        centred = values - values.mean(axis=1, keepdims=True)
        sums = np.stack([(centred**power).sum(axis=1) for power in (1, 2, 3, 4)])
    return shape_of_moments(np.full(values.shape[0], float(values.shape[1])), sums)


@dataclass(frozen=True)
class ResidualSums:
    """Sums over the samples of F features, and over the features of n samples.

    Parameters
    ----------
    count
        Observations, shape (F,).
    raw, standard
        Sums of the powers one to four of the residuals over sigma, and of the standardised
        ones, each (4, F).
    level
        Sums of the fitted values about ``centre``, their squares, and their products with absolute
        standardised residuals, and of the latter, shape (4, F).
    centre
        Shape (F,); NaN before the first block.
    group_count, group_sum
        Observations and sums of absolute standardised residuals by group, shape (F, G).
    outlying
        Standardised residuals beyond `OUTLYING`, shape (F,).
    sample_count, sample_square, sample_outlying
        Observations, sums of squared standardised residuals and numbers of outlying ones of each
        sample, shape (n,).
    """

    count: FloatArray
    raw: FloatArray
    standard: FloatArray
    level: FloatArray
    centre: FloatArray
    group_count: FloatArray
    group_sum: FloatArray
    outlying: FloatArray
    sample_count: FloatArray
    sample_square: FloatArray
    sample_outlying: FloatArray

    @classmethod
    def empty(cls, features: int, samples: int, groups: int) -> ResidualSums:
        """Before the first block."""
        one, four = np.zeros(features), np.zeros((4, features))
        by_group, of_samples = np.zeros((features, groups)), np.zeros(samples)
        return cls(
            one.copy(),
            four.copy(),
            four.copy(),
            four.copy(),
            np.full(features, np.nan),
            by_group.copy(),
            by_group.copy(),
            one.copy(),
            of_samples.copy(),
            of_samples.copy(),
            of_samples.copy(),
        )

    def add(
        self,
        features: IntArray,
        samples: IntArray,
        raw: FloatArray,
        standard: FloatArray,
        fitted: FloatArray,
        group: IntArray,
    ) -> None:
        """Add a block; all but the positions are of shape (f, n_b), groups (n_b,), -1 for none.

        NaN in ``standard`` leaves an observation out.
        """
        there = np.isfinite(standard) & np.isfinite(raw)
        raw, standard = np.where(there, raw, 0.0), np.where(there, standard, 0.0)
        self.count[features] += there.sum(axis=1)
        for power in range(1, 5):
            self.raw[power - 1, features] += (raw**power).sum(axis=1)
            self.standard[power - 1, features] += (standard**power).sum(axis=1)
        unset = np.isnan(self.centre[features])
        first = np.where(there, fitted, 0.0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        self.centre[features] = np.where(unset, first, self.centre[features])
        away = np.where(there, fitted - self.centre[features][:, None], 0.0)
        size = np.abs(standard)
        for row, part in enumerate((away, away**2, away * size, size)):
            self.level[row, features] += part.sum(axis=1)
        indicator = np.zeros((samples.size, self.group_count.shape[1]))
        known = np.flatnonzero(group >= 0)
        indicator[known, group[known]] = 1.0
        self.group_count[features] += there @ indicator
        self.group_sum[features] += size @ indicator
        beyond = size > OUTLYING
        self.outlying[features] += beyond.sum(axis=1)
        self.sample_count[samples] += there.sum(axis=0)
        self.sample_square[samples] += (standard**2).sum(axis=0)
        self.sample_outlying[samples] += beyond.sum(axis=0)

    def against_level(self) -> tuple[FloatArray, FloatArray]:
        """Correlation of absolute residuals with fitted values, and its p-value; both (F,)."""
        n, square = self.count, self.standard[1]
        a, aa, product, size = self.level
        with np.errstate(divide="ignore", invalid="ignore"):
            cross = product - a * size / n
            left, right = aa - a * a / n, square - size**2 / n
            r = np.where(left > 1e-12 * aa, cross / np.sqrt(left * right), np.nan)
            t = r * np.sqrt((n - 2.0) / np.maximum(1.0 - r * r, 1e-300))
            p = 2.0 * t_sf(np.abs(t), np.where(n > 2, n - 2.0, np.nan))
        return r, np.asarray(p)

    def levene(self) -> tuple[FloatArray, FloatArray]:
        """F of absolute residuals between groups, and its p-value; both (F,)."""
        n, count = self.group_count.sum(axis=1), self.group_count
        total = self.group_sum.sum(axis=1)
        groups = (count > 0).sum(axis=1).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            between = np.where(count > 0, self.group_sum**2 / count, 0.0).sum(axis=1)
            within = self.standard[1] - between
            between = between - total**2 / n
            F = between / (groups - 1.0) / (within / (n - groups))
            good = (groups > 1) & (n > groups) & (n == self.count)
            F = np.where(good, F, np.nan)
        return F, f_sf(F, groups - 1.0, n - groups)
