"""How the variance of a contrast depends on theta: all that degrees of freedom need.

For contrasts L of the fixed effects let v = Z'V^-1 X C L', one column per row of L. Then, with C
the covariance of the estimates and T = Z'PZ,

    d(L C L') / d theta_i            = v'G_i v
    L C (Q_ij - P_i C P_j) C L'      = v'G_i T G_j v

where P_i and Q_ij are those of Kenward & Roger (1997, appendix). Here v = (I - T D) H L', with
H = Z'X (X'X)^-1, so neither X nor n is needed. The residual's entries follow from
sum_i theta_i V_i = V and P X = 0, which divides by sigma2. Where that is small or zero (as many
random effects as samples) they follow from Z'P^2Z = T N T and Z'P^3Z = T N T N T with N the
pseudoinverse of Z'RZ instead: P Z = R Z N T, since the columns of P Z are combinations of those of
R Z.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from flashmm.arrays.namespaces import BoolArray, FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.likelihood.base import ContrastMoments, small_residual

__all__ = [
    "ContrastMoments",
    "apply_G",
    "contrast_moments",
    "effect_variances",
    "near_zero_residual",
    "powers_of_P",
    "times_D",
]

# Steps of sigma2, in internal units, for derivatives by differences.
_STEP = 1e-5


class Projected(Protocol):
    """A likelihood that applies T = Z'PZ: of all features, or of some with rows of their own."""

    @property
    def projection(self) -> Any:
        """The statistics projected off X."""
        ...

    def apply_T(self, theta: FloatArray, vectors: FloatArray) -> FloatArray:
        """T v for theta (B, k) and the rows of vectors (B, c, q)."""
        ...


def apply_G(structure: CovarianceStructure, position: int, vectors: FloatArray) -> FloatArray:
    """G_i v for the rows of vectors (..., q), same shape."""
    parameter = structure.parameters[position]
    result = np.zeros_like(vectors)
    for rows, columns in structure.slices(parameter):  # an effect may have several partners
        result[..., rows] += vectors[..., columns]
        if not parameter.is_variance:
            result[..., columns] += vectors[..., rows]
    return result


def times_D(structure: CovarianceStructure, theta: FloatArray, vectors: FloatArray) -> FloatArray:
    """D v at theta (B, k + 1 or more) for the rows of vectors (B, c, q), same shape."""
    total = np.zeros(vectors.shape)
    for i in range(len(structure.parameters)):
        total += theta[:, i, None, None] * apply_G(structure, i, vectors)
    return total


def contrast_moments(
    likelihood: Projected, theta: FloatArray, L: FloatArray, *, adjustment: bool
) -> ContrastMoments:
    """Moments of g hypotheses of r contrasts each, for any likelihood.

    Parameters
    ----------
    likelihood
        Its `apply_T` does the work.
    theta
        Internal parameters, shape (B, k).
    L
        Contrasts, shape (g, r, p).
    adjustment
        Whether Kenward and Roger's adjustment is wanted.

    Returns
    -------
    ContrastMoments
    """
    projection = likelihood.projection
    structure = projection.structure
    g, r, p = L.shape
    B, k = theta.shape
    flat = L.reshape(g * r, p)
    loaded = np.matmul(flat, np.swapaxes(projection.H, -1, -2))
    loaded = np.broadcast_to(loaded, (B, g * r, structure.q))

    def by_hypothesis(left: FloatArray, right: FloatArray) -> FloatArray:
        shape = (B, g, r, structure.q)
        product = np.matmul(left.reshape(shape), np.swapaxes(right.reshape(shape), 2, 3))
        return np.asarray(product)

    D_loaded = times_D(structure, theta, loaded)
    v = loaded - likelihood.apply_T(theta, D_loaded)
    inverse = projection.XX_inverse.reshape(-1, 1, p, p)  # one, or one for each feature
    fixed = np.matmul(np.matmul(L, inverse), np.swapaxes(L, 1, 2))
    sigma2 = theta[:, -1, None, None, None]
    variance = _symmetric(sigma2 * fixed + by_hypothesis(D_loaded, v))

    turned = [apply_G(structure, i, v) for i in range(k - 1)]
    gradient = np.empty((B, g, k, r, r))
    rest = variance.copy()
    for i, Gv in enumerate(turned):
        gradient[:, :, i] = _symmetric(by_hypothesis(Gv, v))
        rest -= theta[:, i, None, None, None] * gradient[:, :, i]
    near = near_zero_residual(likelihood, theta)
    with np.errstate(divide="ignore", invalid="ignore"):
        gradient[:, :, -1] = rest / sigma2
    if near.any():
        squared, cubed = powers_of_P(likelihood, theta, D_loaded, near)
        gradient[near, :, -1] = _symmetric(fixed + by_hypothesis(D_loaded, squared))[near]
    if not adjustment:
        return ContrastMoments(variance, gradient, None)
    second = np.empty((B, g, k, k, r, r))
    projected = [likelihood.apply_T(theta, Gv) for Gv in turned]
    for i, Gv in enumerate(turned):
        for j, TGv in enumerate(projected):
            second[:, :, i, j] = by_hypothesis(Gv, TGv)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        _complete(theta, second)
    if near.any():
        for i, Gv in enumerate(turned):
            cross = -by_hypothesis(Gv, squared)[near]
            second[near, :, i, -1] = cross
            second[near, :, -1, i] = np.swapaxes(cross, -1, -2)
        second[near, :, -1, -1] = by_hypothesis(D_loaded, cubed)[near]
    return ContrastMoments(variance, gradient, second)


