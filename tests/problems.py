"""Small problems for the tests of likelihoods and solvers, and an n x n yardstick for them.

A `Problem` is a design and a covariance structure; `PROBLEMS` has one of each kind, and
`random_problem` draws more of a kind. `dense` computes everything that the package computes,
from V itself: slow, plain, and in other coordinates than `flashmm.likelihood`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from flashmm import MultiLMM, SummaryStats
from flashmm.designs.design import CovarianceStructure
from flashmm.designs.from_arrays import as_structure
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.likelihood import ENGINES, Evaluation, Projection, make_likelihood, project
from flashmm.solvers.space import PSD

FloatArray = NDArray[np.float64]
METHODS = ("REML", "ML")


@dataclass(frozen=True, eq=False)
class Problem:
    """A design: X (n, p), Z (n, q) and the structure of D; its kind and the seed it came from."""

    kind: str
    X: FloatArray
    Z: FloatArray
    structure: CovarianceStructure
    seed: int

    def __repr__(self) -> str:
        return f"random_problem({self.kind!r}, {self.seed})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        printer.text(repr(self))  # what hypothesis prints

    @property
    def n(self) -> int:
        return self.X.shape[0]

    @property
    def p(self) -> int:
        return self.X.shape[1]

    @property
    def n_params(self) -> int:
        return len(self.structure.param_names)

    def block(self, theta: FloatArray, position: int) -> FloatArray:
        """The covariance matrix of one level of a term, (s, s); not by the structure's methods."""
        term = self.structure.terms[position]
        s = len(term.effects)
        matrix = np.zeros((s, s))
        for value, parameter in zip(theta, self.structure.parameters, strict=False):
            if parameter.term != position:
                continue
            if term.covariance == "identity":
                matrix = value * np.eye(s)
            elif term.covariance == "cs":
                # The eigenvalues of the constant vector and of those orthogonal to it.
                constant = np.full((s, s), 1.0 / s)
                matrix += value * (constant if parameter.row == 0 else np.eye(s) - constant)
            elif term.positions:  # a covariance at each distance, in the order of the distances
                at = np.array(term.positions)
                apart = np.abs(at[:, None] - at)
                number = -3 - parameter.row if parameter.row < -2 else 0
                known = np.unique(np.round(apart, 9))
                matrix += value * np.isclose(apart, known[number], atol=1e-8)
            else:
                matrix[parameter.row, parameter.column] = value
                matrix[parameter.column, parameter.row] = value
        return matrix

    def D(self, theta: FloatArray) -> FloatArray:
        """Covariance of the random effects, (q, q)."""
        repeated = [
            np.kron(
                np.eye(len(term.levels)) if term.root is None else term.root.covariance(),
                self.block(theta, i),
            )
            for i, term in enumerate(self.structure.terms)
        ]
        return np.asarray(scipy.linalg.block_diag(*repeated))

    def V(self, theta: FloatArray) -> FloatArray:
        """Covariance of y, (n, n)."""
        return self.Z @ self.D(theta) @ self.Z.T + theta[-1] * np.eye(self.n)

    @cached_property
    def derivatives(self) -> FloatArray:
        """dV/dtheta_i, (k + 1, n, n); V is linear in theta."""
        return np.stack([self.V(unit) for unit in np.eye(self.n_params)])

    @cached_property
    def contrasts(self) -> FloatArray:
        """Orthonormal basis of the error contrasts, (n, n - p)."""
        return np.asarray(scipy.linalg.null_space(self.X.T))

    def theta(self, rng: np.random.Generator, where: str = "inside") -> FloatArray:
        """Draw a theta.

        ``"inside"``: D positive definite; ``"singular"``: the first covariance block has rank
        one less; ``"negative"``: the first block is negative, V positive definite.
        """
        theta = np.zeros(self.n_params)
        theta[-1] = rng.uniform(0.5, 2.0)
        for b, block in enumerate(self.structure.blocks()):
            s = block.shape[0]
            root = rng.normal(size=(s, s + 3)) * 0.6
            matrix = root @ root.T + 0.05 * np.eye(s)
            if b == 0 and where == "singular":
                values, vectors = np.linalg.eigh(matrix)
                matrix = (vectors[:, 1:] * values[1:]) @ vectors[:, 1:].T
            if b == 0 and where == "negative":
                matrix = -matrix
            theta[block] = matrix
        if where == "negative":
            first = np.zeros(self.n_params, dtype=bool)
            first[self.structure.blocks()[0]] = True
            part = self.V(np.where(first, theta, 0.0))
            shrink = 0.7 * theta[-1] / -float(np.linalg.eigvalsh(part)[0])
            theta[first] *= min(1.0, shrink)
        return theta

    def simulate(self, theta: FloatArray, m: int, rng: np.random.Generator) -> FloatArray:
        """m features from N(X beta, V(theta)), (m, n)."""
        values, vectors = np.linalg.eigh(self.V(theta))
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        beta = rng.normal(size=(m, self.p))
        return np.asarray(beta @ self.X.T + rng.normal(size=(m, self.n)) @ root.T)

    def stats(self, Y: FloatArray) -> SummaryStats:
        """Summary statistics of Y (m, n)."""
        return _stats(self, np.ascontiguousarray(Y).tobytes())

    def fit(self, Y: FloatArray, **options: Any) -> Any:
        """Fit Y (m, n)."""
        return MultiLMM(self.stats(Y)).fit(**options)

    def evaluate(
        self, Y: FloatArray, theta: FloatArray, method: str, engine: str = "general"
    ) -> Evaluation:
        """Likelihood of Y (m, n) at theta, (k,) or (m, k), in the units of Y."""
        return evaluate(self.stats(np.atleast_2d(Y)), theta, method, engine)


