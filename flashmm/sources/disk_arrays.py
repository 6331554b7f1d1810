"""Parts of one-dimensional arrays on disk, read into memory that was used before.

New memory costs more than the reading: the system hands it out page by page, cleared. And what an
HDF5 file holds as it is, uncompressed, is read from where it lies in the file.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.types import IntArray

__all__ = ["Buffers", "DiskArray", "Extents", "disk_array", "extents_of"]


class _Lent:
    """Memory that arrays are views of; it goes back once the last of them is gone."""

    def __init__(self, memory: NDArray[Any]) -> None:
        self.__array_interface__ = memory.__array_interface__


class Buffers:
    """Memory for one block after the other."""

    def __init__(self) -> None:
        self._free: list[NDArray[Any]] = []

    def take(self, size: int, dtype: Any) -> NDArray[Any]:
        """An array of some elements, not cleared."""
        dtype = np.dtype(dtype)
        wanted = size * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:  # blocks are of about one size
            memory = np.empty(wanted, dtype=np.uint8)
        if memory.size < wanted:
            memory = np.empty(wanted, dtype=np.uint8)
        lent = _Lent(memory)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return np.asarray(lent)[:wanted].view(dtype)


@dataclass(frozen=True)
class Extents:
    """Where the elements of an uncompressed dataset lie in its file.

    Parameters
    ----------
    file
        Descriptor of the file.
    offsets
        Byte at which each chunk begins.
    chunk
        Elements of a chunk.
    """

    file: int
    offsets: IntArray
    chunk: int

    def read(self, low: int, high: int, into: NDArray[Any]) -> None:
        """Read the elements ``low`` to ``high``."""
        view, each = memoryview(into.view(np.uint8)), into.itemsize  # type: ignore[arg-type]
        done = 0
        while low < high:
            place, inside = divmod(low, self.chunk)
            stop = min(high, (place + 1) * self.chunk)
            end = done + (stop - low) * each
            at = int(self.offsets[place]) + inside * each
            while done < end:
                count = os.preadv(self.file, [view[done:end]], at)
                if count == 0:
                    raise OSError("the file ends before its data do")
                done, at = done + count, at + count
            low = stop


def extents_of(dataset: Any) -> Extents | None:
    """Where an h5py dataset lies in its file; None if it must be read by HDF5."""
    if not (hasattr(os, "preadv") and hasattr(dataset.id, "chunk_iter")):
        return None
    file, made = dataset.file, dataset.id.get_create_plist()
    plain = (
        file.driver == "sec2"
        and file.mode == "r"  # nothing waits to be written
        and file.userblock_size == 0
        and made.get_nfilters() == 0
        and made.get_external_count() == 0
        and not dataset.is_virtual
        and dataset.dtype.kind in "iuf"
        and dataset.dtype.isnative
        and dataset.id.get_type().get_size() == dataset.dtype.itemsize
    )
    if not plain:
        return None
    descriptor = file.id.get_vfd_handle()
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        return None if offset is None else Extents(descriptor, np.array([offset]), dataset.size)
    chunk = int(dataset.chunks[0])
    offsets = np.full(-(-dataset.size // chunk), -1, dtype=np.int64)

    def note(info: Any) -> None:
        if info.filter_mask == 0:
            offsets[info.chunk_offset[0] // chunk] = info.byte_offset

    dataset.id.chunk_iter(note)
    return Extents(descriptor, offsets, chunk) if (offsets >= 0).all() else None


@dataclass(frozen=True)
class DiskArray:
    """An h5py dataset of one dimension; slices of it are arrays in memory of `Buffers`."""

    dataset: Any
    buffers: Buffers
    extents: Extents | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements."""
        return tuple(self.dataset.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        dtype: np.dtype[Any] = self.dataset.dtype
        return dtype

    def __getitem__(self, key: slice) -> NDArray[Any]:
        if not self.dataset:  # its descriptor may be another file's by now
            raise ValueError("the file is closed")
        low, high, _ = key.indices(self.shape[0])
        values = self.buffers.take(high - low, self.dtype)
        if self.extents is not None:
            self.extents.read(low, high, values)
        elif high > low:
            self.dataset.read_direct(values, np.s_[low:high], np.s_[: high - low])
        return values


def disk_array(dataset: Any) -> Any:
    """A dataset whose slices cost little; what is not of h5py stays as it is."""
    if not hasattr(dataset, "read_direct"):
        return dataset
    return DiskArray(dataset, Buffers(), extents_of(dataset))
