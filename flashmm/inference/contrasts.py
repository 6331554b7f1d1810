"""Contrasts: expressions, vectors and tables of coefficients, brought to one numeric form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd

from flashmm.arrays.labels import as_pandas
from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError, listing
from flashmm.inference.contrast_expressions import read_equations
from flashmm.inference.names import Coefficients, r_name, resolve_names
from flashmm.slips.answers import answered

__all__ = [
    "Contrasts",
    "contrast_matrix",
    "independent_rows",
    "parse_contrasts",
    "r_name",
    "resolve_names",
]


@dataclass(frozen=True, eq=False)
class Contrasts:
    """Linear hypotheses ``matrix @ beta = values``.

    Attributes
    ----------
    matrix : ndarray (n_contrasts, p)
        One contrast per row, in the order of the coefficients.
    values : ndarray (n_contrasts,)
        Hypothesised values, in the units of the contrasts; 0 unless an expression sets one.
    labels : tuple of str
        One distinct name per contrast.
    """

    matrix: FloatArray
    values: FloatArray
    labels: tuple[str, ...]


@answered
def contrast_matrix(contrasts: object, names: Sequence[str]) -> pd.DataFrame:
    """Build the matrix of contrasts that expressions of coefficient names stand for.

    Parameters
    ----------
    contrasts : str, list of str, or dict of label to expression
        Linear expressions such as ``"(cls1:trtB + cls2:trtB)/2"``. An expression without a label
        is its own label. Everything else that `parse_contrasts` reads is accepted too.
    names : sequence of str (p,)
        The names of the coefficients.

    Returns
    -------
    pandas.DataFrame (p, n_contrasts)
        One column per contrast, indexed by coefficient name. ``t_test`` takes it as it is.

    Raises
    ------
    InputError
        If an expression is not linear, names an unknown coefficient, cancels to zero, or sets a
        hypothesised value other than 0, which a matrix cannot carry.

    Examples
    --------
    >>> contrast_matrix({"AvsB": "A - B", "AvsRest": "A - (B + C)/2"}, ["A", "B", "C"])
       AvsB  AvsRest
    A   1.0      1.0
    B  -1.0     -0.5
    C   0.0     -0.5
    """
    parsed = parse_contrasts(contrasts, names)
    if np.any(parsed.values != 0):
        label = parsed.labels[int(np.flatnonzero(parsed.values)[0])]
        raise InputError(
            f"contrast {label!r} sets a hypothesised value, which a contrast matrix cannot carry: "
            "hand the expression itself to the test"
        )
    return pd.DataFrame(
        parsed.matrix.T, index=pd.Index([str(name) for name in names]), columns=list(parsed.labels)
    )


def parse_contrasts(contrast: object, names: Sequence[str]) -> Contrasts:
    """Bring every accepted form of a contrast to rows of numbers.

    Parameters
    ----------
    contrast : object
        One of

        * None: every coefficient by itself;
        * a string: a name, or a linear expression of names (``"a - b"``, ``"(a + b)/2 - c"``),
          with a hypothesis (``"a = b"``, ``"a = 0.5"``) or without (``= 0``); several are
          separated by commas;
        * a list of such strings, or a dict of label to expression or vector;
        * a vector (p,), a matrix (n_contrasts, p), or a list of vectors;
        * a Series indexed by coefficient names (those left out are 0);
        * a DataFrame of coefficient names x contrasts, as `contrast_matrix` makes, or its
          transpose.

        Names need no quotes, whatever characters they hold: the longest name that fits is read.
        Backticks or double quotes settle what would be read otherwise, such as a name that is a
        number.
    names : sequence of str (p,)
        The names of the coefficients.

    Returns
    -------
    Contrasts
        ``matrix`` (n_contrasts, p), ``values`` (n_contrasts,) and ``labels``.

    Raises
    ------
    InputError
        If a name is unknown or ambiguous, an expression is not linear or lacks its ``=``, a
        contrast is zero, or numbers are not finite or not p in number.

    Examples
    --------
    >>> parsed = parse_contrasts("cls1:trtB = 0.5", ["cls[1]", "cls[1]:trt[T.B]"])
    >>> parsed.matrix, parsed.values, parsed.labels
    (array([[0., 1.]]), array([0.5]), ('cls1:trtB = 0.5',))
    """
    known = Coefficients(names)
    if isinstance(contrast, Contrasts):
        rows = list(zip(contrast.labels, contrast.matrix, contrast.values.tolist(), strict=True))
    elif contrast is None:
        rows = [(name, row, 0.0) for name, row in zip(known.names, np.eye(known.p), strict=True)]
    else:
        rows = _rows(contrast, known)
    if contrast is None and not known.p:
        return Contrasts(np.zeros((0, 0)), np.zeros(0), ())
    if not rows:
        raise InputError("no contrast was given")
    for label, row, _ in rows:
        shown = f"contrast {label!r}" if label else "the contrast"
        if row.shape != (known.p,):
            raise InputError(
                f"{shown} has {row.size} numbers, but there are {known.p} coefficients: "
                f"{listing(known.names)}"
            )
        if not np.all(np.isfinite(row)):
            raise InputError(f"{shown} holds NaN or infinite numbers")
        if not np.any(row):
            raise InputError(f"{shown} is zero for every coefficient: nothing to test")
    labels = _labels(rows, known)
    matrix = np.array([row for _, row, _ in rows], dtype=float)
    values = np.array([value for _, _, value in rows], dtype=float)
    matrix.setflags(write=False)
    values.setflags(write=False)
    return Contrasts(matrix, values, labels)


def independent_rows(contrasts: Contrasts) -> tuple[FloatArray, FloatArray]:
    """Orthonormal contrasts that say the same as all of them together.

    Any set of contrasts that spans the same space leads to the same rows up to rotation, so what is
    invariant to rotation, such as Fai and Cornelius's degrees of freedom, depends on the hypothesis
    and not on how it is written.

    Parameters
    ----------
    contrasts : Contrasts
        Hypotheses ``matrix @ beta = values``.

    Returns
    -------
    tuple of ndarray
        Rows (r, p) and their hypothesised values (r,); a single contrast is left as it is.

    Raises
    ------
    InputError
        If the hypothesised values contradict each other.
    """
    matrix, values = contrasts.matrix, contrasts.values
    if matrix.shape[0] == 0:
        raise InputError("The model has no fixed effects: there is nothing to test.")
    length = np.sqrt((matrix * matrix).sum(axis=1))
    left, sizes, right = np.linalg.svd(matrix / length[:, None], full_matrices=False)
    rank = int((sizes > 1e-10 * sizes[0]).sum())
    if matrix.shape[0] == 1:
        return matrix, values
    reduced = (left[:, :rank].T @ (values / length)) / sizes[:rank]
    gap = np.abs(matrix @ (right[:rank].T @ reduced) - values)
    if (gap > 1e-8 * np.maximum(1.0, np.abs(values))).any():
        raise InputError(
            f"the contrasts contradict each other: {listing(contrasts.labels)} cannot all hold, "
            "since some of them are linear combinations of the others"
        )
    return right[:rank], reduced


# A label ("" for a vector without one), the weights (p,) and the hypothesised value.
_Row = tuple[str, FloatArray, float]


def _expressions(text: str, known: Coefficients) -> list[_Row]:
    """Read the expressions of one string."""
    rows = []
    for equation in read_equations(text, known):
        row = np.zeros(known.p)
        row[list(equation.weights)] = list(equation.weights.values())
        rows.append((equation.text, row, equation.value))
    return rows


def _vector(value: object, known: Coefficients, label: str) -> FloatArray:
    """Read the weights of one contrast from a Series or from a sequence of numbers."""
    value = as_pandas(value)
    if isinstance(value, pd.Series) and not _is_positional(value.index):
        row: FloatArray = _by_coefficient(value.to_frame(), known)[0]
        return row
    return _numbers(value, 1, label)


def _numbers(value: object, ndim: int, label: str) -> FloatArray:
    """Read an array of numbers with `ndim` dimensions."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iufO" and array.ndim == ndim:
            numbers: FloatArray = array.astype(np.float64)
            return numbers
    except (TypeError, ValueError):
        pass
    kind = "vector" if ndim == 1 else "matrix"
    shown = f"contrast {label!r}" if label else "the contrast"
    raise InputError(f"{shown} is not a {kind} of numbers: {value!r}"[:400])


