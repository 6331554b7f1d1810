"""Several contrasts at once: p-values and critical values that hold the family-wise error.

Arrays only. For each method the adjusted p-value and the critical value of |t| (or of t, where
tests are one-sided), with r the rank of the c contrasts, k the number of means and df the
contrast's own:

=========  ================================================================================
tukey      all pairs of k means: the studentized range, P(Q > sqrt(2) |t|) (Tukey 1953; Kramer
           1956 where the means' variances differ)
dunnett    means against one control: that of mvt (Dunnett 1955)
mvt        the largest of the |t|, with the contrasts' own correlations (Genz & Bretz 2009)
scheffe    every linear combination: P(F > t^2 / r) on r and df (Scheffe 1953)
sidak      1 - (1 - p)^c (Sidak 1967)
=========  ================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy import special

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.max_t import Directions, max_tests
from flashmm.inference.statistics import f_pvalues
from flashmm.inference.studentized_range import range_quantile, range_tail
from flashmm.inference.tails import t_isf

__all__ = [
    "METHODS",
    "Adjusted",
    "Basis",
    "basis_of",
    "has_one_control",
    "number_of_means",
    "roots_of",
    "scheffe",
    "sidak",
    "single_step",
    "tukey",
]

METHODS = ("tukey", "dunnett", "mvt", "scheffe", "sidak")
# Rows that depend on others to this share of their length count as dependent.
_DEPENDENT = 1e-10


@dataclass(frozen=True)
class Adjusted:
    """Adjusted p-values and critical values of c contrasts for B features, both (B, c)."""

    p: FloatArray
    critical: FloatArray


@dataclass(frozen=True)
class Basis:
    """Independent contrasts that c contrasts are combinations of.

    Parameters
    ----------
    rows
        Positions of r linearly independent contrasts.
    weights
        All contrasts in terms of them, shape (c, r).
    """

    rows: IntArray
    weights: FloatArray

    @property
    def rank(self) -> int:
        """Number of independent contrasts, r."""
        return int(self.rows.size)


def basis_of(matrix: FloatArray) -> Basis:
    """Choose independent rows of contrasts (c, p) by a QR factorisation with pivoting."""
    length = np.sqrt((matrix * matrix).sum(axis=1))
    scaled = matrix / length[:, None]
    triangle, order = scipy.linalg.qr(scaled.T, mode="r", pivoting=True)
    sizes = np.abs(np.diagonal(triangle))
    rank = int((sizes > _DEPENDENT * sizes[0]).sum())
    rows = np.sort(order[:rank]).astype(np.intp)
    weights = np.linalg.lstsq(scaled[rows].T, scaled.T, rcond=None)[0].T
    weights[np.abs(weights) < 1e-12] = 0.0
    return Basis(rows, weights * (length[:, None] / length[rows]))


def roots_of(covariance: FloatArray, weights: FloatArray) -> FloatArray:
    """Vectors whose products are the covariances of contrasts, shape (B, c, r).

    By a Cholesky factorisation, which unlike one by eigenvectors is a continuous function of the
    covariances: features that are nearly alike get answers that are.

    Parameters
    ----------
    covariance
        Of the independent contrasts, shape (B, r, r).
    weights
        All contrasts in terms of these, shape (c, r).

    Returns
    -------
    ndarray
        NaN where a covariance matrix is not positive definite.
    """
    scale = np.diagonal(covariance, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        good = np.asarray(np.isfinite(covariance).all(axis=(1, 2)) & (scale > 0).all(axis=1))
    size = np.sqrt(np.where(good[:, None], scale, 1.0))
    unit = np.eye(covariance.shape[-1])
    correlation = np.where(
        good[:, None, None], covariance / (size[:, :, None] * size[:, None, :]), unit
    )
    good &= np.linalg.eigvalsh(correlation)[:, 0] > 1e-12
    root = np.linalg.cholesky(np.where(good[:, None, None], correlation, unit))
    result = np.matmul(weights, size[:, :, None] * root)
    result[~good] = np.nan
    return np.asarray(result)


def number_of_means(weights: FloatArray) -> int | None:
    """How many means all pairwise differences are of; None where they are not that.

    Each difference is compared up to its sign. Of three means a, b, x the differences a - b, a - x
    and x - b are all there; the first row sets a and b, what is in such a triangle with it is
    another mean, and all means found so must differ by rows again.

    Parameters
    ----------
    weights
        Contrasts, shape (c, p), in any order.
    """
    c = weights.shape[0]
    k = round(0.5 * (1.0 + np.sqrt(1.0 + 8.0 * c)))
    if k * (k - 1) != 2 * c:
        return None
    if k == 2:
        return 2
    digits = 9 - int(np.floor(np.log10(np.abs(weights).max())))
    known = {tuple(row) for row in np.round(np.concatenate([weights, -weights]), digits) + 0.0}
    if len(known) != 2 * c:
        return None

    def there(row: FloatArray) -> bool:
        return tuple(np.round(row, digits) + 0.0) in known

    first = weights[0]  # a - b, with a at 0
    means = [np.zeros_like(first), -first]
    others = [sign * row for row in weights[1:] for sign in (1.0, -1.0)]
    candidates = [-row for row in others if there(first - row)]  # x, where a - x and x - b are rows
    for x in candidates:
        if all(there(x - mean) for mean in means):
            means.append(x)
    return k if len(means) == k else None


def has_one_control(weights: FloatArray) -> bool:
    """Whether contrasts (c, k) of means all compare a mean with the same one."""
    pairs = ((weights > 0).sum(axis=1) == 1) & ((weights < 0).sum(axis=1) == 1)
    balanced = np.abs(weights.sum(axis=1)) < 1e-9 * np.abs(weights).max()
    if not (pairs & balanced).all():
        return False
    ends = [set(np.flatnonzero(row).tolist()) for row in weights]
    return bool(set.intersection(*ends)) and len({frozenset(pair) for pair in ends}) == len(ends)


def tukey(t: FloatArray, df: FloatArray, alpha: float, k: int) -> Adjusted:
    """Tests of all differences of k means by the studentized range; t and df (B, c)."""
    root = np.sqrt(2.0)
    return Adjusted(range_tail(root * np.abs(t), k, df), range_quantile(alpha, k, df) / root)


def scheffe(t: FloatArray, df: FloatArray, alpha: float, rank: int) -> Adjusted:
    """Tests of every combination of contrasts of some rank; t and df (B, c)."""
    known = np.isinf(df)
    quantile = special.fdtri(rank, np.where(known, 1.0, df), 1.0 - alpha)
    quantile = np.where(known, special.chdtri(rank, alpha) / rank, quantile)
    number = np.full(t.shape, float(rank))
    return Adjusted(f_pvalues(t * t / rank, number, df), np.sqrt(rank * quantile))


def sidak(p: FloatArray, df: FloatArray, alpha: float, *, two_sided: bool = True) -> Adjusted:
    """Tests by Sidak's inequality: p-values (B, c), of which those that are not NaN count."""
    count = np.maximum(np.isfinite(p).sum(axis=1, keepdims=True), 1)
    with np.errstate(divide="ignore"):
        adjusted = -np.expm1(count * np.log1p(-p))
    level = -np.expm1(np.log1p(-alpha) / count)
    return Adjusted(adjusted, np.asarray(t_isf(level / 2.0 if two_sided else level, df)))


