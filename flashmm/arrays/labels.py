"""Labels: checking them, finding what is asked for, and bringing labelled values into an order.

One rule for features: whatever names them is a *name*. `feature_positions` turns names, masks and
slices into positions once, in the public method; inside, only positions travel. One rule for
values: `in_order` brings whatever carries labels into the order of others, or refuses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashmm.arrays.foreign_frames import frame_as_pandas, is_foreign, series_as_pandas
from flashmm.arrays.types import BoolArray, IntArray
from flashmm.exceptions import InputError, listing, nearest

__all__ = [
    "as_pandas",
    "axis_labels",
    "by_name",
    "checked_labels",
    "counts_up",
    "feature_positions",
    "find_labels",
    "in_order",
    "is_default",
    "label_positions",
    "labelled_frame",
    "one_column",
]


# ---- what carries labels ---------------------------------------------------------------------


def as_pandas(values: Any) -> Any:
    """A DataArray, or a table of another library, as a Series or DataFrame; the rest as it is."""
    if is_foreign(values):
        table = not hasattr(values, "shape") or len(values.shape) != 1
        if type(values).__name__ == "ChunkedArray":
            table = False
        return frame_as_pandas(values) if table else series_as_pandas(values)
    if hasattr(values, "dims") and hasattr(values, "to_pandas"):
        several = hasattr(values, "data_vars")  # a Dataset: a table if it has one dimension
        if len(values.dims) > (1 if several else 2):
            raise InputError(
                f"{type(values).__name__}: the dimensions {listing(values.dims)} are no table. "
                f"{'Take one of its variables.' if several else 'It has one or two dimensions.'}"
            )
        return values.to_pandas()
    return values


def labelled_frame(values: Any) -> Any:
    """A table without an index whose one column of text, if it has one, becomes the index."""
    if not isinstance(values, pd.DataFrame):
        return values
    texts = [
        name
        for name, dtype in values.dtypes.items()
        if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype))
    ]
    return values.set_index(texts[0]) if len(texts) == 1 and values.shape[1] > 1 else values


def is_default(index: pd.Index | None) -> bool:
    """Whether an index is absent or just counts 0, 1, 2, ...: it labels nothing."""
    return index is None or (
        isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1
    )


def counts_up(labels: Any) -> bool:
    """Whether labels are the numbers 0, 1, 2, ... in this order."""
    values = np.asarray(labels)
    return values.dtype.kind in "iu" and np.array_equal(values, np.arange(values.size))


def by_name(values: Any) -> dict[Any, Any] | None:
    """Values by their names: of a mapping, a Series, or the columns of a DataFrame.

    None where they have no names: an array, or labels that only count.
    """
    values = as_pandas(values)
    if isinstance(values, Mapping):
        return dict(values)
    if isinstance(values, pd.Series) and not is_default(values.index):
        return dict(values.items())
    if isinstance(values, pd.DataFrame) and not is_default(values.columns):
        return {name: column.to_numpy() for name, column in values.items()}
    return None


def axis_labels(values: Any, axis: int) -> pd.Index | None:
    """The labels that a Series, DataFrame or DataArray has along an axis; None if none."""
    values = as_pandas(values)
    if not isinstance(values, (pd.DataFrame, pd.Series)) or axis >= values.ndim:
        return None
    labels: pd.Index = values.axes[axis]
    return None if is_default(labels) else labels


def checked_labels(
    names: Any, size: int, what: str, *, default: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Labels as an array of text or integers, unique and of the right number."""
    if names is None:
        return np.arange(size) if default is None else default
    if isinstance(names, str):
        raise InputError(f"The {what} names must be a sequence of names, not the text {names!r}.")
    if not isinstance(names, Iterable):
        raise InputError(f"The {what} names must be a sequence of names, not {names!r}.")
    if (
        isinstance(names, (list, tuple))
        and all(type(name) is str for name in names)
        and len(names) == len(set(names)) == size  # as formulas give them
    ):
        return np.array(names, dtype=object)
    if type(names) is np.ndarray and names.shape == (size,) and counts_up(names):
        return names.copy()  # as features are called by default
    index = pd.Index(names)
    if index.size != size:
        raise InputError(f"There are {index.size} {what} names for {size} {what}s.")
    absent = np.flatnonzero(_missing(index))
    if absent.size:
        raise InputError(
            f"Missing {what} names: {listing(index[absent], 3)} at position "
            f"{', '.join(map(str, absent[:3]))} ({absent.size} in all). Name every {what}."
        )
    if index.dtype.kind not in "iu":  # two labels may differ as objects but not as text
        index = pd.Index(_texts(index), dtype=object)
    if not index.is_unique:
        repeated = index[index.duplicated()].unique()
        raise InputError(f"Duplicate {what} names: {listing(repeated)}. Make them unique.")
    return np.asarray(index)


