"""Quadratic forms and traces of an eliminated likelihood, and its T = Z'PZ times vectors.

Vectors are held in the directions of `flashmm.likelihood.elimination.layout`: of the finest
blocks as s planes (L, c, B), of the coarse blocks (B, q_c, c), of the border (B, q_z, c), c
vectors per feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashmm.arrays.namespaces import Array, namespace
from flashmm.likelihood.elimination import small
from flashmm.likelihood.elimination.eliminate import (
    Border,
    Coarse,
    Eliminated,
    Pattern,
    block_times,
    border_covariance,
    by_partner,
    covariance_planes,
    pattern,
)
from flashmm.likelihood.elimination.layout import Blocks, Layout
from flashmm.likelihood.elimination.small import Symmetric

__all__ = [
    "Directions",
    "Solved",
    "Traces",
    "apply",
    "derivative_times",
    "inner_products",
    "linear_score",
    "prior_less_known",
    "solve",
    "traces",
]


@dataclass(frozen=True)
class Directions:
    """Vectors: fine, s planes (L, c, B); coarse (B, q_c, c); border (B, q_z, c)."""

    fine: list[Array]
    coarse: Array
    border: Array

    def packed(self) -> Array:
        """All of them one below the other, shape (s L + q_c + q_z, c, B)."""
        xp = namespace(self.border)
        below = [xp.permute_dims(part, (1, 2, 0)) for part in (self.coarse, self.border)]
        return xp.concat([*self.fine, *below])

    @classmethod
    def of(cls, layout: Layout, packed: Array) -> Directions:
        """Take apart what `packed` put together."""
        xp, L, size = namespace(packed), layout.fine.L, layout.fine.size
        fine = [packed[i : i + L, :, :] for i in range(0, size, L)]
        rest = xp.permute_dims(packed[size:, :, :], (2, 0, 1))
        return cls(fine, rest[:, : layout.q_c, :], rest[:, layout.q_c :, :])


@dataclass(frozen=True)
class Solved:
    """What P makes of y.

    Parameters
    ----------
    r
        Z'Py in directions, c = 1.
    g
        Coefficients of W: V_1^-1(y - W g) = Py; shape (B, w).
    value
        y'Py, shape (B,).
    """

    r: Directions
    g: Array
    value: Array


@dataclass(frozen=True)
class Traces:
    """tr(P V_i), shape (B, k - 1), and tr(P V_i P V_j), shape (B, k - 1, k - 1)."""

    first: Array
    second: Array


def _transposed(matrix: Array) -> Array:
    return namespace(matrix).matrix_transpose(matrix)


def _flat(values: Array) -> Array:
    """The last two axes as one; either may be empty."""
    a, b, c = values.shape
    return namespace(values).reshape(values, (a, b * c))


def _times_fine(layout: Layout, vector: list[Array]) -> Array:
    """C'f for f in finest directions, shape (B, q_c + w, c)."""
    xp = namespace(vector[0])
    flat = xp.concat(vector)
    product = layout.C.transposed_times(_flat(flat))
    return xp.permute_dims(xp.reshape(product, (product.shape[0], *flat.shape[1:])), (2, 0, 1))


def _times_rest(layout: Layout, vector: Array) -> list[Array]:
    """C a for a (B, q_c + w, c), s planes of shape (L, c, B)."""
    xp, L = namespace(vector), layout.fine.L
    flat = xp.permute_dims(vector, (1, 2, 0))
    product = layout.C.times(_flat(flat))
    product = xp.reshape(product, (product.shape[0], *flat.shape[1:]))
    return [product[i : i + L, :, :] for i in range(0, layout.fine.size, L)]


def _fine_inverse(blocks: Eliminated, layout: Layout) -> small.Matrix:
    """F^-1 for planes with an axis of vectors."""
    return small.full([plane[:, None, :] for plane in blocks.inverse], layout.fine.s)


def _through(
    layout: Layout, blocks: Eliminated, border: Border, a: Array
) -> tuple[Array, Array, Array, Array]:
    """From a = A'V_F^-1 x: N_A a, what is left for the coarse and the border, and W'V_1^-1 x."""
    xp, q_c = namespace(a), layout.q_c
    coarse, a_c, a_w = blocks.coarse, a[:, :q_c, :], a[:, q_c:, :]
    if coarse is not None:
        a_w = a_w - xp.matmul(_transposed(coarse.K), a_c)
    g = xp.matmul(border.N, a_w)
    r_z = xp.matmul(_transposed(border.K), a_w)
    if coarse is None:
        return g, a_c, r_z, a_w
    s = layout.coarse.s
    top = block_times(small.full(coarse.G, s), a_c) - xp.matmul(coarse.K, g)
    r_c = block_times(coarse.H, a_c) - xp.matmul(coarse.E, g)
    return xp.concat([top, g], axis=1), r_c, r_z, a_w


