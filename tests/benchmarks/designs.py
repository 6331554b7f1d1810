"""Data for the benchmarks: designs of the shapes people use, responses drawn from the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from flashmm import SummaryStats
from flashmm.designs.design import CovarianceStructure, RandomTerm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

# Up to this many columns of [X, Z] the sums over samples are drawn themselves, at a cost free
# of n: their covariance needs an eigendecomposition. Beyond, responses are drawn and summed.
GRAM_LIMIT = 2000
BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class Term:
    """A random term: ``(1 | name)``, or ``(1 + slope | name)`` when it has a slope.

    Parameters
    ----------
    name
        Grouping factor.
    codes
        Level of each sample, shape (n,).
    n_levels
        Number of levels.
    slope
        Values of the covariate, shape (n,); None for an intercept alone.
    ratio
        Typical variance of the effects over the residual variance.
    share_zero
        Share of the features in which the variance is zero.
    """

    name: str
    codes: IntArray
    n_levels: int
    slope: FloatArray | None = None
    ratio: float = 0.2
    share_zero: float = 0.0

    @property
    def n_effects(self) -> int:
        """Effects per level."""
        return 1 if self.slope is None else 2

    @property
    def n_columns(self) -> int:
        """Columns of Z."""
        return self.n_levels * self.n_effects

    def columns(self) -> sp.csr_array:
        """This term's columns of Z, ordered level by level, shape (n, n_columns)."""
        n, s = self.codes.size, self.n_effects
        values = np.ones((n, s))
        if self.slope is not None:
            values[:, 1] = self.slope
        positions = self.codes[:, None] * s + np.arange(s)
        rows = np.arange(0, n * s + 1, s)
        return sp.csr_array((values.ravel(), positions.ravel(), rows), shape=(n, self.n_columns))

    def random_term(self) -> RandomTerm:
        """Its description for flashmm."""
        levels = tuple(str(level) for level in range(self.n_levels))
        effects = ("Intercept",) if self.slope is None else ("Intercept", "slope")
        return RandomTerm(self.name, self.name, levels, effects=effects)

    def effects(self, m: int, rng: np.random.Generator) -> FloatArray:
        """Random effects of m features with unit residual variance, shape (n_columns, m)."""
        spread = np.sqrt(self.ratio) * np.exp(rng.normal(scale=0.35, size=m))
        spread[rng.random(m) < self.share_zero] = 0.0
        drawn = rng.normal(size=(self.n_levels, self.n_effects, m))
        if self.slope is not None:
            drawn[:, 1] = 0.5 * (0.3 * drawn[:, 0] + np.sqrt(1 - 0.3**2) * drawn[:, 1])
        return np.asarray((spread * drawn).reshape(self.n_columns, m))


@dataclass(frozen=True)
class Data:
    """A design and a few responses, for peers that need the samples.

    Parameters
    ----------
    X
        Fixed effects, shape (n, p).
    terms
        Random terms.
    Y
        Responses, shape (k, n).
    """

    X: FloatArray
    terms: tuple[Term, ...]
    Y: FloatArray

    @property
    def n(self) -> int:
        """Number of samples."""
        return int(self.X.shape[0])

    def Z(self) -> sp.csr_array:
        """Random effects, shape (n, q)."""
        return sp.csr_array(sp.hstack([term.columns() for term in self.terms], format="csr"))

    def structure(self) -> CovarianceStructure:
        """Covariance structure over the columns of Z."""
        return CovarianceStructure(tuple(term.random_term() for term in self.terms))

    def stats(self) -> SummaryStats:
        """Statistics of the responses."""
        return SummaryStats.from_arrays(self.Y, self.X, self.Z(), components=self.structure())


def with_responses(
    X: FloatArray, terms: tuple[Term, ...], k: int, rng: np.random.Generator
) -> Data:
    """A design with k responses drawn from the model."""
    data = Data(X, terms, np.empty((0, X.shape[0])))
    effects, sigma = _effects(data, k, rng)
    return replace(data, Y=_responses(data, data.Z(), effects, sigma, rng))


