"""Known covariances between levels: given to statistics, and taken into their Z.

Statistics hold Z'X, Z'Y and Z'Z of the levels themselves, so that they add up and stay sparse.
What is fitted has Z L in the place of Z: L'(Z'X), L'(Z'Y) and L'(Z'Z) L, never Z L itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.designs.covariances import Covariance, as_covariance
from flashmm.designs.design import CovarianceStructure, RandomTerm
from flashmm.designs.known_root import KnownRoot, narrowed
from flashmm.exceptions import CovarianceWarning, InputError, check_names, listing, nearest, warn
from flashmm.stats.algebra import column_positions, with_structure
from flashmm.stats.fields import AnySums
from flashmm.stats.own_designs import DesignSums
from flashmm.stats.own_rows import PatternedStats, over_columns
from flashmm.stats.summary_stats import SummaryStats

__all__ = ["RootMap", "in_roots", "known_structure", "over_structure", "root_map"]

log = logging.getLogger("flashmm")

# Mean diagonals of relationship matrices, inbred lines included.
_RELATIONSHIP = (0.75, 2.5)


# ---- given to statistics -----------------------------------------------------------------


def known_structure(structure: CovarianceStructure, covariances: Any) -> CovarianceStructure:
    """The terms with known covariances between their levels.

    Levels of a covariance that the data lack come after the others.

    Parameters
    ----------
    structure
        The terms, with the levels that the data have.
    covariances
        By random term or grouping factor: anything that `Covariance` takes, or one. None for none.

    Raises
    ------
    InputError
        If a name is unknown, a level has no row, or a matrix is no covariance.
    """
    given = check_names("covariances", covariances, "covariance")
    if not given:
        return structure
    terms = list(structure.terms)
    made: dict[tuple[int, tuple[str, ...]], RandomTerm] = {}
    for position, covariance in _by_term(structure, given).items():
        term = terms[position]
        if term.covariance == "cs" or term.curve is not None:
            kind = {"ar1": "ar1", "exp": "exp"}.get(term.covariance, "cs")
            instead = (
                "(1 | g) + (1 | g:f) with the covariance of g"
                if kind == "cs"
                else "(1 | g) instead"
            )
            raise InputError(
                f"The random term {term.name!r} has the structure {kind}(...), which is not "
                f"available with a known covariance between its levels. Write {instead}, or drop "
                "it from `covariances`."
            )
        key = (id(covariance), term.levels)
        if key not in made:
            made[key] = _known(term, covariance)
        terms[position] = replace(term, levels=made[key].levels, root=made[key].root)
    return replace(structure, terms=tuple(terms))


def over_structure(stats: Any, wanted: CovarianceStructure) -> Any:
    """`SummaryStats` or `PatternedStats` over the levels of a structure, zero for new ones."""
    if stats.structure is wanted:
        return stats
    if isinstance(stats, PatternedStats):
        return over_columns(stats, with_structure(stats.sums, wanted))
    groups = stats.of_groups(lambda part: with_structure(part, wanted))
    return replace(with_structure(stats, wanted), groups=groups)


def _by_term(structure: CovarianceStructure, given: Mapping[str, Any]) -> dict[int, Covariance]:
    """The covariance of each term that has one: by its own name, else by its grouping factor."""
    names = [term.name for term in structure.terms]
    groups = [term.group for term in structure.terms]
    found: dict[int, Covariance] = {}
    for name, value in given.items():
        covariance = as_covariance(value)
        alike = [i for i, group in enumerate(groups) if group == name]
        own = [i for i, term in enumerate(names) if term == name]
        if not own and not alike:
            options = list(dict.fromkeys([*names, *groups]))
            shown = nearest(name, options) if options else "The model has no random effects."
            raise InputError(f"`covariances` names {name!r}, which is no random term. {shown}")
        # A term that was named by the user is meant alone; (x || g) is one factor's two terms.
        split = own and all(
            names[i] == name or names[i].startswith(f"{name}[") for i in alike if i not in own
        )
        for i in dict.fromkeys([*own, *(alike if split or not own else [])]):
            if names[i] in given and names[i] != name:
                continue
            found[i] = covariance
    return found


def _written_alike(levels: tuple[str, ...], own: tuple[str, ...]) -> tuple[str, ...]:
    """Levels of whole numbers written as those of the data are: ``101`` for ``101.0``.

    An index of whole numbers is one of floats where it came with missing ones.
    """
    floats = all(re.fullmatch(r"-?\d+\.0", name) for name in levels)
    if floats and all(re.fullmatch(r"-?\d+", name) for name in own):
        return tuple(name[:-2] for name in levels)
    return levels


def _counted(levels: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """Names of rows that have none, where levels count them: all from 1, or some from 0."""
    first = "0" in levels
    counted = tuple(str(i + (not first)) for i in range(size))
    agree = set(levels) <= set(counted) if first else levels == counted
    return counted if agree else None


def _known(term: RandomTerm, covariance: Covariance) -> RandomTerm:
    """The term with the levels of a covariance, those with data first, and its root."""
    levels = covariance.levels
    if levels is None:
        counted = _counted(term.levels, covariance.size)
        if counted is None:
            raise InputError(
                f"The covariance of {term.name!r} has {covariance.size} rows without names for "
                f"{len(term.levels)} levels ({listing(term.levels, 3)}). Make it a DataFrame with "
                "the levels as index and columns, or name them: fm.Covariance(K, levels=[...])."
            )
        levels = counted
    levels = _written_alike(levels, term.levels)
    place = {level: i for i, level in enumerate(levels)}
    absent = [level for level in term.levels if level not in place]
    if absent:
        raise InputError(
            f"The covariance of {term.name!r} has no row for the levels {listing(absent)} "
            f"({len(absent)} of {len(term.levels)}); its levels are {listing(levels, 3)}. Leave "
            "out their samples, or take a matrix that has them."
        )
    seen = set(term.levels)
    order = (*term.levels, *(level for level in levels if level not in seen))
    root = covariance.root(np.array([place[level] for level in order], dtype=np.intp), term.name)
    root = KnownRoot(narrowed(root.L, np.arange(len(term.levels))))
    if root.rank == 0 or root.mean_diagonal == 0.0:
        raise InputError(f"The covariance of {term.name!r} is zero everywhere.")
    mean = root.mean_diagonal
    log.info("covariance of %r: %d levels, mean diagonal %.6g", term.name, len(order), mean)
    if not _RELATIONSHIP[0] <= mean <= _RELATIONSHIP[1]:
        warn(
            f"The covariance of {term.name!r} has a mean diagonal of {mean:.6g}. It is fitted as "
            "it is: its variance is per unit of it, and shares of the variance (icc, "
            "variance_fractions) take the diagonal into account. A relationship matrix has about "
            "1: divide one that was not divided by the number of markers, and double a kinship.",
            CovarianceWarning,
        )
    return replace(term, levels=order, root=root)


# ---- taken into Z ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A term: its columns of Z, those of what is fitted, and what leads from one to the other.

    ``L`` (levels, r) is the part of the root that levels with data need, None for the identity;
    ``rest`` the other columns, which say how much more others vary.
    """

    outer: slice
    inner: slice
    s: int
    L: FloatArray | sp.csr_array | None
    rest: FloatArray | sp.csr_array | None


