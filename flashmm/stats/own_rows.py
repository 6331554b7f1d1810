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
from flashmm.stats.summary_stats import SummaryStats
from flashmm.stats.sums import Shift
from flashmm.storage.files import PATTERNED_FORMAT, load_dataset, marked, save_dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike

    import xarray as xr
    from numpy.typing import NDArray

    from flashmm.designs.aliasing import Aliasing
    from flashmm.designs.design import CovarianceStructure

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.intp]
    BoolArray = NDArray[np.bool_]

__all__ = ["PatternedStats", "any_from_dataset", "joined_shift"]


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
    def aliased(self) -> Aliasing | None:
        """Columns of X that were left out because they depend on the others."""
        return self.sums.aliased

    def noting(self, aliased: Aliasing | None) -> PatternedStats:
        """The same with a note of columns of X that were left out."""
        return replace(self, sums=self.sums.noting(aliased))

    @property
    def log_weights(self) -> float:
        """Sum of the logarithms of all samples' weights."""
        return float(self.log_weight.sum())

    # ---- keeping it --------------------------------------------------------------------------

    def to_dataset(self) -> xr.Dataset:
        """The statistics, the design and the patterns as an xarray Dataset."""
        Z = self.Z.tocoo()
        ds = self.sums.to_dataset().assign(
            X=(("sample", "coef"), self.X),
            Z_row=(("Z_nonzero",), Z.row.astype(np.int32)),
            Z_column=(("Z_nonzero",), Z.col.astype(np.int32)),
            Z_value=(("Z_nonzero",), Z.data),
            log_weight=(("sample",), self.log_weight),
            observed=(
                ("observed_pattern", "byte"),
                np.packbits(self.observed, axis=1).view(np.int8),
            ),
            pattern=(("feature",), self.pattern.astype(np.int32)),
        )
        # Readers that do not know of patterns would take the sums for those of all samples.
        return marked(ds, "PatternedStats", PATTERNED_FORMAT)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> PatternedStats:
        """The inverse of `to_dataset`."""
        sums, n = SummaryStats.from_dataset(ds), ds.sizes["sample"]
        entries: Any = (ds["Z_row"].to_numpy(), ds["Z_column"].to_numpy())
        packed = ds["observed"].to_numpy().astype(np.int8).view(np.uint8)
        return cls(
            sums,
            ds["X"].to_numpy(),
            sp.csr_array((ds["Z_value"].to_numpy(), entries), shape=(n, sums.q)),
            ds["log_weight"].to_numpy(),
            np.unpackbits(packed, axis=1, count=n).astype(bool),
            ds["pattern"].to_numpy().astype(np.intp),
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the statistics, the design and the patterns; as `SummaryStats.save`."""
        save_dataset(self.to_dataset(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PatternedStats:
        """Read statistics that `save` wrote; checked as `SummaryStats.load` does."""
        return cls.from_dataset(load_dataset(path, kind="PatternedStats"))

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
            self.sums.at(self.members(pattern)),
            n=int(here.sum()),
            XX=XX,
            XX_root=root_of_rows([X], self.p) if near_collinear(XX) else None,
            ZX=Z.T @ X,
            ZZ=sp.csr_array(Z.T @ Z),
            log_weights=float(self.log_weight[here].sum()),
        )

    def at(self, positions: IntArray) -> PatternedStats:
        """The same for the features at some positions, in that order."""
        kept, pattern = np.unique(self.pattern[positions], return_inverse=True)
        return replace(
            self,
            sums=self.sums.at(positions),
            observed=self.observed[kept],
            pattern=pattern.reshape(-1),
        )

    def take(self, features: Any) -> PatternedStats:
        """The same for some of the features: names, positions, a slice or a mask."""
        return self.at(feature_positions(self.feature_names, features))

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
            chosen = self.at(np.setdiff1d(np.arange(self.m), gone))
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


def any_from_dataset(ds: xr.Dataset) -> SummaryStats | PatternedStats:
    """Statistics of either kind from a Dataset that holds one."""
    return (PatternedStats if "pattern" in ds else SummaryStats).from_dataset(ds)
