"""Statistics of features with rows of their own: which samples they have, with what weights.

X'y, Z'y and y'y are weighted sums like those of other features. n and the cross-products of the
design differ by feature too; features with the same samples, weights and covariates share them
(a pattern).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.labels import feature_positions
from flashmm.arrays.types import IntArray
from flashmm.designs.aliasing import Aliasing
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import InputError, listing
from flashmm.slips.answers import answer_calls
from flashmm.stats.algebra import added, column_positions, refuse_others, subtracted
from flashmm.stats.fields import GroupSums
from flashmm.stats.manners import StatisticsManners
from flashmm.stats.own_designs import DesignSums, OwnColumns
from flashmm.stats.own_groups import (
    designs_over,
    groups_of_pattern,
    joined_designs,
    joined_shifts,
    merged_designs,
    without_shifts,
)
from flashmm.stats.stored_own_rows import (
    group_designs_from_dataset,
    group_designs_to_variables,
    own_rows_from_dataset,
    own_rows_to_variables,
)
from flashmm.stats.summary_stats import SummaryStats
from flashmm.storage.format_version import KNOWN_FORMAT, OWN_ROWS_FORMAT, marked

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PatternedStats", "any_from_dataset", "over_columns", "same_rows", "with_coarser_groups"]


@answer_calls
@dataclass(frozen=True)
class PatternedStats(StatisticsManners):
    """Summary statistics of features with samples, weights or covariates of their own.

    Parameters
    ----------
    sums
        Sums over the samples that each feature has, with its weights; X'X, Z'X and Z'Z are those
        of all samples (without weights and covariates that are a feature's own).
    designs
        What the distinct designs sum to.
    pattern
        Design of each feature, shape (m,).
    own
        The covariates that are features' own, and the coefficients that they belong to.
    group_designs
        What the designs sum to over the samples of each group of ``sums.groups``; empty where
        there are no sums by group.

    Examples
    --------
    >>> import flashmm as fm
    >>> genes = fm.datasets.varpart()
    >>> Y = genes.Y[:3].copy()
    >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
    >>> model = fm.MultiLMM.from_formula(
    ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
    ... )
    >>> model.stats
    <PatternedStats: n=93 to 100 of 100 samples in 2 patterns, m=3 features, p=2 fixed effects, q=25
    random effects>
    """

    sums: SummaryStats
    designs: DesignSums
    pattern: IntArray
    own: OwnColumns
    group_designs: tuple[DesignSums, ...] = ()

    def __repr__(self) -> str:
        s, counts = self.sums, self.nobs
        there = f"{counts.min()} to {counts.max()} of {s.n}" if self.m else f"{s.n}"
        by = "" if s.groups is None else f", {s.groups.k} groups of {s.groups.name!r}"
        return (
            f"<PatternedStats: n={there} samples in {self.n_patterns} patterns, m={s.m} features, "
            f"p={s.p} fixed effects, q={s.q} random effects{by}>"
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
        """The same with a note of columns of X that were left out.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.noting(None).aliased is None
        True
        """
        return replace(self, sums=self.sums.noting(aliased))

    @property
    def groups(self) -> GroupSums | None:
        """The sums over Y by group of samples (``sums_by``); None where there are none."""
        return self.sums.groups

    @property
    def numbered(self) -> bool:
        """Whether the features are called by the numbers of their rows in a Y without names."""
        return bool(self.sums.numbered)

    @property
    def log_weights(self) -> float:
        """Sum of the logarithms of all samples' weights, of those that features share."""
        return float(self.sums.log_weights)

    # ---- keeping it --------------------------------------------------------------------------

    def to_dataset(self) -> xr.Dataset:
        """The statistics, the designs and the patterns as an xarray Dataset.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> dict(model.stats.to_dataset()["pattern"].sizes)
        {'feature': 3}
        """
        rows = own_rows_to_variables(self.designs, self.pattern, self.own)
        rows |= group_designs_to_variables(self.group_designs)
        ds = self.sums.to_dataset().assign(rows)
        # Readers that do not know of patterns would take the sums for those of all samples.
        version = KNOWN_FORMAT if self.structure.has_roots else OWN_ROWS_FORMAT
        return marked(ds, "PatternedStats", version)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> PatternedStats:
        """The inverse of `to_dataset`; also of the format that held the rows of X and Z.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> fm.PatternedStats.from_dataset(model.stats.to_dataset()).pattern.tolist()
        [0, 1, 1]
        """
        sums = SummaryStats.from_dataset(ds)
        rows = own_rows_from_dataset(ds, sums.p, sums.q)
        return cls(sums, *rows, group_designs_from_dataset(ds, sums.groups, rows[0]))

    # ---- more and fewer samples --------------------------------------------------------------

    def __add__(self, other: object) -> PatternedStats:
        """Statistics of the union of two disjoint sets of samples; see `add`."""
        return self.add(self._same_kind(other))

    def __sub__(self, other: object) -> PatternedStats:
        """Statistics without the samples of ``other``, which were added before."""
        return self._combined(self._same_kind(other), subtracted, -1.0)

    def add(
        self, other: PatternedStats, *, features: Literal["equal", "intersect"] = "equal"
    ) -> PatternedStats:
        """Join the samples of two sets of statistics, aligned by label; as `SummaryStats.add`.

        Raises
        ------
        InputError
            If coefficients, random terms, features or own covariates do not agree.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(0)
        >>> Y, W = rng.normal(size=(3, 12)), rng.uniform(0.5, 2.0, size=(3, 12))
        >>> X, Z = np.ones((12, 1)), np.kron(np.eye(3), np.ones((4, 1)))
        >>> parts = [
        ...     fm.MultiLMM.from_arrays(Y[:, s], X[s], Z[s], weights=W[:, s]).stats
        ...     for s in (slice(0, 12, 2), slice(1, 12, 2))]
        >>> (parts[0] + parts[1]).nobs
        array([12, 12, 12])
        """
        return self._combined(other, partial(added, features=features), 1.0)

    def _combined(
        self, other: PatternedStats, combine: Callable[..., SummaryStats], sign: float
    ) -> PatternedStats:
        refuse_others(self, other)
        sums = combine(without_shifts(self.sums), without_shifts(other.sums))
        (mine, left, own), (theirs, right, others) = (one._over(sums) for one in (self, other))
        if own != others:
            raise InputError(
                "The two statistics have different covariates of the features' own: "
                f"{listing(self.own.names) or 'none'} and {listing(other.own.names) or 'none'}."
            )
        pairs, pattern = np.unique(np.stack([left, right], axis=1), axis=0, return_inverse=True)
        designs = mine.at(pairs[:, 0]).plus(theirs.at(pairs[:, 1]), sign)
        parts_of = joined_designs(self._groups_over(sums), other._groups_over(sums), pairs, sign)
        total = PatternedStats(sums, designs, pattern.reshape(-1), own, parts_of)
        shifted = {
            name
            for one in (self, other)
            if one.sums.shift is not None
            for name in one.feature_names[one.sums.shift.features]
        }
        if not shifted:
            return total
        if sign < 0:
            raise InputError(
                "Samples cannot be taken out where a feature's mean dwarfs its spread. Add the "
                "parts that are to stay."
            )
        here = [name for name in sums.feature_names if name in shifted]
        parts = {}
        for k in np.unique(total.pattern[total._places(here)]).tolist():
            names = list(sums.feature_names[total.members(k)])
            one, two = (part.at(part._places(names)).of_pattern(0) for part in (self, other))
            parts[k] = combine(one, two)
        members = {k: total.members(k) for k in parts}
        return replace(total, sums=joined_shifts(sums, members, parts))

    def _places(self, names: Iterable[Any]) -> IntArray:
        order = {name: position for position, name in enumerate(self.feature_names)}
        return np.array([order[name] for name in names], dtype=np.intp)

    def _over(self, sums: SummaryStats) -> tuple[DesignSums, IntArray, OwnColumns]:
        """Designs, patterns and own columns in the order of the labels of ``sums``."""
        one = self.at(self._places(sums.feature_names))
        coefs = np.array([one.coef_names.index(name) for name in sums.coef_names], dtype=np.intp)
        source = column_positions(one.structure, sums.structure)
        own = OwnColumns(one.own.names, tuple(one.own.of[i] for i in coefs))
        return one.designs.placed(coefs, source), one.pattern, own

    def _groups_over(self, sums: SummaryStats) -> tuple[DesignSums, ...]:
        """Designs by group in the order of the labels of ``sums``, its groups included."""
        if sums.groups is None or self.groups is None:
            return ()
        one = self.at(self._places(sums.feature_names))
        coefs = np.array([one.coef_names.index(name) for name in sums.coef_names], dtype=np.intp)
        return designs_over(self.groups, one.group_designs, coefs, sums.groups)

    # ---- patterns ---------------------------------------------------------------------------

    @property
    def n_patterns(self) -> int:
        """Number of distinct patterns."""
        return self.designs.count

    @cached_property
    def nobs(self) -> IntArray:
        """Number of samples of each feature, shape (m,)."""
        return np.asarray(self.designs.n.astype(np.intp)[self.pattern])

    @cached_property
    def _members(self) -> list[IntArray]:
        order = np.argsort(self.pattern, kind="stable")
        counts = np.bincount(self.pattern, minlength=self.n_patterns)
        return np.split(order, np.cumsum(counts)[:-1])

    def members(self, pattern: int) -> IntArray:
        """Positions of the features with a pattern, ascending.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.pattern.tolist(), model.stats.members(1).tolist()
        ([0, 1, 1], [1, 2])
        """
        return self._members[pattern]

    def of_pattern(self, pattern: int) -> SummaryStats:
        """Ordinary statistics of the features with a pattern, over their samples.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.of_pattern(0)
        <SummaryStats: n=93 samples, m=1 features, p=2 fixed effects, q=25 random effects>
        """
        designs, sums = self.designs, self.sums.at(self.members(pattern))
        return replace(
            sums,
            groups=groups_of_pattern(sums.groups, self.group_designs, pattern),
            n=int(designs.n[pattern]),
            XX=designs.XX[pattern],
            XX_root=None,
            ZX=designs.ZX[pattern],
            ZZ=designs.sparse_ZZ(pattern),
            log_weights=float(designs.log_weights[pattern]),
        )

    def at(self, positions: IntArray) -> PatternedStats:
        """The same for the features at some positions, in that order.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> import numpy as np
        >>> model.stats.at(np.array([2, 0])).feature_names.tolist()
        ['gene3', 'gene1']
        """
        kept, pattern = np.unique(self.pattern[positions], return_inverse=True)
        return replace(
            self,
            sums=self.sums.at(positions),
            designs=self.designs.at(kept),
            pattern=pattern.reshape(-1),
            group_designs=tuple(part.at(kept) for part in self.group_designs),
        )

    def take(self, features: Any) -> PatternedStats:
        """The same for some of the features, as `SummaryStats.take`.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.take(["gene2", "gene1"]).pattern.tolist()
        [1, 0]
        """
        return self.at(feature_positions(self.feature_names, features))

    def keep(
        self, *, fixed: Any = None, random: Any = None, features: Any = None
    ) -> PatternedStats:
        """With only the coefficients, random terms and features that are named.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.keep(fixed="Intercept").coef_names
        ('Intercept',)
        """
        chosen = self if features is None else self.take(features)
        return chosen._selected(lambda stats: stats.keep(fixed=fixed, random=random))

    def drop(
        self, *, fixed: Any = None, random: Any = None, features: Any = None
    ) -> PatternedStats:
        """Without the coefficients, random terms and features that are named.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> model.stats.drop(features="gene1").feature_names.tolist()
        ['gene2', 'gene3']
        """
        chosen = self
        if features is not None:
            gone = feature_positions(self.feature_names, features)
            chosen = self.at(np.setdiff1d(np.arange(self.m), gone))
        return chosen._selected(lambda stats: stats.drop(fixed=fixed, random=random))

    def _selected(self, select: Callable[[SummaryStats], SummaryStats]) -> PatternedStats:
        sums = select(without_shifts(self.sums))
        coefs = np.array([self.coef_names.index(name) for name in sums.coef_names], dtype=np.intp)
        columns = column_positions(self.structure, sums.structure)
        by_group = self._groups_over(sums)
        return replace(
            self,
            sums=self._with_shifts(sums, select),
            designs=self.designs.selected(coefs, columns),
            own=OwnColumns(self.own.names, tuple(self.own.of[i] for i in coefs)),
            group_designs=by_group,
        )

    def _with_shifts(
        self, sums: SummaryStats, change: Callable[[SummaryStats], SummaryStats]
    ) -> SummaryStats:
        """Changed sums with the shifts that the same change leaves, pattern by pattern."""
        if self.sums.shift is None:
            return sums
        patterns = np.unique(self.pattern[self.sums.shift.features]).tolist()
        parts = {k: change(self.of_pattern(k)) for k in patterns}
        return joined_shifts(sums, {k: self.members(k) for k in patterns}, parts)


def with_coarser_groups(
    stats: PatternedStats, codes: IntArray, merge: Callable[[SummaryStats], GroupSums]
) -> PatternedStats:
    """With coarser groups: ``codes`` says which each belongs to, ``merge`` makes their sums."""

    def change(sums: SummaryStats) -> SummaryStats:
        return replace(sums, groups=merge(sums))

    before = without_shifts(stats.sums)
    sums = change(before)
    assert before.groups is not None
    assert sums.groups is not None
    designs = merged_designs(before.groups, stats.group_designs, codes, sums.groups)
    return replace(stats, sums=stats._with_shifts(sums, change), group_designs=designs)


def over_columns(stats: PatternedStats, sums: SummaryStats) -> PatternedStats:
    """The statistics over the columns of Z that ``sums``, their sums, have now."""
    designs, _, _ = stats._over(sums)
    return replace(stats, sums=sums, designs=designs, group_designs=stats._groups_over(sums))


def same_rows(one: PatternedStats, other: PatternedStats) -> bool:
    """Whether features have the same samples with the same weights in both."""
    if one.m != other.m or not np.array_equal(one.nobs, other.nobs):
        return False
    mine, theirs = one.designs, other.designs
    own = [(mine.log_weights, theirs.log_weights), (mine.signature, theirs.signature)]
    return all(
        np.allclose(a[one.pattern], b[other.pattern], rtol=1e-12, atol=1e-12) for a, b in own
    )


def any_from_dataset(ds: xr.Dataset) -> SummaryStats | PatternedStats:
    """Statistics of either kind from a Dataset that holds one."""
    return (PatternedStats if "pattern" in ds else SummaryStats).from_dataset(ds)