# Tests ask for the same ones again and again; none of these objects is ever altered.
@lru_cache(maxsize=128)
def _stats(problem: Problem, values: bytes) -> SummaryStats:
    Y = np.frombuffer(values).reshape(-1, problem.n)
    return SummaryStats.from_arrays(Y, problem.X, problem.Z, components=problem.structure)


@lru_cache(maxsize=128)
def projection_of(stats: SummaryStats) -> Projection:
    """The projection of summary statistics."""
    return project(stats)


@lru_cache(maxsize=128)
def estimator_of(stats: SummaryStats, method: str, engine: str = "general") -> Any:
    """A likelihood of summary statistics, in internal units."""
    return make_likelihood(projection_of(stats), method, engine)


def evaluate(
    stats: SummaryStats, theta: FloatArray, method: str, engine: str = "general"
) -> Evaluation:
    """Likelihood of all features at theta, (k,) or (m, k), in the units of Y."""
    likelihood = estimator_of(stats, method, engine)
    projection = likelihood.projection
    theta = np.broadcast_to(theta, (stats.m, np.shape(theta)[-1]))
    unit = projection.param_scale * projection.scale[:, None]
    internal = likelihood.evaluate(theta / unit, np.arange(stats.m))
    reml = method == "REML"
    constant = 0.5 * (stats.n - stats.p * reml) * np.log(projection.scale)
    pairs = unit[:, :, None] * unit[:, None, :]
    return replace(
        internal,
        loglik=internal.loglik - constant - 0.5 * projection.log_det_XX * reml,
        score=internal.score / unit,
        expected=internal.expected / pairs,
        average=internal.average / pairs,
    )


@dataclass(frozen=True)
class Dense:
    """Everything about one y at one theta, from n x n matrices."""

    loglik: float
    score: FloatArray  # (k,)
    expected: FloatArray  # (k, k)
    average: FloatArray  # (k, k)
    beta: FloatArray  # (p,)
    covariance: FloatArray  # (p, p), of beta
    blup: FloatArray  # (q,)
    conditional: FloatArray  # (q, q), var(b | y, beta)
    prediction: FloatArray  # (q, q), var(b - blup)


