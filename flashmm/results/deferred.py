"""Arrays that become a Dataset when somebody asks for it.

Labelling the estimates of one feature takes longer than two steps of its fit, and tests need the
arrays alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Deferred", "array_of", "dataset_of"]


@dataclass(frozen=True, eq=False)
class Deferred:
    """A Dataset that has not been made yet. It is pickled as the Dataset.

    Parameters
    ----------
    arrays
        Its variables without their labels.
    make
        Makes it of them.
    """

    arrays: Mapping[str, NDArray[Any]]
    make: Callable[[], xr.Dataset]

    @cached_property
    def dataset(self) -> xr.Dataset:
        """The Dataset, made once."""
        return self.make()

    @property
    def is_made(self) -> bool:
        """Whether there is a Dataset, which may have been changed since."""
        return "dataset" in self.__dict__

    def __reduce__(self) -> tuple[Callable[[xr.Dataset], xr.Dataset], tuple[xr.Dataset]]:
        return _itself, (self.dataset,)


def _itself(ds: xr.Dataset) -> xr.Dataset:
    return ds


def dataset_of(given: xr.Dataset | Deferred) -> xr.Dataset:
    """The Dataset, made if need be."""
    return given.dataset if isinstance(given, Deferred) else given


def array_of(given: xr.Dataset | Deferred, name: str) -> NDArray[Any]:
    """A variable without its labels; no Dataset is made for it."""
    if isinstance(given, Deferred) and not given.is_made:
        return given.arrays[name]
    return np.asarray(dataset_of(given)[name].to_numpy())
