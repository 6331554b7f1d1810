"""How the variance of a contrast depends on theta: all that degrees of freedom need.

For contrasts L of the fixed effects let v = Z'V^-1 X C L', one column per row of L. Then, with C
the covariance of the estimates and T = Z'PZ,

    d(L C L') / d theta_i            = v'G_i v
    L C (Q_ij - P_i C P_j) C L'      = v'G_i T G_j v

where P_i and Q_ij are those of Kenward & Roger (1997, appendix). Here v = (I - T D) H L', with
H = Z'X (X'X)^-1, so neither X nor n is needed. The residual's entries follow from
sum_i theta_i V_i = V and P X = 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from flashmm.likelihood.base import ContrastMoments

if TYPE_CHECKING:
    from flashmm.arrays.namespaces import FloatArray
    from flashmm.designs.design import CovarianceStructure

__all__ = ["ContrastMoments", "apply_G", "contrast_moments"]


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
    rows, columns = structure.columns(parameter)
    result = np.zeros_like(vectors)
    result[..., rows] = vectors[..., columns]
    if not parameter.is_variance:
        result[..., columns] = vectors[..., rows]
    return result


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

    D_loaded = np.zeros_like(loaded)
    for i in range(k - 1):
        D_loaded += theta[:, i, None, None] * apply_G(structure, i, loaded)
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
    gradient[:, :, -1] = rest / sigma2
    if not adjustment:
        return ContrastMoments(variance, gradient, None)
    second = np.empty((B, g, k, k, r, r))
    projected = [likelihood.apply_T(theta, Gv) for Gv in turned]
    for i, Gv in enumerate(turned):
        for j, TGv in enumerate(projected):
            second[:, :, i, j] = by_hypothesis(Gv, TGv)
    _complete(theta, second)
    return ContrastMoments(variance, gradient, second)


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
