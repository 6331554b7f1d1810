"""Y with its labels and what is done to it on the way, handed out as blocks.

Blocks hold some features of some samples, float64, sparse where Y is; `flashmm.stats.block_sums`
sums over them. Nothing here holds more than a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.labels import checked_labels, feature_positions, in_order
from flashmm.arrays.sparse import UnsoundMatrixError
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.sources.readers import BLOCK_BYTES, Piece, Reader
from flashmm.sources.transforms import (
    Transform,
    apply_transform,
    keeps_zero,
    transform_name,
    with_data,
)

__all__ = ["Block", "RawBlock", "Source"]


@dataclass(frozen=True)
class RawBlock:
    """A piece of Y as it was read.

    Parameters
    ----------
    number
        Position among the pieces of a pass.
    piece
        Where it lies in Y.
    features
        Positions in Y of the features asked for; None for all of the piece.
    slots
        Positions of these features among those in use.
    values
        Shape (f, n_b): ndarray, csr_array or csc_array.
    """

    number: int
    piece: Piece
    features: IntArray | None
    slots: slice | IntArray
    values: Any


@dataclass(frozen=True)
class Block:
    """Some features of Y for some samples of the design, ready to be summed.

    Parameters
    ----------
    features
        Positions of the f features among those in use.
    samples
        Positions of the n_b samples in the design.
    values
        Dense (f, n_b) float64 array, or sparse csr_array or csc_array of that shape.
    totals, detected
        Sum of each feature before size factors and transform, and number of samples in which it
        is not zero, shape (f,); None unless asked for.
    missing
        Where a dense block had no value and holds zero instead, shape (f, n_b); None where
        missing values are not allowed.
    """

    features: slice | IntArray
    samples: slice | IntArray
    values: FloatArray | sp.csr_array | sp.csc_array
    totals: FloatArray | None = None
    detected: FloatArray | None = None
    missing: BoolArray | None = None


@dataclass(frozen=True)
class Source:
    """Y, the features and samples to use, and what is done to its values.

    Parameters
    ----------
    reader
        Hands out pieces of Y.
    feature_names
        Labels of the features in use, shape (m,): text or integers.
    n
        Number of samples of the design.
    position
        For each sample of Y its position in the design, -1 for one that is not used; None where
        they agree.
    chosen
        Positions in Y of the features in use, ascending; None for all.
    transform
        Elementwise transform, or None.
    size_factors
        What each sample is divided by before the transform, shape (n,); None for nothing.
    offset
        What is taken off each sample after the transform, shape (n,); None for nothing.
    target_sum
        Divide each sample by its own total over this target, found block by block; None not to.
    counting
        Whether blocks carry ``totals`` and ``detected``.
    sample_names
        Labels of the samples in use, for messages; None for their positions.
    allow_missing
        Whether a missing value (NaN) becomes zero; otherwise it raises.
    block
        Number of the block of a larger Y that this is, for messages; None to count its own.
    numbered
        Whether Y names no features, so that their labels are the numbers of its rows.
    """

    reader: Reader
    feature_names: NDArray[Any]
    n: int
    position: IntArray | None = None
    chosen: IntArray | None = None
    transform: Transform = None
    size_factors: FloatArray | None = None
    offset: FloatArray | None = None
    target_sum: float | None = None
    counting: bool = False
    sample_names: Sequence[object] | None = None
    allow_missing: bool = False
    block: int | None = None
    numbered: bool = False

    @property
    def m(self) -> int:
        """Number of features in use."""
        return int(self.feature_names.size)

    @property
    def is_sparse(self) -> bool:
        """Whether Y is held sparse."""
        return self.reader.sparse

    @property
    def densifies(self) -> bool:
        """Whether the transform or an offset makes sparse blocks dense."""
        return self.is_sparse and (self.offset is not None or not keeps_zero(self.transform))

    def restricted(self, keep: BoolArray) -> Source:
        """The same source with only the samples in ``keep`` (over the samples in use)."""
        position = np.arange(self.reader.shape[1]) if self.position is None else self.position
        renumbered = np.append(np.where(keep, np.cumsum(keep) - 1, -1), -1)
        names = range(self.n) if self.sample_names is None else self.sample_names
        return replace(
            self,
            n=int(keep.sum()),
            position=renumbered[position],
            size_factors=None if self.size_factors is None else self.size_factors[keep],
            offset=None if self.offset is None else self.offset[keep],
            sample_names=[name for name, kept in zip(names, keep, strict=True) if kept],
        )

    def renamed(self, names: Any) -> Source:
        """The same source with other labels of its features, by those that it has if labelled."""
        if not self.numbered:
            names = in_order(
                names, self.feature_names, "`feature_names`", of="features of Y", by_text=True
            )
        labels = checked_labels(names, self.m, "feature", default=self.feature_names)
        return replace(self, feature_names=labels, numbered=False)

    def taking(self, features: Any) -> Source:
        """The same source with the features that a user asks for, in the order of Y."""
        return self.at(np.unique(feature_positions(self.feature_names, features)))

    def at(self, kept: IntArray) -> Source:
        """The same source with the features at some positions, ascending."""
        return replace(
            self,
            feature_names=self.feature_names[kept],
            chosen=kept if self.chosen is None else self.chosen[kept],
        )

    def raw_blocks(
        self,
        block_bytes: int = BLOCK_BYTES,
        *,
        features: IntArray | None = None,
        dense: bool = False,
    ) -> Iterator[RawBlock]:
        """Read the pieces of Y one after the other.

        Parameters
        ----------
        block_bytes
            Size of the pieces.
        features
            Positions among the features in use, ascending; None for all.
        dense
            Whether the caller will make sparse blocks dense.
        """
        wanted = self.chosen
        if features is not None:
            wanted = features if wanted is None else wanted[features]
        pieces = self.reader.pieces(block_bytes, dense=dense or self.densifies)
        for count, piece in enumerate(pieces):
            number = count if piece.number is None else piece.number
            start, stop = piece.features.start, piece.features.stop
            if wanted is None:
                yield RawBlock(number, piece, None, piece.features, self._read(piece, number))
                continue
            low, high = np.searchsorted(wanted, [start, stop])
            if low == high:
                continue
            slots = slice(int(low), int(high)) if features is None else features[low:high]
            here = wanted[low:high] - start
            yield RawBlock(number, piece, here, slots, self._read(piece, number))

    def _read(self, piece: Piece, number: int) -> Any:
        try:
            return piece.read()
        except UnsoundMatrixError as error:
            name = number if self.block is None else self.block
            raise error.named(f"Block {name} of Y") from None

    def count_blocks(self, block_bytes: int = BLOCK_BYTES) -> int | None:
        """How many pieces a pass reads at most; None when that is not known beforehand."""
        if self.reader.one_pass:
            return None
        return sum(1 for _ in self.reader.pieces(block_bytes, dense=self.densifies))

    def blocks(
        self,
        block_bytes: int = BLOCK_BYTES,
        *,
        features: IntArray | None = None,
        dense: bool = False,
    ) -> Iterator[Block]:
        """The blocks of a pass, transformed and checked; see `raw_blocks`."""
        for raw in self.raw_blocks(block_bytes, features=features, dense=dense):
            yield self.finish(raw)

    def finish(self, raw: RawBlock) -> Block:
        """Select, normalise, transform and check one piece; safe to call from several threads."""
        values = _canonical(raw.values)
        values, samples = self._in_use(values, raw.piece.samples)
        factors = None
        if self.size_factors is not None:
            factors = self.size_factors[samples]
        elif self.target_sum is not None:
            factors = size_factors_of(sample_sums(values), self.target_sum)
        if raw.features is not None and raw.features.size < values.shape[0]:
            values = _select_features(values, raw.features)
        missing = None
        if self.allow_missing:
            values, missing = without_missing(values)
        before = values
        totals = detected = None
        if self.counting:
            totals, detected = _feature_sums(values), _feature_sums(values != 0)
        if factors is not None:
            values = _divide_samples(values, factors)
        values = apply_transform(values, self.transform)
        if missing is not None and values is not before and missing.any():
            values = _zero_where(values, missing)
        stored = values.data if sp.issparse(values) else values
        with np.errstate(over="ignore", invalid="ignore"):
            sound = bool(np.isfinite(stored.sum()))  # in one go, where that does not overflow
        if not sound and not np.isfinite(stored).all():
            self._raise_non_finite(raw, samples, before, values)
        if self.offset is not None:
            values = _without_offset(values, self.offset[samples], missing)
        return Block(raw.slots, samples, values, totals, detected, missing)

    def untransformed(
        self, block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[slice | IntArray, slice | IntArray, Any]]:
        """Features (among those in use), samples and values of each piece, as Y holds them."""
        for raw in self.raw_blocks(block_bytes):
            values, samples = self._in_use(_canonical(raw.values), raw.piece.samples)
            if raw.features is not None:
                values = _select_features(values, raw.features)
            yield raw.slots, samples, values

    def positions(self, samples: slice | IntArray) -> slice | IntArray:
        """Positions in the design of samples of Y, -1 for one that is not used."""
        return samples if self.position is None else self.position[samples]

    def _in_use(self, values: Any, samples: slice | IntArray) -> tuple[Any, slice | IntArray]:
        """The columns in use and their positions in the design."""
        if self.position is None:
            return values, samples
        position = self.position[samples]
        used = position >= 0
        if not used.all():
            values, position = values[:, np.flatnonzero(used)], position[used]
        return values, position

    def _raise_non_finite(
        self, raw: RawBlock, samples: slice | IntArray, before: Any, values: Any
    ) -> None:
        if sp.issparse(values):
            first = int(np.flatnonzero(~np.isfinite(values.data))[0])
            entries = values.tocoo()
            row, column = int(entries.row[first]), int(entries.col[first])
        else:
            row, column = (int(x) for x in np.argwhere(~np.isfinite(values))[0])
        value = before[row, column]
        feature = self.feature_names[raw.slots][row]
        position = int(np.arange(self.n)[samples][column])
        sample = position if self.sample_names is None else self.sample_names[position]
        number = raw.number if self.block is None else self.block
        where = f"feature {_quoted(feature)}, sample {_quoted(sample)} (block {number})"
        if np.isnan(value):
            raise InputError(
                f"Y has a missing value: {where}. Use missing='drop' to drop the samples that "
                "have one, missing='feature' of MultiLMM to fit each feature over those it has, or "
                "fill them in."
            )
        if np.isinf(value):
            raise InputError(f"Y is infinite: {where}. Remove or correct the value.")
        hint = " Counts must not be negative." if value < 0 else ""
        raise InputError(
            f"transform {transform_name(self.transform)!r} turns {value:g} into a value that is "
            f"not finite: {where}.{hint}"
        )


def without_missing(values: Any) -> tuple[Any, BoolArray]:
    """A block with zeros for missing values, and where those are, shape (f, n_b)."""
    if sp.issparse(values):
        absent = np.isnan(values.data)
        where = np.zeros(values.shape, dtype=bool)
        if absent.any():
            entries = values.tocoo()
            where[entries.row[absent], entries.col[absent]] = True
            values = with_data(values, np.where(absent, 0.0, values.data))
        return values, where
    where = np.isnan(values)
    return np.where(where, 0.0, values), where


def _zero_where(values: Any, missing: BoolArray) -> Any:
    """Zeros again where there was no value: a transform may have moved them."""
    if not sp.issparse(values):
        return np.where(missing, 0.0, values)
    entries = values.tocoo()
    return with_data(values, np.where(missing[entries.row, entries.col], 0.0, values.data))


def _without_offset(values: Any, offset: FloatArray, missing: BoolArray | None) -> FloatArray:
    """Dense values minus what is known of their samples; zero stays where there was no value."""
    dense = values.toarray() if sp.issparse(values) else values
    left = np.asarray(dense - offset)
    if missing is not None:
        left[missing] = 0.0
    return left


def size_factors_of(totals: FloatArray, target_sum: float) -> FloatArray:
    """Totals over their target; 1 for a sample that holds nothing."""
    return np.where(totals == 0.0, 1.0, totals / target_sum)


def _quoted(label: object) -> str:
    """A label in a message: text in quotes, numbers bare."""
    return repr(label) if isinstance(label, str) else str(label)


def _canonical(values: Any) -> Any:
    """A compressed matrix with every element stored once; what was given is left alone."""
    if sp.issparse(values) and not values.has_canonical_format:
        values = values.copy()
        values.sum_duplicates()
    return values


def _select_features(values: Any, features: IntArray) -> Any:
    """Some rows of a block, ascending; of a csc_array without leaving its format."""
    if not (sp.issparse(values) and values.format == "csc"):
        return values[features]
    slot = np.full(values.shape[0], -1, dtype=values.indices.dtype)
    slot[features] = np.arange(features.size)
    indices = slot[values.indices]
    kept = indices >= 0
    before = np.concatenate([[0], np.cumsum(kept)])
    return sp.csc_array(
        (values.data[kept], indices[kept], before[values.indptr]),
        shape=(features.size, values.shape[1]),
    )


def _feature_sums(values: Any) -> FloatArray:
    return np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()


def sample_sums(values: Any) -> FloatArray:
    """Sum of each sample (column), shape (n_b,)."""
    return np.asarray(values.sum(axis=0, dtype=np.float64)).ravel()


def _divide_samples(values: Any, factors: FloatArray) -> Any:
    """Divide the columns of a block."""
    if not sp.issparse(values):
        return values / factors
    return with_data(values, values.data / per_element(values, factors))


def per_element(values: Any, by_sample: NDArray[Any]) -> NDArray[Any]:
    """A value per sample (column), repeated for the stored elements of a compressed block."""
    if values.format == "csc":
        return np.repeat(by_sample, np.diff(values.indptr))
    return np.asarray(by_sample[values.indices])