def apply(layout: Layout, blocks: Eliminated, border: Border, x: Directions) -> Directions:
    """T x with T = Z'PZ, all in directions."""
    xp, q_c, q_z = namespace(x.border), layout.q_c, layout.q_z
    F, S = _fine_inverse(blocks, layout), blocks.fine
    a = _times_fine(layout, small.matvec(F, x.fine))
    a_w = a[:, q_c:, :]
    if q_z:
        a_w = a_w + xp.matmul(S.own[:, :, :q_z], x.border)
    a_c = a[:, :q_c, :]
    if q_c:
        a_c = a_c + block_times(small.full(S.coarse, layout.coarse.s), x.coarse)
        a_c = a_c + xp.matmul(S.coupling[:, :, :q_z], x.border)
        a_w = a_w + xp.matmul(_transposed(S.coupling), x.coarse)
    taken, r_c, r_z, _ = _through(layout, blocks, border, xp.concat([a_c, a_w], axis=1))
    nothing = xp.zeros_like(taken[:, q_c + q_z :, :])
    left = xp.concat([x.coarse, x.border, nothing], axis=1) - taken
    inner = [u + v for u, v in zip(x.fine, _times_rest(layout, left), strict=True)]
    return Directions(small.matvec(F, inner), r_c, r_z)


def solve(
    layout: Layout, blocks: Eliminated, border: Border, y: Directions, total: float
) -> Solved:
    """P y from y's directions [O, O_2, Z_z]'Ry (c = 1) and y'Ry."""
    xp, sigma2 = namespace(y.border), blocks.theta[:, -1]
    F = _fine_inverse(blocks, layout)
    Fy = small.matvec(F, y.fine)
    taken = _times_fine(layout, y.fine)
    nothing = xp.zeros_like(taken[:, y.coarse.shape[1] + y.border.shape[1] :, :])
    rest = xp.concat([y.coarse, y.border, nothing], axis=1) - taken
    a = rest * layout.unspanned[:, None] / sigma2[:, None, None] + _times_fine(layout, Fy)
    mine, theirs = [u[:, 0, :] for u in y.fine], [u[:, 0, :] for u in Fy]
    value = (total - _squares(mine, mine)) / sigma2 + _squares(mine, theirs)
    taken, r_c, r_z, a_w = _through(layout, blocks, border, a)
    inner = [u - v for u, v in zip(y.fine, _times_rest(layout, taken), strict=True)]
    g = taken[:, layout.q_c :, :]
    value = value - xp.sum(g * a_w, axis=(1, 2))
    if blocks.coarse is not None:
        a_c = a[:, : layout.q_c, :]
        top = block_times(small.full(blocks.coarse.G, layout.coarse.s), a_c)
        value = value - xp.sum(a_c * top, axis=(1, 2))
    return Solved(Directions(small.matvec(F, inner), r_c, r_z), g[:, :, 0], value)


def derivative_times(layout: Layout, r: Directions, k: int) -> Directions:
    """G_i r of the k parameters of D, side by side, for r with c = 1."""
    xp, fine, coarse = namespace(r.border), layout.fine, layout.coarse
    zeros = [xp.zeros_like(plane[:, 0, :]) for plane in r.fine]
    columns = [list(zeros) for _ in range(k)]
    second = [xp.zeros_like(r.coarse)] * k
    third = [xp.zeros_like(r.border)] * k
    mine = [plane[:, 0, :] for plane in r.fine]
    for a, i in enumerate(fine.parameters):
        columns[i] = small.matvec(small.full(_basis(fine, a), fine.s), mine)
    for a, i in enumerate(coarse.parameters):
        second[i] = block_times(small.full(_basis(coarse, a), coarse.s), r.coarse)
    for each in layout.border_parameters:
        third[each.position] = by_partner(r.border, each.partner, each.mask)
    planes = [xp.stack([column[a] for column in columns], axis=1) for a in range(fine.s)]
    return Directions(planes, xp.concat(second, axis=2), xp.concat(third, axis=2))


