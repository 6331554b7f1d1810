"""Statistics of features that miss different samples: the sums of Y, and what the patterns share.

With a missing value counted as zero, X'y, Z'y and y'y are the sums over the samples that a
feature has. Only n and the cross-products of the design differ by pattern; they follow from X, Z
and the pattern, which are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.labels import feature_positions
from flashmm.stats.algebra import column_positions
from flashmm.stats.root import near_collinear, root_of_rows
from flashmm.stats.shifts import Shift
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from flashmm.designs.design import CovarianceStructure

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["PatternedStats", "joined_shift"]


@dataclass(frozen=True)
class PatternedStats:
    """Summary statistics of features each of which lacks some samples.

    Parameters
    ----------
    sums
        Sums over the samples that each feature has; X'X, Z'X and Z'Z are those of all samples.
    X, Z
        The design, shapes (n, p) and (n, q); rows times the root of the samples' weights.
    log_weight
        Logarithm of each sample's weight, shape (n,).
    observed
        The distinct patterns: which samples are there, shape (n_patterns, n).
    pattern
        Pattern of each feature, shape (m,).
    """

    sums: SummaryStats
    X: FloatArray
    Z: sp.csr_array
    log_weight: FloatArray
    observed: BoolArray
    pattern: IntArray

    def __repr__(self) -> str:
        s, counts = self.sums, self.nobs
        there = f"{counts.min()} to {counts.max()} of {s.n}" if self.m else f"{s.n}"
        return (
            f"<PatternedStats: n={there} samples in {self.n_patterns} patterns, m={s.m} features, "
            f"p={s.p} fixed effects, q={s.q} random effects>"
        )

    # ---- what statistics of complete data have too ------------------------------------------

    @property
    def n(self) -> int:
        """Number of samples; no feature has more."""
        return self.sums.n

    @property
    def m(self) -> int:
        """Number of features."""
        return self.sums.m

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return self.sums.p

    @property
    def q(self) -> int:
        """Number of random effects."""
        return self.sums.q

    @property
    def structure(self) -> CovarianceStructure:
        """The random terms."""
        structure: CovarianceStructure = self.sums.structure
        return structure

    @property
    def coef_names(self) -> tuple[str, ...]:
        """Names of the fixed effects."""
        names: tuple[str, ...] = self.sums.coef_names
        return names

    @property
    def feature_names(self) -> NDArray[Any]:
        """Labels of the features."""
        return np.asarray(self.sums.feature_names)

    @property
    def log_weights(self) -> float:
        """Sum of the logarithms of all samples' weights."""
        return float(self.log_weight.sum())

    # ---- keeping it --------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """Write the statistics, the design and the patterns; as `SummaryStats.save`."""
        from flashmm.storage.files import save_dataset  # noqa: PLC0415  (imports this module)
        from flashmm.storage.own_rows import any_to_dataset  # noqa: PLC0415

        save_dataset(any_to_dataset(self), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PatternedStats:
        """Read statistics that `save` wrote; checked as `SummaryStats.load` does."""
        from flashmm.storage.files import load_dataset  # noqa: PLC0415
        from flashmm.storage.own_rows import any_from_dataset  # noqa: PLC0415

        stats = any_from_dataset(load_dataset(path, kind="PatternedStats"))
        assert isinstance(stats, PatternedStats)
        return stats

    # ---- patterns ---------------------------------------------------------------------------

    @property
    def n_patterns(self) -> int:
        """Number of distinct patterns."""
        return int(self.observed.shape[0])

    @cached_property
    def nobs(self) -> IntArray:
        """Number of samples of each feature, shape (m,)."""
        return np.asarray(self.observed.sum(axis=1)[self.pattern])

    @cached_property
    def _members(self) -> list[IntArray]:
        order = np.argsort(self.pattern, kind="stable")
        counts = np.bincount(self.pattern, minlength=self.n_patterns)
        return np.split(order, np.cumsum(counts)[:-1])

    def members(self, pattern: int) -> IntArray:
        """Positions of the features with a pattern, ascending."""
        return self._members[pattern]

    def XX_of(self, pattern: int) -> FloatArray:
        """X'X over the samples of a pattern, shape (p, p)."""
        X = self.X[self.observed[pattern]]
        return np.asarray(X.T @ X)

    def of_pattern(self, pattern: int) -> SummaryStats:
        """Ordinary statistics of the features with a pattern, over their samples."""
        here = self.observed[pattern]
        X, Z = self.X[here], self.Z[here]
        XX = self.XX_of(pattern)
        return replace(
            self.sums.take(self.members(pattern)),
            n=int(here.sum()),
            XX=XX,
            XX_root=root_of_rows([X], self.p) if near_collinear(XX) else None,
            ZX=Z.T @ X,
            ZZ=sp.csr_array(Z.T @ Z),
            log_weights=float(self.log_weight[here].sum()),
        )

    def take(self, features: Any) -> PatternedStats:
        """The same for some of the features: names, positions, a slice or a mask."""
        positions = feature_positions(self.feature_names, features)
        kept, pattern = np.unique(self.pattern[positions], return_inverse=True)
        return replace(
            self,
            sums=self.sums.take(positions),
            observed=self.observed[kept],
            pattern=pattern.reshape(-1),
        )

    def keep(
        self, *, fixed: Any = None, random: Any = None, features: Any = None
    ) -> PatternedStats:
        """With only the coefficients, random terms and features that are named."""
        chosen = self if features is None else self.take(features)
        return chosen._selected(lambda stats: stats.keep(fixed=fixed, random=random))

    def drop(
        self, *, fixed: Any = None, random: Any = None, features: Any = None
    ) -> PatternedStats:
        """Without the coefficients, random terms and features that are named."""
        chosen = self
        if features is not None:
            gone = feature_positions(self.feature_names, features)
            chosen = self.take(np.setdiff1d(np.arange(self.m), gone))
        return chosen._selected(lambda stats: stats.drop(fixed=fixed, random=random))

    def _selected(self, select: Callable[[SummaryStats], SummaryStats]) -> PatternedStats:
        sums = select(replace(self.sums, shift=None))
        coefs = [self.coef_names.index(name) for name in sums.coef_names]
        columns = column_positions(self.structure, sums.structure)
        if self.sums.shift is not None:
            parts = {k: select(self.of_pattern(k)).shift for k in self._shifted_patterns()}
            sums = replace(sums, shift=joined_shift(self, parts))
        return replace(self, sums=sums, X=self.X[:, coefs], Z=self.Z[:, columns])

    def _shifted_patterns(self) -> list[int]:
        shift = self.sums.shift
        return [] if shift is None else np.unique(self.pattern[shift.features]).tolist()


def joined_shift(stats: PatternedStats, parts: Mapping[int, Shift | None]) -> Shift | None:
    """The shifted sums of all features from those of each pattern's."""
    known = {k: part for k, part in parts.items() if part is not None}
    if not known:
        return None
    features = np.concatenate([stats.members(k)[part.features] for k, part in known.items()])
    order = np.argsort(features)
    names = ("a", "XY", "ZY", "yy")
    joined = (
        np.concatenate([getattr(part, name) for part in known.values()], axis=-1)[..., order]
        for name in names
    )
    return Shift(features[order], *joined)
