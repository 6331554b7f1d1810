"""The parameter spaces: where theta may lie, and the best step within.

A space turns a score and an information matrix into a step: the maximum of the quadratic
model score'd - 1/2 d'I d over the d that keep theta + d in the space. Both spaces are convex,
so any fraction of a step is allowed too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flashmm.solvers.cone import ConeProgram, solve_cone_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["PSD", "ParameterSpace", "Unconstrained", "make_space", "solve_symmetric"]

_SINGULAR = 1e-10


class ParameterSpace(Protocol):
    """A convex set of theta, and the best step of a quadratic model within it."""

    @property
    def name(self) -> str:
        """Name under which `MultiLMM.fit` knows the space."""
        ...

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """Step d (B, k) that maximises score'd - 1/2 d'I d with theta + d in the space."""
        ...

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta (B, k) lie in the space."""
        ...

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta (B, k) with what rounding put outside the space put back on its boundary."""
        ...

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta (B, k) lie on the boundary of the space."""
        ...

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """Which parameters (B, k) the boundary holds against their score."""
        ...


def solve_symmetric(information: FloatArray, score: FloatArray) -> FloatArray:
    """I^-1 s for a stack of symmetric matrices; eigenvalues are kept positive.

    Works on the matrix scaled to unit diagonal, so units do not matter. Directions without
    information get a bounded step rather than an infinite one.
    """
    diagonal = np.abs(np.diagonal(information, axis1=-2, axis2=-1))
    length = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(information / (length[:, :, None] * length[:, None, :]))
    values = np.maximum(np.abs(values), 1e-12)
    projected = np.matmul(np.swapaxes(vectors, 1, 2), (score / length)[:, :, None])
    step = np.matmul(vectors, projected / values[:, :, None])[:, :, 0]
    return np.asarray(step / length)


@dataclass(frozen=True)
class Unconstrained:
    """Any theta for which the likelihood exists; variances may be negative."""

    name: str = "unconstrained"

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The full step I^-1 s, wherever theta is."""
        del theta
        return solve_symmetric(information, score)

    def contains(self, theta: FloatArray) -> BoolArray:
        """All of them: the likelihood itself says where it exists."""
        return np.ones(theta.shape[0], dtype=bool)

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta as it is."""
        return theta

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """None of them: the space is open."""
        return np.zeros(theta.shape[0], dtype=bool)

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """None of them."""
        del score
        return np.zeros(theta.shape, dtype=bool)


@dataclass(frozen=True)
class PSD:
    """D positive semi-definite and sigma2 >= 0, as in lme4 and statsmodels.

    Parameters
    ----------
    blocks
        Per covariance block the positions of its entries in theta, each shape (s, s).
    n_params
        Length of theta, the residual variance last.
    """

    blocks: tuple[NDArray[np.intp], ...]
    n_params: int
    name: str = "psd"

    @property
    def all_blocks(self) -> tuple[NDArray[np.intp], ...]:
        """The blocks of D and, last, the residual variance."""
        return (*self.blocks, np.array([[self.n_params - 1]], dtype=np.intp))

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The full step where it stays inside, else the best step within the cone."""
        step = solve_symmetric(information, score)
        outside = ~self.contains(theta + step)
        if outside.any():
            step[outside] = solve_cone_program(
                ConeProgram(theta[outside], score[outside], information[outside]), self.all_blocks
            )
        return step

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta have every block positive semi-definite (to rounding)."""
        inside = np.ones(theta.shape[0], dtype=bool)
        for block in self.all_blocks:
            if block.shape == (1, 1):
                inside &= theta[:, block[0, 0]] >= 0.0
            else:
                values = np.linalg.eigvalsh(theta[:, block])
                inside &= values[:, 0] >= -1e-14 * np.abs(values[:, -1])
        return inside

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Variances that are negative by rounding alone become zero."""
        rounding = 1e-14 * np.abs(theta).max(axis=1, keepdims=True)
        variances = np.zeros(theta.shape[1], dtype=bool)
        variances[np.concatenate([np.diag(block) for block in self.all_blocks])] = True
        return np.where(variances & (theta < 0) & (theta >= -rounding), 0.0, theta)

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """Variances of their own that are zero and would fall further."""
        held = np.zeros(theta.shape, dtype=bool)
        for block in self.blocks:
            if block.shape == (1, 1):
                i = block[0, 0]
                held[:, i] = (theta[:, i] == 0.0) & (score[:, i] <= 0.0)
        return held

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta have a block that is singular, relative to the sizes of its variances."""
        boundary = np.zeros(theta.shape[0], dtype=bool)
        for block in self.blocks:
            variances = theta[:, np.diag(block)]
            boundary |= (variances <= _SINGULAR * theta[:, -1:]).any(axis=1)
            if block.shape[0] > 1:
                length = np.sqrt(np.where(variances > 0, variances, 1.0))
                correlation = theta[:, block] / (length[:, :, None] * length[:, None, :])
                boundary |= np.linalg.eigvalsh(correlation)[:, 0] <= 1e-8
        return boundary


def make_space(name: str, blocks: Sequence[NDArray[np.intp]], n_params: int) -> ParameterSpace:
    """The space that `MultiLMM.fit` calls ``name``, for the covariance blocks of a design."""
    return PSD(tuple(blocks), n_params) if name == "psd" else Unconstrained()
