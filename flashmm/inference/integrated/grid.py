"""Grids of variance ratios, laid out on straight lines.

Along a line gamma = base + t direction, I + sum gamma_i A_i has the eigenvectors of one pencil of
matrices for every t: one eigendecomposition serves all the line's points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError

__all__ = ["Line", "RatioGrid", "covering_grid", "flat_in_logarithm", "grid_on_lines", "is_covered"]

# Logarithms between neighbours where there is one ratio, and how many points it may take.
_STEP, _FEWEST, _MOST = 0.2, 40, 96
# The smallest ratio but zero, in units.
_LOWEST = 0.01
# Points of each of several ratios: two, three.
_POINTS = {2: 16, 3: 9}
# A 2 x 2 block: its size, one variance over the other, correlations.
_SIZES, _BALANCES = 16, (1 / 30, 1 / 10, 1 / 3, 1.0, 3.0, 10.0, 30.0)
_CORRELATIONS = (-0.9, -0.5, 0.0, 0.5, 0.9)


@dataclass(frozen=True)
class Line:
    """Points ``base + t direction`` of a grid.

    Parameters
    ----------
    base, direction
        Shape (k,).
    steps
        t, ascending from 0, shape (T,).
    columns
        Positions of the points in the grid, shape (T,).
    """

    base: FloatArray
    direction: FloatArray
    steps: FloatArray
    columns: IntArray


@dataclass(frozen=True)
class RatioGrid:
    """Ratios theta_i / sigma2 of the parameters of D.

    Parameters
    ----------
    ratios
        Shape (G, k); D is positive semi-definite at each.
    line
        Which line each point is on, shape (G,); points of a line are next to each other.
    base
        Weights that say little: flat in the logarithm of the variance that a ratio makes,
        log(1 + gamma / unit), shape (G,).
    """

    ratios: FloatArray
    line: IntArray
    base: FloatArray

    @property
    def size(self) -> int:
        """Number of points."""
        return int(self.line.size)

    def lines(self) -> list[Line]:
        """The lines, from the first to the last of their points."""
        found = []
        for number in np.unique(self.line):
            columns = np.flatnonzero(self.line == number)
            points = self.ratios[columns]
            direction = points[-1] - points[0]
            if not direction.any():  # one point, or no ratio at all
                steps = np.zeros(columns.size)
            else:
                widest = int(np.argmax(np.abs(direction)))
                steps = (points[:, widest] - points[0, widest]) / direction[widest]
            found.append(Line(points[0], direction, steps, columns))
        return found


def grid_on_lines(lines: list[FloatArray], base: list[FloatArray]) -> RatioGrid:
    """A grid of the points (T, k) of several lines, with the base weights (T,) of each."""
    number = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
    weights = np.concatenate(base)
    return RatioGrid(np.concatenate(lines), number, weights / weights.sum())


def flat_in_logarithm(ratio: FloatArray, unit: float) -> FloatArray:
    """Weights of ascending ratios from 0, flat in log(1 + ratio / unit)."""
    x = np.log1p(ratio / unit)
    edges = np.concatenate([x[:1], 0.5 * (x[1:] + x[:-1]), x[-1:]])
    return np.asarray(np.diff(edges))


def is_covered(structure: CovarianceStructure) -> bool:
    """Whether a grid can cover the ratios of a model."""
    if structure.curved is not None:
        return False
    blocks = [block.shape[0] for block in structure.blocks()]
    return blocks == [2] or (max(blocks, default=1) == 1 and len(blocks) <= max(_POINTS))


def covering_grid(
    structure: CovarianceStructure, unit: FloatArray, highest: FloatArray
) -> RatioGrid:
    """A grid from zero through what is hardly told from zero up to the largest ratios.

    One ratio: 0 and a geometric sequence with steps of about a fifth. Two or three independent
    ones: the product of such sequences. A 2 x 2 covariance block: rays of seven balances between
    its variances times five correlations, and each variance alone.

    Parameters
    ----------
    structure
        The random terms.
    unit
        Ratios that double the variance of a typical estimate of a random effect, shape (k,);
        a hundredth of it is the smallest ratio but zero. Those of covariances are not looked at.
    highest
        Largest ratio of each parameter, shape (k,).

    Raises
    ------
    InputError
        If D has more parameters than a grid can cover.
    """
    k = len(structure.parameters)
    if not is_covered(structure):
        names = ", ".join(structure.param_names[:-1])
        raise InputError(
            f"Integrated tests cover up to three independent variances, or one intercept with one "
            f"correlated slope; this model has {names}. Write slopes as uncorrelated, "
            "(x || g), drop a term, or use another `df`."
        )
    if k == 0:  # one point: nothing is integrated over
        return RatioGrid(np.zeros((1, 0)), np.zeros(1, dtype=np.intp), np.ones(1))
    if max(block.shape[0] for block in structure.blocks()) > 1:
        return _rays(unit, highest)
    if k == 1:
        width = float(np.log(highest[0] / (_LOWEST * unit[0])))
        count = int(np.clip(np.ceil(width / _STEP) + 1, _FEWEST, _MOST))
        axis = _sequence(unit[0], highest[0], count)
        return grid_on_lines([axis[:, None]], [flat_in_logarithm(axis, unit[0])])
    axes = [_sequence(unit[i], highest[i], _POINTS[k]) for i in range(k)]
    base = [flat_in_logarithm(axis, unit[i]) for i, axis in enumerate(axes)]
    others = np.stack(np.meshgrid(*axes[:-1], indexing="ij"), axis=-1).reshape(-1, k - 1)
    weight = np.stack(np.meshgrid(*base[:-1], indexing="ij"), axis=-1).reshape(-1, k - 1)
    along = axes[-1][:, None]
    return grid_on_lines(
        [np.hstack([np.tile(point, (along.shape[0], 1)), along]) for point in others],
        [each * base[-1] for each in weight.prod(axis=1)],
    )


def _sequence(unit: float, highest: float, count: int) -> FloatArray:
    return np.concatenate([[0.0], np.geomspace(_LOWEST * unit, highest, count - 1)])


def _rays(unit: FloatArray, highest: FloatArray) -> RatioGrid:
    """Rays of a block with variances a, b and covariance c (in this order of parameters)."""
    largest = float((highest[:2] / unit[:2]).max())
    sizes = np.concatenate([[0.0], np.geomspace(_LOWEST, largest, _SIZES)])
    base = flat_in_logarithm(sizes, 1.0)
    scale = np.array([unit[0], unit[1], np.sqrt(unit[0] * unit[1])])
    directions = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
    for balance in _BALANCES:
        larger = max(1.0, balance)
        a, b = 1.0 / larger, balance / larger
        directions += [(a, b, rho * np.sqrt(a * b)) for rho in _CORRELATIONS]
    lines = [sizes[:, None] * (np.array(direction) * scale) for direction in directions]
    # All rays start at zero, which is one point.
    return grid_on_lines(
        [line[bool(i) :] for i, line in enumerate(lines)],
        [base[bool(i) :] for i in range(len(lines))],
    )
