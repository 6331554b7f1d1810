"""The largest of correlated t variables: tail probabilities and quantiles, for many features.

Let T have a multivariate t distribution with correlations a_i'a_k, a_i of length 1 in D
dimensions. Then T_i = rho a_i'u with u uniform on the sphere and rho^2 / D ~ F(D, df), independent,
and

    P(max |T_i| >= t) = E g(t / max |a_i'u|),   g(x) = P(rho >= x),

so that only the direction u is left to sample (Genz & Bretz 2009, section 4.1.3, of their
spherical-radial transform). g is a finite sum where D is even, which a dimension of no use makes
it. Directions are drawn from a mixture of densities proportional to mean_i |a_i'u|^kappa, one for
each of several kappa: the larger ones lie close to the a_i, as what counts does when t is large.
Weights undo it; weights are averages over the whole mixture (Owen & Zhou 2000), so that they are
bounded. The points behind are a scrambled Sobol sequence, the same for all features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.lazy import lazy
from flashmm.arrays.types import FloatArray
from flashmm.inference.tails import t_isf, t_sf
from flashmm.solvers.batches import usable_cores

if TYPE_CHECKING:
    from scipy.stats import qmc
else:
    qmc = lazy("scipy.stats.qmc")

__all__ = ["Directions", "MaxTests", "draw_directions", "max_tests"]

# Points times contrasts, about; the fewest and the most points, powers of 2.
_PRODUCTS, _POINTS = 65_536, (1024, 16_384)
# Powers of the cosine between a direction and an a_i, and their shares of the mixture; 0 is the
# uniform distribution. The means of all _KAPPAS are known, and taken out of the sample's error.
_SHARES = {0: 0.75, 8: 0.0625, 32: 0.0625, 128: 0.0625, 512: 0.0625}
_KAPPAS = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# Bytes of the arrays of one chunk of features: what a core's cache holds.
_CHUNK = 2**20
_KNOWN = 1e9
_NEWTON = 4


@dataclass(frozen=True)
class Directions:
    """Points from which the directions of every feature are made.

    Parameters
    ----------
    normal
        Standard normal points, shape (D, N); D even.
    cosine
        Cosine of the angle to an a_i, of both signs, shape (N,).
    nearest
        Uniform numbers that choose the a_i, ascending, shape (N,); negative where there is none,
        the direction being uniform.
    """

    normal: FloatArray
    cosine: FloatArray
    nearest: FloatArray

    @property
    def D(self) -> int:
        """Number of dimensions."""
        return int(self.normal.shape[0])


@dataclass(frozen=True)
class MaxTests:
    """Single-step tests of c contrasts for B features.

    Parameters
    ----------
    p
        Adjusted p-values, shape (B, c).
    critical
        What the largest of the t variables exceeds with probability alpha, shape (B, c): by
        contrast, since their degrees of freedom may differ.
    """

    p: FloatArray
    critical: FloatArray


def draw_directions(rank: int, rng: np.random.Generator, c: int) -> Directions:
    """Points for c contrasts of some rank.

    Parameters
    ----------
    rank
        Dimensions that the contrasts span.
    rng
        Scrambles the sequence.
    c
        Number of contrasts: many get fewer points, so that the work grows slowly.
    """
    D = rank + rank % 2
    n = int(np.clip(2 ** np.floor(np.log2(_PRODUCTS / c)), *_POINTS))
    points = qmc.Sobol(D + 3, scramble=True, rng=rng).random(n)
    points = np.clip(points, 1e-12, 1.0 - 1e-12)
    bounds = np.cumsum([share for _, share in sorted(_SHARES.items())])[:-1]
    powers = np.array(sorted(_SHARES), dtype=float)[np.searchsorted(bounds, points[:, D])]
    sided = 2.0 * points[:, D + 1] - 1.0
    cosine = np.sqrt(special.betaincinv(0.5 * (powers + 1.0), 0.5 * (D - 1.0), np.abs(sided)))
    nearest = np.where(powers > 0, points[:, D + 2], -1.0)
    order = np.argsort(nearest, kind="stable")
    normal = special.ndtri(points[order, :D].T)
    return Directions(normal, np.copysign(cosine, sided)[order], nearest[order])


def max_tests(
    roots: FloatArray,
    t: FloatArray,
    df: FloatArray,
    alpha: float,
    directions: Directions,
    *,
    two_sided: bool = True,
) -> MaxTests:
    """Single-step adjusted p-values and critical values.

    Parameters
    ----------
    roots
        The a_i of each feature, shape (B, c, r), r at most D; their products are the correlations.
        Their lengths do not count.
    t
        Observed t statistics, shape (B, c); one-sided tests are against large ones.
    df
        Degrees of freedom, shape (B, c); may be infinite.
    alpha
        Family-wise level of the critical values.
    directions
        The points.
    two_sided
        Whether |t| counts.

    Returns
    -------
    MaxTests
        NaN for features whose roots are not finite and where t or df is NaN.
    """
    B, c, _ = roots.shape
    found = MaxTests(np.full((B, c), np.nan), np.full((B, c), np.nan))
    if c == 1:
        _single(found, t, df, alpha, two_sided)
        return found
    known = (~np.isnan(t) & (df > 0)).any(axis=1)
    good = np.flatnonzero(np.isfinite(roots).all(axis=(1, 2)) & known)
    size = max(1, _CHUNK // (8 * directions.cosine.size * c))

    def work(start: int) -> None:
        here = good[start : start + size]
        sample = _sample(roots[here], directions, two_sided)
        found.p[here] = _pvalues(sample, t[here], df[here], directions.D, two_sided)
        found.critical[here] = _critical(sample, df[here], alpha, directions.D, two_sided)

    with one_blas_thread():
        _on_cores(work, range(0, good.size, size))
    return found


# ---- one chunk of features ------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """Weighted directions of B features by what counts of them.

    Parameters
    ----------
    weight
        Density ratios over N, shape (B, N).
    largest
        max_i |a_i'u|, or of a_i'u itself where tests are one-sided, shape (B, N).
    opposite
        One-sided tests alone: max_i -a_i'u, shape (B, N); -u is as likely as u.
    """

    weight: FloatArray
    largest: FloatArray
    opposite: FloatArray | None


def _sample(roots: FloatArray, directions: Directions, two_sided: bool) -> _Sample:
    B, c, r = roots.shape
    D, n = directions.normal.shape
    a = roots / np.sqrt((roots * roots).sum(axis=-1, keepdims=True))
    x = np.matmul(a, directions.normal[:r])  # (B, c, N)
    length = np.sqrt((directions.normal**2).sum(axis=0))
    chosen = np.minimum((directions.nearest * c).astype(np.intp), c - 1)
    chosen[directions.nearest < 0] = -1
    bounds = np.searchsorted(chosen, np.arange(c + 1))
    x[..., : bounds[0]] /= length[: bounds[0]]
    correlation = np.matmul(a, np.swapaxes(a, 1, 2))
    for i in range(c):
        columns = slice(int(bounds[i]), int(bounds[i + 1]))
        # u = cos a_i + sin v, v the direction of the point's part orthogonal to a_i.
        part = x[..., columns]
        along = part[:, i : i + 1].copy()
        cosine = directions.cosine[columns]
        rest = np.sqrt(np.maximum(length[columns] ** 2 - along**2, 1e-300))
        sine = np.sqrt(1.0 - cosine**2) / rest
        part *= sine
        part += correlation[:, :, i, None] * (cosine - sine * along)
    highest, lowest = x.max(axis=1), x.min(axis=1)
    power = x
    np.minimum(np.abs(power, out=power), 1.0, out=power)
    # Densities proportional to powers of the cosines, over the uniform one.
    parts = np.empty((B, len(_KAPPAS), n))
    for place, kappa in enumerate(_KAPPAS):
        np.multiply(power, power, out=power)
        np.add.reduce(power, axis=1, out=parts[:, place])
        parts[:, place] /= c * _mean_power(D, kappa)
    shares = np.array([_SHARES.get(kappa, 0.0) for kappa in _KAPPAS])
    density = _SHARES[0] + np.matmul(shares, parts)
    weight = _balanced(1.0 / density, parts)
    if two_sided:
        return _Sample(weight, np.maximum(highest, -lowest), None)
    return _Sample(weight, highest, -lowest)


def _mean_power(D: int, kappa: int) -> float:
    """Mean of |a'u|^kappa over the sphere."""
    log_mean = (
        special.gammaln(0.5 * (kappa + 1))
        + special.gammaln(0.5 * D)
        - special.gammaln(0.5)
        - special.gammaln(0.5 * (D + kappa))
    )
    return float(np.exp(log_mean))


