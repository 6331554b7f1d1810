"""Columns of X that depend on others: which are left out, and what can be estimated without them.

Where X has dependent columns, X beta is known but beta is not. Leaving a dependent column out
sets its coefficient to zero, which is one of many choices; only functions l'beta with l in the row
space of the whole X do not depend on it (Searle 1971, section 5.4; Lenth's estimability).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray, IntArray

__all__ = ["Aliasing", "dependencies"]

# A function of beta is estimable if what its coefficients for columns left out lack is rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class Aliasing:
    """The columns of X that were left out because they depend on the others.

    Parameters
    ----------
    names
        Names of all columns of X, those left out included, in order.
    kept, dropped
        Positions in ``names``, shapes (p,) and (d,). ``kept`` has the order of the coefficients.
    weights
        Column j left out is the kept columns times ``weights[:, j]``, shape (p, d).
    """

    names: tuple[str, ...]
    kept: IntArray
    dropped: IntArray
    weights: FloatArray

    @property
    def dropped_names(self) -> tuple[str, ...]:
        """Names of the columns left out."""
        return tuple(self.names[i] for i in self.dropped)

    @property
    def null_space(self) -> FloatArray:
        """Vectors v with X v = 0 for the whole X, as columns, shape (p + d, d)."""
        N = np.zeros((len(self.names), self.dropped.size))
        N[self.kept] = -self.weights
        N[self.dropped, np.arange(self.dropped.size)] = 1.0
        return N

    def estimable(self, rows: FloatArray) -> BoolArray:
        """Which rows over all columns (c, p + d) lie in the row space of X, shape (c,)."""
        kept, dropped = rows[:, self.kept], rows[:, self.dropped]
        gap = np.abs(dropped - kept @ self.weights)
        size = np.abs(dropped) + np.abs(kept) @ np.abs(self.weights)
        return np.asarray((gap <= _ROUNDING * size).all(axis=1))

    def completed(self, rows: FloatArray) -> FloatArray:
        """Rows over the kept columns (c, p) with zeros for the others, shape (c, p + d)."""
        whole = np.zeros((rows.shape[0], len(self.names)))
        whole[:, self.kept] = rows
        return whole

    def ordered(self, coef_names: Iterable[str]) -> Aliasing:
        """The same with the kept columns in the order of some names."""
        position = {self.names[i]: slot for slot, i in enumerate(self.kept)}
        order = np.array([position[name] for name in coef_names], dtype=np.intp)
        return Aliasing(self.names, self.kept[order], self.dropped, self.weights[order])

    def renamed(self, coef_names: Iterable[str]) -> Aliasing:
        """The same with other names of the kept columns."""
        names = list(self.names)
        for position, name in zip(self.kept, coef_names, strict=True):
            names[position] = str(name)
        return Aliasing(tuple(names), self.kept, self.dropped, self.weights)

    def keeping(self, coef_names: Iterable[str]) -> Aliasing | None:
        """What is left when further columns are dropped; columns that depend on those go too."""
        wanted = set(coef_names)
        stays = np.array([self.names[i] in wanted for i in self.kept], dtype=bool)
        without = ~(np.abs(self.weights[~stays]) > _ROUNDING).any(axis=0)
        if not without.any():
            return None
        columns = np.sort(np.concatenate([self.kept[stays], self.dropped[without]]))
        return Aliasing(
            tuple(self.names[i] for i in columns),
            np.searchsorted(columns, self.kept[stays]),
            np.searchsorted(columns, self.dropped[without]),
            self.weights[np.ix_(stays, without)],
        )

    def same_as(self, other: Aliasing) -> bool:
        """Whether both leave out the same columns, for the same reason."""
        return (
            self.names == other.names
            and np.array_equal(self.kept, other.kept)
            and np.array_equal(self.dropped, other.dropped)
            and np.allclose(self.weights, other.weights, rtol=_ROUNDING, atol=_ROUNDING)
        )


def dependencies(columns: FloatArray, rank: int, tolerance: float) -> tuple[IntArray, FloatArray]:
    """Independent columns, earlier ones first, and the others as combinations of them.

    Parameters
    ----------
    columns
        A root of X'X, shape (r, p); columns of unit length, or zero.
    rank
        Its rank.
    tolerance
        Length of what is left of a dependent column once those before it are taken off.

    Returns
    -------
    kept
        Positions of the independent columns, ascending, shape (rank,).
    weights
        Every column in terms of these, shape (rank, p).
    """
    p = columns.shape[1]
    basis = np.zeros((columns.shape[0], 0))
    left = np.zeros(p)
    for j in range(p):
        rest = columns[:, j]
        for _ in range(2):  # once more, for the digits that the first round loses
            rest = rest - basis @ (basis.T @ rest)
        left[j] = np.linalg.norm(rest)
        if left[j] > tolerance:
            basis = np.column_stack([basis, rest / left[j]])
    # Where the rank is in doubt the columns that differ least from the others go.
    kept = np.sort(np.argsort(-left, kind="stable")[:rank])
    weights = np.linalg.lstsq(columns[:, kept], columns, rcond=0.1 * tolerance)[0]
    return kept, np.where(np.abs(weights) > tolerance, weights, 0.0)