def _missing(index: pd.Index) -> BoolArray:
    """Which labels are None, NaN, NA or NaT, a part of a label of several levels included."""
    if isinstance(index, pd.MultiIndex):
        return np.asarray(index.to_frame().isna().any(axis=1), dtype=bool)
    missing = np.asarray(index.isna(), dtype=bool)
    if index.dtype == object and any(issubclass(kind, tuple) for kind in set(map(type, index))):
        parts = [label if isinstance(label, tuple) else () for label in index]
        missing |= np.array([bool(pd.Series(part, dtype=object).isna().any()) for part in parts])
    return missing


# ---- features by name ------------------------------------------------------------------------


def feature_positions(names: NDArray[Any], features: Any) -> IntArray:
    """Positions of the features that a user asks for.

    Parameters
    ----------
    names
        Labels of the m features, text or integers.
    features
        A name or names: labels are the same if their text is, so that 7157 finds a feature
        called "7157". Or a boolean mask, matched by label if it carries labels (a Series or
        DataArray) and by position otherwise; or a slice of positions. A whole number is a
        position only where no feature is called by a number.

    Returns
    -------
    ndarray
        In the order asked for; that of the features for a mask.

    Raises
    ------
    InputError
        If a name is unknown, a position is out of range, or a mask does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> feature_positions(np.array([7157, 672, 0]), [0, 7157]).tolist()
    [2, 0]
    >>> feature_positions(np.array(["a", "b", "c"], dtype=object), [0, 2]).tolist()
    [0, 2]
    """
    if isinstance(features, slice):
        return _of_slice(features, names.size)
    mask = _as_mask(names, features)
    if mask is not None:
        return np.asarray(np.flatnonzero(mask), dtype=np.intp)
    asked = _as_names(features)
    if names.dtype.kind in "iu" and asked.dtype.kind in "iu":
        found = pd.Index(names).get_indexer(pd.Index(asked))
    else:
        found = find_labels(names, asked)
    unknown = found < 0
    if not unknown.any():
        return np.asarray(found, dtype=np.intp)
    whole = all(_is_whole(name) for name in asked)
    if whole and not any(_reads_as_number(name) for name in names):
        return _of_numbers(asked.astype(np.int64), names.size)
    raise InputError(_unknown_features(names, asked[unknown]))


def _of_slice(features: slice, m: int) -> IntArray:
    try:
        return np.arange(m, dtype=np.intp)[features]
    except TypeError:
        raise InputError(
            "A slice of features goes by positions, whole numbers. Name features in a list."
        ) from None


def _as_mask(names: NDArray[Any], features: Any) -> BoolArray | None:
    """What is asked for as a mask of the features; None if it is none."""
    given = as_pandas(features)
    if isinstance(given, pd.Series) and not pd.api.types.is_bool_dtype(given.dtype):
        objects = given.dtype == object and given.size
        if not objects or not all(isinstance(item, (bool, np.bool_)) for item in given):
            return None
    if isinstance(given, list) and given and all(isinstance(x, (bool, np.bool_)) for x in given):
        given = np.array(given)
    if not isinstance(given, pd.Series) and not pd.api.types.is_bool_dtype(
        getattr(given, "dtype", None)
    ):
        return None
    values = in_order(given, names, "The mask", of="features", by_text=True)
    if pd.isna(values).any():
        raise InputError("The mask of features holds missing values; it must say True or False.")
    mask = np.asarray(values, dtype=bool)
    if mask.shape != names.shape:
        raise InputError(f"The mask has {mask.size} entries for {names.size} features.")
    return mask


def _as_names(features: Any) -> NDArray[Any]:
    """One or several names as an array of integers, or of objects."""
    one = isinstance(features, str | bytes) or not isinstance(features, Iterable)
    if not one and getattr(features, "ndim", 1) == 0:
        one, features = True, np.asarray(features).item()
    if one:
        features = [features]
    if getattr(features, "ndim", 1) != 1:
        raise InputError(
            f"Features must be named in one dimension, not in an array of shape {features.shape}."
        )
    items = list(np.asarray(features)) if hasattr(features, "dtype") else list(features)
    if items and all(_is_whole(item) for item in items):
        return np.array([int(item) for item in items])
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _texts(labels: Iterable[object]) -> list[str]:
    """Labels as text; bytes, as h5py gives strings of a file, are what they encode."""
    return [
        label.decode(errors="backslashreplace") if isinstance(label, bytes) else str(label)
        for label in labels
    ]


def _text(label: object) -> str:
    """A label as text; whole numbers that a missing neighbour made floats as whole numbers."""
    if isinstance(label, tuple):  # of several levels; some indexes give numpy's numbers
        return str(tuple(x.item() if isinstance(x, np.generic) else x for x in label))
    if isinstance(label, (float, np.floating)) and float(label).is_integer():
        return str(int(label))
    return str(label)


def _reads_as_number(name: object) -> bool:
    try:
        float(str(name))
    except ValueError:
        return False
    return True


def _of_numbers(asked: NDArray[np.int64], m: int) -> IntArray:
    if asked.size and (asked.min() < -m or asked.max() >= m):
        raise InputError(
            f"Feature position out of range: there are {m} features, and none is called by a "
            f"number; asked for {listing(asked)}."
        )
    return np.arange(m, dtype=np.intp)[asked]


