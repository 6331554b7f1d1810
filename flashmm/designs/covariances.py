"""Known covariances between the levels of random terms, as users give them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from flashmm.arrays.labels import as_pandas, axis_labels, checked_labels, is_default, labelled_frame
from flashmm.arrays.numeric import float_array
from flashmm.arrays.sparse import check_sparse
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.known_root import KnownRoot, NotSemiDefiniteError, inverse_root, matrix_root
from flashmm.exceptions import InputError, listing

__all__ = ["Covariance", "as_covariance"]

Kind = Literal["matrix", "root", "inverse"]
# Entries [i, j] and [j, i] that differ by less, relative to the largest, are the same number.
_ASYMMETRY = 1e-6


class Covariance:
    """A known covariance K between the levels of a random term: ``b ~ N(0, theta K)``.

    ``Covariance(K)`` holds the matrix itself; `from_root` a root L with K = L L', such as centred
    and scaled genotypes; `from_inverse` the inverse of K, such as that of a pedigree.

    Parameters
    ----------
    K
        Symmetric and positive semi-definite, shape (levels, levels): a DataFrame or DataArray with
        labels, an array, or a sparse matrix.
    levels
        Names of its levels, where K has no labels.

    Raises
    ------
    InputError
        If K is not square, symmetric or finite, or its labels repeat or disagree.

    Examples
    --------
    >>> import numpy as np, pandas as pd, flashmm as fm
    >>> rng = np.random.default_rng(0)
    >>> K = pd.DataFrame(np.eye(8) + 0.5, index=list("abcdefgh"), columns=list("abcdefgh"))
    >>> data = pd.DataFrame({"x": rng.normal(size=40), "g": np.repeat(list("abcdefgh"), 5)})
    >>> model = fm.MultiLMM.from_formula(
    ...     "~ x + (1 | g)", data=data, Y=rng.normal(size=(3, 40)), covariances={"g": K / 1.5})
    >>> model.fit().converged.tolist()
    [True, True, True]
    >>> fm.Covariance(np.eye(3), levels=["a", "b", "c"])
    <Covariance of 3 levels: a matrix>
    """

    def __init__(self, K: Any, levels: Sequence[object] | None = None) -> None:
        self._take(K, levels, "matrix")

    @classmethod
    def from_root(cls, L: Any, levels: Sequence[object] | None = None) -> Covariance:
        """K = L L' by its root.

        Parameters
        ----------
        L
            Shape (levels, r), any r: a DataFrame or DataArray whose rows are labelled, an array,
            or a sparse matrix. K never needs to be formed.
        levels
            Names of its rows, where L has no labels.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> genotypes = np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0]])
        >>> fm.Covariance.from_root(genotypes, levels=["a", "b", "c"])
        <Covariance of 3 levels: a root>
        """
        new = cls.__new__(cls)
        new._take(L, levels, "root")
        return new

    @classmethod
    def from_inverse(cls, P: Any, levels: Sequence[object] | None = None) -> Covariance:
        """K by its inverse P, positive definite, often sparse.

        Parameters
        ----------
        P
            Shape (levels, levels), labelled like K.
        levels
            Names of its levels, where P has no labels.

        Examples
        --------
        >>> import scipy.sparse as sp, flashmm as fm
        >>> fm.Covariance.from_inverse(2.0 * sp.eye_array(2), levels=["a", "b"])
        <Covariance of 2 levels: an inverse>
        """
        new = cls.__new__(cls)
        new._take(P, levels, "inverse")
        return new

    def _take(self, values: Any, levels: Sequence[object] | None, kind: Kind) -> None:
        self.kind: Kind = kind
        values, labels = _labelled(values, kind)
        matrix = _numbers(values, _NAMES[kind], labels if levels is None else levels)
        if kind != "root" and matrix.shape[0] != matrix.shape[1]:
            raise InputError(
                f"{_NAMES[kind]} must be square; its shape is {matrix.shape}. For a root L with "
                "K = L L' use Covariance.from_root(L)."
            )
        named = None if levels is None else _texts(levels, matrix.shape[0])
        if named is not None and labels is not None:
            if sorted(named) != sorted(labels):
                raise InputError(
                    f"`levels` names other levels than the labels of {_NAMES[kind]}: "
                    f"{listing(sorted(set(named) ^ set(labels)))}."
                )
            named = labels
        given = labels if named is None else named
        self.levels: tuple[str, ...] | None = None
        if given is not None:
            self.levels = tuple(_texts(given, matrix.shape[0]))
        self.matrix = matrix if kind == "root" else _symmetric(matrix, self.levels, _NAMES[kind])

    def __repr__(self) -> str:
        shown = {"matrix": "a matrix", "root": "a root", "inverse": "an inverse"}[self.kind]
        return f"<Covariance of {self.matrix.shape[0]} levels: {shown}>"

    @property
    def size(self) -> int:
        """Number of levels."""
        return int(self.matrix.shape[0])

    def root(self, order: IntArray, name: str) -> KnownRoot:
        """The root for the levels at some positions, all of them, in that order.

        Examples
        --------
        >>> import numpy as np, flashmm as fm
        >>> K = fm.Covariance(np.diag([1.0, 4.0]), levels=["a", "b"])
        >>> K.root(np.array([1, 0]), "g")
        <root of a known covariance, 2 x 2>
        """
        if self.kind == "root":
            return KnownRoot(self.matrix[order])
        ordered = self.matrix[order][:, order]
        try:
            if self.kind == "inverse":
                # Levels with data last: then the root's first rows need only their own columns.
                back = np.arange(order.size)[::-1]
                found = inverse_root(ordered[back][:, back])
                return KnownRoot(found[back][:, np.arange(found.shape[1])[::-1]])
            return KnownRoot(matrix_root(ordered))
        except NotSemiDefiniteError as error:
            wanted = "definite" if self.kind == "inverse" else "semi-definite"
            raise InputError(
                f"The {'inverse of the ' * (self.kind == 'inverse')}covariance of {name!r} is not "
                f"positive {wanted}: its smallest eigenvalue is {error.smallest:.6g}. A covariance "
                "has none below zero: mend what it was made from, or take away the negative part."
            ) from None


_NAMES: dict[Kind, str] = {
    "matrix": "A known covariance K",
    "root": "The root L of a covariance",
    "inverse": "The inverse of a covariance",
}


def as_covariance(value: Any) -> Covariance:
    """A covariance that a user gives in any of its forms."""
    return value if isinstance(value, Covariance) else Covariance(value)


def _labelled(values: Any, kind: Kind) -> tuple[Any, list[str] | None]:
    """The values with their columns in the order of their rows, and the labels of these."""
    if isinstance(values, str | PathLike):
        raise InputError(
            f"{_NAMES[kind]} must be a matrix, not the name {str(values)!r}: read its file with "
            "fm.read_covariance(path) or fm.read_grm(prefix)."
        )
    values = as_pandas(values)
    if not isinstance(values, pd.DataFrame):
        return values, None
    if is_default(values.index):  # of a table without an index a column of text names the rows
        values = labelled_frame(values)
    rows, columns = (
        None if axis is None else _texts(axis, len(axis))
        for axis in (axis_labels(values, i) for i in (0, 1))
    )
    if kind == "root":
        return values, rows
    if rows is not None and columns is not None:
        row_names, column_names = rows, columns
        apart = sorted(set(row_names) ^ set(column_names))
        if apart:
            raise InputError(
                f"The rows and columns of {_NAMES[kind][0].lower()}{_NAMES[kind][1:]} carry "
                f"different labels: {listing(apart)} on one side only."
            )
        order = pd.Index(column_names).get_indexer(pd.Index(row_names))
        return values.iloc[:, order], row_names
    return values, rows if columns is None else columns


def _texts(labels: Any, size: int) -> list[str]:
    """Labels as text, those of several parts as the levels of an interaction are: ``f1:ann``."""
    if isinstance(labels, pd.Index | list | tuple | np.ndarray):
        index = labels if isinstance(labels, pd.Index) else pd.Index(labels)
        if isinstance(index, pd.MultiIndex):
            checked_labels(index, size, "level")  # before parts that are missing turn into text
            labels = [":".join(map(str, parts)) for parts in index]
    return [str(name) for name in checked_labels(labels, size, "level")]


def _numbers(values: Any, name: str, levels: Any) -> FloatArray | sp.csr_array:
    """A matrix of finite numbers; ``levels``, where they are known, say where one is missing."""
    if sp.issparse(values):
        if values.dtype.kind not in "iufb":
            raise InputError(f"{name} must be numeric; its dtype is {values.dtype}.")
        check_sparse(values, name)
        matrix = sp.csr_array(values).astype(np.float64)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        coo = matrix.tocoo()
        bad = np.column_stack([coo.row, coo.col])[~np.isfinite(coo.data)]
    else:
        if isinstance(values, pd.DataFrame):
            text = [c for c, kind in values.dtypes.items() if kind.kind not in "iufbO"]
            if text:
                raise InputError(
                    f"{name} must be numeric; its column {str(text[0])!r} is not. Make the names "
                    "of the levels its index."
                )
            values = values.to_numpy()
        matrix = float_array(values, name)
        if matrix.ndim != 2:
            raise InputError(f"{name} must have two dimensions; it has {matrix.ndim}.")
        bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        i, j = (int(x) for x in bad[0])
        place = f"in row {i + 1} and column {j + 1}"
        if isinstance(levels, Sequence) and matrix.shape == (len(levels),) * 2:
            place = f"between {str(levels[i])!r} and {str(levels[j])!r}"
        raise InputError(
            f"{name} holds {len(bad)} values that are missing or infinite: the first {place}."
        )
    if 0 in matrix.shape:
        raise InputError(f"{name} is empty; its shape is {matrix.shape}.")
    return matrix


def _symmetric(
    matrix: FloatArray | sp.csr_array, levels: tuple[str, ...] | None, name: str
) -> FloatArray | sp.csr_array:
    """The matrix, exactly symmetric; refused if it is not, to rounding."""
    largest = float(abs(matrix).max())
    difference = abs(matrix - matrix.T)
    if float(difference.max()) > _ASYMMETRY * largest:
        if sp.issparse(difference):
            coo = difference.tocoo()
            worst = int(np.argmax(coo.data))
            i, j = int(coo.row[worst]), int(coo.col[worst])
        else:
            i, j = (int(x) for x in np.unravel_index(np.argmax(difference), difference.shape))
        i, j = min(i, j), max(i, j)
        labels = (i, j) if levels is None else (levels[i], levels[j])
        raise InputError(
            f"{name} is not symmetric: between {labels[0]!r} and {labels[1]!r} it is "
            f"{matrix[i, j]:.6g} in one place and {matrix[j, i]:.6g} in the other."
        )
    return (
        sp.csr_array(0.5 * (matrix + matrix.T))
        if sp.issparse(matrix)
        else (0.5 * (matrix + matrix.T))
    )