def dense(problem: Problem, y: FloatArray, theta: FloatArray, method: str) -> Dense:
    """Textbook formulas in V; V must not be singular.

    REML is the likelihood of the error contrasts themselves, with the constant of lme4.
    """
    X, Z, Q = problem.X, problem.Z, problem.contrasts
    n, p = X.shape
    V, D, dV = problem.V(theta), problem.D(theta), problem.derivatives
    V_inverse = np.linalg.inv(V)
    covariance = np.linalg.inv(X.T @ V_inverse @ X)
    P = V_inverse - V_inverse @ X @ covariance @ X.T @ V_inverse
    if method == "REML":
        sign, log_det = np.linalg.slogdet(Q.T @ V @ Q)
        log_det += np.linalg.slogdet(X.T @ X)[1]
        df, trace = n - p, P
    else:
        sign, log_det = np.linalg.slogdet(V)
        df, trace = n, V_inverse
    assert sign == 1.0
    Py = P @ y
    forward = np.stack([d @ Py for d in dV])
    products = np.stack([trace @ d for d in dV])
    return Dense(
        loglik=float(-0.5 * (df * np.log(2 * np.pi) + log_det + y @ Py)),
        score=0.5 * (forward @ Py - np.trace(products, axis1=1, axis2=2)),
        expected=0.5 * np.einsum("iab,jba->ij", products, products),
        average=0.5 * forward @ P @ forward.T,
        beta=covariance @ X.T @ V_inverse @ y,
        covariance=covariance,
        blup=D @ Z.T @ Py,
        conditional=D - D @ Z.T @ V_inverse @ Z @ D,
        prediction=D - D @ Z.T @ P @ Z @ D,
    )


def kkt(problem: Problem, theta: FloatArray, at: Evaluation, row: int = 0) -> tuple[float, float]:
    """How far theta is from the first-order conditions in the psd space, in SE units.

    With S the matrix of a block's derivatives, tr(S dB) = score'd theta, a maximum over
    psd blocks B needs S negative semi-definite and S B = 0. Returns the largest eigenvalue of
    S and the largest |entry of S B|, each effect in units in which its variance's information is 1.
    """
    highest, product = -np.inf, 0.0
    score, expected = at.score[row], at.expected[row]
    blocks = [*problem.structure.blocks(), np.array([[problem.n_params - 1]])]
    for block in blocks:
        unit = np.diag(expected)[np.diag(block)] ** -0.25
        S = score[block] * np.where(np.eye(len(block)) > 0, 1.0, 0.5) * np.outer(unit, unit)
        B = theta[block] / np.outer(unit, unit)
        highest = max(highest, float(np.linalg.eigvalsh(S)[-1]))
        # S B has the size of a score times a theta: compare where theta exceeds its SE by itself.
        product = max(product, float(np.abs(S @ B).max() / max(1.0, np.abs(B).max())))
    return highest, product


# ---- the psd space, step by step ------------------------------------------------------------


def quadratic_gain(step: FloatArray, score: FloatArray, information: FloatArray) -> FloatArray:
    """score'd - 1/2 d'I d of each feature, (B,)."""
    return (score * step).sum(1) - 0.5 * (step[:, None] @ information @ step[:, :, None])[:, 0, 0]


def weights(space: PSD) -> FloatArray:
    """Entries of theta per element of D: 1 for a variance, 2 for a covariance."""
    weight = np.ones(space.n_params)
    for block in space.all_blocks:
        weight[block[~np.eye(len(block), dtype=bool)]] = 2.0
    return weight


def onto_cone(space: PSD, theta: FloatArray) -> FloatArray:
    """Nearest theta in the space, blocks in Frobenius norm."""
    theta = theta.copy()
    for block in space.all_blocks:
        values, vectors = np.linalg.eigh(theta[:, block])
        clipped = vectors * np.maximum(values, 0.0)[:, None, :]
        theta[:, block] = clipped @ np.swapaxes(vectors, 1, 2)
    return theta