def _unknown_features(names: NDArray[Any], unknown: Sequence[Any] | NDArray[Any]) -> str:
    hint = nearest(str(unknown[0]), [str(name) for name in names])
    numbers = all(_is_whole(name) for name in unknown)
    note = " Whole numbers are names, not positions, here." if numbers else ""
    return f"Unknown feature: {listing(unknown)}. {hint}{note}"


# ---- values by label -------------------------------------------------------------------------


def find_labels(labels: Any, wanted: Any) -> IntArray:
    """Where labels stand among others, by their text; -1 for one that is not there.

    A whole number that a missing neighbour made a float is found as a whole number too.
    """
    known = pd.Index(_texts(labels), dtype=object)
    found = np.asarray(known.get_indexer(pd.Index(_texts(wanted), dtype=object)))
    absent = np.flatnonzero(found < 0)
    if absent.size:
        again = [_text(label) for label in np.asarray(wanted, dtype=object)[absent]]
        found[absent] = known.get_indexer(pd.Index(again, dtype=object))
    return found.astype(np.intp)


def label_positions(
    labels: Any, wanted: Any, what: str, *, of: str, by_text: bool = False
) -> IntArray:
    """Where the labels that are wanted stand among those that there are.

    Parameters
    ----------
    labels
        The labels that something carries.
    wanted
        Those that it must have.
    what, of
        What carries them and what they are labels of, for the message: ``"`weights`"``,
        ``"samples"``.
    by_text
        Whether labels of equal text are the same.

    Raises
    ------
    InputError
        If a label is absent, or one that is wanted stands there twice.
    """
    labels, wanted = pd.Index(labels), pd.Index(wanted)
    if by_text:
        labels = pd.Index([_text(label) for label in labels], dtype=object)
        wanted = pd.Index([_text(label) for label in wanted], dtype=object)
    repeated = labels[labels.duplicated()].unique()
    if repeated.isin(wanted).any():
        raise InputError(
            f"{what} has more than one value for the {of} {listing(repeated)}. Make its labels "
            "unique."
        )
    labels_once = labels.drop_duplicates()
    found = np.asarray(labels_once.get_indexer(wanted), dtype=np.intp)
    if (found < 0).any():
        extra = labels[~labels.isin(wanted)]
        other = f" {what} has {listing(extra)} besides." if extra.size else ""
        raise InputError(
            f"{what} and the {of} do not match by label: {listing(wanted[found < 0])} is absent."
            f"{other} Correct the labels, or pass an array to go by position."
        )
    if labels_once.size < labels.size:
        found = np.flatnonzero(~labels.duplicated())[found]
    return found


def in_order(
    values: Any,
    labels: Any,
    what: str,
    *,
    of: str = "samples",
    by_text: bool = False,
    strict: bool = False,
) -> Any:
    """One-dimensional values in the order of some labels, as an array.

    Values without labels are taken to be in that order. The numbers 0, 1, 2, ... are labels only
    beside the same numbers in another order, as rows that were shuffled have them.

    Parameters
    ----------
    values
        Series, DataArray or DataFrame with one column, matched by label and perhaps with more
        labels than there are; anything else goes by position.
    labels
        Labels of the samples, features or columns; None if they have none.
    what, of
        What the values are and what they belong to, for messages.
    by_text
        Whether labels of equal text are the same.
    strict
        Whether a Series that counts its rows is refused where there are labels.

    Returns
    -------
    ndarray
        Or ``values`` themselves, where they carry no labels.

    Raises
    ------
    InputError
        If the values carry labels that do not match.

    Examples
    --------
    >>> import pandas as pd
    >>> weights = pd.Series([2.0, 1.0], index=["b", "a"])
    >>> in_order(weights, pd.Index(["a", "b"]), "`weights`").tolist()
    [1.0, 2.0]
    """
    series = one_column(values, what)
    if series is None:
        return values
    own = series.index
    wanted = pd.RangeIndex(0) if labels is None else pd.Index(labels)
    array = series.to_numpy(dtype=object if _is_extension(series) else None)
    if own.equals(wanted) or (labels is None and counts_up(own)):
        return array
    same_numbers = own.size == wanted.size and own.dtype.kind in "iu" and own.isin(wanted).all()
    if is_default(own) and not same_numbers and (is_default(wanted) or not strict):
        return array
    if is_default(wanted) and not (same_numbers and own.is_unique):
        raise InputError(
            f"{what} carries labels ({listing(own, 3)}), but the {of} have none that these could "
            "be matched with. Label them alike, or pass an array to go by position."
        )
    return array[label_positions(own, wanted, what, of=of, by_text=by_text)]


def one_column(values: Any, what: str) -> pd.Series[Any] | None:
    """A Series, DataArray or DataFrame with one column as a Series; None for anything else."""
    values = as_pandas(values)
    if isinstance(values, pd.DataFrame):
        if values.shape[1] != 1:
            raise InputError(
                f"{what} must be one column of values, not a table with {values.shape[1]} columns."
            )
        values = values.iloc[:, 0]
    return values if isinstance(values, pd.Series) else None


def _is_extension(series: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_extension_array_dtype(series.dtype))