@dataclass(frozen=True)
class RootMap:
    """Effects of levels b = A u by independent ones u, term by term.

    Parameters
    ----------
    structure
        The terms as the statistics have them, q columns.
    inner
        The terms of what is fitted, c columns.
    parts
        The terms one by one.
    """

    structure: CovarianceStructure
    inner: CovarianceStructure
    parts: tuple[_Part, ...]

    def to_levels(self, effects: FloatArray) -> FloatArray:
        """Effects of the levels (B, q) from independent ones (B, c)."""
        result = np.empty((effects.shape[0], self.structure.q))
        for part in self.parts:
            own = effects[:, part.inner]
            if part.L is not None:
                own = _along(part.L, own.T, part.s).T
            result[:, part.outer] = own
        return result

    def rows(self, Z: Any) -> FloatArray | sp.csr_array:
        """Z A for rows of Z (c, q), sparse where Z and the roots are."""
        blocks = []
        for part in self.parts:
            own = Z[:, part.outer]
            blocks.append(own if part.L is None else _times(own, part.L, part.s))
        if any(isinstance(block, np.ndarray) for block in blocks):
            dense = [b if isinstance(b, np.ndarray) else b.toarray() for b in blocks]
            return np.hstack(dense)
        return sp.csr_array(sp.hstack(blocks, format="csr"))

    @cached_property
    def A(self) -> FloatArray:
        """A itself, shape (q, c)."""
        rows: Any = self.rows(sp.eye_array(self.structure.q, format="csr"))
        return np.asarray(rows.toarray() if sp.issparse(rows) else rows)

    def unseen(self, Z: Any) -> FloatArray:
        """What levels without data add to the variances of z'b, weights of theta, (c, k)."""
        return self._weights(Z, whole=False)

    def prior(self, Z: Any) -> FloatArray:
        """The variance of z'b before any data as weights of theta, shape (c, k)."""
        return self._weights(Z, whole=True)

    def _weights(self, Z: Any, *, whole: bool) -> FloatArray:
        weights = np.zeros((Z.shape[0], len(self.structure.param_names)))
        for position, (term, part) in enumerate(zip(self.structure.terms, self.parts, strict=True)):
            roots = [part.rest, *([part.L] if whole else [])]
            if part.L is None and whole:
                roots = [sp.eye_array(len(term.levels), format="csr")]
            for root in roots:
                if root is None or root.shape[1] == 0:
                    continue
                W = _times(Z[:, part.outer], root, part.s)
                W = W if isinstance(W, np.ndarray) else W.toarray()
                for i, parameter in enumerate(self.structure.parameters):
                    if parameter.term != position:
                        continue
                    s = part.s
                    a, b = (W[:, e::s] if e >= 0 else W for e in (parameter.row, parameter.column))
                    weights[:, i] += (a * b).sum(axis=1) * (1.0 if parameter.is_variance else 2.0)
        return weights

    def blocks(self, whole: FloatArray, D: Any, columns: IntArray) -> FloatArray:
        """Blocks of the covariance of the levels' effects, shape (L, s, s).

        Parameters
        ----------
        whole
            Covariance of the independent effects, shape (c, c).
        D
            theta kron I, the covariance without the roots, sparse, shape (q, q).
        columns
            Columns of Z that make each block, shape (L, s).
        """
        rows = self.A[columns]
        blocks = np.matmul(np.matmul(rows, whole), np.swapaxes(rows, 1, 2))
        left = np.zeros(self.structure.q)
        for part in self.parts:
            if part.rest is not None:
                left[part.outer] = np.repeat(KnownRoot(part.rest).diagonal, part.s)
        share = np.sqrt(left[columns])
        for a in range(columns.shape[1]):
            for b in range(columns.shape[1]):
                own = np.asarray(D[columns[:, a], columns[:, b]]).ravel()
                blocks[:, a, b] += own * share[:, a] * share[:, b]
        return np.asarray(blocks)

    def transposed(self, M: FloatArray) -> FloatArray:
        """A'M for a matrix M (q, f), shape (c, f)."""
        result = np.empty((self.inner.q, M.shape[1]))
        for part in self.parts:
            own = M[part.outer]
            if part.L is not None:
                own = _along(part.L.T, own, part.s)
            result[part.inner] = own
        return result

    def squared(self, ZZ: sp.csr_array) -> sp.csr_array:
        """A'Z'Z A, shape (c, c)."""
        blocks: list[list[Any]] = []
        for i, one in enumerate(self.parts):
            row: list[Any] = []
            for j, other in enumerate(self.parts):
                if j < i:
                    row.append(blocks[j][i].T)
                    continue
                block = sp.csr_array(ZZ[one.outer, other.outer])
                made: Any = block if other.L is None else _times(block, other.L, other.s)
                if one.L is not None:
                    made = _left(one.L, made, one.s)
                if i == j:
                    made = 0.5 * (made + made.T)
                row.append(made)
            blocks.append(row)
        if len(blocks) == 1:
            return sp.csr_array(blocks[0][0])
        parts = [[sp.csr_array(block) for block in row] for row in blocks]
        return sp.csr_array(sp.block_array(parts, format="csr"))