def inner_products(left: Directions, right: Directions) -> Array:
    """Inner products of the vectors of each feature, shape (B, c, c')."""
    xp = namespace(left.border)
    total = xp.matmul(_transposed(left.coarse), right.coarse)
    total = total + xp.matmul(_transposed(left.border), right.border)
    c, d = left.border.shape[2], right.border.shape[2]
    rows = [
        xp.stack(
            [
                _squares([u[:, i, :] for u in left.fine], [v[:, j, :] for v in right.fine])
                for j in range(d)
            ],
            axis=-1,
        )
        for i in range(c)
    ]
    return total + xp.stack(rows, axis=1)


def prior_less_known(layout: Layout, blocks: Eliminated, border: Border) -> Array:
    """Diagonal of D - D T D, shape (B, q); V^-1 for P if X was not eliminated."""
    xp, coarse = namespace(border.N), blocks.coarse
    X, X_coarse = _diagonal_blocks(layout, blocks, border)
    left = [a - b for a, b in zip(blocks.inverse, X, strict=True)]
    parts = _remaining(layout.fine, blocks.theta, left)
    if coarse is not None:
        left = [a - b for a, b in zip(coarse.T, X_coarse, strict=True)]
        parts += _remaining(layout.coarse, blocks.theta, left)
    if layout.q_z:
        D = border_covariance(layout, blocks.theta)
        D = D - xp.matmul(xp.matmul(D, border.T), D)
        parts.append(xp.permute_dims(xp.linalg.diagonal(D), (1, 0)))
    return xp.permute_dims(xp.take(xp.concat(parts), layout.place, axis=0), (1, 0))


def _remaining(blocks: Blocks, theta: Array, T: Symmetric) -> list[Array]:
    """Diagonal of D_l - D_l R_l T_l R_l'D_l, planes of shape (L, B)."""
    s = blocks.s
    D = small.full(covariance_planes(blocks, blocks.natural, theta), s)
    root = [[blocks.root[:, a, b, None] for b in range(s)] for a in range(s)]
    half = small.product(D, root)
    known = small.sandwich(half, T)
    return [D[a][a] - known[small.position(s, a, a)] for a in range(s)]


def _squares(left: list[Array], right: list[Array]) -> Array:
    """Inner products of vectors in finest directions (L, B), shape (B,)."""
    xp = namespace(left[0])
    products = [xp.sum(a * b, axis=0) for a, b in zip(left, right, strict=True)]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total


def _diagonal_blocks(
    layout: Layout, blocks: Eliminated, border: Border
) -> tuple[Symmetric, Symmetric]:
    """X and X_2 of T's diagonal blocks, F^-1 - X of the finest and T_2 - X_2 of the coarse."""
    xp, coarse = namespace(border.N), blocks.coarse
    parts = []
    N_coarse: Symmetric = []
    if coarse is not None:
        KN = xp.matmul(coarse.K, border.N)
        inside = _row_products(layout.coarse, KN, coarse.K)
        parts = [G + x for G, x in zip(coarse.G, inside, strict=True)]
        parts.append(-xp.permute_dims(_flat(KN), (1, 0)))
        EN = xp.matmul(coarse.E, border.N)
        N_coarse = _row_products(layout.coarse, EN, coarse.E)
    parts.append(xp.permute_dims(layout.triangle.pack(border.N), (1, 0)))
    packed = xp.concat(parts) * layout.multiplicity[:, None]
    flat, L = layout.outer.times(packed), layout.fine.L
    inner = [
        flat[i * L : (i + 1) * L, :] * (1.0 if a == b else 0.5)
        for i, (a, b) in enumerate(small.pairs(layout.fine.s))
    ]
    F = small.full(blocks.inverse, layout.fine.s)
    return small.sandwich(F, inner), N_coarse


def _row_products(blocks: Blocks, left: Array, right: Array) -> Symmetric:
    """Coarse blocks of the mean of L R' and R L', planes of shape (L2, B)."""
    xp, L = namespace(left), blocks.L
    rows = []
    for a, b in small.pairs(blocks.s):
        mine = left[:, a * L : (a + 1) * L, :]
        total = xp.sum(mine * right[:, b * L : (b + 1) * L, :], axis=2)
        if a != b:
            theirs = left[:, b * L : (b + 1) * L, :]
            total = 0.5 * (total + xp.sum(theirs * right[:, a * L : (a + 1) * L, :], axis=2))
        rows.append(xp.permute_dims(total, (1, 0)))
    return rows


