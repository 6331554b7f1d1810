"""Degrees of freedom of contrasts, from how their variances depend on theta.

Satterthwaite's follow from the uncertainty of an estimated variance; Kenward and Roger's (1997)
also widen the standard errors, by what the estimation of theta adds to them. Arrays only; all
quantities are those of `flashmm.likelihood.moments`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashmm.exceptions import InputError, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.likelihood.moments import ContrastMoments

    FloatArray = NDArray[np.float64]

__all__ = [
    "DEFAULT_DF",
    "DF_METHODS",
    "INTEGRATED",
    "FStatistic",
    "VarianceAndDf",
    "fai_cornelius_df",
    "kenward_roger",
    "kenward_roger_f",
    "resolve_df",
    "satterthwaite",
    "satterthwaite_df",
    "satterthwaite_f",
]

# Not from theta, but from all features: see `flashmm.inference.integrated`.
INTEGRATED = "integrated"
DF_METHODS = ("residual", "satterthwaite", "kenward-roger", INTEGRATED)
DEFAULT_DF = "satterthwaite"
_SPELLINGS = {"kenward_roger": "kenward-roger", "kr": "kenward-roger"}


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
        _adjusted(moments, covariance)[..., 0, 0], satterthwaite_df(f, g, covariance)
    )


def satterthwaite_f(
    difference: FloatArray, moments: ContrastMoments, covariance: FloatArray
) -> FStatistic:
    """F tests of hypotheses of r contrasts with Fai and Cornelius's (1996) denominator df.

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
    flat = unit.reshape(*unit.shape[:3], r * r)
    A2 = (np.matmul(W, flat) * flat).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        B = (A1 + 6.0 * A2) / (2.0 * r)
        g = np.where(A2 > 0, ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2), 0.0)
        c = 3.0 * r + 2.0 * (1.0 - g)
        V0 = 1.0 + g / c * B
        V1 = 1.0 - (r - g) / c * B
        V2 = 1.0 - (r + 2 - g) / c * B
        E = 1.0 / (1.0 - A2 / r)
        rho = V0 / (V1**2 * V2) / (r * E**2)
        df = 4.0 + (r + 2.0) / (r * rho - 1.0)
        scale = np.where(np.isfinite(df), df / (E * (df - 2.0)), 1.0)
    if r == 1:
        with np.errstate(divide="ignore"):
            df, scale = 2.0 / A2, np.ones_like(scale)
    adjusted = _adjusted(moments, covariance)
    values, vectors = _eigh(adjusted)
    turned = np.matmul(np.swapaxes(vectors, -1, -2), difference[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        F = scale * (turned**2 / values).sum(axis=-1) / r
    good = (values[..., 0] > 0) & (df > 0) & (scale > 0)
    return FStatistic(np.where(good, F, np.nan), np.where(good, df, np.nan))


def _adjusted(moments: ContrastMoments, covariance: FloatArray) -> FloatArray:
    """L C_A L', shape (B, g, r, r)."""
    assert moments.adjustment is not None
    weight = covariance[:, None, :, :, None, None]
    added = 2.0 * (weight * moments.adjustment).sum(axis=(2, 3))
    return np.asarray(moments.variance + 0.5 * (added + np.swapaxes(added, -1, -2)))


def satterthwaite_df(f: FloatArray, g: FloatArray, covariance: FloatArray) -> FloatArray:
    """2 f^2 / (g'W g) for variances f (B, g), their gradients (B, g, k) and W (B, k, k)."""
    spread = (np.matmul(g, covariance) * g).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((f > 0) & (spread >= 0), 2.0 * f**2 / spread, np.nan)


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