def _along(L: Any, M: FloatArray, s: int) -> FloatArray:
    """(L kron I_s) M for M (columns of L * s, f)."""
    f = M.shape[1]
    product = L @ np.ascontiguousarray(M).reshape(L.shape[1], s * f)
    return np.asarray(product).reshape(L.shape[0] * s, f)


def _times(M: Any, L: Any, s: int) -> Any:
    """M (L kron I_s) for M (c, levels * s), dense or sparse."""
    if s == 1:
        product = M @ L
        return product if isinstance(product, np.ndarray) else sp.csr_array(product)
    if sp.issparse(L) and sp.issparse(M):
        return sp.csr_array(M @ sp.kron(L, sp.eye_array(s), format="csr"))
    result = np.empty((M.shape[0], L.shape[1] * s))
    for effect in range(s):
        part = M[:, effect::s] @ L
        result[:, effect::s] = part if isinstance(part, np.ndarray) else part.toarray()
    return result


def _left(L: Any, M: Any, s: int) -> Any:
    """(L kron I_s)' M for M (levels * s, f), dense or sparse."""
    if isinstance(M, np.ndarray):
        return _along(L.T, M, s)
    if sp.issparse(L):
        return sp.csr_array(sp.kron(L.T, sp.eye_array(s), format="csr") @ M)
    return np.ascontiguousarray(_times(sp.csr_array(M.T), L, s).T)


