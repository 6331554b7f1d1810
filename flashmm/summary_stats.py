"""SummaryStats: what is left of the data once the samples have been summed over.

Every field is a sum over samples, so the statistics of two sets of samples add up to the
statistics of their union. Their size does not depend on n.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.block_sums import BlockSums, DesignColumns, block_sums, design_columns
from flashmm.design import Design
from flashmm.design_arrays import as_structure, design_from_arrays
from flashmm.exceptions import InputError, listing
from flashmm.labels import checked_labels, feature_positions, is_default
from flashmm.numeric import float_array
from flashmm.per_sample import positive
from flashmm.shifts import Shift, add_shifts, shifted_sums
from flashmm.sources import Block, Source, Transform, make_source
from flashmm.streaming import passing, suitable_block_bytes, sum_source, worker_count

if TYPE_CHECKING:
    from os import PathLike

    import xarray as xr
    from numpy.typing import ArrayLike, NDArray

    FloatArray = NDArray[np.float64]

__all__ = ["SummaryStats"]

log = logging.getLogger("flashmm")


@dataclass(frozen=True, eq=False)
class SummaryStats:
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
        (`flashmm.shifts`); None where no feature needs them.
    log_weights
        Sum of the logarithms of the samples' weights; the sums above are weighted by them.

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

    n: int
    XX: FloatArray
    XY: FloatArray
    ZX: FloatArray
    ZY: FloatArray
    ZZ: sp.csr_array
    yy: FloatArray
    feature_names: Any = None
    coef_names: Any = None
    structure: Any = None
    shift: Shift | None = None
    log_weights: float = 0.0

    def __post_init__(self) -> None:
        fields: dict[str, Any] = {"n": _sample_count(self.n)}
        for name in ("XX", "XY", "ZX", "ZY", "yy"):
            fields[name] = float_array(getattr(self, name), name)
        for name in ("XY", "ZY"):
            if fields[name].ndim == 1:
                fields[name] = fields[name][:, None]
        fields["yy"] = np.atleast_1d(fields["yy"])
        if sp.issparse(self.ZZ):
            fields["ZZ"] = sp.csr_array(self.ZZ).astype(np.float64)
        else:
            fields["ZZ"] = float_array(self.ZZ, "ZZ")
        for name in ("XX", "XY", "ZX", "ZY", "ZZ"):
            if fields[name].ndim != 2:
                raise InputError(f"{name} must be a matrix; it has {fields[name].ndim} dimensions.")
        fields["ZZ"] = sp.csr_array(fields["ZZ"])
        p, m = fields["XY"].shape
        q = fields["ZZ"].shape[0]
        _check_shapes(fields, p, q, m)
        coefs = self.coef_names
        if coefs is None:
            coefs = _shared_labels(self, "coefficients", XX=(0, 1), XY=(0,), ZX=(1,))
        features = self.feature_names
        if features is None:
            features = _shared_labels(self, "features", XY=(1,), ZY=(1,), yy=(0,))
        fields["feature_names"] = checked_labels(features, m, "feature", default=np.arange(m))
        default = np.array([f"x{i + 1}" for i in range(p)], dtype=object)
        fields["coef_names"] = tuple(
            str(name) for name in checked_labels(coefs, p, "coefficient", default=default)
        )
        fields["structure"] = as_structure(self.structure, q)
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def m(self) -> int:
        """Number of features."""
        return int(self.yy.size)

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return int(self.XX.shape[0])

    @property
    def q(self) -> int:
        """Number of random effects, the columns of Z."""
        return int(self.ZZ.shape[0])

    def __repr__(self) -> str:
        return (
            f"<SummaryStats: n={self.n} samples, m={self.m} features, p={self.p} fixed effects, "
            f"q={self.q} random effects>"
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
    ) -> SummaryStats:
        """Sum Y, X and Z over the samples.

        Parameters
        ----------
        Y
            Features x samples, shape (m, n); see `MultiLMM.from_formula` for the kinds.
        X
            Fixed-effects design, shape (n, p); column names of a DataFrame are used.
        Z
            Random-effects design, shape (n, q), dense or sparse.
        components
            Sizes of the components, summing to q, or a dict ``{name: size}``; one
            component by default.
        transform
            ``"log2p1"``, ``"log1p"``, an elementwise callable, or None.
        feature_names, coef_names
            Labels that override those of Y and X.
        weights
            Precision of each sample, shape (n,); None for ones.

        Returns
        -------
        SummaryStats

        Raises
        ------
        InputError
            If the shapes do not match or a value is missing or infinite.
        """
        design = design_from_arrays(X, Z, components=components, coef_names=coef_names)
        labelled = next((part for part in (X, Z) if isinstance(part, pd.DataFrame)), None)
        samples = None if labelled is None else labelled.index
        source = make_source(Y, transform=transform, samples=samples, n=design.n)
        if weights is not None:
            weights = positive(weights, design.n, "weights")
        stats = cls.from_design(source, design, weights=weights)
        return stats if feature_names is None else replace(stats, feature_names=feature_names)

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[tuple[Any, Any, Any]],
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
            (n_b, p), (n_b, q).
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
        for Y, X, Z in blocks:
            part = cls.from_arrays(
                Y,
                X,
                Z,
                components=components,
                transform=transform,
                feature_names=feature_names,
                coef_names=coef_names,
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
        progress: bool = False,
        block_bytes: int | None = None,
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
            Threads that sum blocks of sparse Y; None for as many as there are processors.
        progress
            Show a progress bar on a terminal.
        block_bytes
            Size of the blocks; it does not change the sums.

        Returns
        -------
        SummaryStats
        """
        selecting = min_count is not None or min_fraction is not None
        source = replace(source, counting=selecting)
        # Dense products are threaded by BLAS itself.
        threads = worker_count(workers) if source.is_sparse and not source.densifies else 1
        block_bytes = block_bytes or suitable_block_bytes(source, design)
        log.info(
            "%s, %d features x %d samples: blocks of %.0f MiB, %d threads",
            *(source.reader.kind, source.m, source.n, block_bytes / 2**20, threads),
        )
        if source.reader.one_pass:
            stats, totals, detected = _fold(cls, source, design, weights)
            return stats.take(passing(totals, detected, stats.n, min_count, min_fraction))
        columns = design_columns(design.X, design.Z)
        total = sum_source(
            source,
            columns,
            weights=weights,
            workers=threads,
            block_bytes=block_bytes,
            progress=progress,
        )
        kept = passing(total.totals, total.detected, source.n, min_count, min_fraction)
        stats = _statistics(cls, total.sums, columns, design, source.feature_names, weights)
        if selecting:
            stats, source = stats.take(kept), source.taking(np.flatnonzero(kept))
        return _with_shift(
            stats,
            lambda features: source.blocks(block_bytes, features=features, dense=True),
            columns,
            weights,
        )

    def centred(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """X'y, Z'y and y'y after subtracting X a, and a, shapes (p, m), (q, m), (m,), (p, m).

        a is zero for all features but those in ``shift``.
        """
        a = np.zeros_like(self.XY)
        XY, ZY, yy = self.XY, self.ZY, self.yy
        if self.shift is not None:
            where = self.shift.features
            XY, ZY, yy = XY.copy(), ZY.copy(), yy.copy()
            XY[:, where], ZY[:, where], yy[where] = self.shift.XY, self.shift.ZY, self.shift.yy
            a[:, where] = self.shift.a
        return XY, ZY, yy, a

    def __add__(self, other: object) -> SummaryStats:
        """Statistics of the union of two disjoint sets of samples."""
        if not isinstance(other, SummaryStats):
            return NotImplemented
        _check_same_labels(self, other)
        total = SummaryStats(
            n=self.n + other.n,
            XX=self.XX + other.XX,
            XY=self.XY + other.XY,
            ZX=self.ZX + other.ZX,
            ZY=self.ZY + other.ZY,
            ZZ=sp.csr_array(self.ZZ + other.ZZ),
            yy=self.yy + other.yy,
            feature_names=self.feature_names,
            coef_names=self.coef_names,
            structure=self.structure,
            log_weights=self.log_weights + other.log_weights,
        )
        return replace(total, shift=add_shifts(self, other, total))

    def __radd__(self, other: object) -> SummaryStats:
        """Let ``sum(parts)`` work: it starts from 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def take(self, features: Any) -> SummaryStats:
        """Keep some features.

        Parameters
        ----------
        features
            Names, positions, a slice or a boolean mask of length m.

        Returns
        -------
        SummaryStats
            With the same samples, in the order asked for.

        Raises
        ------
        InputError
            If a feature is unknown or asked for twice.
        """
        positions = feature_positions(self.feature_names, features)
        shift = None if self.shift is None else self.shift.take(positions, self.m)
        return replace(
            self,
            XY=self.XY[:, positions],
            ZY=self.ZY[:, positions],
            yy=self.yy[positions],
            feature_names=self.feature_names[positions],
            shift=shift,
        )

    def to_dataset(self) -> xr.Dataset:
        """The statistics as an xarray Dataset, labels included."""
        from flashmm.storage import stats_to_dataset  # noqa: PLC0415  (imports this module)

        return stats_to_dataset(self)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the statistics to a netCDF file, under a temporary name first.

        Parameters
        ----------
        path
            File to write; an existing file is replaced only once the new one is complete.
        """
        from flashmm.storage import save_dataset  # noqa: PLC0415

        save_dataset(self.to_dataset(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SummaryStats:
        """Read statistics that `save` wrote.

        Raises
        ------
        InputError
            If the file holds something else or comes from a later format.
        """
        from flashmm.storage import load_dataset, stats_from_dataset  # noqa: PLC0415

        return stats_from_dataset(load_dataset(path, kind="SummaryStats"))


def _statistics(
    cls: type[SummaryStats],
    sums: BlockSums,
    columns: DesignColumns,
    design: Design,
    feature_names: NDArray[Any],
    weights: FloatArray | None,
) -> SummaryStats:
    """Sums over Y and the cross-products of the design, labelled."""
    X, Z = columns.X, columns.Z
    weighted_X = X if weights is None else X * weights[:, None]
    weighted_Z = Z if weights is None else sp.csr_array(Z * weights[:, None])
    return cls(
        n=X.shape[0],
        XX=X.T @ weighted_X,
        XY=sums.XY,
        ZX=np.asarray(columns.transposed_Z @ weighted_X),
        ZY=sums.ZY,
        ZZ=sp.csr_array(columns.transposed_Z @ weighted_Z),
        yy=sums.yy,
        feature_names=feature_names,
        coef_names=design.coef_names,
        structure=design.structure,
        log_weights=0.0 if weights is None else float(np.log(weights).sum()),
    )


def _with_shift(
    stats: SummaryStats,
    blocks: Callable[[NDArray[np.intp]], Iterable[Block]],
    columns: DesignColumns,
    weights: FloatArray | None,
) -> SummaryStats:
    return replace(stats, shift=shifted_sums(stats, blocks, columns, weights))


def _fold(
    cls: type[SummaryStats], source: Source, design: Design, weights: FloatArray | None
) -> tuple[SummaryStats, FloatArray, FloatArray]:
    """Statistics of blocks of samples that can be had only once, each with its own shift."""
    total: SummaryStats | None = None
    totals, detected = np.zeros(source.m), np.zeros(source.m)
    for block in source.blocks():
        columns = design_columns(design.X[block.samples], design.Z[block.samples])
        here = replace(block, samples=slice(0, columns.X.shape[0]))
        part_weights = None if weights is None else weights[block.samples]
        sums = block_sums(here, columns, part_weights)
        part = _with_shift(
            _statistics(cls, sums, columns, design, source.feature_names, part_weights),
            lambda features, here=here: [  # type: ignore[misc]
                replace(here, features=features, values=here.values[features])
            ],
            columns,
            part_weights,
        )
        total = part if total is None else total + part
        if block.totals is not None and block.detected is not None:
            totals += block.totals
            detected += block.detected
    if total is None:
        raise InputError("Y has no blocks: there is nothing to sum.")
    return total, totals, detected


def _sample_count(n: Any) -> int:
    whole = isinstance(n, (int, np.integer, float, np.floating)) and not isinstance(n, bool)
    if not whole or n != np.floor(n) or n < 0:
        raise InputError(f"n, the number of samples, must be a whole number, not {n!r}.")
    return int(n)


def _shared_labels(stats: SummaryStats, what: str, **axes: tuple[int, ...]) -> list[Any] | None:
    """Labels that the statistics carry along some axes, all alike; None if none carries any."""
    known: tuple[str, pd.Index] | None = None
    for name, positions in axes.items():
        value = getattr(stats, name)
        for axis in positions if isinstance(value, (pd.DataFrame, pd.Series)) else ():
            labels = value.axes[axis]
            if is_default(labels):
                continue
            if known is None:
                known = name, labels
            elif list(known[1]) != list(labels):
                raise InputError(
                    f"{known[0]} and {name} label the {what} differently: {listing(known[1])} "
                    f"and {listing(labels)}. They must agree, in the same order."
                )
    return None if known is None else list(known[1])


def _check_shapes(fields: dict[str, Any], p: int, q: int, m: int) -> None:
    expected = {
        "XX": (p, p),
        "XY": (p, m),
        "ZX": (q, p),
        "ZY": (q, m),
        "ZZ": (q, q),
        "yy": (m,),
    }
    for name, shape in expected.items():
        if fields[name].shape != shape:
            raise InputError(
                f"{name} has shape {fields[name].shape}, but must be {shape}: the other "
                f"statistics say p={p} (XY), q={q} (ZZ), m={m} (XY)."
            )
    for name in ("XX", "ZX"):
        if not np.isfinite(fields[name]).all():
            raise InputError(f"{name} holds missing or infinite values.")
    if not np.isfinite(fields["ZZ"].data).all():
        raise InputError("ZZ holds missing or infinite values.")
    for name, gram in (("XX", fields["XX"]), ("ZZ", fields["ZZ"])):
        length = np.sqrt(np.abs(gram.diagonal()))
        difference = sp.coo_array(gram - gram.T)
        row, column = difference.row, difference.col
        if (np.abs(difference.data) > 1e-8 * length[row] * length[column]).any():
            raise InputError(f"{name} is not symmetric; it must be {name[0]}'{name[0]}.")


def _check_same_labels(left: SummaryStats, right: SummaryStats) -> None:
    pairs = {
        "coefficients": (list(left.coef_names), list(right.coef_names)),
        "random effects": (
            list(left.structure.column_names),
            list(right.structure.column_names),
        ),
        "features": (list(left.feature_names), list(right.feature_names)),
    }
    for what, (mine, theirs) in pairs.items():
        if mine != theirs:
            on_left, on_right = set(mine), set(theirs)
            missing = [str(x) for x in mine if x not in on_right]
            extra = [str(x) for x in theirs if x not in on_left]
            detail = (
                f"only on the left: {listing(missing)}; only on the right: {listing(extra)}"
                if missing or extra
                else "they are in a different order"
            )
            raise InputError(
                f"The two SummaryStats have different {what}: {detail}. Build both "
                "with the same formulas and levels."
            )
    if left.structure.param_names != right.structure.param_names:
        raise InputError(
            "The two SummaryStats have different variance components: "
            f"{listing(left.structure.param_names)} and {listing(right.structure.param_names)}."
        )