def single_step(
    t: FloatArray,
    df: FloatArray,
    alpha: float,
    roots: FloatArray,
    directions: Directions,
    alternative: str = "two-sided",
) -> Adjusted:
    """Tests by the largest of the t variables, `flashmm.inference.max_t`.

    Parameters
    ----------
    t, df
        Statistics and degrees of freedom, shape (B, c).
    alpha
        Family-wise level.
    roots
        Vectors whose products are the contrasts' covariances, shape (B, c, r).
    directions
        Points, the same for all features.
    alternative
        ``"two-sided"``, ``"greater"`` or ``"less"``.
    """
    sign = -1.0 if alternative == "less" else 1.0
    two_sided = alternative == "two-sided"
    found = max_tests(roots, sign * t, df, alpha, directions, two_sided=two_sided)
    return Adjusted(found.p, found.critical)


def check_means(weights: FloatArray, labels: tuple[str, ...]) -> int:
    """The number of means of all pairwise differences; an error where they are not that."""
    k = number_of_means(weights)
    if k is None:
        raise InputError(
            f"method='tukey' is for all pairwise differences of some means; these {len(labels)} "
            'contrasts are something else. Use "mvt", which takes any contrasts, or '
            'marginal_means(..., contrast="pairwise").'
        )
    return k
