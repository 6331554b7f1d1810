"""Which group each sample belongs to, as a user says it, and what the sums by group take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.labels import as_pandas, in_order
from flashmm.arrays.numeric import dimensions
from flashmm.arrays.types import BoolArray, IntArray
from flashmm.exceptions import InputError, listing, nearest

__all__ = [
    "GROUP_BYTES",
    "Grouping",
    "check_room",
    "group_codes",
    "grouping_of",
    "groups_in_use",
    "labels_of",
]

# What the sums of all groups may take in memory.
GROUP_BYTES = 2**32


@dataclass(frozen=True)
class Grouping:
    """Groups of samples.

    Parameters
    ----------
    name
        What they are called.
    labels
        Names of the k groups, each of which has a sample.
    codes
        Group of each sample, shape (n,).
    """

    name: str
    labels: tuple[str, ...]
    codes: IntArray

    @property
    def k(self) -> int:
        """Number of groups."""
        return len(self.labels)

    def of(self, samples: slice | IntArray | BoolArray) -> Grouping:
        """The groups of some of the samples; those without any are gone."""
        present, codes = np.unique(self.codes[samples], return_inverse=True)
        labels = tuple(self.labels[i] for i in present)
        return Grouping(self.name, labels, codes.reshape(-1).astype(np.intp))


def _read_groups(sums_by: Any, data: Any) -> tuple[Any, str]:
    """The groups of the rows of ``data``, an array of labels, and what they are called.

    Parameters
    ----------
    sums_by
        A column of ``data``, several joined by ``:`` (``"batch:cask"``) or in a list, or labels of
        the rows, matched by label where they have labels.
    data
        One row per sample.
    """
    data = pd.DataFrame(data)
    columns: list[str] = []
    if _are_columns(sums_by, data):
        columns, sums_by = list(sums_by), ":".join(sums_by)
    called = _numbered_column(sums_by, data)
    if called is not None:
        return data[called].to_numpy(), str(called)
    if not isinstance(sums_by, str):
        name = getattr(sums_by, "name", None)
        return in_order(sums_by, data.index, "`sums_by`", strict=True), _named(name)
    if not columns and sums_by in data.columns:
        return data[sums_by].to_numpy(), sums_by
    columns = columns or sums_by.split(":")
    if len(columns) == 1 or not set(columns) <= set(data.columns):
        unknown = next(name for name in columns if name not in data.columns)
        raise InputError(
            f"`sums_by` names {unknown!r}, which is no column of `data`. "
            f"{nearest(unknown, [str(column) for column in data.columns])}"
        )
    parts = [data[name] for name in columns]
    missing = np.any([part.isna() for part in parts], axis=0)
    joined = parts[0].astype(str).str.cat([part.astype(str) for part in parts[1:]], sep=":")
    return joined.astype(object).mask(missing).to_numpy(), sums_by


def _numbered_column(sums_by: Any, data: pd.DataFrame) -> Any:
    """The column that is called by a number, say, where that or its text is meant; else None."""
    if isinstance(sums_by, str):
        alike = [c for c in data.columns if not isinstance(c, str) and str(c) == sums_by]
        return alike[0] if len(alike) == 1 and sums_by not in data.columns else None
    if sums_by is None or np.ndim(sums_by) or not isinstance(sums_by, Hashable):
        return None
    return sums_by if sums_by in data.columns else None


def _are_columns(sums_by: Any, data: pd.DataFrame) -> bool:
    """Whether it lists columns, such as ``["batch", "cask"]``, and no labels of the rows."""
    listed = isinstance(sums_by, list | tuple) and 0 < len(sums_by) != len(data)
    strings = listed and all(isinstance(name, str) for name in sums_by)
    return bool(strings and any(name in data.columns for name in sums_by))


def _named(name: object) -> str:
    return name if isinstance(name, str) and name else "group"


def groups_in_use(sums_by: Any, data: Any, used: BoolArray) -> Grouping | None:
    """Groups of the rows in use (n,) of a table, by a column or labels; None for None."""
    if sums_by is None:
        return None
    return grouping_of(*_read_groups(sums_by, data), used)


def grouping_of(
    values: Any,
    name: str | None,
    used: BoolArray,
    samples: pd.Index | None = None,
) -> Grouping:
    """Groups of the samples in use, from the labels of all.

    Parameters
    ----------
    values
        Label of each sample, shape (n,), matched by label where they carry any.
    name
        What the groups are called; None for the name of a Series.
    used
        Which samples are in use, shape (n,).
    samples
        Labels of the samples; None if they have none.

    Raises
    ------
    InputError
        If there are not n, or one in use is missing, or different ones read the same.
    """
    if isinstance(values, (str, Mapping)):
        raise InputError(
            "`sums_by` must hold a label for each sample here: there is no table of samples that "
            "it could name a column of."
        )
    name = _named(getattr(values, "name", None)) if name is None else name
    values = as_pandas(in_order(values, samples, "`sums_by`", strict=True))
    if dimensions(values) is None:
        raise InputError("`sums_by` must hold one label for each sample, not lists.")
    if np.shape(values) != used.shape:
        raise InputError(
            f"`sums_by` has shape {np.shape(values)}, but there are {used.size} samples."
        )
    series = (values if isinstance(values, pd.Series) else pd.Series(values))[used]
    if series.isna().any():
        first = int(np.flatnonzero(used)[series.isna().to_numpy()][0])
        raise InputError(
            f"`sums_by` is missing for sample {first} ({int(series.isna().sum())} in all). Drop "
            "these samples, or give them a group."
        )
    codes, levels = group_codes(series, "`sums_by`")
    labels = tuple(str(level) for level in levels)
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise InputError(f"Different groups of `sums_by` read the same: {listing(repeated)}.")
    return Grouping(name, labels, codes)


def group_codes(values: pd.Series[Any], name: str) -> tuple[IntArray, pd.Index]:
    """Group of each sample (n,), -1 where missing, and the groups: in order where they have one.

    Raises
    ------
    InputError
        If the values, lists say, cannot be told apart.
    """
    try:
        kinds = {type(value) for value in values.unique()}
    except TypeError:
        kind = (type(v).__name__ for v in values if getattr(type(v), "__hash__", None) is None)
        odd = next(kind, type(values.iloc[0]).__name__)  # a tuple of lists, say
        raise InputError(
            f"{name} holds values of type {odd}, which cannot name groups. Pass one text or number "
            "for each sample."
        ) from None
    if len(kinds) == 1 or pd.api.types.is_numeric_dtype(values):
        with suppress(TypeError):  # one type without an order: members of an Enum, say
            codes, levels = pd.factorize(values, sort=True)
            return np.asarray(codes, dtype=np.intp), pd.Index(levels)
    codes, levels = pd.factorize(values)
    return np.asarray(codes, dtype=np.intp), pd.Index(levels)


def labels_of(
    texts: Iterable[str], labels: Sequence[str], *, numbers: bool = False
) -> dict[str, str]:
    """The label that each of some texts is: the same, or that of the same day without its time.

    Of ``numbers`` an equal one (1 for 1.0) does too. Texts that are none are left out.
    """
    by_key: dict[str | float, list[str]] = {}
    for label in labels:
        for key in _keys(label, numbers=numbers):
            by_key.setdefault(key, []).append(label)
    found = {}
    for text in texts:
        same = next((by_key[k] for k in _keys(text, numbers=numbers) if k in by_key), [])
        if text in labels:
            found[text] = text
        elif len(same) == 1:
            found[text] = same[0]
    return found


def _keys(text: str, *, numbers: bool) -> list[str | float]:
    """What texts that mean the same share: a date without its time at midnight, a number."""
    number = _number(text) if numbers else None
    day: str | float = text.removesuffix(" 00:00:00")
    return [day] if number is None else [day, number]


def _number(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    return None


def check_room(grouping: Grouping, entries: int, p: int, m: int, budget: int) -> int:
    """Bytes that the sums by group will take; an error where they are more than the budget.

    Parameters
    ----------
    grouping
        The groups.
    entries
        Columns of Z that the groups have, in all.
    p, m
        Fixed effects and features.
    budget
        Most bytes.
    """
    size = 8 * (grouping.k * (p * p + p * m + m) + entries * (p + m))
    if size > budget:
        raise InputError(
            f"The sums of {grouping.k} groups of {grouping.name!r} over {m} features take "
            f"{size / 2**30:.2f} GiB, more than the {budget / 2**30:.2f} GiB allowed. Take coarser "
            "groups or fewer features at a time, or allow more: flashmm.stats.grouping.GROUP_BYTES."
        )
    return size