def _balanced(ratio: FloatArray, parts: FloatArray) -> FloatArray:
    """Weights of the points, shape (B, N), that give each part of the mixture a mean of one.

    Means over the sample of ``ratio`` times a part have the expectation 1; a linear regression
    on them takes out what the sample misses of it. Its intercept is linear in what is averaged,
    so it is a matter of weights alone (Owen & Zhou 2000, section 4).

    Parameters
    ----------
    ratio
        Uniform over mixture density, shape (B, N).
    parts
        Densities of parts of the mixture over the uniform one, shape (B, b, N).
    """
    n = ratio.shape[1]
    missed = parts * ratio[:, None, :]
    missed -= 1.0
    mean = missed.mean(axis=2)
    gram = np.matmul(missed, np.swapaxes(missed, 1, 2)) / n - mean[:, :, None] * mean[:, None, :]
    size = np.trace(gram, axis1=1, axis2=2)[:, None, None]
    gram += 1e-10 * size * np.eye(gram.shape[1])
    slope = np.linalg.solve(gram, mean[:, :, None])
    adjusted = 1.0 - (
        np.matmul(np.swapaxes(slope, 1, 2), missed)[:, 0]
        - np.matmul(np.swapaxes(slope, 1, 2), mean[:, :, None])[:, 0]
    )
    return np.asarray(ratio * adjusted / n)


