"""The version of the file format, and what marks a Dataset as holding a kind of thing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmm.exceptions import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "FOLLOWING_FORMAT",
    "FORMAT",
    "KNOWN_FORMAT",
    "NEWEST_FORMAT",
    "OWN_ROWS_FORMAT",
    "check_mark",
    "marked",
]

# 1 had no checksum. 3 held the rows of X and Z of features with rows of their own, 4 their sums.
# 5 has known covariances between levels, which earlier readers would take for none.
# 6 has priors of ratios that follow the residual variance, which they would take not to.
FORMAT = 2
OWN_ROWS_FORMAT = 4
KNOWN_FORMAT = 5
FOLLOWING_FORMAT = 6
NEWEST_FORMAT = FOLLOWING_FORMAT
_KIND = "flashmm_kind"
_FORMAT = "flashmm_format"


def marked(ds: xr.Dataset, kind: str, version: int) -> xr.Dataset:
    """The Dataset marked as holding a kind of thing, in a format."""
    return ds.assign_attrs({_KIND: kind, _FORMAT: version})


def check_mark(path: Path, ds: xr.Dataset, kind: str) -> None:
    """Raise unless a file holds a kind of thing in a format that is read."""
    for name, value in ds.attrs.items():
        if np.ndim(value):
            raise InputError(
                f"{str(path)!r} holds {str(value)[:80]!r} as {str(name)[:80]!r}, which is one "
                "number or text in files that flashmm wrote."
            )
    if ds.attrs.get(_KIND) != kind:
        found = ds.attrs.get(_KIND, "something that flashmm did not write")
        raise InputError(f"{str(path)!r} holds {str(found)[:80]}, not {kind}.")
    version: Any = ds.attrs.get(_FORMAT)
    if not isinstance(version, (int, np.integer)) or isinstance(version, bool) or version < 1:
        raise InputError(
            f"{str(path)!r} does not say in which format it is: {str(version)[:80]!r}."
        )
    if version > NEWEST_FORMAT:
        raise InputError(
            f"{str(path)!r} has format {version}, but this flashmm reads up to "
            f"{NEWEST_FORMAT}. Update flashmm."
        )
    if version < FORMAT:
        raise InputError(
            f"{str(path)!r} has format {version}, which kept no checksum and is no longer read. "
            "Make it afresh."
        )
