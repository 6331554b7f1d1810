"""Sums by group in the Dataset of their total: stacked, and taken apart again."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import xarray as xr
from numpy.typing import NDArray

from flashmm.exceptions import InputError
from flashmm.stats.algebra import column_positions, without_levels
from flashmm.stats.fields import AnySums, GroupSums, Shift, Sums
from flashmm.storage.files import text

__all__ = ["groups_from_dataset", "groups_to_variables"]


def groups_to_variables(stats: Sums) -> dict[str, Any]:
    """The sums by group as variables of a Dataset; none where there are no groups.

    Rows of Z'X and Z'Y of all groups stand one below the other; ``sums_row`` and ``sums_column``
    say whose and which column of Z each of them is.
    """
    groups = stats.groups
    if groups is None:
        return {}
    parts = groups.parts
    columns = [column_positions(stats.structure, part.structure) for part in parts]
    start = np.cumsum([0, *(own.size for own in columns)])
    entries = [part.ZZ.tocoo() for part in parts]
    shifts = [part.shift for part in parts]
    p = stats.p
    roots = [np.full((p, p), np.nan) if part.XX_root is None else part.XX_root for part in parts]
    data: dict[str, Any] = {
        "sums_by": (("sums_group",), text(groups.labels)),
        "sums_name": (("sums_group",), text([groups.name] * groups.k)),
        "sums_n": (("sums_group",), np.array([part.n for part in parts], np.int64)),
        "sums_log_weights": (("sums_group",), np.array([part.log_weights for part in parts])),
        "sums_XX": (("sums_group", "coef", "coef_"), np.stack([part.XX for part in parts])),
        "sums_XX_root": (("sums_group", "sums_root", "coef"), np.stack(roots)),
        "sums_XY": (("sums_group", "coef", "feature"), np.stack([part.XY for part in parts])),
        "sums_yy": (("sums_group", "feature"), np.stack([part.yy for part in parts])),
        "sums_row": (("sums_level",), _numbered([own.size for own in columns])),
        "sums_column": (("sums_level",), np.concatenate(columns).astype(np.int32)),
        "sums_ZX": (("sums_level", "coef"), np.concatenate([part.ZX for part in parts])),
        "sums_ZY": (("sums_level", "feature"), np.concatenate([part.ZY for part in parts])),
        "sums_ZZ_row": (("sums_nonzero",), _moved([e.row for e in entries], start)),
        "sums_ZZ_column": (("sums_nonzero",), _moved([e.col for e in entries], start)),
        "sums_ZZ_value": (("sums_nonzero",), np.concatenate([e.data for e in entries])),
    }
    there = [(i, shift) for i, shift in enumerate(shifts) if shift is not None]
    if there:
        sizes = np.zeros(groups.k, dtype=np.intp)
        for i, shift in there:
            sizes[i] = shift.features.size
        own = [shift for _, shift in there]
        data |= {
            "sums_shift_row": (("sums_shifted",), _numbered(sizes.tolist())),
            "sums_shift_feature": (
                ("sums_shifted",),
                np.concatenate([shift.features for shift in own]).astype(np.int32),
            ),
            "sums_shift_a": (("coef", "sums_shifted"), np.hstack([shift.a for shift in own])),
            "sums_shift_XY": (("coef", "sums_shifted"), np.hstack([shift.XY for shift in own])),
            "sums_shift_yy": (("sums_shifted",), np.concatenate([shift.yy for shift in own])),
            "sums_shift_ZY": (
                ("sums_shifted_level",),
                np.concatenate([shift.ZY.ravel() for shift in own]),
            ),
        }
    return data


def _numbered(sizes: list[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)


def _moved(positions: list[NDArray[Any]], start: NDArray[np.intp]) -> NDArray[np.int32]:
    moved = [own + first for own, first in zip(positions, start[:-1], strict=True)]
    return np.concatenate(moved).astype(np.int32)


def groups_from_dataset(stats: AnySums, ds: xr.Dataset) -> GroupSums | None:
    """The inverse of `groups_to_variables`; None where the file has no groups."""
    if "sums_by" not in ds:
        return None
    labels = tuple(str(label) for label in ds["sums_by"].to_numpy())
    if not labels or len(set(labels)) < len(labels):
        raise InputError("The groups of its sums do not have a name each.")
    k = len(labels)
    value = {str(name): ds[name].to_numpy() for name in ds.variables if str(name)[:5] == "sums_"}
    n, row, column = value["sums_n"], value["sums_row"], value["sums_column"].astype(np.intp)
    if (n < 1).any() or n.sum() != stats.n or (np.diff(row) < 0).any():
        raise InputError("The samples of its groups are not those of its total.")
    e, edges = row.size, np.searchsorted(row, np.arange(k + 1))
    places = (value["sums_ZZ_row"], value["sums_ZZ_column"])
    ZZ = sp.csr_array((value["sums_ZZ_value"], places), shape=(e, e))
    parts = []
    for i, label in enumerate(labels):
        here = slice(int(edges[i]), int(edges[i + 1]))
        own = column[here]
        gone = np.ones(stats.q, dtype=bool)
        gone[own] = False
        structure = without_levels(stats.structure, gone)
        if not np.array_equal(column_positions(stats.structure, structure), own):
            raise InputError(f"The group {label!r:.80} has levels of random effects in part.")
        root = value["sums_XX_root"][i]
        parts.append(
            type(stats)(
                n=int(n[i]),
                XX=value["sums_XX"][i],
                XY=value["sums_XY"][i],
                ZX=value["sums_ZX"][here],
                ZY=value["sums_ZY"][here],
                ZZ=sp.csr_array(ZZ[here][:, here]),
                yy=value["sums_yy"][i],
                feature_names=stats.feature_names,
                coef_names=stats.coef_names,
                structure=structure,
                shift=_shift(value, i, own.size),
                log_weights=float(value["sums_log_weights"][i]),
                XX_root=root if np.isfinite(root).all() else None,
                numbered=stats.numbered,
            )
        )
    return GroupSums(str(value["sums_name"][0]), labels, tuple(parts))


def _shift(value: dict[str, NDArray[Any]], group: int, q: int) -> Shift | None:
    """What was shifted in one group, whose own columns of Z are q."""
    if "sums_shift_row" not in value:
        return None
    row, total = value["sums_shift_row"], value["sums_shift_ZY"]
    # Blocks of Z'Y, one below the other, each of its group's columns and features.
    here = np.flatnonzero(row == group)
    if here.size == 0:
        return None
    sizes = np.bincount(value["sums_row"], minlength=group + 1)
    counts = np.bincount(row, minlength=group + 1)
    first = int((sizes[:group] * counts[:group]).sum())
    ZY = total[first : first + q * here.size]
    if ZY.size != q * here.size:
        raise InputError("Its shifted sums by group do not fit its groups.")
    return Shift(
        value["sums_shift_feature"][here].astype(np.intp),
        value["sums_shift_a"][:, here],
        value["sums_shift_XY"][:, here],
        ZY.reshape(q, here.size),
        value["sums_shift_yy"][here],
    )
