"""SummaryStats: what is left of the data once the samples have been summed over.

Every field is a sum over samples, so the statistics of two sets of samples add up to the
statistics of their union. Their size does not depend on n.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from flashmm.arrays.labels import axis_labels, feature_positions
from flashmm.arrays.types import FloatArray
from flashmm.designs.design import Design
from flashmm.designs.from_arrays import as_matrix, columns_like, design_and_source, weights_of
from flashmm.exceptions import InputError
from flashmm.slips.answers import answer_calls
from flashmm.sources import Source, Transform
from flashmm.stats.algebra import added, subtracted, without_groups
from flashmm.stats.fields import Sums
from flashmm.stats.from_source import sum_design
from flashmm.stats.group_names import group_positions
from flashmm.stats.grouping import Grouping, grouping_of
from flashmm.stats.manners import StatisticsManners
from flashmm.stats.selection import kept, without
from flashmm.stats.stored import sums_from_dataset, sums_to_dataset

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SummaryStats"]


@answer_calls
class SummaryStats(StatisticsManners, Sums):
    """Cross-products of X, Z and Y: all that a fit needs, of a size free of n.

    ``a + b`` joins the samples of two sets of statistics (and ``sum`` those of many);
    `take` picks features.

    Parameters
    ----------
    n
        Number of samples.
    XX
        X'X, shape (p, p).
    XY
        X'Y', shape (p, m).
    ZX
        Z'X, shape (q, p).
    ZY
        Z'Y', shape (q, m).
    ZZ
        Z'Z, shape (q, q), dense or sparse; kept sparse.
    yy
        Sums of squares of the features, shape (m,).
    feature_names
        Labels of the m features; 0..m-1 by default.
    coef_names
        Labels of the p fixed effects; ``x1``, ``x2``, ... by default.
    structure
        Random terms that own the columns of Z; one component by default. A sequence of
        sizes (FLASHMM's ``d``) or a dict ``{name: size}`` is accepted too.
    shift
        Sums of y - X a for features whose variation drowns in the sums above
        (`flashmm.stats.shifts`); None where no feature needs them.
    log_weights
        Sum of the logarithms of the samples' weights; the sums above are weighted by them.
    XX_root
        R of the QR decomposition of X, shape (p, p), where X'X alone would keep too few digits
        (`flashmm.stats.root`); None where it does not need one, or X was not at hand.
    aliased
        Columns of X that were left out because they depend on these (``rank="drop"`` of
        `MultiLMM`); None without any.
    numbered
        Whether the features are called by the numbers of their rows in a Y without names; None
        for those without ``feature_names``.
    groups
        The sums of each group of samples (``sums_by`` of the constructors); None where they were
        not kept.

    Raises
    ------
    InputError
        If shapes do not match, labels repeat, or X, Z products are not finite. XY, ZY and yy
        may hold NaN: the features concerned get the verdict "non finite".

    Examples
    --------
    >>> import numpy as np
    >>> from flashmm import SummaryStats
    >>> rng = np.random.default_rng(1)
    >>> X = np.ones((6, 1)); Z = np.kron(np.eye(3), np.ones((2, 1)))
    >>> stats = SummaryStats.from_arrays(rng.normal(size=(4, 6)), X, Z)
    >>> stats
    <SummaryStats: n=6 samples, m=4 features, p=1 fixed effects, q=3 random effects>
    """

    def __repr__(self) -> str:
        by = "" if self.groups is None else f", {self.groups.k} groups of {self.groups.name!r}"
        return (
            f"<SummaryStats: n={self.n} samples, m={self.m} features, p={self.p} fixed effects, "
            f"q={self.q} random effects{by}>"
        )

    @classmethod
    def from_arrays(
        cls,
        Y: Any,
        X: ArrayLike,
        Z: Any,
        *,
        components: Any = None,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
        weights: ArrayLike | None = None,
        sums_by: Any = None,
    ) -> SummaryStats:
        """Sum Y, X and Z over the samples.

        Parameters
        ----------
        Y, X, Z, components, transform, feature_names, coef_names
            As in `MultiLMM.from_arrays`: shapes (m, n), (n, p), (n, q).
        weights
            Precision of each sample, shape (n,), matched by label where it has labels; None
            for ones.
        sums_by
            Group of each sample, shape (n,), matched likewise: the sums of each group are kept
            beside the total, for `without`.

        Returns
        -------
        SummaryStats

        Raises
        ------
        InputError
            If the shapes or labels do not match, or a value is missing or infinite.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> X, Z = np.ones((6, 1)), np.kron(np.eye(3), np.ones((2, 1)))
        >>> fm.SummaryStats.from_arrays(np.arange(24.0).reshape(4, 6), X, Z)
        <SummaryStats: n=6 samples, m=4 features, p=1 fixed effects, q=3 random effects>
        """
        design, source, samples = design_and_source(
            Y, X, Z, components, coef_names, transform, feature_names
        )
        precision = weights_of(weights, design, samples)
        grouping = None
        if sums_by is not None:
            grouping = grouping_of(sums_by, None, np.ones(design.n, dtype=bool), samples)
        return cls.from_design(source, design, weights=precision, grouping=grouping)

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[tuple[Any, ...]],
        *,
        components: Any = None,
        transform: Transform = None,
        feature_names: Sequence[object] | None = None,
        coef_names: Sequence[str] | None = None,
    ) -> SummaryStats:
        """Fold blocks of samples, in one pass and one block at a time in memory.

        Parameters
        ----------
        blocks
            Iterable of ``(Y, X, Z)`` for successive sets of samples, shapes (m, n_b),
            (n_b, p), (n_b, q); or ``(Y, X, Z, sums_by)``, shape (n_b,), for sums by group too.
        components, transform, feature_names, coef_names
            As in `from_arrays`.

        Returns
        -------
        SummaryStats

        Raises
        ------
        InputError
            If there is no block, or blocks differ in features or columns.

        Examples
        --------
        >>> import numpy as np
        >>> from flashmm import SummaryStats
        >>> Y = np.arange(12.0).reshape(2, 6); X = np.ones((6, 1)); Z = np.eye(6)[:, :2]
        >>> halves = ((Y[:, s], X[s], Z[s]) for s in (slice(0, 3), slice(3, 6)))
        >>> SummaryStats.from_blocks(halves).yy
        array([ 55., 451.])
        """
        total: SummaryStats | None = None
        for Y, X, Z, *by in blocks:
            part = cls.from_arrays(
                Y,
                X,
                Z,
                components=components,
                transform=transform,
                feature_names=feature_names,
                coef_names=coef_names,
                sums_by=by[0] if by else None,
            )
            total = part if total is None else total + part
        if total is None:
            raise InputError("`blocks` is empty: there is nothing to sum.")
        return total

    @classmethod
    def from_design(
        cls,
        source: Source,
        design: Design,
        *,
        weights: FloatArray | None = None,
        min_count: float | None = None,
        min_fraction: float | None = None,
        workers: int | None = None,
        progress: bool | None = None,
        block_bytes: int | None = None,
        grouping: Grouping | None = None,
    ) -> SummaryStats:
        """Sum a source over the samples of a design, block by block.

        Parameters
        ----------
        source
            Y, features x samples.
        design
            X and Z of the same samples.
        weights
            Precision of each sample, shape (n,); None for ones.
        min_count, min_fraction
            Leave out features that sum to less before anything is done to them, or that are not
            zero in a smaller fraction of the samples.
        workers
            Threads that sum blocks of sparse Y or a dask array; None for as many as there are
            processors.
        progress
            A bar on a terminal: True, False, or None for one that appears after a few seconds.
        block_bytes
            Size of the blocks; it does not change the sums.
        grouping
            Groups of samples whose sums are kept beside the total; None for none.

        Returns
        -------
        SummaryStats

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> from flashmm.designs.from_arrays import design_from_arrays
        >>> from flashmm.sources.make import make_source
        >>> X, Z = np.ones((6, 1)), np.kron(np.eye(3), np.ones((2, 1)))
        >>> source = make_source(np.arange(24.0).reshape(4, 6))
        >>> fm.SummaryStats.from_design(source, design_from_arrays(X, Z))
        <SummaryStats: n=6 samples, m=4 features, p=1 fixed effects, q=3 random effects>
        """
        if not (isinstance(source, Source) and isinstance(design, Design)):
            raise InputError(
                "SummaryStats.from_design takes what flashmm has read of Y and of the design. Of "
                "formulas, AnnData or matrices make a model, MultiLMM.from_arrays(Y, X, Z), and "
                "take its `stats`."
            )
        return sum_design(
            cls,
            source,
            design,
            weights=weights,
            min_count=min_count,
            min_fraction=min_fraction,
            workers=workers,
            progress=progress,
            block_bytes=block_bytes,
            grouping=grouping,
        )

    def __add__(self, other: object) -> SummaryStats:
        """Statistics of the union of two disjoint sets of samples; see `add`."""
        return added(self, self._same_kind(other))

    def __sub__(self, other: object) -> SummaryStats:
        """Statistics without the samples of ``other``, which were added before.

        Levels of random effects that have no samples left are dropped. Digits that the sum of
        squares of all samples does not hold cannot come back.
        """
        return subtracted(self, self._same_kind(other))

    def add(
        self, other: SummaryStats, *, features: Literal["equal", "intersect"] = "equal"
    ) -> SummaryStats:
        """Join the samples of two sets of statistics, aligned by label.

        The order of coefficients and features may differ. Levels of a grouping factor are
        united: those of equal name are one level.

        Parameters
        ----------
        other
            Statistics of other samples, with the same coefficients and random terms.
        features
            ``"equal"``: both must have the same; ``"intersect"``: those that both have are kept.

        Returns
        -------
        SummaryStats
            In the order of ``self``, with levels that only ``other`` has after its own.

        Raises
        ------
        InputError
            If coefficients, random terms or features do not agree; the message names them.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from flashmm import SummaryStats
        >>> Y, X = np.arange(8.0).reshape(2, 4), np.ones((4, 1))
        >>> one = pd.DataFrame(np.kron(np.eye(2), np.ones((2, 1))), columns=["ann", "bob"])
        >>> two = one.set_axis(["bob", "cem"], axis=1)
        >>> total = SummaryStats.from_arrays(Y, X, one) + SummaryStats.from_arrays(Y, X, two)
        >>> total.structure.terms[0].levels
        ('ann', 'bob', 'cem')
        """
        return added(self, other, features)

    def update(
        self,
        Y: Any,
        X: ArrayLike,
        Z: Any,
        *,
        transform: Transform = None,
        weights: Any = None,
        sums_by: Any = None,
    ) -> SummaryStats:
        """Add a block of samples.

        Parameters
        ----------
        Y, X, Z
            The block, shapes (m, n_b), (n_b, p), (n_b, q). X and Z without labels have the
            columns of these statistics, Y without labels their features.
        transform, weights, sums_by
            As in `from_arrays`. Statistics with sums by group need the groups of the block.

        Returns
        -------
        SummaryStats
            Of all samples; ``self`` stays as it is.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> rng = np.random.default_rng(1)
        >>> X, Z = np.ones((6, 1)), np.kron(np.eye(3), np.ones((2, 1)))
        >>> stats = fm.SummaryStats.from_arrays(rng.normal(size=(4, 6)), X, Z)
        >>> stats.update(rng.normal(size=(4, 2)), X[:2], Z[:2]).n
        8
        """
        X, Z = as_matrix(X), as_matrix(Z)
        names = self.coef_names if axis_labels(X, 1) is None else None
        Z, components = columns_like(Z, self.structure)
        design, source, samples = design_and_source(Y, X, Z, components, names, transform, None)
        if source.numbered and source.m == self.m:
            source = source.renamed(self.feature_names)
        precision = weights_of(weights, design, samples)
        grouping = None
        if sums_by is not None:
            name = None if self.groups is None else self.groups.name
            grouping = grouping_of(sums_by, name, np.ones(design.n, dtype=bool), samples)
        block = SummaryStats.from_design(source, design, weights=precision, grouping=grouping)
        return self + block

    def without(self, groups: Any) -> SummaryStats:
        """The statistics of all samples but those of some groups (``sums_by``).

        A statistic is a sum, so that of the others is a difference: nothing is read again.

        Parameters
        ----------
        groups
            Name of a group, or a list of such.

        Returns
        -------
        SummaryStats
            What the other samples alone give, to rounding. Levels of random effects that only
            these groups have are gone.

        Raises
        ------
        InputError
            If no sums were kept by group, a group is unknown, or none would be left.

        Examples
        --------
        >>> import numpy as np
        >>> from flashmm import SummaryStats
        >>> Y, X, by = np.arange(12.0).reshape(2, 6), np.ones((6, 1)), np.repeat(["A", "B", "C"], 2)
        >>> Z = np.kron(np.eye(3), np.ones((2, 1)))
        >>> stats = SummaryStats.from_arrays(Y, X, Z, sums_by=by)
        >>> stats.without("A")
        <SummaryStats: n=4 samples, m=2 features, p=1 fixed effects, q=2 random effects, \
2 groups of 'group'>
        """
        return without_groups(self, group_positions(self, groups))

    def ungrouped(self) -> SummaryStats:
        """The same without the sums by group.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, genes.Y[:20], sums_by="Individual"
        ... )
        >>> model.stats
        <SummaryStats: n=100 samples, m=20 features, p=2 fixed effects, q=25 random effects, 25
        groups of 'Individual'>
        >>> model.stats.ungrouped()
        <SummaryStats: n=100 samples, m=20 features, p=2 fixed effects, q=25 random effects>
        """
        return replace(self, groups=None)

    def take(self, features: Any) -> SummaryStats:
        """Keep some features.

        Parameters
        ----------
        features
            Names; a boolean mask, matched by label where it has labels; or a slice of
            positions. Names are the same if their text is: 7157 finds ``"7157"``. A whole
            number is a position only where no feature is called by a number.

        Returns
        -------
        SummaryStats
            With the same samples, in the order asked for.

        Raises
        ------
        InputError
            If a feature is unknown or asked for twice.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.stats.take(["gene7", "gene2"]).feature_names.tolist()
        ['gene7', 'gene2']
        """
        return self.at(feature_positions(self.feature_names, features))

    def keep(self, *, fixed: Any = None, random: Any = None, features: Any = None) -> SummaryStats:
        """The statistics of a smaller model, by what stays in it.

        Parameters
        ----------
        fixed
            Names of coefficients; None for all.
        random
            Names of random terms, or of variances: ``"Subject[Days]"`` stands for the effect
            Days of the term Subject; None for all.
        features
            As in `take`; None for all.

        Returns
        -------
        SummaryStats
            In the order of ``self`` but for the features.

        Raises
        ------
        InputError
            If a name is unknown.

        Examples
        --------
        >>> import numpy as np
        >>> from flashmm import SummaryStats
        >>> rng = np.random.default_rng(1)
        >>> Z = np.kron(np.eye(3), np.ones((2, 1)))
        >>> stats = SummaryStats.from_arrays(rng.normal(size=(4, 6)), np.eye(6)[:, :2], Z)
        >>> stats.keep(fixed="x2").coef_names, stats.drop(fixed="x2").coef_names
        (('x2',), ('x1',))
        """
        return kept(self, fixed, random, features)

    def drop(self, *, fixed: Any = None, random: Any = None, features: Any = None) -> SummaryStats:
        """The statistics of a smaller model, by what leaves it; as `keep` otherwise.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> model.stats.drop(fixed="Age").coef_names
        ('Intercept',)
        """
        return without(self, fixed, random, features)

    def to_dataset(self) -> xr.Dataset:
        """The statistics as an xarray Dataset, labels included.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> dict(model.stats.to_dataset()["XY"].sizes)
        {'coef': 2, 'feature': 20}
        """
        return sums_to_dataset(self)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> SummaryStats:
        """The inverse of `to_dataset`.

        Examples
        --------
        >>> import flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> fm.SummaryStats.from_dataset(model.stats.to_dataset())
        <SummaryStats: n=100 samples, m=20 features, p=2 fixed effects, q=25 random effects>
        """
        return sums_from_dataset(cls, ds)