def effect_variances(
    likelihood: Projected, theta: FloatArray, rows: FloatArray, given: FloatArray | None
) -> FloatArray:
    """Variances of w'(b - b_hat) for random effects b, in internal units, shape (B, c).

    They are w'(D - D T D) w. Given y and beta Z'V^-1Z stands in the place of T, which is
    T + v C^-1 v' with v = Z'V^-1X C.

    Parameters
    ----------
    likelihood
        Its `apply_T` does the work.
    theta
        Internal parameters, shape (B, k).
    rows
        The w, shape (c, q), or (B, c, q) where features scale them differently.
    given
        C^-1 = X'V^-1X where beta is given, shape (B, p, p); None where it is estimated.
    """
    projection, count = likelihood.projection, theta.shape[0]
    structure = projection.structure
    w = np.broadcast_to(rows, (count, *rows.shape[-2:]))
    Dw = times_D(structure, theta, w)
    variance = (Dw * (w - likelihood.apply_T(theta, Dw))).sum(axis=2)
    if given is not None:
        H = np.swapaxes(projection.H, -1, -2)
        H = np.broadcast_to(H, (count, *H.shape[-2:]))
        v = H - likelihood.apply_T(theta, times_D(structure, theta, H))
        loadings = np.matmul(Dw, np.swapaxes(v, 1, 2))
        variance = variance - (np.matmul(loadings, given) * loadings).sum(axis=2)
    return np.where(variance < -1e-12, np.nan, np.maximum(variance, 0.0))


def near_zero_residual(likelihood: Projected, theta: FloatArray) -> BoolArray:
    """Which residual variances (B,) are too small to divide by."""
    return np.asarray(theta[:, -1] < small_residual(likelihood.projection.structure.q))


def powers_of_P(
    likelihood: Projected, theta: FloatArray, a: FloatArray, rows: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """Z'P^2Z a and Z'P^3Z a for the vectors a (B, c, q) of ``rows`` (B,), zero for others.

    They are T N T a and T N T N T a; where the likelihood has no N they are the derivatives
    -dT/dsigma2 a and half the second, by differences of third and second order.
    """
    a = np.where(rows[:, None, None], a, 0.0)
    pseudoinverse = getattr(likelihood.projection, "apply_pseudoinverse", None)
    if pseudoinverse is not None:
        once = likelihood.apply_T(theta, pseudoinverse(likelihood.apply_T(theta, a)))
        return once, likelihood.apply_T(theta, pseudoinverse(once))
    at = []
    for steps in range(4):
        moved = theta.copy()
        moved[:, -1] += steps * _STEP
        at.append(likelihood.apply_T(moved, a))
    first = (-11.0 * at[0] + 18.0 * at[1] - 9.0 * at[2] + 2.0 * at[3]) / (6.0 * _STEP)
    second = (2.0 * at[0] - 5.0 * at[1] + 4.0 * at[2] - at[3]) / _STEP**2
    return -first, 0.5 * second


def _complete(theta: FloatArray, second: FloatArray) -> None:
    """Fill in the residual's entries from sum_j theta_j (.)_ij = 0, in place."""
    k = theta.shape[1]
    weight = theta[:, None, :-1, None, None] / theta[:, None, -1:, None, None]
    for i in range(k - 1):
        second[:, :, i, -1] = -(weight * second[:, :, i, :-1]).sum(axis=2)
        second[:, :, -1, i] = -(weight * second[:, :, :-1, i]).sum(axis=2)
    second[:, :, -1, -1] = -(weight * second[:, :, -1, :-1]).sum(axis=2)


def _symmetric(matrices: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (matrices + np.swapaxes(matrices, -1, -2)))
