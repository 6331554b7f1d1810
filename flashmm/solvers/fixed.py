"""A parameter space with some parameters held at given values: for tests and profiles.

A covariance block with a held entry is no cone. Take the row of that entry as pivot, with variance
v and covariances c, and write the rest of the block as R = S + c c'/v. The block is positive
semi-definite where S is and v > 0, so in the coordinates (v, c, S) the space is a cone again, with
the held entry a coordinate of its own. R has the second differential (2/v) w w', w = dc - c dv/v,
which adds curvature to the likelihood in these coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Evaluation
from flashmm.solvers.space import PSD, ParameterSpace

__all__ = ["Fixed"]

# A variance may shrink to this share of itself in one step, where others are divided by it.
_SMALLEST_SHARE = 0.05


@dataclass(frozen=True)
class _Pivot:
    """Coordinates (v, c, S) of one covariance block of s effects, by their positions in theta.

    S takes the places of R.
    """

    v: int
    c: IntArray  # (s - 1,)
    R: IntArray  # (s - 1, s - 1)

    @classmethod
    def of(cls, block: IntArray, held: IntArray) -> _Pivot:
        """The pivot is the row of the block's first held entry."""
        a = int(np.argwhere(np.isin(block, held))[0, 0])
        others = np.delete(np.arange(block.shape[0]), a)
        return cls(int(block[a, a]), block[a, others], block[np.ix_(others, others)])

    def to_cone(self, theta: FloatArray) -> FloatArray:
        """Theta (B, k) with S in the place of R."""
        result = theta.copy()
        result[:, self.R] -= self._outer(theta)
        return result

    def from_cone(self, coordinates: FloatArray) -> FloatArray:
        """The inverse of `to_cone`."""
        result = coordinates.copy()
        result[:, self.R] += self._outer(coordinates)
        return result

    def _outer(self, theta: FloatArray) -> FloatArray:
        c = theta[:, self.c]
        return c[:, :, None] * c[:, None, :] / theta[:, self.v, None, None]

    def transformed(
        self, theta: FloatArray, score: FloatArray, information: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Score (B, k) and information (B, k, k) in the coordinates of the cone."""
        count, k = theta.shape
        v, c = theta[:, self.v], theta[:, self.c]
        J = np.tile(np.eye(k), (count, 1, 1))
        curvature = np.zeros_like(information)
        w = np.zeros((count, self.c.size, k))  # w = dc - c dv / v, as a linear form
        for i, position in enumerate(self.c):
            w[:, i, position] += 1.0
            w[:, i, self.v] -= c[:, i] / v
        M = np.empty((count, self.c.size, self.c.size))
        for i in range(self.c.size):
            for j in range(self.c.size):
                entry = self.R[i, j]
                J[:, entry, self.c[i]] += c[:, j] / v * (0.5 if i != j else 1.0)
                J[:, entry, self.c[j]] += c[:, i] / v * (0.5 if i != j else 1.0)
                J[:, entry, self.v] -= c[:, i] * c[:, j] / v**2 * (0.5 if i != j else 1.0)
                M[:, i, j] = score[:, entry] * (0.5 if i != j else 1.0)
        # Only what bends downwards: the rest could leave the information indefinite.
        values, vectors = np.linalg.eigh(-M)
        root = vectors * np.sqrt(2.0 * np.maximum(values, 0.0) / v[:, None])[:, None, :]
        bend = np.matmul(np.swapaxes(root, 1, 2), w)
        curvature = np.matmul(np.swapaxes(bend, 1, 2), bend)
        transposed = np.swapaxes(J, 1, 2)
        return (
            np.matmul(transposed, score[:, :, None])[:, :, 0],
            np.matmul(np.matmul(transposed, information), J) + curvature,
        )


@dataclass(frozen=True)
class Fixed:
    """A slice of another space: some parameters keep the values that they have.

    Parameters
    ----------
    inner
        The space of the parameters in ``carried``.
    carried
        Positions in theta that ``inner`` sees, ascending. The others are zero and stay so.
    held_positions
        Positions in ``carried`` of parameters that keep their values.
    pivots
        Coordinates of the covariance blocks that hold a fixed parameter.
    cone
        The space in these coordinates; ``inner`` itself without pivots.
    """

    inner: ParameterSpace
    carried: IntArray
    held_positions: IntArray
    pivots: tuple[_Pivot, ...]
    cone: ParameterSpace

    @classmethod
    def of(
        cls,
        space: ParameterSpace,
        n_params: int,
        *,
        values: Sequence[int] = (),
        zeros: Sequence[int] = (),
    ) -> Fixed:
        """Hold parameters of a space.

        Parameters
        ----------
        space
            `Unconstrained` or `PSD`.
        n_params
            Length of theta.
        values
            Positions that keep whatever value a start gives them.
        zeros
            Positions that are zero: variances, each with all its covariances.
        """
        carried = np.setdiff1d(np.arange(n_params), np.asarray(zeros, dtype=np.intp))
        held = np.flatnonzero(np.isin(carried, np.asarray(values, dtype=np.intp)))
        if not isinstance(space, PSD):
            return cls(space, carried, held, (), space)
        blocks = []
        for block in space.blocks:
            alive = np.isin(np.diag(block), carried)
            if alive.any():
                blocks.append(np.searchsorted(carried, block[np.ix_(alive, alive)]))
        inner = PSD(tuple(blocks), carried.size)
        pivots, cones = [], []
        for block in blocks:
            if block.shape[0] > 1 and np.isin(block, held).any():
                pivot = _Pivot.of(block, held)
                pivots.append(pivot)
                cones += [np.array([[pivot.v]]), pivot.R]
            else:
                cones.append(block)
        return cls(inner, carried, held, tuple(pivots), PSD(tuple(cones), carried.size))

    @property
    def name(self) -> str:
        """Name of the space that this is a slice of."""
        return self.inner.name

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The best step that leaves the fixed parameters alone."""
        held, carried = self.held_positions, self.carried
        at, score = theta[:, carried], score[:, carried]
        information = information[:, carried[:, None], carried[None, :]]
        coordinates = at
        for pivot in self.pivots:
            score, information = pivot.transformed(coordinates, score, information)
            coordinates = pivot.to_cone(coordinates)
        diagonal = np.diagonal(information, axis1=-2, axis2=-1)[:, held].copy()
        score[:, held] = 0.0
        information[:, held, :] = 0.0
        information[:, :, held] = 0.0
        information[:, held, held] = diagonal
        move = self.cone.step(coordinates, score, information)
        move[:, held] = 0.0
        for pivot in self.pivots:
            before, change = coordinates[:, pivot.v], move[:, pivot.v]
            floor = (_SMALLEST_SHARE - 1.0) * before
            share = np.divide(floor, change, out=np.ones_like(change), where=change < floor)
            move *= share[:, None]
        after = coordinates + move
        for pivot in reversed(self.pivots):
            after = pivot.from_cone(after)
        step = np.zeros_like(theta)
        step[:, carried] = after - at
        step[:, carried[held]] = 0.0
        return step

    def newton(
        self, theta: FloatArray, at: Evaluation, lowest: float
    ) -> tuple[FloatArray, BoolArray]:
        """The best step of the model with the observed information, where that is definite.

        Of parameters that are fixed, or that the boundary holds, only the expected counts.
        """
        held = self.held(theta, at.score)
        either = held[:, :, None] | held[:, None, :]
        diagonal = np.eye(held.shape[1], dtype=bool)
        observed = np.where(either, np.where(diagonal, at.expected, 0.0), at.observed)
        length = np.sqrt(np.diagonal(at.expected, axis1=-2, axis2=-1))
        values = np.linalg.eigvalsh(observed / (length[:, :, None] * length[:, None, :]))
        definite = values[:, 0] > lowest
        step = np.zeros_like(theta)
        step[definite] = self.step(theta[definite], at.score[definite], observed[definite])
        return step, definite

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta lie in the space."""
        return np.asarray(self.inner.contains(theta[:, self.carried]))

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta with what rounding put outside the space put back on its boundary."""
        result = theta.copy()
        inner = self.inner.tidied(theta[:, self.carried])
        inner[:, self.held_positions] = theta[:, self.carried[self.held_positions]]
        result[:, self.carried] = inner
        return result

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta lie on the boundary of the slice."""
        return np.asarray(self.inner.on_boundary(theta[:, self.carried]))

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """The fixed parameters, and those that the boundary holds."""
        held = np.ones(theta.shape, dtype=bool)
        if isinstance(self.inner, PSD):
            held[:, self.carried] = self.inner.held(theta[:, self.carried], score[:, self.carried])
        else:
            held[:, self.carried] = False
        held[:, self.carried[self.held_positions]] = True
        return held
