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

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.covariances import Covariance
from flashmm.exceptions import InputError, listing

__all__ = ["inbreeding", "pedigree_covariance", "relationship_matrix"]

_UNKNOWN = {"", "0", "NA", "nan", "None", "<NA>", "."}


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
        One row per individual, in any order. Unknown parents are missing, ``0`` or empty; parents
        without a row of their own are founders.
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
    q = len(read.names)
    # A^-1 = (I - P)' diag(weight) (I - P): P has a half for each known parent.
    rows, columns = [], []
    for parent in (read.sire, read.dam):
        known = np.flatnonzero(parent >= 0)
        rows.append(known)
        columns.append(parent[known])
    entries = (np.concatenate(rows), np.concatenate(columns))
    P = sp.csr_array((np.full(entries[0].size, 0.5), entries), shape=(q, q))
    B = sp.eye_array(q, format="csr") - P
    return Covariance.from_inverse(sp.csr_array(B.T @ sp.diags_array(weight) @ B), read.names)


def inbreeding(sire: IntArray, dam: IntArray) -> FloatArray:
    """Coefficients of inbreeding, shape (q,), of individuals after their parents.

    Row by row of the flow of genes: the diagonal of A is the sum over ancestors of the squared
    share of genes times the ancestor's own variance (Meuwissen & Luo 1992, Genet Sel Evol 24:305).

    Parameters
    ----------
    sire, dam
        Positions of the parents, -1 where unknown, shape (q,).
    """
    q = sire.size
    F, own = np.zeros(q), np.ones(q)
    known: dict[tuple[int, int], float] = {}
    for i in range(q):
        a, b = int(sire[i]), int(dam[i])
        parents = [F[x] if x >= 0 else -1.0 for x in (a, b)]
        own[i] = 0.5 - 0.25 * sum(parents)
        if a < 0 or b < 0:
            continue
        pair = (min(a, b), max(a, b))
        if pair not in known:
            known[pair] = _diagonal(i, sire, dam, own) - 1.0
        F[i] = known[pair]
    return F


def _diagonal(i: int, sire: IntArray, dam: IntArray, own: FloatArray) -> float:
    """A[i, i] from the shares of genes of the ancestors of one individual."""
    share, total = {i: 1.0}, 0.0
    while share:
        j = max(share)  # the youngest: all of its offspring have been seen
        part = share.pop(j)
        total += part * part * float(own[j])
        for parent in (int(sire[j]), int(dam[j])):
            if parent >= 0:
                share[parent] = share.get(parent, 0.0) + 0.5 * part
    return total


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
    table = pd.DataFrame(pedigree)
    absent = [name for name in (id, sire, dam) if name not in table.columns]
    if absent:
        raise InputError(
            f"The pedigree has no column {listing(absent)}; its columns are "
            f"{listing(table.columns)}. Say which they are: id=..., sire=..., dam=...."
        )
    own, father, mother = ([_name(x) for x in table[name]] for name in (id, sire, dam))
    unnamed = [row for row, name in enumerate(own) if name is None]
    if unnamed:
        raise InputError(f"The pedigree has no name for the individual in row {unnamed[0]}.")
    twice = pd.Index(own)[pd.Index(own).duplicated()].unique()
    if len(twice):
        raise InputError(f"Individuals with several rows in the pedigree: {listing(twice)}.")
    founders = [
        name
        for name in dict.fromkeys([*father, *mother])
        if name is not None and name not in set(own)
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
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return None
    if isinstance(value, float) and value == int(value):
        value = int(value)  # a column with missing parents turns numbers into floats
    text = str(value).strip()
    return None if text in _UNKNOWN else text


def _sorted(names: list[str], parents: list[IntArray]) -> IntArray:
    """Positions, parents first, and otherwise as they come: generation by generation."""
    q = len(names)
    step = 0
    generation, settled = np.zeros(q, dtype=np.intp), np.zeros(q, dtype=bool)
    while not settled.all():
        ready = ~settled
        for of in parents:
            ready &= (of < 0) | settled[of]
        if not ready.any():
            stuck = [names[i] for i in np.flatnonzero(~settled)]
            raise InputError(
                f"The pedigree goes in a circle: {listing(stuck)} would be ancestors of "
                "themselves, or descend from such."
            )
        generation[ready] = step
        settled |= ready
        step += 1
    return np.argsort(generation, kind="stable")
