"""Pedigrees: the additive relationship of individuals, and its inverse.

A = T D T' with T the flow of genes from ancestors and D diagonal, the variance of what an
individual does not have from the mean of its parents (Henderson 1976, Biometrics 32:69). Its
inverse follows from the pedigree alone, inbreeding included (Quaas 1976, Biometrics 32:949).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import scipy.sparse.linalg

from flashmm.arrays.labels import as_pandas
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.covariances import Covariance
from flashmm.exceptions import InputError, listing

__all__ = ["inbreeding", "pedigree_covariance", "relationship_matrix"]

# What stands for an unknown parent, as R, pandas, PLINK, ASReml and others write it; any case.
_UNKNOWN = {"", "0", "na", "nan", "none", "null", "<na>", "n/a", "nat"}
_UNKNOWN |= {".", "*", "?", "-", "-1", "-9", "unk", "unknown"}
# Entries of solutions that inbreeding takes at a time.
_AT_A_TIME = 2**23


@dataclass(frozen=True)
class _Pedigree:
    """Individuals, parents before their offspring.

    Parameters
    ----------
    names
        Of the q individuals.
    sire, dam
        Positions of their parents, -1 where unknown, shape (q,).
    """

    names: tuple[str, ...]
    sire: IntArray
    dam: IntArray


def relationship_matrix(
    pedigree: pd.DataFrame, *, id: str = "id", sire: str = "sire", dam: str = "dam"
) -> pd.DataFrame:
    """The additive relationship matrix A of a pedigree, by the tabular method.

    Parameters
    ----------
    pedigree
        One row per individual, in any order: a DataFrame of pandas or polars, a dict of columns.
        Unknown parents are missing, empty, or ``0``, ``-1``, ``-9``, ``-``, ``*``, ``.``, ``?``,
        ``NA``, ``n/a``, ``none``, ``null``, ``unk`` or ``unknown``, so that no individual may be
        called so; parents without a row of their own are founders.
    id, sire, dam
        Its columns.

    Returns
    -------
    DataFrame
        Shape (q, q), labelled by individual, parents before their offspring. Its diagonal is one
        plus the coefficient of inbreeding.

    Raises
    ------
    InputError
        If a column is absent, an individual has two rows, or is its own ancestor.

    Examples
    --------
    >>> import pandas as pd, flashmm as fm
    >>> table = pd.DataFrame({"id": list("abc"), "sire": list("00a"), "dam": list("00b")})
    >>> fm.relationship_matrix(table).loc["c"].tolist()
    [0.5, 0.5, 1.0]
    """
    read = _read(pedigree, id, sire, dam)
    return pd.DataFrame(_tabular(read), list(read.names), list(read.names))


def pedigree_covariance(
    pedigree: pd.DataFrame, *, id: str = "id", sire: str = "sire", dam: str = "dam"
) -> Covariance:
    """The covariance of a pedigree by its sparse inverse, for ``covariances``.

    Parameters
    ----------
    pedigree, id, sire, dam
        As in `relationship_matrix`.

    Returns
    -------
    Covariance
        ``.matrix`` is the inverse of A, sparse, its ``.levels`` the individuals; inbreeding counts.

    Raises
    ------
    InputError
        As in `relationship_matrix`.

    Examples
    --------
    >>> import pandas as pd, flashmm as fm
    >>> table = pd.DataFrame({"id": list("abc"), "sire": list("00a"), "dam": list("00b")})
    >>> fm.pedigree_covariance(table).matrix.toarray()
    array([[ 1.5,  0.5, -1. ],
           [ 0.5,  1.5, -1. ],
           [-1. , -1. ,  2. ]])
    """
    read = _read(pedigree, id, sire, dam)
    F = inbreeding(read.sire, read.dam)
    weight = 1.0 / _own_variance(read.sire, read.dam, F)
    # A^-1 = (I - P)' diag(weight) (I - P).
    B = _without_parents(read.sire, read.dam)
    return Covariance.from_inverse(sp.csr_array(B.T @ sp.diags_array(weight) @ B), read.names)


def inbreeding(sire: IntArray, dam: IntArray) -> FloatArray:
    """Coefficients of inbreeding, shape (q,), of individuals after their parents.

    Half the relationship of the parents. Generation by generation a column of A = T D T' is made
    for each parent, by two sparse solutions: T^-1 = I - P, P a half for each known parent (Colleau
    2002, Genet Sel Evol 34:409).

    Parameters
    ----------
    sire, dam
        Positions of the parents, -1 where unknown, shape (q,).
    """
    q = sire.size
    F = np.zeros(q)
    both = (sire >= 0) & (dam >= 0)
    if not both.any():
        return F
    generation = _generations([sire, dam])[0]
    flow = sp.csc_array(_without_parents(sire, dam))
    solve = scipy.sparse.linalg.splu(
        flow, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    ).solve
    for now in np.unique(generation[both]):
        here = np.flatnonzero(both & (generation == now))
        own = _own_variance(sire, dam, F)  # of later ones not yet known, and not needed
        pairs = np.sort(np.column_stack([sire[here], dam[here]]), axis=1)
        pairs, pair_of = np.unique(pairs, axis=0, return_inverse=True)
        few = int(np.unique(pairs[:, 1]).size < np.unique(pairs[:, 0]).size)
        one, other = pairs[:, few], pairs[:, 1 - few]
        parents, column = np.unique(one, return_inverse=True)
        related = np.empty(one.size)
        step = max(1, _AT_A_TIME // q)
        for start in range(0, parents.size, step):
            some = parents[start : start + step]
            unit = np.zeros((q, some.size))
            unit[some, np.arange(some.size)] = 1.0
            columns = solve(own[:, None] * solve(unit, trans="T"))
            of = np.flatnonzero((column >= start) & (column < start + some.size))
            related[of] = columns[other[of], column[of] - start]
        F[here] = 0.5 * related[pair_of.ravel()]
    return F


def _without_parents(sire: IntArray, dam: IntArray) -> sp.csr_array:
    """I - P, shape (q, q): P has a half for each known parent."""
    q = sire.size
    child = [np.flatnonzero(of >= 0) for of in (sire, dam)]
    parent = [of[known] for of, known in zip((sire, dam), child, strict=True)]
    entries = (np.concatenate(child), np.concatenate(parent))
    P = sp.csr_array((np.full(entries[0].size, 0.5), entries), shape=(q, q))
    return sp.csr_array(sp.eye_array(q, format="csr") - P)


def _own_variance(sire: IntArray, dam: IntArray, F: FloatArray) -> FloatArray:
    """Variance of what an individual does not have from its parents, shape (q,)."""
    of_sire, of_dam = (np.where(x >= 0, F[x], -1.0) for x in (sire, dam))
    return np.asarray(0.5 - 0.25 * (of_sire + of_dam))


def _tabular(read: _Pedigree) -> FloatArray:
    q = len(read.names)
    A = np.zeros((q, q))
    for i in range(q):
        a, b = int(read.sire[i]), int(read.dam[i])
        row = np.zeros(i)
        for parent in (a, b):
            if parent >= 0:
                row += 0.5 * A[parent, :i]
        A[i, :i] = A[:i, i] = row
        A[i, i] = 1.0 + (0.5 * A[a, b] if a >= 0 and b >= 0 else 0.0)
    return A


def _read(pedigree: pd.DataFrame, id: str, sire: str, dam: str) -> _Pedigree:
    """Names and parents, sorted so that parents come first."""
    try:
        table = pd.DataFrame(as_pandas(pedigree))
    except ValueError as error:
        raise InputError(f"The pedigree is no table: {error}") from error
    absent = [name for name in (id, sire, dam) if name not in table.columns]
    if absent:
        raise InputError(
            f"The pedigree has no column {listing(absent)}; its columns are "
            f"{listing(table.columns)}. Say which they are: id=..., sire=..., dam=...."
        )
    if not table.columns.is_unique:
        repeated = table.columns[table.columns.duplicated()].unique()
        raise InputError(f"The pedigree has several columns called {listing(repeated)}.")
    own, father, mother = ([_name(x) for x in table[name]] for name in (id, sire, dam))
    unnamed = [row for row, name in enumerate(own) if name is None]
    if unnamed:
        raise InputError(
            f"The pedigree has no name for the individual in row {unnamed[0]}: "
            f"{str(table[id].iloc[unnamed[0]])!r} stands for unknown."
        )
    if not own:
        raise InputError("The pedigree has no rows.")
    twice = pd.Index(own)[pd.Index(own).duplicated()].unique()
    if len(twice):
        raise InputError(f"Individuals with several rows in the pedigree: {listing(twice)}.")
    listed = set(own)
    founders = [
        name
        for name in dict.fromkeys([*father, *mother])
        if name is not None and name not in listed
    ]
    names = [*founders, *(str(name) for name in own)]
    place = {name: i for i, name in enumerate(names)}
    none = [None] * len(founders)
    parents = [
        np.array([-1 if x is None else place[x] for x in [*none, *of]], dtype=np.intp)
        for of in (father, mother)
    ]
    order = _sorted(names, parents)
    back = np.empty(order.size, dtype=np.intp)
    back[order] = np.arange(order.size)
    moved = [np.where(x[order] >= 0, back[x[order]], -1) for x in parents]
    return _Pedigree(tuple(names[i] for i in order), *moved)


def _name(value: Any) -> str | None:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)  # a column with missing parents turns numbers into floats
    text = str(value).strip()
    return None if text.lower() in _UNKNOWN else text


def _sorted(names: list[str], parents: list[IntArray]) -> IntArray:
    """Positions, parents first, and otherwise as they come: generation by generation."""
    generation, settled = _generations(parents)
    if not settled.all():
        stuck = [names[i] for i in np.flatnonzero(~settled)]
        raise InputError(
            f"The pedigree goes in a circle: {listing(stuck)} would be ancestors of "
            "themselves, or descend from such."
        )
    return np.argsort(generation, kind="stable")


def _generations(parents: list[IntArray]) -> tuple[IntArray, BoolArray]:
    """How many generations are above each individual, and whether that is settled, (q,) each."""
    q = parents[0].size
    generation, settled = np.zeros(q, dtype=np.intp), np.zeros(q, dtype=bool)
    left, step = np.arange(q), 0
    while left.size:
        ready = np.ones(left.size, dtype=bool)
        for of in parents:
            parent = of[left]
            ready &= (parent < 0) | settled[parent]
        if not ready.any():
            break
        now = left[ready]
        generation[now], settled[now] = step, True
        left, step = left[~ready], step + 1
    return generation, settled
