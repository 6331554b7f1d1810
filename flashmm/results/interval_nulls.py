"""The interval that a hypothesis is about: what a user calls `margin` and `null`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from flashmm.arrays.labels import by_name, in_order
from flashmm.arrays.numeric import float_array
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, check_option, listing, nearest
from flashmm.inference.margins import NULLS

__all__ = ["IntervalNull", "interval_null", "with_interval"]


@dataclass(frozen=True)
class IntervalNull:
    """Half the length of each contrast's interval, shape (c,), and where the hypothesis lies."""

    margin: FloatArray
    null: str


def interval_null(margin: Any, null: str | None, labels: Sequence[str]) -> IntervalNull | None:
    """Read `margin` and `null`; None where the hypothesis is a point.

    Raises
    ------
    InputError
        If the margin is not a number, or one for each contrast, or is negative.
    """
    if margin is None:
        if null is not None:
            raise InputError(
                f"null={null!r} says on which side of `margin` the hypothesis lies; pass `margin` "
                "too."
            )
        return None
    where = "inside" if null is None else null
    check_option("null", where, NULLS)
    named = by_name(margin)
    if named is not None:
        given = {str(name): value for name, value in named.items()}
        absent = [label for label in labels if label not in given]
        extra = [name for name in given if name not in labels]
        if extra:
            raise InputError(
                f"`margin` names {extra[0]!r}, which is no contrast of these. "
                f"{nearest(extra[0], list(labels))}"
            )
        if absent:
            raise InputError(f"`margin` lacks {listing(absent)}; it needs one for each contrast.")
        margin = [given[label] for label in labels]
    values = float_array(in_order(margin, None, "`margin`", of="contrasts"), "`margin`")
    if values.ndim > 1 or values.size not in (1, len(labels)):
        raise InputError(
            f"`margin` must be a number, or one for each of the {len(labels)} contrasts; its shape "
            f"is {values.shape}."
        )
    values = np.broadcast_to(values.ravel(), (len(labels),)).copy()
    if not (np.isfinite(values) & (values >= 0)).all():
        raise InputError("`margin` must be finite and not negative, in the units of the contrast.")
    if where == "outside" and (values == 0).any():
        raise InputError("`margin` must be positive: no effect lies strictly within 0 and 0.")
    return IntervalNull(values, where)


def with_interval(ds: xr.Dataset, interval: IntervalNull | None) -> xr.Dataset:
    """Note in tables of tests which interval they are about."""
    if interval is None:
        return ds
    found = ds.assign(margin=(("contrast",), interval.margin))
    return found.assign_attrs(null=interval.null)