def projected_gradient(
    space: PSD,
    theta: FloatArray,
    score: FloatArray,
    information: FloatArray,
    iterations: int = 1500,
) -> FloatArray:
    """Accelerated projected gradient (Beck & Teboulle 2009), slow and independent."""
    weight = weights(space)
    root = np.sqrt(weight)
    curvature = information / (root[:, None] * root[None, :])
    rate = 1.0 / np.linalg.eigvalsh(curvature)[:, -1:]
    x = look = theta.copy()
    t = 1.0
    for _ in range(iterations):
        slope = score - (information @ (look - theta)[:, :, None])[:, :, 0]
        new = onto_cone(space, look + rate * slope / weight)
        t_new = 0.5 * (1 + np.sqrt(1 + 4 * t * t))
        look = new + (t - 1) / t_new * (new - x)
        x, t = new, t_new
    return x - theta


def search(likelihood: Any, space: PSD, rng: np.random.Generator, starts: int = 2) -> float:
    """Best log-likelihood of the first feature that scipy finds, in internal units."""
    return search_point(likelihood, space, rng, starts)[0]


def search_point(
    likelihood: Any, space: PSD, rng: np.random.Generator, starts: int = 2
) -> tuple[float, FloatArray]:
    """Best log-likelihood of the first feature that scipy finds, and where, in internal units.

    Works with Cholesky factors of the blocks, from random starts.
    """
    corners = [np.tril_indices(len(block)) for block in space.all_blocks]
    sizes = np.cumsum([0] + [rows.size for rows, _ in corners])

    def factors(x: FloatArray) -> Any:
        for block, corner, start, stop in zip(
            space.all_blocks, corners, sizes, sizes[1:], strict=False
        ):
            L = np.zeros(block.shape)
            L[corner] = x[start:stop]
            yield block, corner, L

    def place(x: FloatArray) -> FloatArray:
        theta = np.zeros(space.n_params)
        for block, _, L in factors(x):
            theta[block] = L @ L.T
        return theta

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        at = likelihood.evaluate(place(x)[None], np.array([0]))
        if not np.isfinite(at.loglik[0]):
            return 1e10, np.zeros_like(x)
        gradient = []
        for block, corner, L in factors(x):
            S = at.score[0][block] * np.where(np.eye(len(block)) > 0, 1.0, 0.5)
            gradient.append(2 * (S @ L)[corner])
        return -float(at.loglik[0]), -np.concatenate(gradient)

    tight = {"maxiter": 2000, "maxfun": 5000, "ftol": 1e-15, "gtol": 1e-9}
    runs = [
        scipy.optimize.minimize(
            objective, rng.normal(size=sizes[-1]), jac=True, method="L-BFGS-B", options=tight
        )
        for _ in range(starts)
    ]
    best = min(runs, key=lambda run: float(run.fun))
    return -float(best.fun), place(best.x)


# ---- the problems ----------------------------------------------------------------------------


def _groups(rng: np.random.Generator, n: int, levels: int) -> NDArray[Any]:
    """Labels for n samples, unbalanced, every level at least twice where n allows."""
    fixed = np.tile(np.arange(levels), 2)[: min(n, 2 * levels)]
    free = rng.choice(levels, size=n - fixed.size, p=rng.dirichlet(np.full(levels, 3.0)))
    return np.array([f"g{label}" for label in rng.permutation(np.concatenate([fixed, free]))])


def _samples(rng: np.random.Generator, n: int) -> pd.DataFrame:
    """Covariates x and w, a treatment, factors g (7 levels), h (4), k (3), nested in and over g."""
    data = pd.DataFrame({"x": rng.normal(size=n), "w": rng.uniform(-1, 1, size=n)})
    for name, levels in {"g": 7, "h": 4, "k": 3}.items():
        data[name] = _groups(rng, n, levels)
    data["within"] = _groups(rng, n, 2)
    treated = {f"g{i}": "B" if i % 2 else "A" for i in range(7)}
    data["trt"] = data["g"].map(treated)
    return data


