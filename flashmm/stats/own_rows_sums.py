"""Sums of features with rows of their own: those that miss samples, and those with own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.design import Design
from flashmm.exceptions import InputError
from flashmm.progress import progress_bar
from flashmm.sources import Block, Source
from flashmm.sources.beside import Beside
from flashmm.sources.readers import BLOCK_BYTES
from flashmm.stats.block_sums import BlockSums, GroupColumns, design_columns
from flashmm.stats.from_source import columns_of, first_sums, second_sums, statistics_of
from flashmm.stats.grouping import Grouping
from flashmm.stats.own_designs import (
    DesignSums,
    OwnColumns,
    RowProducts,
    add_design_sums,
    pairs_of_columns,
)
from flashmm.stats.own_groups import check_designs_room
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.own_shifts import shifted_by_pattern
from flashmm.stats.streaming import passing, suitable_block_bytes
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["OwnTables", "sum_by_pattern", "sum_own_rows"]

# Elements of a block that are worked on together.
_CACHED = 2**16

P = ParamSpec("P")
Result = TypeVar("Result")


def _held(function: Callable[P, Result]) -> Callable[P, Result]:
    """Hold BLAS to one thread in a function of a source and a design, unless X is wide."""

    @wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> Result:
        design = args[1]
        assert isinstance(design, Design)
        p = design.X.shape[1]
        with one_blas_thread(p * (p + 1) // 2):  # columns of what weights are multiplied with
            return function(*args, **kwargs)

    return held


@_held
def sum_by_pattern(
    source: Source,
    design: Design,
    *,
    weights: FloatArray | None = None,
    min_count: float | None = None,
    min_fraction: float | None = None,
    workers: int | None = None,
    progress: bool | None = None,
    grouping: Grouping | None = None,
) -> SummaryStats | PatternedStats:
    """Statistics of features over the samples in which they are not NaN.

    Parameters
    ----------
    source, design, weights, min_count, min_fraction, workers, progress, grouping
        As in `SummaryStats.from_design`.

    Returns
    -------
    SummaryStats or PatternedStats
        Ordinary statistics when nothing is missing.

    Raises
    ------
    InputError
        If the source can be read only once.
    """
    if source.reader.one_pass:
        raise InputError(
            "missing='feature' reads Y more than once, but these blocks can be had only once. Pass "
            "Y as an array or a file."
        )
    selecting = min_count is not None or min_fraction is not None
    source = replace(source, counting=selecting, allow_missing=True, offset=design.offset)
    block_bytes = suitable_block_bytes(source, design)
    columns = columns_of(design_columns(design.X, design.Z), grouping, source.m, design.structure)
    absent = np.zeros((source.m, source.n), dtype=bool)
    total = first_sums(
        source,
        columns,
        weights,
        block_bytes=block_bytes,
        workers=workers,
        progress=progress,
        absent=absent,
    )
    sums = statistics_of(SummaryStats, total.sums, columns, design, source, weights, grouping)
    if selecting:
        kept = passing(total.totals, total.detected, source.n, min_count, min_fraction)
        sums, source, absent = sums.at(kept), source.at(kept), absent[kept]
    if not absent.any():
        return SummaryStats.from_design(
            replace(source, allow_missing=False, counting=False),
            design,
            weights=weights,
            grouping=grouping,
        )
    n = source.n
    packed, pattern = _distinct(np.packbits(~absent, axis=1))
    X, Z = np.asarray(design.X[:n]), sp.csr_array(design.Z[:n])
    own, pairs = OwnColumns.none(X.shape[1]), pairs_of_columns(Z)
    parts = [_Part.of(X, Z, own, pairs, np.arange(n), np.arange(Z.shape[1]), packed.shape[0])]
    if grouping is not None and columns.by_group is not None:
        rows_of, columns_of_Z = columns.by_group.rows, columns.by_group.columns
        check_designs_room(grouping, columns_of_Z, pairs[0].size, X.shape[1], packed.shape[0])
        parts += [
            _Part.of(X, Z, own, None, rows, mine, packed.shape[0])
            for rows, mine in zip(rows_of, columns_of_Z, strict=True)
        ]
    step = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, packed.shape[0], step):
        here = np.arange(start, min(start + step, packed.shape[0]))
        there = np.unpackbits(packed[here], axis=1, count=n).view(bool)
        for part in parts:
            seen = there if part.rows.size == n else there[:, part.rows]
            given = seen if weights is None else seen * weights[part.rows]
            add_design_sums(part.designs, here, part.products, given)
    designs, *by_group = (part.designs for part in parts)
    stats = PatternedStats(sums, designs, pattern.reshape(-1), own, tuple(by_group))
    again = partial(second_sums, source, columns, weights, block_bytes, workers)
    return shifted_by_pattern(stats, again)


@dataclass(frozen=True)
class _Part:
    """Some samples: which, the products of their rows, and the sums of all designs over them."""

    rows: IntArray
    products: RowProducts
    designs: DesignSums

    @classmethod
    def of(
        cls,
        X: FloatArray,
        Z: sp.csr_array,
        own: OwnColumns,
        pairs: tuple[IntArray, IntArray] | None,
        rows: IntArray,
        columns: IntArray,
        count: int,
    ) -> _Part:
        """No sums yet, for ``count`` designs; ``columns`` of Z."""
        n = X.shape[0]
        if rows.size < n or columns.size < Z.shape[1]:
            X, Z = X[rows], sp.csr_array(Z[rows][:, columns])
        pairs = pairs_of_columns(Z) if pairs is None else pairs
        products = RowProducts.of(X, Z, own, pairs, rows, n)
        return cls(rows, products, DesignSums.zeros(count, X.shape[1], Z.shape[1], pairs))


def _distinct(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], IntArray]:
    """The distinct rows of bytes (m, k), in order, and which of them each is, shape (m,)."""
    # As one value each: comparing rows column by column takes ten times as long.
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1])))[:, 0]
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    return rows[first], which.reshape(-1)


# ---- weights and covariates of each feature ------------------------------------------------


@dataclass(frozen=True)
class OwnTables:
    """What features have of their own beside Y.

    Parameters
    ----------
    weights
        A table (m, n), weights of the samples (n,) that features share, or None.
    covariates
        A table for each of the covariates.
    own
        The columns of X that they belong to.
    """

    weights: Beside | FloatArray | None
    covariates: tuple[Beside, ...]
    own: OwnColumns

    def at(self, kept: IntArray, m: int) -> OwnTables:
        """The same for some of m features."""
        weights = self.weights
        if isinstance(weights, Beside):
            weights = weights.at(kept, m)
        return replace(
            self, weights=weights, covariates=tuple(table.at(kept, m) for table in self.covariates)
        )


@_held
def sum_own_rows(
    source: Source,
    design: Design,
    tables: OwnTables,
    *,
    missing: bool = False,
    min_count: float | None = None,
    min_fraction: float | None = None,
    progress: bool | None = None,
    grouping: Grouping | None = None,
) -> SummaryStats | PatternedStats:
    """Statistics of features with weights or covariates of their own, block by block.

    Parameters
    ----------
    source, design, min_count, min_fraction, progress, grouping
        As in `SummaryStats.from_design`.
    tables
        The weights and covariates.
    missing
        Whether a feature is fitted without the samples in which it, or a covariate of its own,
        is NaN; else those must have weight zero.

    Returns
    -------
    SummaryStats or PatternedStats
        Ordinary statistics when all features have the same weights, and no covariate.

    Raises
    ------
    InputError
        If the source can be read only once, or a weight is negative or not finite.
    """
    if source.reader.one_pass:
        raise InputError(
            "Weights and covariates of each feature are read beside Y, but these blocks can be had "
            "only once. Pass Y as an array or a file."
        )
    selecting = min_count is not None or min_fraction is not None
    source = replace(source, counting=selecting, allow_missing=True, offset=design.offset)
    columns = columns_of(design_columns(design.X, design.Z), grouping, source.m, design.structure)
    by_group = columns.by_group
    if grouping is not None and by_group is not None:
        pairs = pairs_of_columns(sp.csr_array(design.Z[: source.n]))[0].size
        check_designs_room(grouping, by_group.columns, pairs, design.X.shape[1], source.m)
    sums = _OwnSums.of(source, design, tables, missing, by_group)
    blocks = source.blocks(BLOCK_BYTES, dense=True)
    for block in progress_bar(blocks, lambda: source.count_blocks(BLOCK_BYTES), show=progress):
        sums.add(block)
    shared = tables.weights if isinstance(tables.weights, np.ndarray) else None
    total = statistics_of(SummaryStats, sums.Y, columns, design, source, shared, grouping)
    total = replace(
        total,
        XX_root=None,
        groups=total.of_groups(lambda part: replace(part, XX_root=None)),
    )
    stats = _grouped(total, sums.designs, tables.own, [part.designs for part in sums.parts])
    if selecting:
        kept = passing(sums.totals, sums.detected, source.n, min_count, min_fraction)
        stats, source, tables = stats.at(kept), source.at(kept), tables.at(kept, source.m)
    again = partial(_again, replace(source, counting=False), design, tables, missing, by_group)
    stats = shifted_by_pattern(stats, again)
    if stats.n_patterns == 1 and not tables.own.names:
        return stats.of_pattern(0)
    return stats


def _grouped(
    sums: SummaryStats, designs: DesignSums, own: OwnColumns, by_group: Sequence[DesignSums]
) -> PatternedStats:
    """Statistics in which features with the same design share it."""
    key = np.column_stack([designs.n, designs.log_weights, designs.signature])
    _, first, pattern = np.unique(key, axis=0, return_index=True, return_inverse=True)
    if first.size == designs.count:  # in the order of the features
        return PatternedStats(sums, designs, np.arange(designs.count), own, tuple(by_group))
    parts = tuple(part.at(first) for part in by_group)
    return PatternedStats(sums, designs.at(first), pattern.reshape(-1), own, parts)


def _again(
    source: Source,
    design: Design,
    tables: OwnTables,
    missing: bool,
    by_group: GroupColumns | None,
    a: FloatArray,
    features: IntArray,
) -> BlockSums:
    """One more pass, for the sums of y - X a of some features."""
    sums = _OwnSums.of(source, design, tables, missing, by_group, about=(features, a))
    for block in source.blocks(BLOCK_BYTES, features=features, dense=True):
        sums.add(block)
    return sums.Y.at(features)


@dataclass(frozen=True)
class _OwnSums:
    """The sums so far, and what is needed to add a block to them."""

    source: Source
    design: Design
    tables: OwnTables
    missing: bool
    designs: DesignSums
    Y: BlockSums
    totals: FloatArray
    detected: FloatArray
    about: tuple[IntArray, FloatArray] | None
    by_group: GroupColumns | None
    parts: tuple[_OwnSums, ...]
    # Of the columns of Z those that are summed over, and the samples.
    rows: IntArray
    columns: IntArray
    _all: list[RowProducts]

    @classmethod
    def of(
        cls,
        source: Source,
        design: Design,
        tables: OwnTables,
        missing: bool,
        by_group: GroupColumns | None = None,
        about: tuple[IntArray, FloatArray] | None = None,
        some: tuple[IntArray, IntArray] | None = None,
    ) -> _OwnSums:
        """Nothing summed yet; ``some``: samples, and columns of Z, in the place of all."""
        m, (n, p), q = source.m, design.X.shape, design.Z.shape[1]
        rows, columns = (np.arange(n), np.arange(q)) if some is None else some
        Z = sp.csr_array(design.Z[:n])
        Z = Z if some is None else sp.csr_array(Z[rows][:, columns])
        pairs = pairs_of_columns(Z)
        designs = DesignSums.zeros(m if about is None else 0, p, columns.size, pairs)
        parts: tuple[_OwnSums, ...] = ()
        if by_group is not None:
            parts = tuple(
                cls.of(source, design, tables, missing, None, about, one)
                for one in zip(by_group.rows, by_group.columns, strict=True)
            )
        Y = BlockSums(
            np.zeros((p, m)),
            np.zeros((columns.size, m)),
            np.zeros(m),
            tuple(part.Y for part in parts),
        )
        found = np.zeros(m), np.zeros(m), about, by_group, parts, rows, columns
        return cls(source, design, tables, missing, designs, Y, *found, [])

    def _products(self, samples: IntArray) -> RowProducts:
        """Products of the rows of a block; of all samples they are made once."""
        n, whole = self.design.n, np.array_equal(samples, self.rows)
        if whole and self._all:
            return self._all[0]
        here: Any = slice(0, n) if whole and samples.size == n else samples
        X, Z = np.asarray(self.design.X[here]), sp.csr_array(self.design.Z[here])
        if self.columns.size < Z.shape[1]:
            Z = sp.csr_array(Z[:, self.columns])
        own, pairs = self.tables.own, (self.designs.rows, self.designs.columns)
        products = RowProducts.of(X, Z, own, pairs, here, n)
        if whole:
            self._all.append(products)
        return products

    @np.errstate(over="ignore", invalid="ignore")  # sums that are not finite get a verdict
    def add(self, block: Block) -> None:
        """Add a block."""
        slots = np.arange(self.source.m)[block.features]
        samples = np.arange(self.source.n)[block.samples]
        given: Any = block.values
        values: FloatArray = given.toarray() if sp.issparse(given) else given
        weights, covariates = self._beside(block, slots, samples, values.shape)
        self._add(slots, samples, values, weights, covariates)
        if self.by_group is not None:
            codes = self.by_group.codes[samples]
            for group, part in enumerate(self.parts):
                at = np.flatnonzero(codes == group)
                if at.size:
                    own = [beside[:, at] for beside in covariates]
                    part._add(slots, samples[at], values[:, at], weights[:, at], own)
        if block.totals is not None and block.detected is not None:
            self.totals[slots] += block.totals
            self.detected[slots] += block.detected

    def _add(
        self,
        slots: IntArray,
        samples: IntArray,
        values: FloatArray,
        weights: FloatArray,
        covariates: Sequence[FloatArray],
    ) -> None:
        """Add some samples of some features, shape (f, n_b)."""
        products = self._products(samples)
        if self.about is None:
            add_design_sums(self.designs, slots, products, weights, covariates)
        # What is copied, weighted and transposed, stays in the processor's cache.
        step = max(16, _CACHED // max(samples.size, 1))
        for start in range(0, slots.size, step):
            here = slice(start, start + step)
            some = [part[here] for part in covariates]
            self._add_products(slots[here], products, values[here], weights[here], some)

    def _add_products(
        self,
        slots: IntArray,
        products: RowProducts,
        values: FloatArray,
        weights: FloatArray,
        covariates: Sequence[FloatArray],
    ) -> None:
        """Add to X'y, Z'y and y'y of some features."""
        own = self.tables.own
        if self.about is not None:
            features, a = self.about
            values = values - self._fitted(
                a[:, np.searchsorted(features, slots)], products, covariates
            )
        weighted = weights * values
        for u, columns in own.groups.items():
            factor = own.factor(u, covariates)
            part = weighted if factor is None else weighted * factor
            self.Y.XY[np.ix_(columns, slots)] += (part @ products.X[:, columns]).T
        self.Y.ZY[:, slots] += products.transposed_Z @ np.ascontiguousarray(weighted.T)
        self.Y.yy[slots] += (weighted * values).sum(axis=1)

    def _fitted(
        self, a: FloatArray, products: RowProducts, covariates: Sequence[FloatArray]
    ) -> FloatArray:
        """X a of some features, shape (f, n_b)."""
        result = np.zeros((a.shape[1], products.X.shape[0]))
        for u, columns in self.tables.own.groups.items():
            factor = self.tables.own.factor(u, covariates)
            part = a[columns].T @ products.X[:, columns].T
            result += part if factor is None else part * factor
        return result

    def _beside(
        self, block: Block, slots: IntArray, samples: IntArray, shape: tuple[int, ...]
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Weights of a block, zero where something is missing, and covariates without NaN."""
        table = self.tables.weights
        if isinstance(table, Beside):
            weights = table.read(slots, samples)
            total = weights.sum() if weights.size and weights.min() >= 0 else np.nan
            bad = None if np.isfinite(total) else ~(np.isfinite(weights) & (weights >= 0))
            if bad is not None and bad.any():
                row, column = (int(x) for x in np.argwhere(bad)[0])
                raise InputError(
                    f"`weights` must be zero or positive, and finite; it is "
                    f"{weights[row, column]:g} for {self._where(slots[row], samples[column])}."
                )
        elif table is not None:
            weights = np.broadcast_to(table[samples], shape)
        else:
            weights = np.ones(shape)
        absent = np.zeros(shape, dtype=bool) if block.missing is None else block.missing
        self._refuse_missing(absent & (weights > 0), "Y", slots, samples)
        covariates = []
        for beside in self.tables.covariates:
            values = beside.read(slots, samples)
            infinite = np.isinf(values)
            if infinite.any():
                row, column = (int(x) for x in np.argwhere(infinite)[0])
                where = self._where(slots[row], samples[column])
                raise InputError(f"The covariate {beside.name!r} is infinite: {where}.")
            unknown = np.isnan(values)
            if unknown.any():
                what = f"The covariate {beside.name!r}"
                self._refuse_missing(unknown & ~absent & (weights > 0), what, slots, samples)
                absent = absent | unknown
                values = np.where(unknown, 0.0, values)
            covariates.append(values)
        return np.where(absent, 0.0, weights), covariates

    def _refuse_missing(
        self, absent: BoolArray, what: str, slots: IntArray, samples: IntArray
    ) -> None:
        if self.missing or not absent.any():
            return
        row, column = (int(x) for x in np.argwhere(absent)[0])
        raise InputError(
            f"{what} has a missing value: {self._where(slots[row], samples[column])}. Use "
            "missing='feature' to fit each feature over the samples that it has, give the "
            "observation weight 0, or fill it in."
        )

    def _where(self, feature: int, sample: int) -> str:
        names = self.source.sample_names
        label = int(sample) if names is None else names[int(sample)]
        return f"feature {str(self.source.feature_names[feature])!r}, sample {label!r}"