def _is_positional(index: pd.Index) -> bool:
    """Tell the default index 0, 1, 2, ... from one that carries names."""
    return isinstance(index, pd.RangeIndex)


def _by_coefficient(table: pd.DataFrame, known: Coefficients) -> FloatArray:
    """Weights (n_contrasts, p) of a table of names in any spelling x contrasts; zero if absent."""
    positions = [known.resolve(str(name)) for name in table.index]
    if len(set(positions)) < len(positions):
        raise InputError("the table of contrasts names a coefficient more than once")
    matrix = np.zeros((table.shape[1], known.p))
    matrix[:, positions] = _numbers(table.to_numpy(), 2, "").T
    return matrix


def _table(table: pd.DataFrame, known: Coefficients) -> list[_Row]:
    """Read a DataFrame of names x contrasts, or of contrasts x names."""
    named = [all(known.whole(str(item)) for item in axis) for axis in table.axes]
    if not named[0] and named[1]:
        table = table.T
    elif not named[0] and all(map(_is_positional, table.axes)):
        return _matrix(table.to_numpy(), known)
    labels = [str(label) for label in table.columns]
    return [
        (label, row, 0.0) for label, row in zip(labels, _by_coefficient(table, known), strict=True)
    ]


def _matrix(value: object, known: Coefficients) -> list[_Row]:
    """Read a matrix (n_contrasts, p)."""
    matrix = _numbers(value, 2, "")
    if matrix.shape[1] != known.p:
        hint = ": transpose it" if matrix.shape[0] == known.p else ""
        raise InputError(
            f"the matrix of contrasts has shape {matrix.shape}, but needs one row per contrast "
            f"and {known.p} columns, one per coefficient{hint}"
        )
    return [("", row, 0.0) for row in matrix]


