"""A parameter space with some parameters held at given values: for tests and profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashmm.solvers.space import PSD, ParameterSpace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    BoolArray = NDArray[np.bool_]

__all__ = ["Fixed"]

# A parameter that is held inside a covariance block takes part in the cone program, with its
# information multiplied by this and a multiplier that takes up what still moves it.
_STIFFNESS = 1e3
_MULTIPLIER_UPDATES = 6


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
    blocks
        Covariance blocks of ``inner``, as positions in ``carried``, that hold a fixed parameter.
    n_params
        Length of theta.
    """

    inner: ParameterSpace
    carried: NDArray[np.intp]
    held_positions: NDArray[np.intp]
    blocks: tuple[NDArray[np.intp], ...]
    n_params: int

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
            return cls(space, carried, held, (), n_params)
        blocks = []
        for block in space.blocks:
            alive = np.isin(np.diag(block), carried)
            if alive.any():
                blocks.append(np.searchsorted(carried, block[np.ix_(alive, alive)]))
        inner = PSD(tuple(blocks), carried.size)
        stiff = tuple(b for b in blocks if b.shape[0] > 1 and np.isin(b, held).any())
        return cls(inner, carried, held, stiff, n_params)

    @property
    def name(self) -> str:
        """Name of the space that this is a slice of."""
        return self.inner.name

    def step(self, theta: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
        """The best step that leaves the fixed parameters alone."""
        held, carried = self.held_positions, self.carried
        score = score[:, carried]
        information = information[:, carried[:, None], carried[None, :]]
        stiffness = np.diagonal(information, axis1=-2, axis2=-1)[:, held].copy()
        stiffness *= _STIFFNESS if self.blocks else 1.0
        score[:, held] = 0.0
        information[:, held, :] = 0.0
        information[:, :, held] = 0.0
        information[:, held, held] = stiffness
        at = theta[:, carried]
        inner = self.inner.step(at, score, information)
        # The method of multipliers (Hestenes 1969): each round leaves a thousandth of the drift.
        for _ in range(_MULTIPLIER_UPDATES if self.blocks else 0):
            drift = np.abs(inner[:, held]) > 1e-12 * np.abs(at[:, held])
            rows = np.flatnonzero(drift.any(axis=1))
            if rows.size == 0:
                break
            score[np.ix_(rows, held)] -= stiffness[rows] * inner[np.ix_(rows, held)]
            inner[rows] = self.inner.step(at[rows], score[rows], information[rows])
        inner[:, held] = 0.0
        step = np.zeros_like(theta)
        step[:, carried] = inner
        return step

    def contains(self, theta: FloatArray) -> BoolArray:
        """Which theta lie in the space."""
        return self.inner.contains(theta[:, self.carried])

    def tidied(self, theta: FloatArray) -> FloatArray:
        """Theta with what rounding put outside the space put back on its boundary.

        A block with a fixed entry that is barely indefinite gets smaller covariances instead:
        its own entries may not move.
        """
        result = theta.copy()
        inner = self.inner.tidied(theta[:, self.carried])
        inner[:, self.held_positions] = theta[:, self.carried[self.held_positions]]
        for block in self.blocks:
            _shrink_covariances(inner, block, self.held_positions)
        result[:, self.carried] = inner
        return result

    def on_boundary(self, theta: FloatArray) -> BoolArray:
        """Which theta lie on the boundary of the slice."""
        return self.inner.on_boundary(theta[:, self.carried])

    def held(self, theta: FloatArray, score: FloatArray) -> BoolArray:
        """The fixed parameters, and those that the boundary holds."""
        held = np.ones(theta.shape, dtype=bool)
        held[:, self.carried] = self.inner.held(theta[:, self.carried], score[:, self.carried])
        held[:, self.carried[self.held_positions]] = True
        return held


def _shrink_covariances(theta: FloatArray, block: NDArray[np.intp], held: NDArray[np.intp]) -> None:
    """Make a barely indefinite block positive semi-definite, in place.

    Free covariances shrink towards zero; where a covariance is fixed, free variances grow.
    """
    variances = theta[:, np.diag(block)]
    length = np.sqrt(np.where(variances > 0, variances, 1.0))
    correlation = theta[:, block] / (length[:, :, None] * length[:, None, :])
    lowest = np.linalg.eigvalsh(correlation)[:, 0]
    barely = np.flatnonzero((lowest < 0) & (lowest > -1e-5))
    if barely.size == 0:
        return
    excess = -2.0 * lowest[barely] + 1e-15
    s = block.shape[0]
    covariances = block[~np.eye(s, dtype=bool)]
    if np.isin(covariances, held).any():
        for i in np.setdiff1d(np.diag(block), held):
            theta[barely, i] *= 1.0 + excess
    else:
        for i in np.setdiff1d(covariances, held):
            theta[barely, i] *= 1.0 - excess
