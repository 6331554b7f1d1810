"""The parameter spaces: where theta may lie, and the best step within.

A space turns a score and an information matrix into a step: the maximum of the quadratic
model score'd - 1/2 d'I d over the d that keep theta + d in the space. Both spaces are convex,
so any fraction of a step is allowed too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.namespaces import BoolArray, FloatArray, namespace
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.blocks import Blocks
from flashmm.solvers.kkt_newton import newton_step, quadratic_program
from flashmm.solvers.linear import solve_definite, solve_symmetric, unit_diagonal

__all__ = ["PSD", "ParameterSpace", "Unconstrained", "make_space"]

_SINGULAR = 1e-10
# A residual variance below this share of the largest variance differs from zero by rounding alone.
_NO_RESIDUAL = 1e-13
# Eigenvalues of a block that are negative by this share of the largest are so by rounding.
_ROUNDING = 1e-13


class ParameterSpace(Protocol):
    """A convex set of theta, and the best step of a quadratic model within it."""

    @property
    def name(self) -> str:
        """Name under which `MultiLMM.fit` knows the space."""
        ...

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """Step d (B, k) that maximises score'd - 1/2 d'I d with theta + d in the space."""
        ...

    def newton(
        self, theta: FloatArray, at: Evaluation, lowest: float
    ) -> tuple[FloatArray, BoolArray]:
        """Newton steps (B, k) towards the maximum near theta, and which are towards one (B,).

        The observed information, relative to the expected one (where there is a boundary, to its
        diagonal), must have eigenvalues above ``lowest`` in the directions that this leaves.
        """
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


@dataclass(frozen=True)
class Unconstrained:
    """Any theta for which the likelihood exists; variances may be negative."""

    name: str = "unconstrained"

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The full step I^-1 s, wherever theta is."""
        del theta
        return solve_symmetric(information, score)

    def newton(
        self, theta: FloatArray, at: Evaluation, lowest: float
    ) -> tuple[FloatArray, BoolArray]:
        """The full step O^-1 s where O is positive definite."""
        del theta
        unit, length = unit_diagonal(at.expected)
        scaled = at.observed / (length[:, :, None] * length[:, None, :])
        step, ok = solve_definite(scaled, at.score / length, lowest, unit)
        return step / length, ok

    def contains(self, theta: FloatArray) -> BoolArray:
        """All of them: the likelihood itself says where it exists."""
        xp = namespace(theta)
        return xp.ones_like(theta[:, 0], dtype=xp.bool)

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta as it is."""
        return theta

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """None of them: the space is open."""
        return ~self.contains(theta)


@dataclass(frozen=True)
class PSD:
    """D positive semi-definite and sigma2 >= 0, as in lme4 and statsmodels.

    Parameters
    ----------
    blocks
        Per covariance block the positions of its entries in theta, each shape (s, s).
    n_params
        Length of theta, the residual variance last.
    levels
        Levels of each block and, last, samples, for EM; none where it is not to be used.
    """

    blocks: tuple[NDArray[np.intp], ...]
    n_params: int
    levels: tuple[int, ...] = ()
    name: str = "psd"
    _algebra: dict[object, Blocks] = field(default_factory=dict, repr=False, compare=False)

    @property
    def all_blocks(self) -> tuple[NDArray[np.intp], ...]:
        """The blocks of D and, last, the residual variance."""
        return (*self.blocks, np.array([[self.n_params - 1]], dtype=np.intp))

    def algebra(self, theta: FloatArray) -> Blocks:
        """The algebra of the blocks in arrays like theta."""
        key = (namespace(theta).__name__, str(getattr(theta, "device", "cpu")))
        if key not in self._algebra:
            self._algebra[key] = Blocks.of(self.all_blocks, self.n_params, theta)
        return self._algebra[key]

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The full step where it stays inside, else the best step within the cone."""
        xp = namespace(theta)
        step = solve_symmetric(information, score)
        outside = ~self.contains(theta + step)
        if bool(xp.any(outside)):
            program = theta[outside], score[outside], information[outside]
            step[outside] = quadratic_program(self.algebra(theta), *program)
        return step

    def newton(
        self, theta: FloatArray, at: Evaluation, lowest: float
    ) -> tuple[FloatArray, BoolArray]:
        """A step on the face of the boundary that theta lies on, or off it."""
        return newton_step(self.algebra(theta), theta, at, lowest)

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta have every block positive semi-definite (to rounding)."""
        algebra = self.algebra(theta)
        if not algebra.larger:
            return namespace(theta).all((theta >= 0) | (algebra.free > 0), axis=1)
        return algebra.lowest(theta * algebra.factor) >= -_ROUNDING

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Eigenvalues that are negative by rounding alone become zero."""
        xp, algebra = namespace(theta), self.algebra(theta)
        rounding = 10.0 * _ROUNDING * xp.max(xp.abs(theta), axis=1, keepdims=True)
        barely = (theta < 0) & (theta >= -rounding) & (algebra.single > 0)
        theta = xp.where(barely, 0.0, theta)
        if algebra.larger:
            rows = algebra.lowest(theta * algebra.factor) < 0
            if bool(xp.any(rows)):
                inside = algebra.decomposed(theta[rows] * algebra.factor).X / algebra.factor
                change = xp.max(xp.abs(inside - theta[rows]), axis=1, keepdims=True)
                theta[rows] = xp.where(change <= rounding[rows], inside, theta[rows])
        return theta

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta have a singular block, relative to its variances, or no residual variance."""
        xp, algebra = namespace(theta), self.algebra(theta)
        own = xp.take(theta, algebra.row, axis=1)
        other = xp.take(theta, algebra.column, axis=1)
        small = own <= _SINGULAR * theta[:, -1:]
        largest = xp.max(own, axis=1)
        boundary = xp.any(small[:, :-1], axis=1) | (theta[:, -1] <= _NO_RESIDUAL * largest)
        if algebra.larger:
            size = xp.where((own > 0) & (other > 0), own * other, 1.0)
            correlation = theta / xp.sqrt(size) * algebra.factor
            boundary = boundary | (algebra.lowest(correlation) <= 1e-8)
        return boundary

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """Variances of their own that are zero and would fall further, shape (B, k)."""
        alone = self.algebra(theta).single > 0
        return (theta == 0.0) & (score <= 0.0) & alone


def make_space(
    name: str, blocks: Sequence[NDArray[np.intp]], n_params: int, levels: Sequence[int] = ()
) -> ParameterSpace:
    """The space that `MultiLMM.fit` calls ``name``, for the covariance blocks of a design."""
    return PSD(tuple(blocks), n_params, tuple(levels)) if name == "psd" else Unconstrained()