def with_more_features(data: Data, m: int, rng: np.random.Generator) -> SummaryStats:
    """Statistics of the responses of ``data`` and, after them, of others drawn up to m."""
    stats = data.stats()
    assert stats.shift is None
    more = m - stats.m
    if more <= 0:
        return stats
    effects, sigma = _effects(data, more, rng)
    if stats.p + stats.q <= GRAM_LIMIT:
        sums, squares = drawn_sums(stats, effects, sigma, rng)
    else:
        sums, squares = summed_responses(data, effects, sigma, rng)
    return replace(
        stats,
        XY=np.hstack([stats.XY, sums[: stats.p]]),
        ZY=np.hstack([stats.ZY, sums[stats.p :]]),
        yy=np.concatenate([stats.yy, squares]),
        feature_names=None,
    )


def _effects(data: Data, m: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Effects (p + q, m) and residual standard deviations (m,) of m features."""
    sigma = np.exp(rng.normal(scale=0.3, size=m))
    beta = 0.1 * rng.normal(size=(data.X.shape[1], m))
    random = [term.effects(m, rng) for term in data.terms]
    return np.vstack([beta, *random]) * sigma, sigma


def _responses(
    data: Data, Z: sp.csr_array, effects: FloatArray, sigma: FloatArray, rng: np.random.Generator
) -> FloatArray:
    p = data.X.shape[1]
    noise = sigma[:, None] * rng.normal(size=(sigma.size, data.n))
    return np.asarray((data.X @ effects[:p]).T + (Z @ effects[p:]).T + noise)


def summed_responses(
    data: Data, effects: FloatArray, sigma: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """[X, Z]'y (p + q, m) and y'y (m,) of responses that are drawn, summed and forgotten."""
    Z, m = data.Z(), sigma.size
    sums, squares = np.empty_like(effects), np.empty(m)
    size = max(1, BLOCK_BYTES // (8 * data.n))
    for start in range(0, m, size):
        block = slice(start, start + size)
        Y = _responses(data, Z, effects[:, block], sigma[block], rng)
        sums[:, block] = np.vstack([data.X.T @ Y.T, Z.T @ Y.T])
        squares[block] = (Y * Y).sum(axis=1)
    return sums, squares


def drawn_sums(
    stats: SummaryStats, effects: FloatArray, sigma: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """The same in law, drawn without the samples.

    With W = [X, Z], W'e is normal with covariance sigma^2 W'W, and what e'e has beyond the
    span of W is sigma^2 times a chi-square on n - rank(W) degrees of freedom.
    """
    gram = np.block([[stats.XX, stats.ZX.T], [stats.ZX, stats.ZZ.toarray()]])
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * values[-1]
    root = vectors[:, kept] * np.sqrt(values[kept])
    noise = sigma * rng.normal(size=(root.shape[1], sigma.size))
    beyond = sigma**2 * rng.chisquare(stats.n - root.shape[1], size=sigma.size)
    noise_sums, fitted = root @ noise, gram @ effects
    squares = (effects * (fitted + 2.0 * noise_sums)).sum(axis=0)
    return fitted + noise_sums, squares + (noise**2).sum(axis=0) + beyond


def cells(
    n: int, donors: int, types: int, rng: np.random.Generator, *, batches: int = 0
) -> tuple[FloatArray, tuple[Term, ...]]:
    """Cells of donors in two groups: the shape of the FLASHMM paper's tuberculosis study.

    X holds log library size, age, sex, season, one column per cell type and one per cell type
    under treatment: p = 4 + 2 types. One random effect per donor and, if asked for, one per
    batch, crossed with the donors. Donors and types are unbalanced; every donor has every type
    as long as n allows.
    """
    donor = rng.choice(donors, size=n, p=rng.dirichlet(np.full(donors, 5.0)))
    kind = rng.choice(types, size=n, p=rng.dirichlet(np.full(types, 2.0)))
    every = np.arange(min(donors * types, n))
    donor[every], kind[every] = every % donors, every // donors % types
    treated = np.arange(donors) % 2
    age, sex, season = rng.normal(40, 12, donors), rng.integers(0, 2, donors), rng.random(donors)
    indicator = np.eye(types)[kind]
    X = np.column_stack(
        [
            rng.normal(8.0, 0.5, n),
            age[donor],
            sex[donor],
            season[donor],
            indicator,
            indicator * treated[donor][:, None],
        ]
    )
    terms = [Term("donor", donor, donors, ratio=0.1)]
    if batches:
        terms.append(Term("batch", rng.integers(0, batches, n), batches, ratio=0.05))
    return X, tuple(terms)


def nested_cells(
    n: int, donors: int, types: int, rng: np.random.Generator
) -> tuple[FloatArray, tuple[Term, ...]]:
    """The same cells with ``(1 | donor/type)``: every type within every donor."""
    X, (donor,) = cells(n, donors, types, rng)
    kind = X[:, 4 : 4 + types].argmax(axis=1)
    within = Term("donor:type", donor.codes * types + kind, donors * types, ratio=0.05)
    return X, (donor, within)


def groups(
    n: int, levels: tuple[int, ...], rng: np.random.Generator, *, slope: bool = False
) -> tuple[FloatArray, tuple[Term, ...]]:
    """Crossed factors; X = intercept, a covariate of the first factor's levels, two of samples."""
    codes = [np.concatenate([np.arange(c), rng.integers(0, c, n - c)]) for c in levels]
    codes = [codes[0], *(rng.permutation(c) for c in codes[1:])]
    between = rng.normal(size=levels[0])[codes[0]]
    X = np.column_stack([np.ones(n), between, rng.normal(size=(n, 2))])
    terms = [
        Term(f"g{i + 1}", code, count, slope=X[:, 2] if slope else None)
        for i, (code, count) in enumerate(zip(codes, levels, strict=True))
    ]
    return X, tuple(terms)


def tissues(rng: np.random.Generator) -> tuple[FloatArray, tuple[Term, ...]]:
    """100 samples of 25 individuals, 3 tissues and 4 batches, crossed; X = intercept and age.

    The shape of the example that variancePartition (Hoffman & Schadt 2016) ships. Many
    variances are zero, as there.
    """
    individual = np.tile(np.arange(25), 4)
    age = rng.normal(40.0, 10.0, 100)
    X = np.column_stack([np.ones(100), age])
    return X, (
        Term("individual", individual, 25, ratio=1.0, share_zero=0.2),
        Term("tissue", rng.permutation(np.arange(100) % 3), 3, ratio=0.5, share_zero=0.3),
        Term("batch", rng.permutation(np.arange(100) % 4), 4, ratio=0.1, share_zero=0.5),
    )


def ratings(
    n: int, students: int, teachers: int, rng: np.random.Generator
) -> tuple[FloatArray, tuple[Term, ...]]:
    """Students rate teachers of 14 departments, inside or outside their own: lme4's InstEval.

    Crossed and unbalanced: few ratings of some teachers, hundreds of others. X = intercept and
    service; random effects of students, teachers and department x service.
    """
    department = np.arange(teachers) % 14
    popularity = rng.gamma(0.7, size=teachers) + 0.01
    student = np.concatenate([np.arange(students), rng.integers(0, students, n - students)])
    first = np.arange(min(teachers, n))
    teacher = rng.choice(teachers, size=n, p=popularity / popularity.sum())
    teacher[first] = first
    service = (department[student % teachers] != department[teacher]).astype(np.float64)
    X = np.column_stack([np.ones(n), service])
    both = department[teacher] * 2 + service.astype(np.int64)
    return X, (
        Term("student", student, students, ratio=0.07),
        Term("teacher", teacher, teachers, ratio=0.17),
        Term("department_service", both, 28, ratio=0.02),
    )
