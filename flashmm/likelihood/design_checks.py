"""Whether a design can be fitted at all: the checks that need the statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.designs.curves import CurvedParameters
from flashmm.designs.design import CovarianceParameter, CovarianceStructure
from flashmm.exceptions import InputError, PrecisionWarning, listing, warn
from flashmm.likelihood.centring import advice
from flashmm.stats.rank import Dependence, dependence
from flashmm.stats.root import scaled_gram

if TYPE_CHECKING:
    import scipy.sparse as sp

__all__ = [
    "CONFOUNDED",
    "Whitening",
    "along_curves",
    "check_components",
    "check_sample_size",
    "pairs_of",
    "whiten",
]

CONFOUNDED = 1e-9
# Information on a covariance, relative to that on a variance, that is rounding.
_NOTHING = 1e-15
# Smallest over largest eigenvalue of the scaled X'X below which at most six digits are left.
_FEW_DIGITS = 1e-10
# Random effects up to which Z'RZ is made for the checks: indexing it is faster than sparse parts.
_DENSE = 300


def check_sample_size(n: int, p: int) -> None:
    """Raise unless there are coefficients, and more samples than those."""
    if n <= p:
        raise InputError(
            f"There are {n} samples for {p} fixed effects; a fit needs more samples than "
            "coefficients."
        )


@dataclass(frozen=True)
class Whitening:
    """Coordinates of X in which X'X is the identity.

    Parameters
    ----------
    W
        Shape (p, p): W'X'XW = I, so that (X'X)^-1 = W W'.
    log_det
        log |X'X|.
    amplification
        By how much a relative rounding error of a sum grows in these coordinates.
    """

    W: FloatArray
    log_det: float
    amplification: float


def whiten(XX: FloatArray, root: FloatArray | None, names: tuple[str, ...]) -> Whitening:
    """Whiten X by its X'X, or by the root R'R = X'X where there is one.

    Raises
    ------
    InputError
        If X has not full column rank, as far as the digits of the two can tell.

    Warns
    -----
    PrecisionWarning
        If X'X has lost most of its digits, and there is no root.
    """
    found = dependence(XX, root)
    if found.kept.size < found.p:
        raise InputError(_rank_message(found, names))
    if found.p == 0:
        return Whitening(np.zeros((0, 0)), 0.0, 1.0)
    scaled, length = scaled_gram(XX)
    if root is not None:
        _, singular, vectors = np.linalg.svd(root / length)
        W = vectors.T / singular / length[:, None]
        log_det = 2.0 * float(np.log(singular).sum() + np.log(length).sum())
        return Whitening(W, log_det, float(singular[0] / singular[-1]))
    values, vectors = np.linalg.eigh(scaled)
    if values[0] < _FEW_DIGITS * values[-1]:
        _warn_of_digits(values, vectors, names)
    W = vectors / np.sqrt(values) / length[:, None]
    log_det = float(np.log(values).sum() + 2.0 * np.log(length).sum())
    return Whitening(W, log_det, float(values[-1] / values[0]))


def _warn_of_digits(values: FloatArray, vectors: FloatArray, names: tuple[str, ...]) -> None:
    involved = [name for name, x in zip(names, vectors[:, 0], strict=True) if abs(x) > 0.1]
    ratio = values[-1] / values[0]
    warn(
        f"The columns {listing(involved)} of `fixed` nearly depend on each other (condition "
        f"number of X {np.sqrt(ratio):.0e}), and these statistics hold X'X alone: about "
        f"{max(0, int(16 - np.log10(ratio)))} digits of the results are right. Centre and scale "
        "numeric columns before they are summed, or sum X, Z and Y with flashmm, which keeps a "
        "root of X'X for such designs.",
        PrecisionWarning,
    )


def _rank_message(found: Dependence, names: tuple[str, ...]) -> str:
    """Name the columns that depend on those before them, and say what can be done."""
    clauses = []
    for j, used in found.combinations():
        shown = listing([names[i] for i in used], 6)
        clauses.append(
            f"{names[j]!r} is a linear combination of {shown}"
            if used.size
            else f"{names[j]!r} is zero in every sample (an empty cell of the design)"
        )
    text = "; ".join(clauses[:3]) + ("; ..." if len(clauses) > 3 else "")
    return (
        f"`fixed` has rank {found.kept.size} but {len(names)} columns: {text}. Change the formula, "
        'or build the model with rank="drop": such columns are then left out, and contrasts, '
        "means and predictions that these samples do not determine are NaN. Dropping columns by "
        "hand makes them depend on which."
    )


def check_components(
    ZX: FloatArray,
    H: FloatArray,
    ZZ: sp.csr_array,
    df: int,
    structure: CovarianceStructure,
    *,
    known_residual: bool = False,
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
    known_residual
        Whether the residual variance is known, so that no component is mistaken for it.
    """
    kept = ZZ.diagonal() - (ZX * H).sum(axis=1)  # diagonal of Z'RZ
    for parameter in structure.parameters:
        if parameter.is_variance:
            rows, _ = structure.columns(parameter)
            if kept[rows].sum() <= CONFOUNDED * ZZ.diagonal()[rows].sum():
                raise InputError(
                    f"The random effect {parameter.name!r} lies in the span of the fixed effects: "
                    "nothing is left of it once `fixed` is taken out. Remove it from `random`, "
                    "or the terms that absorb it from `fixed`."
                )
    information = _information_at_zero(ZX, H, ZZ, df, structure)
    if known_residual:
        information = information[:-1, :-1]
    names = structure.param_names
    curved = structure.curved
    if curved is not None:
        information, names = along_curves(information, curved), structure.own_names
        _check_correlations(information, structure, curved)
    for i, parameter in enumerate(structure.parameters if curved is None else ()):
        own = [j for j, each in enumerate(structure.parameters) if each.term == parameter.term]
        most = np.diag(information)[own].max()
        if not parameter.is_variance and information[i, i] <= _NOTHING * most:
            term = structure.terms[parameter.term]
            raise InputError(
                f"The data say nothing about the covariance {parameter.name!r}: no level of "
                f"{term.group!r} has both of its effects. Write the effects as uncorrelated, "
                "diag(... | group), or leave one out."
            )
    length = np.sqrt(np.diag(information))
    values, vectors = np.linalg.eigh(information / np.outer(length, length))
    if values.size and values[0] < CONFOUNDED:
        involved = np.array(names)[: values.size][np.abs(vectors[:, 0]) > 1e-3]
        near = advice(ZZ, structure)
        if near:
            raise InputError(
                f"The variance components {listing(involved)} cannot be told apart in the digits "
                f"that sums of squares have. {near}"
            )
        raise InputError(
            f"The variance components {listing(involved)} cannot be told apart in this design. "
            "This is so where a grouping factor has as many levels as samples, where two terms "
            "have the same effects and groups (an intercept beside all categories of a factor, "
            "say), or where a slope is constant. Remove one of them."
        )


def _check_correlations(
    information: FloatArray, structure: CovarianceStructure, curved: CurvedParameters
) -> None:
    """Raise where no level has two effects of a structure, which its correlation is about."""
    for term, (curve, _, own) in zip((*structure.terms, None), curved.parts(), strict=True):
        if curve is None or term is None:
            continue
        each = np.diag(information)[own]
        if each[-1] <= _NOTHING * each[:-1].max():
            raise InputError(
                f"The data say nothing about the correlation of {term.name!r}: no level of "
                f"{term.group!r} has samples of two of its effects, such as two times. Write "
                f"(1 | {term.group}), or leave the term out where a level has one sample."
            )


def along_curves(information: FloatArray, curved: CurvedParameters) -> FloatArray:
    """Information on theta, (..., k, k), as that on own parameters at usual values of these."""
    u = np.ones((1, curved.k))
    for curve, _, own in curved.parts():
        if curve is not None:
            u[:, own] = curve.starts()[0][2]
    # One residual variance here, whatever the number of groups; none where it is known.
    k = information.shape[-1]
    J = curved.jacobian(u)[0, :k, : sum(curved.own_sizes) + k - sum(curved.sizes)]
    return np.asarray(J.T @ information @ J)


def _information_at_zero(
    ZX: FloatArray, H: FloatArray, ZZ: sp.csr_array, df: int, structure: CovarianceStructure
) -> FloatArray:
    """tr(R V_i R V_j), the expected information at theta = (0, ..., 0, 1) but for a half."""
    k = len(structure.parameters)
    pairs = [pairs_of(structure, parameter) for parameter in structure.parameters]
    if structure.q <= _DENSE:
        return _dense_information(ZZ.toarray() - ZX @ H.T, pairs, df)
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


def _dense_information(
    ZRZ: FloatArray, pairs: list[list[tuple[IntArray, IntArray]]], df: int
) -> FloatArray:
    """The same from Z'RZ, (q, q), and the ones of each G_i."""
    k, q = len(pairs), ZRZ.shape[0]
    products = np.zeros((k, q, q))  # Z'RZ G_i
    for product, mine in zip(products, pairs, strict=True):
        for left, right in mine:
            product[:, right] += ZRZ[:, left]
    information = np.empty((k + 1, k + 1))
    turned = np.swapaxes(products, 1, 2).reshape(k, q * q)
    information[:k, :k] = products.reshape(k, q * q) @ turned.T
    information[k, :k] = information[:k, k] = np.trace(products, axis1=1, axis2=2)
    information[k, k] = df
    return information


def pairs_of(
    structure: CovarianceStructure, parameter: CovarianceParameter
) -> list[tuple[IntArray, IntArray]]:
    """Rows and columns of the ones of G_i, its lower triangle as a second pair."""
    rows, columns = structure.columns(parameter)
    return [(rows, columns)] if parameter.is_variance else [(rows, columns), (columns, rows)]


def _inner(
    ZX: FloatArray,
    H: FloatArray,
    ZZ: sp.csr_array,
    first: tuple[IntArray, IntArray],
    second: tuple[IntArray, IntArray],
) -> float:
    """Elementwise inner product of two blocks of Z'RZ = Z'Z - H X'Z, without forming them."""
    a, b = ZZ[first[0], :][:, first[1]], ZZ[second[0], :][:, second[1]]
    total = float(a.multiply(b).sum())
    total -= float((ZX[second[0]] * (a @ H[second[1]])).sum())
    total -= float((ZX[first[0]] * (b @ H[first[1]])).sum())
    left = ZX[first[0]].T @ ZX[second[0]]
    right = H[first[1]].T @ H[second[1]]
    return total + float((left * right).sum())