class _Contraction:
    """tr(basis_i M_l) summed over the blocks, for all parameters i of some blocks."""

    def __init__(self, blocks: Blocks) -> None:
        xp = namespace(blocks.bases)
        k, count, L, *each = blocks.bases.shape
        twice = [1.0 if a == b else 2.0 for a, b in small.pairs(blocks.s)]
        scaled = [blocks.bases[:, i, :] * twice[i] for i in range(count)]
        self.weights = xp.reshape(xp.stack(scaled, axis=1), (k, count * L, *each))

    def __call__(self, matrix: Symmetric) -> Array:
        """Shape (k, B) for planes of shape (L, B)."""
        xp = namespace(self.weights)
        if len(self.weights.shape) == 3:  # each feature has bases of its own
            return xp.sum(self.weights * xp.concat(matrix), axis=1)
        return xp.matmul(self.weights, xp.concat(matrix))


def _basis(blocks: Blocks, i: int) -> Symmetric:
    """Planes (L, 1) of one parameter's basis, (L, B) where each feature has its own."""
    if len(blocks.bases.shape) == 4:
        return [blocks.bases[i, j] for j in range(blocks.bases.shape[1])]
    return [blocks.bases[i, j, :, None] for j in range(blocks.bases.shape[1])]


def _own_terms(
    inverse: Symmetric, taken: Symmetric, basis: Symmetric, s: int
) -> tuple[Symmetric, Symmetric]:
    """F D F and F D F - F D X - X D F for blocks with T = F - X."""
    F = small.full(inverse, s)
    FD = small.product(F, small.full(basis, s))
    whole = [_dot(FD[a], [F[k][b] for k in range(s)]) for a, b in small.pairs(s)]
    cross = small.product(FD, small.full(taken, s))
    own = [x - (cross[a][b] + cross[b][a]) for x, (a, b) in zip(whole, small.pairs(s), strict=True)]
    return whole, own


def _dot(left: list[Array], right: list[Array]) -> Array:
    return small.matvec([left], right)[0]


def _trace(left: Array, right: Array) -> Array:
    """tr(L R) of stacks of matrices, shape (B,)."""
    return namespace(left).sum(left * _transposed(right), axis=(1, 2))


def linear_score(
    layout: Layout, blocks: Eliminated, border: Border, r: Directions, k: int
) -> Array:
    """Derivatives of the log-likelihood by theta (B, k) of the finest blocks, zero for others."""
    X, _ = _diagonal_blocks(layout, blocks, border)
    first = _Contraction(layout.fine)([a - b for a, b in zip(blocks.inverse, X, strict=True)])
    planes = [plane[:, 0, :] for plane in r.fine]
    s = layout.fine.s
    outer = [planes[a] * planes[b] for a, b in small.pairs(s)]
    forms = _Contraction(layout.fine)(outer)
    score = np.zeros((r.border.shape[0], k))
    score[:, list(layout.fine.parameters)] = 0.5 * (forms - first).T
    return score


@dataclass(frozen=True)
class _Member:
    """A block parameter's part in the traces: its Y, (B, w, w), and for finest ones the rest."""

    position: int
    Y: Array
    pattern: Pattern | None = None
    Q: Array = None
    QN: Array = None


def traces(layout: Layout, blocks: Eliminated, border: Border) -> Traces:
    """tr(P V_i) and tr(P V_i P V_j) of D's parameters; V^-1 for P if X was not eliminated."""
    xp, N, k = namespace(border.N), border.N, blocks.theta.shape[1] - 1
    first: list[Array] = [None] * k
    second: dict[tuple[int, int], Array] = {}
    X, X_coarse = _diagonal_blocks(layout, blocks, border)
    fine, contract = layout.fine, _Contraction(layout.fine)
    left = contract([a - b for a, b in zip(blocks.inverse, X, strict=True)])
    members = []
    for a, i in enumerate(fine.parameters):
        first[i] = left[a, :]
        whole, own = _own_terms(blocks.inverse, X, _basis(fine, a), fine.s)
        local = contract(own)
        for b, j in enumerate(fine.parameters[: a + 1]):
            second[i, j] = local[b, :]
        members.append(_fine_member(layout, blocks, N, i, whole))
    if blocks.coarse is not None:
        members += _coarse_terms(layout, blocks.coarse, border, X_coarse, members, first, second)
    turned = [xp.matmul(N, member.Y) for member in members]
    for a, mine in enumerate(members):
        for b in range(a + 1):
            i, j = mine.position, members[b].position
            key = (i, j) if (i, j) in second else (j, i)
            second[key] = second[key] + _trace(turned[a], turned[b])
    _border_terms(layout, border, members, first, second)
    rows = [
        xp.stack([second[(i, j) if (i, j) in second else (j, i)] for j in range(k)], axis=-1)
        for i in range(k)
    ]
    return Traces(xp.stack(first, axis=-1), xp.stack(rows, axis=1))