FORMULAS = {
    "intercept": ("~ x", "(1 | g)", 40),
    "slope_only": ("~ x", "(0 + w | g)", 40),
    "correlated": ("~ x", "(1 + x | g)", 50),
    "uncorrelated": ("~ x + w", "(x || g)", 45),
    "three_effects": ("~ x", "(1 + x + w | g)", 60),
    "nested": ("~ x", "(1 | g / within)", 60),
    "crossed": ("~ x", "(1 | g) + (1 | h)", 45),
    "three_crossed": ("~ 1", "(1 | g) + (1 | h) + (1 | k)", 50),
    "slope_and_crossed": ("~ x", "(1 + x | g) + (1 | h)", 60),
    # Groups within treatments, as donors in an experiment: Z'RZ loses rank, and the restricted
    # likelihood exists for some theta with V indefinite.
    "within_treatment": ("~ 0 + trt + x", "(1 | g)", 40),
}
# One factor nested in another: parent or child first, slopes in either, deeper, with crossed ones.
NESTED = {
    "nested_slopes": ("~ x", "(1 + x | g) + (1 + w | g:within)", 90),
    "child_first": ("~ x", "(1 | g:within) + (1 | g) + (0 + x | g:within)", 60),
    "three_levels": ("~ x", "(1 | h / g / within)", 80),
    "nested_and_crossed": ("~ x + w", "(1 | k) + (1 | g / within) + (1 | h)", 100),
}
KINDS = (*FORMULAS, "dense", "saturated", *NESTED)
# Structures of the effects of a level; in `test_structured` alone.
STRUCTURED = {
    "cs": ("~ x", "cs(0 + k | g)", 60),
    "cs_slopes": ("~ x", "cs(1 + x + w | g)", 60),
    "cs_crossed": ("~ x", "cs(0 + k | g) + (1 + x | h)", 70),
    "cs_nested": ("~ x", "cs(0 + k | h / g)", 90),
    "one_variance": ("~ x + w", "diag(1 + x + w | g, hom=TRUE)", 50),
    "one_variance_crossed": ("~ x", "diag(1 + x | g, hom=TRUE) + cs(0 + k | h)", 60),
}


def of_design(kind: str, design: Any, seed: int) -> Problem:
    """The problem of a design, its columns of Z those of the effects themselves."""
    structure = design.structure
    return Problem(kind, design.X, (design.Z @ structure.turn()).toarray(), structure, seed)


def random_problem(kind: str, seed: int) -> Problem:
    """A problem of one of the `KINDS` or `STRUCTURED`."""
    rng = np.random.default_rng([seed, (*KINDS, *STRUCTURED).index(kind)])
    if kind in FORMULAS or kind in NESTED or kind in STRUCTURED:
        fixed, random, n = {**FORMULAS, **NESTED, **STRUCTURED}[kind]
        return of_design(kind, build_design(fixed, random, _samples(rng, n)).design, seed)
    # Any Z at all, in independent components; with more columns than error contrasts in the second.
    n, sizes = (25, [3, 4]) if kind == "dense" else (14, [20])
    X = np.column_stack([np.ones(n), rng.normal(size=n)])
    Z, structure = rng.normal(size=(n, sum(sizes))), as_structure(sizes, sum(sizes))
    return Problem(kind, X, Z, structure, seed)


def engines(problem: Problem) -> list[str]:
    """The likelihood engines that take a problem; the others refuse it."""
    projection = project(problem.stats(np.eye(1, problem.n)))
    taking = []
    for name in ENGINES:
        with suppress(InputError):
            make_likelihood(projection, "REML", name)
            taking.append(name)
    return taking


PROBLEMS = {kind: random_problem(kind, 20260101) for kind in KINDS}
