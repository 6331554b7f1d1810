"""The design of a model: X, Z, their labels, and the covariance structure D(theta).

D(theta) = sum_i theta_i G_i with known symmetric G_i. Each random term owns a run of
columns of Z, ordered level by level: column ``level * n_effects + effect``. Over the
levels of a term, D repeats one small block.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from flashmm.arrays.namespaces import Array, namespace
from flashmm.arrays.types import FloatArray
from flashmm.designs.compact import CompactMatrix, LayeredMatrix
from flashmm.designs.curves import CURVED, CurvedParameters, Decay, Heterogeneous, distances
from flashmm.designs.known_root import KnownRoot
from flashmm.exceptions import InputError, listing

__all__ = ["CovarianceParameter", "CovarianceStructure", "Design", "RandomTerm"]

RESIDUAL = "Residual"
INTERCEPT = "Intercept"


@dataclass(frozen=True)
class RandomTerm:
    """One random-effects term: a block of columns of Z and the shape of its covariance.

    Parameters
    ----------
    name
        Label of the term, unique in the model, e.g. ``"Subject"``.
    group
        Grouping factor, e.g. ``"Subject"`` or ``"batch:cask"``.
    levels
        The L levels of the grouping factor, in the order of the columns of Z.
    effects
        The s effects that each level has, e.g. ``("Intercept", "Days")``.
    covariance
        ``"full"``: an s x s covariance matrix (variances and covariances);
        ``"diagonal"``: one variance per effect, no covariances;
        ``"identity"``: one variance for all columns of the term;
        ``"cs"``: one variance and one covariance for all pairs of effects (compound symmetry). The
        columns of Z are those of the effects times `turn`, in which the covariance is diagonal;
        ``"ar1"``, ``"exp"``: one variance and a correlation that falls with the distance between
        the positions of two effects, see `flashmm.designs.curves`; theta holds the covariances at
        each distance; ``"csh"``: compound symmetry with a variance per effect; theta as ``"full"``.
    root
        Root of the known covariance between the levels; None where they are independent.
    positions
        Where the effects of ``"ar1"`` (times) and ``"exp"`` lie, ascending; empty for others.
    unit
        What distances of positions are counted in, where those are of dates or durations:
        ``"days"``, ``"steps of 7 days"``.
    """

    name: str
    group: str
    levels: tuple[str, ...]
    effects: tuple[str, ...] = (INTERCEPT,)
    covariance: Literal["full", "diagonal", "identity", "cs", "ar1", "exp", "csh"] = "full"
    root: KnownRoot | None = None
    positions: tuple[float, ...] = ()
    unit: str = ""

    @property
    def turn(self) -> FloatArray | None:
        """H of effects b = H u with u independent, symmetric and orthogonal, (s, s); None for I.

        The first column is constant: u_1 is the mean of the effects times the root of s. A
        covariance matrix with v on the diagonal and c elsewhere has the eigenvalue v + (s - 1) c
        there and v - c in all other directions.
        """
        if self.covariance != "cs":
            return None
        s = len(self.effects)
        u = np.full(s, -1.0 / np.sqrt(s))
        u[0] += 1.0
        return np.asarray(np.eye(s) - 2.0 * np.outer(u, u) / (u @ u))

    @property
    def is_whole(self) -> bool:
        """Whether the effects belong together, so that none can go alone."""
        return self.covariance in ("identity", "cs", *CURVED)

    @property
    def is_full(self) -> bool:
        """Whether theta holds a whole covariance matrix of the effects."""
        return self.covariance in ("full", "csh")

    @property
    def curve(self) -> Decay | Heterogeneous | None:
        """How theta follows from the term's own parameters; None where they are theta."""
        if self.covariance not in CURVED:
            return None
        if self.covariance == "csh":
            return Heterogeneous(len(self.effects))
        apart, _ = distances(self.positions)
        lowest = -1.0 if self.covariance == "ar1" else 0.0
        return Decay(tuple((apart / apart[1]).tolist()), lowest)

    @property
    def n_columns(self) -> int:
        """Columns of Z that belong to this term, L * s."""
        return len(self.levels) * len(self.effects)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Labels of the columns: ``Subject[308]``, or ``Subject[308]:Days`` for a slope."""
        return self.columns_of(self.group)

    def columns_of(self, prefix: str) -> tuple[str, ...]:
        """Labels of the columns that start with something else than the group."""
        return tuple(
            f"{prefix}[{level}]" + ("" if effect == INTERCEPT else f":{effect}")
            for level in self.levels
            for effect in self.effects
        )


@dataclass(frozen=True)
class CovarianceParameter:
    """One parameter of D: a variance (``row == column``) or a covariance of a term.

    Parameters
    ----------
    name
        ``"Subject"``, ``"Subject[Days]"`` or ``"Subject[Intercept,Days]"``.
    term
        Position of the term in the model.
    row, column
        Positions of the two effects within the term; -1, -1 stands for all of them
        (an identity covariance), -2, -2 for all but the first (the deviations of a ``"cs"`` term),
        -3 - d, -3 for all pairs of effects with the d-th distance of ``"ar1"`` and ``"exp"``.
    """

    name: str
    term: int
    row: int
    column: int

    @property
    def is_variance(self) -> bool:
        """Whether the parameter is a variance, not a covariance."""
        return self.row == self.column


def _prefix(term: RandomTerm) -> str:
    """What parameter names start with: the group, or the name that the user gave the term."""
    own = term.name.removesuffix(f"[{term.effects[0]}]") if len(term.effects) == 1 else term.name
    return term.group if own.startswith(f"{term.group}[") else own


def _term_parameters(position: int, term: RandomTerm) -> list[CovarianceParameter]:
    effects = term.effects
    if term.covariance == "identity":
        return [CovarianceParameter(term.name, position, -1, -1)]
    if term.covariance == "cs":
        return [
            CovarianceParameter(f"{term.name}[cs:mean]", position, 0, 0),
            CovarianceParameter(f"{term.name}[cs:deviation]", position, -2, -2),
        ]
    if term.covariance in ("ar1", "exp"):
        what = "lag" if term.covariance == "ar1" else "distance"
        apart = distances(term.positions)[0][1:].tolist()
        labels = [f"{value:.6g}" for value in apart]
        if len(set(labels)) < len(labels):
            labels = [f"{value:.15g}" for value in apart]
        return [
            CovarianceParameter(term.name, position, -1, -1),
            *(
                CovarianceParameter(f"{term.name}[{what} {label}]", position, -3 - d, -3)
                for d, label in enumerate(labels, 1)
            ),
        ]
    if effects == (INTERCEPT,):
        return [CovarianceParameter(term.name, position, 0, 0)]
    prefix = _prefix(term)
    parameters = [
        CovarianceParameter(f"{prefix}[{effect}]", position, a, a)
        for a, effect in enumerate(effects)
    ]
    if term.is_full:
        parameters += [
            CovarianceParameter(f"{prefix}[{effects[a]},{effects[b]}]", position, a, b)
            for a in range(len(effects))
            for b in range(a + 1, len(effects))
        ]
    return parameters


@dataclass(frozen=True)
class CovarianceStructure:
    """D(theta) = sum_i theta_i G_i over the random terms of a model.

    theta has one entry per parameter of D and, last, the residual variance.

    Parameters
    ----------
    terms
        The random terms, in the order of their columns in Z.
    residuals
        Names of the residual variances; several where groups of samples have their own.
    residual_sizes
        Samples of each such group; empty where there is one variance.

    Raises
    ------
    InputError
        If two parameters carry the same name (the same term twice).
    """

    terms: tuple[RandomTerm, ...]
    residuals: tuple[str, ...] = (RESIDUAL,)
    residual_sizes: tuple[int, ...] = ()
    parameters: tuple[CovarianceParameter, ...] = field(init=False)
    offsets: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        parameters = [
            parameter
            for position, term in enumerate(self.terms)
            for parameter in _term_parameters(position, term)
        ]
        names = [*(parameter.name for parameter in parameters), *self.residuals]
        repeated = [name for name, count in Counter(names).items() if count > 1]
        taken = [name for name in repeated if name in self.residuals]
        if taken:
            raise InputError(
                f"A random component has the name {taken[0]!r}, which is that of the residual "
                "variance. Rename the column it is made of, or give the components other names "
                "with a dict."
            )
        if repeated:
            raise InputError(
                f"`random` holds the same variance component more than once: {listing(repeated)}. "
                "Remove the repeated term, or name the components with a dict."
            )
        sizes = [term.n_columns for term in self.terms]
        object.__setattr__(self, "parameters", tuple(parameters))
        object.__setattr__(self, "offsets", tuple(int(x) for x in np.cumsum([0, *sizes])))

    @property
    def q(self) -> int:
        """Number of columns of Z."""
        return self.offsets[-1]

    @property
    def param_names(self) -> tuple[str, ...]:
        """Names of the entries of theta, the residual variance last."""
        return (*(parameter.name for parameter in self.parameters), *self.residuals)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Labels of the columns of Z.

        They start with the group, or with the term where terms share a group and an effect.
        """
        owned = Counter((term.group, effect) for term in self.terms for effect in term.effects)
        twice = {group for (group, _), count in owned.items() if count > 1}
        return tuple(
            name
            for term in self.terms
            for name in term.columns_of(term.name if term.group in twice else term.group)
        )

    @property
    def level_of_columns(self) -> NDArray[np.intp]:
        """Number of the level, counted over all terms, that each column of Z is of, shape (q,)."""
        sizes = [len(term.effects) for term in self.terms for _ in term.levels]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def has_roots(self) -> bool:
        """Whether a term has a known covariance between its levels."""
        return any(term.root is not None for term in self.terms)

    @property
    def is_variance(self) -> NDArray[np.bool_]:
        """Which entries of theta are variances, shape (n_params,)."""
        of_D = [parameter.is_variance for parameter in self.parameters]
        return np.array(of_D + [True] * len(self.residuals))

    def column_labels(self) -> dict[str, list[str]]:
        """Term, group, level and effect of each column of Z, each a list of length q."""
        labels: dict[str, list[str]] = {"term": [], "group": [], "group_level": [], "effect": []}
        for term in self.terms:
            for level in term.levels:
                for effect in term.effects:
                    for key, value in zip(
                        labels, (term.name, term.group, level, effect), strict=True
                    ):
                        labels[key].append(value)
        return labels

    def slices(self, parameter: CovarianceParameter) -> list[tuple[slice, slice]]:
        """Rows and columns of the ones of G_i in its upper block triangle, as pairs of slices."""
        term = self.terms[parameter.term]
        start, stop = self.offsets[parameter.term], self.offsets[parameter.term + 1]
        s = len(term.effects)
        if parameter.row == -1:
            return [(slice(start, stop), slice(start, stop))]
        if parameter.row == -2:
            return [(own, own) for own in (slice(start + e, stop, s) for e in range(1, s))]
        if parameter.row < -2:
            _, which = distances(term.positions)
            return [
                (slice(start + a, stop, s), slice(start + b, stop, s))
                for a, b in zip(*np.nonzero(np.triu(which == -3 - parameter.row)), strict=True)
            ]
        return [
            (slice(start + parameter.row, stop, s), slice(start + parameter.column, stop, s)),
        ]

    def columns(self, parameter: CovarianceParameter) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the ones of G_i in its upper block triangle, each shape (L,)."""
        pairs = self.slices(parameter)
        if len(pairs) == 1:
            first, second = pairs[0]
            rows = np.arange(first.start, first.stop, first.step)
            if second == first:
                return rows, rows
            return rows, np.arange(second.start, second.stop, second.step)
        rows, columns = (
            np.concatenate([np.arange(s.start, s.stop, s.step) for s in side])
            for side in zip(*pairs, strict=True)
        )
        return rows, columns

    @property
    def turned(self) -> bool:
        """Whether the columns of Z of some term are other directions of its effects."""
        return any(term.covariance == "cs" for term in self.terms)

    def turn(self) -> sp.csr_array:
        """Q of effects b = Q u, u those of the columns of Z, symmetric and orthogonal, (q, q)."""
        blocks = [
            sp.kron(sp.eye_array(len(term.levels)), sp.csr_array(turn))
            if (turn := term.turn) is not None
            else sp.eye_array(term.n_columns)
            for term in self.terms
        ]
        return sp.csr_array(sp.block_diag(blocks)) if blocks else sp.csr_array((0, 0))

    def multiply(self, theta: Array, vectors: Array) -> Array:
        """D(theta_j) v_j for every feature j: theta (m, n_params), vectors and result (m, q)."""
        result = namespace(vectors).zeros_like(vectors)
        for i, parameter in enumerate(self.parameters):
            weight = theta[:, i, None]
            for rows, columns in self.slices(parameter):
                result[:, rows] += weight * vectors[:, columns]
                if not parameter.is_variance:
                    result[:, columns] += weight * vectors[:, rows]
        return result

    def effect_covariance(self, theta: FloatArray, position: int) -> FloatArray:
        """Covariance matrices (..., s, s) of the effects of a level of a term, theta (..., k)."""
        term = self.terms[position]
        s = len(term.effects)
        result = np.zeros((*theta.shape[:-1], s, s))
        every = np.arange(s)
        for i, parameter in enumerate(self.parameters):
            if parameter.term != position:
                continue
            if parameter.row < -2:
                here = distances(term.positions)[1] == -3 - parameter.row
                result[..., here] = theta[..., i, None]
            elif parameter.row < 0:
                own = every if parameter.row == -1 else every[1:]
                result[..., own, own] = theta[..., i, None]
            else:
                result[..., parameter.row, parameter.column] = theta[..., i]
                result[..., parameter.column, parameter.row] = theta[..., i]
        turn = term.turn
        return result if turn is None else np.asarray(turn @ result @ turn)

    def blocks(self) -> list[NDArray[np.intp]]:
        """Per covariance block, the (s, s) positions in theta of its entries; -1 for a zero.

        An identity or diagonal term gives one 1 x 1 block per variance, and so does each residual
        variance but the last.
        """
        blocks: list[NDArray[np.intp]] = []
        for position, term in enumerate(self.terms):
            owned = [(i, p) for i, p in enumerate(self.parameters) if p.term == position]
            if term.covariance in ("ar1", "exp"):
                blocks.append(owned[0][0] + distances(term.positions)[1])
            elif term.is_full and len(term.effects) > 1:
                block = np.full((len(term.effects),) * 2, -1, dtype=np.intp)
                for i, p in owned:
                    block[p.row, p.column] = block[p.column, p.row] = i
                blocks.append(block)
            else:
                blocks += [np.array([[i]], dtype=np.intp) for i, _ in owned]
        first = len(self.parameters)
        blocks += [np.array([[first + h]], dtype=np.intp) for h in range(len(self.residuals) - 1)]
        return blocks

    def block_columns(self) -> list[list[NDArray[np.intp]]]:
        """Per covariance block of D the columns of Z of each of its effects."""
        found = []
        for block in self.blocks():
            if block[0, 0] >= len(self.parameters):
                continue
            first = self.parameters[block[0, 0]]
            if self.terms[first.term].positions:
                start, stop = self.offsets[first.term], self.offsets[first.term + 1]
                s = block.shape[0]
                found.append([np.arange(start + effect, stop, s) for effect in range(s)])
            else:
                found.append([self.columns(self.parameters[i])[0] for i in np.diag(block)])
        return found

    def block_levels(self) -> list[int]:
        """How often each of the `blocks` is repeated along the diagonal of D."""
        k = len(self.parameters)
        of_D = [block[0, 0] for block in self.blocks() if block[0, 0] < k]
        sizes = [int(self.columns(self.parameters[i])[0].size) for i in of_D]
        return sizes + list(self.residual_sizes[:-1])

    @property
    def curved(self) -> CurvedParameters | None:
        """The own parameters of the terms; None where theta is all of them."""
        curves = tuple(term.curve for term in self.terms)
        if all(curve is None for curve in curves):
            return None
        owners = Counter(parameter.term for parameter in self.parameters)
        sizes = tuple(owners[position] for position in range(len(self.terms)))
        return CurvedParameters(curves, sizes, len(self.residuals))

    def own_blocks(self) -> list[NDArray[np.intp]]:
        """Positive semi-definite blocks of own parameters, as `blocks`; correlations are in none.

        The last residual variance is among them.
        """
        curved = self.curved
        assert curved is not None
        place: dict[int, int] = {}
        blocks: list[NDArray[np.intp]] = []
        for curve, linear, own in curved.parts():
            if curve is None:
                pairs = zip(
                    range(linear.start, linear.stop), range(own.start, own.stop), strict=True
                )
                place |= dict(pairs)
            else:
                blocks += [np.array([[own.start + i]]) for i in np.flatnonzero(curve.is_cone)]
        for block in self.blocks():
            if int(block[0, 0]) in place:
                blocks.append(np.array([[place[int(i)] for i in row] for row in block]))
        return [*blocks, np.array([[curved.k - 1]])]

    @property
    def own_names(self) -> tuple[str, ...]:
        """Names of the own parameters, residual variances last."""
        names: list[str] = []
        for position, term in enumerate(self.terms):
            own = [p.name for p in self.parameters if p.term == position]
            if isinstance(term.curve, Decay):
                own = own[:1]
            elif term.curve is not None:
                own = own[: len(term.effects)]
            names += own if term.curve is None else [*own, f"{term.name}[rho]"]
        return (*names, *self.residuals)

    @property
    def n_own(self) -> int:
        """Number of own parameters, residual variances included."""
        curved = self.curved
        return len(self.param_names) if curved is None else curved.k


@dataclass(frozen=True)
class Design:
    """Design matrices and labels that all features share.

    Parameters
    ----------
    X
        Fixed-effects design, shape (n, p); of many samples in compact form, which gives rows
        when it is indexed by samples, as the matrix does.
    Z
        Random-effects design, sparse, shape (n, q); of many samples in compact form too.
    coef_names
        Names of the p fixed effects.
    structure
        The random terms and their covariance.
    fixed, random
        The formulas as text, for printing; empty when built from arrays.
    recipe
        How X and Z are made of new data, see `flashmm.formulas.new_data_recipe`; None when built
        from arrays.
    offset
        Known part of the mean of every feature, shape (n,), which is taken off Y before anything
        is summed; None for zero.
    """

    X: FloatArray | CompactMatrix
    Z: sp.csr_array | LayeredMatrix
    coef_names: tuple[str, ...]
    structure: CovarianceStructure
    fixed: str = ""
    random: str = ""
    recipe: Any = None
    offset: FloatArray | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.X.shape[0])