def _fine_member(
    layout: Layout, blocks: Eliminated, N: Array, position: int, whole: Symmetric
) -> _Member:
    """Y = R'S_iR with S_i = A'V_F^-1 V_i V_F^-1 A, and for coarse blocks Q = [S_i R]_2 and Q N."""
    xp = namespace(N)
    S = pattern(layout, layout.outer.transposed_times(xp.concat(whole)))
    coarse = blocks.coarse
    if coarse is None:
        return _Member(position, S.own)
    SK = block_times(small.full(S.coarse, layout.coarse.s), coarse.K)
    Q = S.coupling - SK
    half = xp.matmul(_transposed(coarse.K), Q + 0.5 * SK)
    return _Member(position, S.own - half - _transposed(half), S, Q, xp.matmul(Q, N))


def _coarse_terms(
    layout: Layout,
    coarse: Coarse,
    border: Border,
    X: Symmetric,
    fine: list[_Member],
    first: list[Array],
    second: dict[tuple[int, int], Array],
) -> list[_Member]:
    """Add what the coarse blocks contribute; returns their own parameters' members."""
    xp, blocks, s = namespace(border.N), layout.coarse, layout.coarse.s
    contract = _Contraction(blocks)
    G, H = small.full(coarse.G, s), coarse.H
    left = contract([a - b for a, b in zip(coarse.T, X, strict=True)])
    for a, mine in enumerate(fine):
        assert mine.pattern is not None
        GSG = small.sandwich(G, mine.pattern.coarse)
        for other in fine[: a + 1]:
            assert other.pattern is not None
            total = _inner(GSG, other.pattern.coarse, s)
            total = total + 2.0 * xp.sum(block_times(G, other.Q) * mine.QN, axis=(1, 2))
            second[mine.position, other.position] = second[mine.position, other.position] + total
        mixed = _row_products(blocks, block_times(H, mine.QN), coarse.E)
        HSH = small.sandwich(H, mine.pattern.coarse)
        local = contract([x - 2.0 * y for x, y in zip(HSH, mixed, strict=True)])
        for b, j in enumerate(blocks.parameters):
            second[mine.position, j] = local[b, :]
    members = []
    for a, i in enumerate(blocks.parameters):
        first[i] = left[a, :]
        basis = _basis(blocks, a)
        _, own = _own_terms(coarse.T, X, basis, s)
        local = contract(own)
        for b, j in enumerate(blocks.parameters[: a + 1]):
            second[i, j] = local[b, :]
        Y = xp.matmul(_transposed(coarse.E), block_times(small.full(basis, s), coarse.E))
        members.append(_Member(i, Y))
    return members


def _inner(left: Symmetric, right: Symmetric, s: int) -> Array:
    """Sum over blocks of tr(L R), shape (B,)."""
    xp = namespace(left[0])
    total = None
    for x, y, (a, b) in zip(left, right, small.pairs(s), strict=True):
        part = xp.sum(x * y, axis=0) * (1.0 if a == b else 2.0)
        total = part if total is None else total + part
    return total


def _border_terms(
    layout: Layout,
    border: Border,
    members: list[_Member],
    first: list[Array],
    second: dict[tuple[int, int], Array],
) -> None:
    xp, T, K = namespace(border.T), border.T, border.K
    products = [by_partner(T, each.partner, each.mask) for each in layout.border_parameters]
    for a, mine in enumerate(layout.border_parameters):
        first[mine.position] = xp.sum(xp.linalg.diagonal(products[a]), axis=-1)
        for b, other in enumerate(layout.border_parameters[: a + 1]):
            second[mine.position, other.position] = _trace(products[a], products[b])
    if not layout.border_parameters:
        return
    for member in members:
        YK = xp.matmul(member.Y, K)
        for each in layout.border_parameters:
            partner = xp.take(K, each.partner, axis=2)
            second[member.position, each.position] = xp.sum(
                xp.sum(YK * partner, axis=1) * each.mask, axis=-1
            )