def _radial_tail(
    t: FloatArray, h: FloatArray, df: FloatArray, D: int
) -> tuple[FloatArray, FloatArray]:
    """P(rho h >= t) for t > 0, and its derivative by log t.

    A finite sum, since D / 2 is a whole number.
    """
    half = 0.5 * np.minimum(df, _KNOWN)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = t / h
        odds *= odds
        odds /= 2.0 * half
        result = np.log1p(odds)
        result *= -half
        np.exp(result, out=result)
        share = odds / (1.0 + odds)
    term: FloatArray = half * share
    total: FloatArray | float = 1.0
    for i in range(1, D // 2):
        total = total + term
        term = term * ((half + i) / (i + 1.0)) * share
    nothing = ~(h > 0)
    slope = result * term
    result *= total
    result[nothing], slope[nothing] = 0.0, 0.0
    return result, -D * slope


def _tail(sample: _Sample, t: FloatArray, df: FloatArray, D: int) -> tuple[FloatArray, FloatArray]:
    """Probability that the largest is at least t, t (B,) and df (B,), and its slope in log |t|."""
    size, freedom = np.abs(t)[:, None], df[:, None]
    up = t >= 0
    if sample.opposite is None:
        value, slope = _radial_tail(size, sample.largest, freedom, D)
    else:
        # For negative t it is what is left of P(all T < t), where -T_i > |t| for all i.
        one = np.where(up[:, None], sample.largest, -sample.opposite)
        two = np.where(up[:, None], sample.opposite, -sample.largest)
        value, slope = (
            0.5 * (a + b)
            for a, b in zip(
                _radial_tail(size, one, freedom, D),
                _radial_tail(size, two, freedom, D),
                strict=True,
            )
        )
    found = np.clip((sample.weight * value).sum(axis=1), 0.0, 1.0)
    steep = (sample.weight * slope).sum(axis=1)
    if sample.opposite is not None:
        found, steep = np.where(up, found, 1.0 - found), np.where(up, steep, -steep)
    return found, steep


def _pvalues(sample: _Sample, t: FloatArray, df: FloatArray, D: int, two_sided: bool) -> FloatArray:
    """Adjusted p-values (B, c), between the single and Bonferroni's."""
    finite = np.clip(t, -1e100, 1e100)
    found = np.stack(
        [_tail(sample, finite[:, i], df[:, i], D)[0] for i in range(t.shape[1])], axis=1
    )
    single = 2.0 * t_sf(np.abs(t), df) if two_sided else t_sf(t, df)
    count = (~np.isnan(t)).sum(axis=1, keepdims=True)
    return np.asarray(np.clip(found, single, np.minimum(1.0, count * single)))


def _critical(sample: _Sample, df: FloatArray, alpha: float, D: int, two_sided: bool) -> FloatArray:
    """Critical values (B, c), by Newton steps of the log tail in t^2.

    They are found for a feature's smallest, median and largest df. What a single t variable's tail
    is there hardly depends on df: its logarithm is interpolated, piecewise linearly in 1 / df.
    """
    c = df.shape[1]
    nodes = np.stack([np.nanmax(df, axis=1), np.nanmedian(df, axis=1), np.nanmin(df, axis=1)])
    at = 1.0 / nodes
    level = min(alpha / c / (2.0 if two_sided else 1.0), 0.4)
    x = t_isf(level, nodes[1])
    for _ in range(_NEWTON):
        x = _newton(sample, x, nodes[1], alpha, D)
    single = t_sf(x, nodes[1])
    levels = np.log(np.tile(single, (3, 1)))
    for i in (0, 2):
        if (np.abs(at[i] - at[1]) > 1e-6 * at[1]).any():
            x = _newton(sample, t_isf(single, nodes[i]), nodes[i], alpha, D)
            levels[i] = np.log(t_sf(x, nodes[i]))
    at, here = at[:, :, None], 1.0 / df
    upper = here > at[1]  # between the median and the smallest df
    left, right = np.where(upper, at[1], at[0]), np.where(upper, at[2], at[1])
    start, end = (np.where(upper, levels[i + 1, :, None], levels[i, :, None]) for i in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(right > left, (here - left) / (right - left), 0.0)
    return np.asarray(t_isf(np.exp(start + share * (end - start)), df))


def _newton(sample: _Sample, x: FloatArray, df: FloatArray, alpha: float, D: int) -> FloatArray:
    value, slope = _tail(sample, x, df, D)
    with np.errstate(divide="ignore", invalid="ignore"):
        # d log tail / d x^2 = (slope / tail) / (2 x^2)
        square = x * x * (1.0 - 2.0 * value * np.log(value / alpha) / slope)
    return np.sqrt(np.clip(square, 0.25 * x * x, 4.0 * x * x))


def _single(found: MaxTests, t: FloatArray, df: FloatArray, alpha: float, two_sided: bool) -> None:
    found.p[:] = 2.0 * t_sf(np.abs(t), df) if two_sided else t_sf(t, df)
    found.critical[:] = t_isf(0.5 * alpha if two_sided else alpha, df)


def _on_cores(work: Callable[[int], None], tasks: Sequence[int]) -> None:
    """Do tasks on the usable cores."""
    cores = min(usable_cores(), len(tasks))
    if cores <= 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(cores, "flashmm") as pool:
        list(pool.map(work, tasks))
