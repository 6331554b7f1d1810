"""What statistics of either kind do alike: files, `sum`, and answers to what they are not."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from flashmm.slips.answers import answer_calls, no_index, no_such_attribute
from flashmm.slips.attributes import STATS
from flashmm.slips.refusals import AnsweringClass, no_operator
from flashmm.storage.files import load_dataset, reading, save_dataset

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StatisticsManners"]

_NO_SUM = no_operator(
    "Statistics",
    "those of other samples, of the same kind, are added by +, or `add`, and taken away by -",
)


@answer_calls
class StatisticsManners(metaclass=AnsweringClass):
    """Part of `SummaryStats` and of `PatternedStats`, each of which a file names as its kind."""

    if TYPE_CHECKING:

        def to_dataset(self) -> xr.Dataset:
            """What a file holds; each kind has its own."""

        @classmethod
        def from_dataset(cls, ds: xr.Dataset) -> Self:
            """The inverse of `to_dataset`."""

    else:  # type checkers would believe in every attribute

        def __getattr__(self, name: str) -> Any:
            return no_such_attribute(self, name, "Statistics", own=STATS)

    __getitem__ = no_index("A set of statistics", "features are chosen by stats.take(features)")
    __iter__ = None

    def __radd__(self, other: object) -> Self:
        """Let ``sum(parts)`` work: it starts from 0."""
        return self if isinstance(other, int) and other == 0 else _NO_SUM(self, other)

    __rsub__ = __mul__ = __rmul__ = __truediv__ = _NO_SUM

    def _same_kind(self, other: object) -> Self:
        """What is to be added, if it is statistics of the same kind."""
        return other if isinstance(other, type(self)) else _NO_SUM(self, other)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the statistics with a checksum, under a temporary name first.

        Parameters
        ----------
        path
            File to write; an existing one is replaced only once the new one is complete.
            ``.zarr`` and ``.zarr.zip`` are written as zarr, everything else as netCDF.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> model = fm.MultiLMM.from_formula("~ Age", "(1 | Individual)", genes.data, genes.Y[:20])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.stats.save(f"{folder}/sums.nc")
        ...     again = fm.SummaryStats.load(f"{folder}/sums.nc")
        >>> fm.MultiLMM.from_summary_stats(again).fit().llf.equals(model.fit().llf)
        True
        """
        save_dataset(self.to_dataset(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read statistics that `save` wrote.

        Raises
        ------
        InputError
            If the file is damaged, was altered, holds something else, or comes from a later
            format.

        Examples
        --------
        >>> import tempfile, flashmm as fm
        >>> genes = fm.datasets.varpart()
        >>> Y = genes.Y[:3].copy()
        >>> Y.iloc[0, :7] = float("nan")  # gene1 lacks seven samples
        >>> model = fm.MultiLMM.from_formula(
        ...     "~ Age", "(1 | Individual)", genes.data, Y, missing="feature"
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.stats.save(f"{folder}/sums.nc")
        ...     fm.PatternedStats.load(f"{folder}/sums.nc").nobs.tolist()
        [93, 100, 100]
        """
        ds = load_dataset(path, kind=cls.__name__)
        with reading(path):
            return cls.from_dataset(ds)
