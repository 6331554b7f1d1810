"""Degrees of freedom of contrasts, from how their variances depend on theta.

Satterthwaite's follow from the uncertainty of an estimated variance; Kenward and Roger's (1997)
also widen the standard errors, by what the estimation of theta adds to them. Arrays only; all
quantities are those of `flashmm.likelihood.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, nearest
from flashmm.likelihood.moments import ContrastMoments

__all__ = [
    "DEFAULT_DF",
    "DF_METHODS",
    "FIXED_DF",
    "INTEGRATED",
    "KNAPP_HARTUNG",
    "FStatistic",
    "ScaleAndDf",
    "VarianceAndDf",
    "adjusted_variance",
    "fai_cornelius_df",
    "kenward_roger",
    "kenward_roger_f",
    "resolve_df",
    "satterthwaite",
    "satterthwaite_df",
    "satterthwaite_f",
    "scale_and_df",
]

# Not from theta, but from all features: see `flashmm.inference.integrated`.
INTEGRATED = "integrated"
# Of fits whose residual variance is known, see `Hypotheses.ratio`.
KNAPP_HARTUNG = "knapp-hartung"
DF_METHODS = (
    "residual",
    "satterthwaite",
    "kenward-roger",
    "normal",
    KNAPP_HARTUNG,
    INTEGRATED,
)
# Those whose degrees of freedom depend on no estimate.
FIXED_DF = ("residual", "normal", KNAPP_HARTUNG)
DEFAULT_DF = "satterthwaite"
# Kenward and Roger's formula is left within this distance of A2 / r = 1, where 2 df are.
_NEAR_TWO = 0.02
_SPELLINGS = {"kenward_roger": "kenward-roger", "kr": "kenward-roger"} | dict.fromkeys(
    ("knapp_hartung", "knha", "hksj", "kh"), KNAPP_HARTUNG
)


@dataclass(frozen=True)
class VarianceAndDf:
    """Variance and degrees of freedom of single contrasts; both of shape (B, g)."""

    variance: FloatArray
    df: FloatArray


@dataclass(frozen=True)
class FStatistic:
    """F statistics of hypotheses of several contrasts and their denominator df, shape (B, g)."""

    F: FloatArray
    df: FloatArray


def resolve_df(df: str, method: str) -> str:
    """The name of a method for degrees of freedom; raises if unknown or not for this fit."""
    name = _SPELLINGS.get(str(df).lower(), str(df).lower())
    if name not in DF_METHODS:
        raise InputError(f"Unknown df={df!r}. {nearest(str(df), DF_METHODS)}")
    if name == "kenward-roger" and method != "REML":
        raise InputError(
            "df='kenward-roger' is defined for REML fits (Kenward & Roger 1997), and this one is "
            f"by {method}. Fit with method='REML', or use df='satterthwaite'."
        )
    return name


def satterthwaite(moments: ContrastMoments, covariance: FloatArray) -> VarianceAndDf:
    """Satterthwaite's (1946) degrees of freedom of single contrasts, 2 f^2 / (g'W g).

    Parameters
    ----------
    moments
        Of hypotheses of one contrast each.
    covariance
        Asymptotic covariance of theta, W, shape (B, k, k).

    Returns
    -------
    VarianceAndDf
        The variance f as estimated; df NaN where it is not positive.
    """
    f, g = moments.variance[..., 0, 0], moments.gradient[..., 0, 0]
    return VarianceAndDf(f, satterthwaite_df(f, g, covariance))


def kenward_roger(moments: ContrastMoments, covariance: FloatArray) -> VarianceAndDf:
    """Kenward and Roger's (1997) variance and degrees of freedom of single contrasts.

    For one contrast their F scale is 1 and their df are 2 f^2 / (g'W g), with f not yet adjusted.

    Parameters
    ----------
    moments
        Of hypotheses of one contrast each, adjustments included.
    covariance
        Inverse of the expected information of theta, W, shape (B, k, k).

    Returns
    -------
    VarianceAndDf
        The variance with the adjustment 2 sum_ij W_ij l'C (Q_ij - P_i C P_j) C l added.
    """
    f, g = moments.variance[..., 0, 0], moments.gradient[..., 0, 0]
    return VarianceAndDf(
        adjusted_variance(moments, covariance)[..., 0, 0], satterthwaite_df(f, g, covariance)
    )


def satterthwaite_f(
    difference: FloatArray, moments: ContrastMoments, covariance: FloatArray
) -> FStatistic:
    """F tests of hypotheses of r contrasts with Fai and Cornelius's (1996) denominator df.

    Their df come from r uncorrelated contrasts that say the same as the hypothesis: as in
    lmerTest the eigenvectors of L C L'. They are the same for L and for U L with U orthogonal, but
    not for other rows that span the same space; so callers bring hypotheses to orthonormal
    rows (`flashmm.inference.contrasts.independent_rows`).

    Parameters
    ----------
    difference
        L beta minus its hypothesised value, shape (B, g, r).
    moments
        Of the hypotheses.
    covariance
        Asymptotic covariance of theta, shape (B, k, k).

    Returns
    -------
    FStatistic
    """
    r = difference.shape[-1]
    values, vectors = _eigh(moments.variance)
    rotated = _rotated(vectors, moments.gradient)
    turned = np.matmul(np.swapaxes(vectors, -1, -2), difference[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        F = (turned**2 / values).sum(axis=-1) / r
    parts = np.stack(
        [satterthwaite_df(values[..., a], rotated[..., a], covariance) for a in range(r)], -1
    )
    return FStatistic(np.where(values[..., 0] > 0, F, np.nan), fai_cornelius_df(parts))


def fai_cornelius_df(df: FloatArray) -> FloatArray:
    """Denominator df of a sum of r independent squared t variables over r.

    With E = sum df_m / (df_m - 2), the df 2 E / (E - r) match the mean of an F distribution
    (Fai & Cornelius 1996). Where a df is 2 or less that mean does not exist: the answer is 2.

    Parameters
    ----------
    df
        Of the t variables, shape (..., r).

    Returns
    -------
    ndarray
        Shape (...).
    """
    r = df.shape[-1]
    same = np.isclose(df, df[..., :1], rtol=1e-8, atol=0.0).all(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        E = (1.0 / (1.0 - 2.0 / df)).sum(axis=-1)
        pooled = 2.0 * E / (E - r)
    pooled = np.where((df <= 2.0).any(axis=-1), 2.0, pooled)
    pooled = np.where(np.isnan(df).any(axis=-1), np.nan, pooled)
    return np.asarray(np.where(same, df.mean(axis=-1), pooled))


def kenward_roger_f(
    difference: FloatArray, moments: ContrastMoments, covariance: FloatArray
) -> FStatistic:
    """Kenward and Roger's (1997) scaled F tests of hypotheses of r contrasts.

    Parameters
    ----------
    difference
        L beta minus its hypothesised value, shape (B, g, r).
    moments
        Of the hypotheses, adjustments included.
    covariance
        Inverse of the expected information of theta, shape (B, k, k).

    Returns
    -------
    FStatistic
        F already multiplied by their scale lambda.
    """
    r = difference.shape[-1]
    values, vectors = _eigh(moments.variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        root = vectors / np.sqrt(np.where(values > 0, values, np.nan))[..., None, :]
    # In units in which L C L' = I, A1 and A2 are sums over W of traces of the gradient's pieces.
    unit = np.matmul(
        np.matmul(np.swapaxes(root, -1, -2)[:, :, None], moments.gradient), root[:, :, None]
    )
    trace = np.trace(unit, axis1=-2, axis2=-1)
    W = covariance[:, None]
    A1 = (np.matmul(W, trace[..., None])[..., 0] * trace).sum(axis=-1)
    # r A2 - A1 is r times what A2 is of the pieces without their traces: nothing cancels there.
    traceless = unit - trace[..., None, None] / r * np.eye(r)
    flat = traceless.reshape(*unit.shape[:3], r * r)
    spread = r * (np.matmul(W, flat) * flat).sum(axis=(-2, -1))
    found = scale_and_df(A1, np.maximum(spread, 0.0), r)
    adjusted = adjusted_variance(moments, covariance)
    values, vectors = _eigh(adjusted)
    turned = np.matmul(np.swapaxes(vectors, -1, -2), difference[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        F = found.scale * (turned**2 / values).sum(axis=-1) / r
    good = (values[..., 0] > 0) & (found.df > 0) & (found.scale > 0)
    return FStatistic(np.where(good, F, np.nan), np.where(good, found.df, np.nan))


@dataclass(frozen=True)
class ScaleAndDf:
    """Kenward and Roger's scale of F and denominator df; of one shape."""

    scale: FloatArray
    df: FloatArray


def scale_and_df(A1: FloatArray, spread: FloatArray, r: int) -> ScaleAndDf:
    """Scale lambda and df of Kenward and Roger's (1997) F from their A1 and r A2 - A1.

    In their notation x = A2 / r, E = 1 / (1 - x), V1 = 1 - c2 B and

        rho = V0 / (r V2) ((1 - x) / V1)^2,   df = 4 + (r + 2) / (r rho - 1),
        lambda = df (1 - x) / (df - 2).

    Where every contrast has the same df, as in balanced designs, spread is 0, V1 = 1 - x and
    df = 2 / x, so that at 2 df both rho and lambda are 0/0; rounding makes anything of them. Two
    identities take that away: V1 = 1 - x + e with e = x (1 - kappa) proportional to the
    spread, and 2 V0 + r V2 = (r + 2) V1. With d = 1 - x, u = d / V1 and D = V0 u^2 - V2 they give

        df - 2 = V1 N / D,   lambda = u (2 D + V1 N) / N,   N = r + 2 - 2 V0 (1 + u) e / V1^2

    which is lambda = 1, df = 2 / x for e = 0, at 2 df too.

    Where e is not zero, N counts e beside (1 - x)^2: next to 2 df, where the mean that
    lambda is to match ceases to exist, a slightly unbalanced design would have a lambda near 0, an
    exactly balanced one 1. There e is damped, by (d^2 / e)^2 once it exceeds d^2 and by
    (d / 0.02)^2 within 0.02 of x = 1: lambda and df go to the balanced design's as x goes to 1.

    Parameters
    ----------
    A1
        Their A1, any shape.
    spread
        r A2 - A1, not negative, same shape.
    r
        Contrasts of the hypothesis.

    Returns
    -------
    ScaleAndDf
        Same shape.

    Examples
    --------
    >>> import numpy as np
    >>> found = scale_and_df(np.array([4.0, 4.0 + 1e-13]), np.zeros(2), 2)  # two contrasts, 2 df
    >>> found.scale.round(8), found.df.round(8)
    (array([1., 1.]), array([2., 2.]))
    """
    A2 = (A1 + spread) / r
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if r == 1:
            return ScaleAndDf(np.ones_like(A2), 2.0 / A2)
        eta = np.where(A2 > 0, spread / (r * A2), 0.0)  # 1 - A1 / (r A2)
        h = r * (r + 1.0) * eta / (r + 2.0)
        g, c = r - 2.0 - h, r + 6.0 + 2.0 * h
        x = A2 / r
        d = 1.0 - x
        B = 0.5 * x * (r + 6.0 - r * eta)
        V0, V2 = 1.0 + g / c * B, 1.0 - (4.0 + h) / c * B
        e = 0.5 * x * r * eta * (1.0 - r + h) / c
        size = np.abs(e)
        near = np.where(size > d**2, (d**2 / np.where(size > 0, size, 1.0)) ** 2, 1.0)
        e = e * near * np.minimum(1.0, (d / _NEAR_TWO) ** 2)
        V1 = d + e
        u = np.where(e == 0.0, 1.0, d / np.where(e == 0.0, 1.0, V1))
        share = np.where(e == 0.0, 0.0, e / np.where(e == 0.0, 1.0, V1**2))
        D = V0 * u**2 - V2
        N = r + 2.0 - 2.0 * V0 * (1.0 + u) * share
        return ScaleAndDf(u * (2.0 * D + V1 * N) / N, 2.0 + V1 * N / D)


def adjusted_variance(moments: ContrastMoments, covariance: FloatArray) -> FloatArray:
    """Kenward and Roger's L C_A L', shape (B, g, r, r)."""
    assert moments.adjustment is not None
    weight = covariance[:, None, :, :, None, None]
    added = 2.0 * (weight * moments.adjustment).sum(axis=(2, 3))
    return np.asarray(moments.variance + 0.5 * (added + np.swapaxes(added, -1, -2)))


def satterthwaite_df(f: FloatArray, g: FloatArray, covariance: FloatArray) -> FloatArray:
    """2 f^2 / (g'W g) for variances f (B, g), their gradients (B, g, k) and W (B, k, k)."""
    positive = np.asarray(f > 0)
    g = g / np.where(positive, f, 1.0)[..., None]  # f^2 may have no room
    spread = (np.matmul(g, covariance) * g).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(positive & (spread >= 0), 2.0 / spread, np.nan)


def _eigh(matrices: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Eigenvalues and vectors, NaN where a matrix is not finite."""
    good = np.asarray(np.isfinite(matrices).all(axis=(-2, -1)))
    safe = np.where(good[..., None, None], matrices, np.eye(matrices.shape[-1]))
    values, vectors = np.linalg.eigh(safe)
    return np.where(good[..., None], values, np.nan), vectors


def _rotated(vectors: FloatArray, gradient: FloatArray) -> FloatArray:
    """u_a'M_i u_a for the eigenvectors u_a, shape (B, g, k, r)."""
    turned = np.matmul(gradient, vectors[:, :, None])
    return np.asarray((turned * vectors[:, :, None]).sum(axis=-2))