def root_map(structure: CovarianceStructure, seen: BoolArray) -> RootMap | None:
    """What leads from the effects of levels to independent ones; None where all are independent.

    Parameters
    ----------
    structure
        The terms.
    seen
        Columns of Z with data, shape (q,): the others need no columns of their own.
    """
    if not structure.has_roots:
        return None
    parts, terms, start = [], [], 0
    for term, first in zip(structure.terms, structure.offsets, strict=False):
        s, outer = len(term.effects), slice(first, first + term.n_columns)
        L: Any = None
        rest: Any = None
        if term.root is not None:
            there = seen[outer].reshape(-1, s).any(axis=1)
            used = _columns_with_entries(term.root.L, np.flatnonzero(there))
            L, rest = term.root.L, None
            if not used.all() and used.any():
                L, rest = L[:, np.flatnonzero(used)], L[:, np.flatnonzero(~used)]
            levels = tuple(str(i + 1) for i in range(int(L.shape[1])))
            terms.append(replace(term, levels=levels, root=None))
        else:
            terms.append(term)
        count = terms[-1].n_columns
        parts.append(_Part(outer, slice(start, start + count), s, L, rest))
        start += count
    return RootMap(structure, replace(structure, terms=tuple(terms)), tuple(parts))


def _columns_with_entries(L: FloatArray | sp.csr_array, rows: IntArray) -> BoolArray:
    """Which columns of a root have an entry in some rows, shape (r,)."""
    part = L[rows]
    if isinstance(part, np.ndarray):
        return np.asarray((part != 0).any(axis=0))
    return np.asarray(abs(part).sum(axis=0) > 0).ravel()


def in_roots(stats: Any, *, by_group: bool = False) -> tuple[Any, RootMap | None]:
    """The statistics with Z L in the place of Z, and the way back; themselves without roots.

    Parameters
    ----------
    stats
        `SummaryStats` or `PatternedStats`.
    by_group
        Whether the sums of each group are wanted so too; they are left out otherwise.
    """
    sums: SummaryStats = stats.sums if isinstance(stats, PatternedStats) else stats
    found = root_map(sums.structure, np.asarray(sums.ZZ.diagonal() > 0))
    if found is None:
        return stats, None
    if isinstance(stats, PatternedStats):
        designs = _turned_designs(stats.designs, found)
        parts = _turned_groups(stats, found) if by_group else ()
        turned = _turned(sums, found, by_group=by_group)
        return replace(stats, sums=turned, designs=designs, group_designs=parts), found
    return _turned(sums, found, by_group=by_group), found


def _turned_groups(stats: PatternedStats, found: RootMap) -> tuple[DesignSums, ...]:
    """The designs by group of features with rows of their own, over all columns of Z L."""
    if stats.groups is None:
        return ()
    coefs, structure = np.arange(stats.p), stats.structure
    placed = (
        own.placed(coefs, column_positions(part.structure, structure))
        for part, own in zip(stats.groups.parts, stats.group_designs, strict=True)
    )
    return tuple(_turned_designs(designs, found) for designs in placed)


def _turned(sums: AnySums, found: RootMap, *, by_group: bool = False) -> AnySums:
    shift, groups = sums.shift, None
    if by_group:
        groups = sums.of_groups(lambda part: _turned(with_structure(part, sums.structure), found))
    if shift is not None:
        shift = replace(shift, ZY=found.transposed(shift.ZY))
    return replace(
        sums,
        ZX=found.transposed(sums.ZX),
        ZY=found.transposed(sums.ZY),
        ZZ=found.squared(sums.ZZ),
        structure=found.inner,
        shift=shift,
        groups=groups,
    )


def _turned_designs(designs: DesignSums, found: RootMap) -> DesignSums:
    """The designs of features with rows of their own; Z'WZ of each has all pairs of columns."""
    count, c = designs.count, found.inner.q
    rows, columns = np.triu_indices(c)
    ZX = np.empty((count, c, designs.p))
    ZZ = np.empty((count, rows.size))
    A = found.A
    step = max(1, 2**27 // (8 * max(designs.q, c) ** 2))
    for start in range(0, count, step):
        here = slice(start, min(start + step, count))
        ZX[here] = np.matmul(A.T, designs.ZX[here])
        ZZ[here] = np.matmul(A.T, np.matmul(designs.dense_ZZ(here), A))[:, rows, columns]
    return replace(designs, ZX=ZX, ZZ=ZZ, rows=rows, columns=columns)