def _labelled(label: str, value: object, known: Coefficients) -> _Row:
    """Read one entry of a dict."""
    if isinstance(value, str):
        rows = _expressions(value, known)
        if len(rows) > 1:
            raise InputError(
                f"contrast {label!r} holds {len(rows)} expressions: label each of them"
            )
        return (label, *rows[0][1:])
    if isinstance(value, Real):
        raise InputError(
            f"contrast {label!r} is the number {value!r}, not an expression or a vector: for "
            "weights by coefficient name use a pandas Series"
        )
    return label, _vector(value, known, label), 0.0


def _item(item: object, known: Coefficients) -> list[_Row]:
    """Read one entry of a list that is not a vector by itself."""
    item = as_pandas(item)
    if isinstance(item, str):
        return _expressions(item, known)
    if isinstance(item, pd.Series) and item.name is not None:
        return [(str(item.name), _vector(item, known, str(item.name)), 0.0)]
    return [("", _vector(item, known, ""), 0.0)]


def _rows(contrast: object, known: Coefficients) -> list[_Row]:
    """Read any form of contrast but None."""
    contrast = as_pandas(contrast)
    if isinstance(contrast, str):
        return _expressions(contrast, known)
    if isinstance(contrast, pd.DataFrame):
        return _table(contrast, known)
    if isinstance(contrast, Mapping):
        return [_labelled(str(label), value, known) for label, value in contrast.items()]
    if isinstance(contrast, pd.Series) and not _is_positional(contrast.index):
        return _item(contrast, known)
    if not isinstance(contrast, Sequence) and hasattr(contrast, "__array__"):
        array = np.asarray(contrast)
        if array.ndim > 1:
            return _matrix(array, known)
        contrast = list(array) if array.ndim == 1 else contrast
    if isinstance(contrast, Sequence) and not isinstance(contrast, bytes):
        if len(contrast) and all(isinstance(item, Real) for item in contrast):
            return [("", _vector(contrast, known, ""), 0.0)]
        return [row for item in contrast for row in _item(item, known)]
    raise InputError(
        f"cannot read a contrast from {contrast!r}: give a name, an expression, a vector of "
        f"{known.p} numbers, a matrix, a dict or a DataFrame"
    )


def _labels(rows: Sequence[_Row], known: Coefficients) -> tuple[str, ...]:
    """Label the vectors that have no label, and refuse labels that occur twice."""
    given = [label for label, _, _ in rows if label]
    repeated = sorted({label for label in given if given.count(label) > 1})
    if repeated:
        raise InputError(f"contrasts occur more than once: {listing(repeated)}")
    taken, labels = set(given), []
    for i, (given_label, row, _) in enumerate(rows):
        label = given_label or _described(row, known)
        if not given_label and (not label or label in taken):
            label = f"contrast {i + 1}"
        taken.add(label)
        labels.append(label)
    return tuple(labels)


def _described(row: FloatArray, known: Coefficients) -> str:
    """Write a vector of up to three weights as an expression; longer ones are left without."""
    used = np.flatnonzero(row)
    if len(used) > 3:
        return ""
    terms = [
        ("- " if row[i] < 0 else "+ ")
        + ("" if abs(row[i]) == 1 else f"{abs(row[i]):g}*")
        + known.names[i]
        for i in used
    ]
    text = " ".join(terms)
    return text[2:] if text.startswith("+") else text.replace("- ", "-", 1)
