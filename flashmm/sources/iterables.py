"""Y as an iterable of (samples, block): had once, in any order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import is_default
from flashmm.arrays.sparse import UnsoundMatrixError
from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError, listing
from flashmm.sources.dataarrays import read_dataarray
from flashmm.sources.memory import read_memory
from flashmm.sources.readers import Labelled, Piece

__all__ = ["is_blocks", "read_blocks"]


def is_blocks(Y: Any) -> bool:
    """Whether this is an iterator, or a list of pairs whose second is two-dimensional."""
    if hasattr(Y, "__next__"):
        return True
    if not isinstance(Y, (list, tuple)) or len(Y) == 0:
        return False
    first = Y[0]
    return isinstance(first, tuple) and len(first) == 2 and len(getattr(first[1], "shape", ())) == 2


def read_blocks(
    Y: Iterable[Any], samples: pd.Index | None, n: int | None, *, transposed: bool
) -> Labelled:
    """Blocks with the labels (or positions) of their samples among those of the design."""
    if n is None:
        raise InputError("Y is an iterable of blocks, so the number of samples must be given.")
    blocks = iter(Y)
    first = next(blocks, None)
    if first is None:
        raise InputError("Y is an iterable without a block: there is nothing to sum.")
    read = _read(first, 0, transposed)[1]
    reader = BlocksReader(blocks, first, read.reader.shape[0], samples, n, transposed)
    return Labelled(reader, read.features)


def _read(item: Any, number: int, transposed: bool) -> tuple[Any, Labelled]:
    if not isinstance(item, tuple) or len(item) != 2:
        raise InputError(
            f"Block {number} of Y must be a pair (samples, block), not {type(item).__name__}."
        )
    labels, block = item
    try:
        if hasattr(block, "dims") and hasattr(block, "coords"):  # its dims say what is what
            return labels, read_dataarray(block, None)
        return labels, read_memory(block, transposed=transposed)
    except UnsoundMatrixError as error:
        raise error.named(f"Block {number} of Y") from None


@dataclass(frozen=True)
class BlocksReader:
    """Blocks that come one after the other.

    Parameters
    ----------
    blocks
        The pairs after the first.
    first
        The first pair.
    m
        Number of features.
    samples
        Index of the design's data.
    n
        Number of samples of the design.
    transposed
        Whether blocks are samples x features.
    """

    blocks: Iterator[Any]
    first: Any
    m: int
    samples: pd.Index | None
    n: int
    transposed: bool

    one_pass = True
    whole_samples = True
    kind = "iterable of blocks"

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.m, self.n

    @property
    def sparse(self) -> bool:
        """Whether the first block is sparse."""
        return bool(sp.issparse(self.first[1]))

    def pieces(self, block_bytes: int, *, dense: bool) -> Iterator[Piece]:  # noqa: ARG002
        """Every block, once; raises when samples are left over or come twice."""
        seen = np.zeros(self.n, dtype=bool)
        features = _read(self.first, 0, self.transposed)[1].features
        for number, item in enumerate(itertools.chain([self.first], self.blocks)):
            labels, read = _read(item, number, self.transposed)
            positions = self._in_columns(self._positions(labels, number), read.samples, number)
            self._check(number, read, features, positions)
            again = positions[seen[positions]]
            if again.size or np.unique(positions).size < positions.size:
                raise InputError(
                    f"Block {number} of Y repeats samples that came before: "
                    f"{listing(self._names(again))}."
                )
            seen[positions] = True
            if positions.size == 0:
                continue
            whole = next(iter(read.reader.pieces(2**62, dense=False)), None)
            nothing = partial(np.zeros, read.reader.shape)  # no features, so no piece
            yield Piece(
                slice(0, self.shape[0]),
                positions,
                nothing if whole is None else whole.read,
                number,
            )
        if not seen.all():
            left = np.flatnonzero(~seen)
            raise InputError(
                f"The blocks of Y lack {left.size} samples of `data`: {listing(self._names(left))}."
            )

    def _positions(self, labels: Any, number: int) -> IntArray:
        if isinstance(labels, slice):
            return np.arange(self.n)[labels]
        index = pd.Index(range(self.n)) if is_default(self.samples) else self.samples
        assert index is not None
        wanted = pd.Index(labels)
        positions = np.asarray(index.get_indexer(wanted), dtype=np.intp)
        if (positions < 0).any():
            raise InputError(
                f"Block {number} of Y holds samples without a row in `data`: "
                f"{listing(wanted[positions < 0])}."
            )
        return positions

    def _in_columns(self, positions: IntArray, columns: pd.Index | None, number: int) -> IntArray:
        """The positions of a block's samples in the order of its columns, where these say it."""
        if columns is None or is_default(columns):
            return positions
        wanted = pd.Index(self._names(positions))
        if columns.equals(wanted):
            return positions
        if columns.size != wanted.size or not columns.isin(wanted).all() or not columns.is_unique:
            if is_default(self.samples):
                return positions  # `data` has no labels that those of the columns could be
            raise InputError(
                f"Block {number} of Y comes with the samples {listing(wanted, 3)}, but its columns "
                f"are labelled {listing(columns, 3)}. They must be the same labels."
            )
        return np.asarray(positions[wanted.get_indexer(columns)])

    def _check(self, number: int, read: Labelled, features: Any, positions: Any) -> None:
        shape = read.reader.shape
        if shape != (self.shape[0], positions.size):
            raise InputError(
                f"Block {number} of Y has shape {shape}, features x samples, but must have "
                f"{(self.shape[0], positions.size)}: the features of the first block, the samples "
                "it came with."
            )
        theirs = read.features
        if (features is None) != (theirs is None) or (
            features is not None and not features.equals(theirs)
        ):
            raise InputError(f"Block {number} of Y labels its features unlike the first block.")

    def _names(self, positions: Any) -> list[object]:
        if is_default(self.samples) or self.samples is None:
            return list(positions)
        return list(self.samples[positions])
