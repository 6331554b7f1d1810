"""Whether a design can be fitted at all: the checks that need the statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flashmm.exceptions import InputError, listing

if TYPE_CHECKING:
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from flashmm.design import CovarianceParameter, CovarianceStructure

    FloatArray = NDArray[np.float64]

__all__ = ["check_components", "check_sample_size", "inverse_of_XX"]

_CONFOUNDED = 1e-9


def check_sample_size(n: int, p: int) -> None:
    """Raise unless there are coefficients, and more samples than those."""
    if p == 0:
        raise InputError("`fixed` has no coefficients; a model needs at least one.")
    if n <= p:
        raise InputError(
            f"There are {n} samples for {p} fixed effects; a fit needs more samples than "
            "coefficients."
        )


def inverse_of_XX(XX: FloatArray, names: tuple[str, ...]) -> tuple[FloatArray, float]:
    """(X'X)^-1 and log |X'X|, after scaling the columns of X to unit length."""
    length = np.sqrt(np.diag(XX))
    p = length.size
    empty = length == 0
    scaled = XX / np.outer(np.where(empty, 1.0, length), np.where(empty, 1.0, length))
    values, vectors = np.linalg.eigh(scaled)
    tolerance = p * 1e-13 * values[-1]
    rank = int((values > tolerance).sum())
    if rank < p:
        raise InputError(_rank_message(scaled, names, rank, empty))
    inverse = (vectors / values) @ vectors.T / np.outer(length, length)
    return inverse, float(np.log(values).sum() + 2.0 * np.log(length).sum())


def _rank_message(
    scaled: FloatArray, names: tuple[str, ...], rank: int, empty: NDArray[np.bool_]
) -> str:
    """Name the columns of X that depend on the columns before them."""
    basis: list[int] = []
    clauses: list[str] = []
    for j in range(len(names)):
        if empty[j]:
            clauses.append(f"{names[j]!r} is zero in every sample (an empty cell of the design)")
            continue
        if not basis:
            basis.append(j)
            continue
        gram = scaled[np.ix_(basis, basis)]
        weights = np.linalg.lstsq(gram, scaled[basis, j], rcond=1e-12)[0]
        left = scaled[j, j] - scaled[basis, j] @ weights
        if left > 1e-11 and len(basis) < rank:
            basis.append(j)
        else:
            used = [
                names[b] for b, weight in zip(basis, weights, strict=True) if abs(weight) > 1e-6
            ]
            clauses.append(f"{names[j]!r} is a linear combination of {listing(used, 6)}")
    shown = "; ".join(clauses[:3]) + ("; ..." if len(clauses) > 3 else "")
    return (
        f"`fixed` has rank {rank} but {len(names)} columns: {shown}. Drop columns or change the "
        "formula."
    )


def check_components(
    ZX: FloatArray, H: FloatArray, ZZ: sp.csr_array, df: int, structure: CovarianceStructure
) -> None:
    """Raise if a component has nothing left beside X, or components cannot be told apart.

    Parameters
    ----------
    ZX, H
        Scaled Z'X and Z'X (X'X)^-1, shapes (q, p).
    ZZ
        Scaled Z'Z, shape (q, q).
    df
        n - p.
    structure
        Random terms.
    """
    kept = ZZ.diagonal() - (ZX * H).sum(axis=1)  # diagonal of Z'RZ
    for parameter in structure.parameters:
        if parameter.is_variance:
            rows, _ = structure.columns(parameter)
            if kept[rows].sum() <= _CONFOUNDED * ZZ.diagonal()[rows].sum():
                raise InputError(
                    f"The random effect {parameter.name!r} lies in the span of the fixed effects: "
                    "nothing is left of it once `fixed` is taken out. Remove it from `random`, "
                    "or the terms that absorb it from `fixed`."
                )
    information = _information_at_zero(ZX, H, ZZ, df, structure)
    length = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(length, length))
    if values[0] < _CONFOUNDED:
        names = np.array(structure.param_names)
        involved = names[np.abs(vectors[:, 0]) > 1e-3]
        raise InputError(
            f"The variance components {listing(involved)} cannot be told apart in this design. "
            "A grouping factor needs fewer levels than samples, and no two terms may group "
            "alike; remove one of them."
        )


def _information_at_zero(
    ZX: FloatArray, H: FloatArray, ZZ: sp.csr_array, df: int, structure: CovarianceStructure
) -> FloatArray:
    """tr(R V_i R V_j), the expected information at theta = (0, ..., 0, 1) but for a half."""
    k = len(structure.parameters)
    pairs = [_pairs(structure, parameter) for parameter in structure.parameters]
    information = np.zeros((k + 1, k + 1))
    for i, mine in enumerate(pairs):
        for left, right in mine:
            block = np.asarray(ZZ[left, :][:, right].diagonal()) - (ZX[left] * H[right]).sum(axis=1)
            information[i, k] += block.sum()
        for j in range(i + 1):
            for a, b in mine:
                for c, d in pairs[j]:
                    information[i, j] += _inner(ZX, H, ZZ, (b, c), (a, d))
    information[k, :k] = information[:k, k]
    information[k, k] = df
    return np.asarray(np.tril(information) + np.tril(information, -1).T + 0.0)


def _pairs(
    structure: CovarianceStructure, parameter: CovarianceParameter
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns of the ones of G_i, its lower triangle as a second pair."""
    rows, columns = structure.columns(parameter)
    return [(rows, columns)] if parameter.is_variance else [(rows, columns), (columns, rows)]


def _inner(
    ZX: FloatArray,
    H: FloatArray,
    ZZ: sp.csr_array,
    first: tuple[NDArray[np.intp], NDArray[np.intp]],
    second: tuple[NDArray[np.intp], NDArray[np.intp]],
) -> float:
    """Elementwise inner product of two blocks of Z'RZ = Z'Z - H X'Z, without forming them."""
    a, b = ZZ[first[0], :][:, first[1]], ZZ[second[0], :][:, second[1]]
    total = float(a.multiply(b).sum())
    total -= float((ZX[second[0]] * (a @ H[second[1]])).sum())
    total -= float((ZX[first[0]] * (b @ H[first[1]])).sum())
    left = ZX[first[0]].T @ ZX[second[0]]
    right = H[first[1]].T @ H[second[1]]
    return total + float((left * right).sum())
