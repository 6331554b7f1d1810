"""Random designs with a residual variance for each group of samples, beside n x n matrices."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.optimize

from flashmm import ConvergenceWarning, Covariance, MultiLMM
from flashmm.exceptions import CovarianceWarning
from flashmm.formulas.build import build_design
from flashmm.stats.known_levels import known_structure

from .designs import DRAWS, Draw

__all__ = ["Grouped", "draw_grouped", "findings"]

_EPSILON = 1e-5
_KINDS = ("unbalanced", "levels seen once", "2 to 4 crossed", "nested", "groups in treatments")
# A residual variance next to zero is known to few digits: what the dense likelihood may differ by.
_DIGITS = 1e-8
_GAIN = 1e-3
# A search that ends as close to the edge of the domain is on its way to an infinite likelihood.
_EDGE = 1e-6


@dataclass(frozen=True)
class Grouped:
    """A design of n samples in H groups and some responses.

    Parameters
    ----------
    model
        Formulas and table; ``batch`` is the group.
    Y
        Shape (m, n).
    X
        Shape (n, p).
    G
        Derivatives of V by the variances, residual ones last, shape (k, n, n).
    K
        A known covariance of ``g``, or None.
    """

    model: Draw
    Y: np.ndarray
    X: np.ndarray
    G: np.ndarray
    K: pd.DataFrame | None

    def fit(self, method: str, space: str):
        """The fit."""
        known = None if self.K is None else {"g": self.K}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", CovarianceWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = MultiLMM.from_formula(
                self.model.fixed,
                self.model.random,
                self.model.data,
                self.Y,
                sums_by="batch",
                covariances=known,
            )
            return model.fit(method, residual_by="batch", parameter_space=space)

    @cached_property
    def contrasts(self) -> np.ndarray:
        """An orthonormal basis of what X leaves, shape (n, n - p)."""
        return np.linalg.qr(self.X, mode="complete")[0][:, self.X.shape[1] :]

    def edge(self, theta: np.ndarray, method: str) -> float:
        """Smallest over largest eigenvalue of V (ML) or of the error contrasts' covariance."""
        V, Q = np.tensordot(theta, self.G, 1), self.contrasts
        values = np.linalg.eigvalsh(Q.T @ V @ Q if method == "REML" else V)
        return float(values[0] / np.abs(values).max())

    def differs(self, beta: np.ndarray, se: np.ndarray, theta: np.ndarray, j: int) -> float:
        """By how many standard errors feature j's coefficients are off, or these by which share."""
        V = np.tensordot(theta, self.G, 1)
        values = np.linalg.eigvalsh(V)
        if values[0] < 1e-6 * values[-1]:
            return 0.0
        W = np.linalg.inv(V)
        C = np.linalg.inv(self.X.T @ W @ self.X)
        unit, truth = np.sqrt(np.diag(C)), C @ self.X.T @ W @ self.Y[j]
        return float(np.nanmax([np.abs(beta - truth) / unit, np.abs(se / unit - 1.0)]))

    def dense(self, theta: np.ndarray, y: np.ndarray, method: str):
        """Log-likelihood, score and expected information; -inf and None outside the domain.

        Under REML of the error contrasts, which have one where V is singular too.
        """
        V, Q = np.tensordot(theta, self.G, 1), self.contrasts
        M, df = Q.T @ V @ Q, Q.shape[1]
        try:
            root = np.linalg.cholesky(M)
            P = Q @ np.linalg.inv(M) @ Q.T
            W, value = P, np.linalg.slogdet(self.X.T @ self.X)[1]
            if method == "ML":
                root, W, df, value = np.linalg.cholesky(V), np.linalg.inv(V), len(V), 0.0
        except np.linalg.LinAlgError:
            return -np.inf, None, None
        value += df * np.log(2.0 * np.pi) + 2.0 * np.log(np.diagonal(root)).sum() + y @ P @ y
        Py = P @ y
        score = np.array([Py @ G @ Py - (W * G).sum() for G in self.G])
        WG = [W @ G for G in self.G]
        E = np.array([[(a * b.T).sum() for b in WG] for a in WG])
        return -0.5 * value, 0.5 * score, 0.5 * E


def draw_grouped(seed: int, index: int) -> Grouped:
    """Design number ``index`` of a seed.

    Groups cross the levels of the random effects or hold them whole; one in four has a known
    covariance. Noise differs up to a hundredfold; effects are strong, weak or absent.
    """
    rng = np.random.default_rng([seed, index])
    model = DRAWS[_KINDS[index % len(_KINDS)]](rng)
    data, n = model.data, len(model.data)
    if "+ x |" in model.random:  # V has to be a sum of one matrix for each term
        model = Draw(model.fixed, "(1 | g) + (1 | g:h)", data)
    H = int(rng.integers(2, 5))
    codes = pd.factorize(data["g"])[0] % H if index % 3 == 0 else rng.integers(0, H, n)
    data = data.assign(batch=[f"b{code}" for code in codes])
    model = Draw(model.fixed, model.random, data)
    design = build_design(model.fixed, model.random, data).design
    structure, K = design.structure, None
    Z = design.Z.toarray()
    if index % 4 == 0 and structure.terms[0].group == "g":
        levels = structure.terms[0].levels
        root = rng.normal(size=(len(levels), len(levels) + 2))
        K = pd.DataFrame(root @ root.T / root.shape[1], levels, levels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CovarianceWarning)
            structure = known_structure(structure, {"g": Covariance(K)})
    G, start = [], 0
    for term in structure.terms:
        own = Z[:, start : start + term.n_columns]
        start += term.n_columns
        L = np.eye(own.shape[1]) if term.root is None else np.asarray(term.root.covariance())
        G.append(own @ L @ own.T)
    names = sorted(set(data["batch"]), key=list(dict.fromkeys(data["batch"])).index)
    G += [np.diag((data["batch"] == name).to_numpy().astype(float)) for name in names]
    noise = 10.0 ** rng.uniform(-1.0, 1.0, H)[codes]
    effects = Z @ rng.normal(size=(Z.shape[1], 4))
    Y = noise * rng.normal(size=(5, n))
    Y[1:] += np.array([0.1, 1.0, 10.0, 1.0])[:, None] * effects.T
    Y[3] = 1e5 * Y[3] + 1e5
    Y[4] -= Y[0]
    return Grouped(model, Y, np.asarray(design.X[:]), np.array(G), K)


def findings(
    one: Grouped, method: str, space: str, rng: np.random.Generator
) -> Iterator[tuple[int, str, str, str]]:
    """Feature, verdict, what is wrong with it and the figure; a row without fault per feature."""
    result = one.fit(method, space)
    names = [f"Residual[{label}]" for label in dict.fromkeys(one.model.data["batch"])]
    order = [*result.theta.columns[: len(one.G) - len(names)], *names]
    theta, llf = result.theta[order].to_numpy(), result.llf.to_numpy()
    for j, status in enumerate(result.status):
        yield j, status, "", ""
        if not np.isfinite(llf[j]):  # nothing is shown
            continue
        value, score, E = one.dense(theta[j], one.Y[j], method)
        # What cancels in y'Py is divided by the least eigenvalue.
        digits = _DIGITS + 1e-15 * one.Y.shape[1] / max(one.edge(theta[j], method), 1e-15)
        if not abs(value - llf[j]) < digits * (1.0 + abs(value)):
            yield j, status, "log-likelihood differs from the dense one", f"{llf[j] - value:.1e}"
            continue
        if score is None:
            yield j, status, "no likelihood there", ""
            continue
        wrong = one.differs(result.params.to_numpy()[j], result.bse.to_numpy()[j], theta[j], j)
        if wrong > 1e-6 + 1e2 * digits:
            yield j, status, "coefficients or their errors differ", f"{wrong:.1e}"
        if status not in ("converged", "boundary", "indefinite"):
            continue
        unit = np.sqrt(np.diagonal(E))
        left = score / unit
        if space == "psd":
            left = np.where((theta[j] <= 0.0) & (left <= 0.0), 0.0, left)
            if (theta[j] < 0.0).any():
                yield j, status, "outside the psd space", f"{theta[j].min():.1e}"
        if not np.abs(left).max() < 3.0 * _EPSILON + 1e3 * digits:
            yield j, status, "score above epsilon", f"{np.abs(left).max():.1e}"
    if space != "psd":
        return
    good = np.flatnonzero(result.status.isin(["converged", "boundary"]))
    for j in rng.permutation(good)[:1]:
        best, where = _search(one, one.Y[j], theta[j], method, rng)
        if best > llf[j] + _GAIN:
            edge = one.edge(where, method) < _EDGE
            what = "a maximum, but unbounded elsewhere" if edge else "a higher likelihood exists"
            yield int(j), str(result.status.iloc[j]), what, f"{best - llf[j]:.1e}"


def _search(
    one: Grouped, y: np.ndarray, at: np.ndarray, method: str, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """The highest likelihood of three searches with n x n matrices, and where it is."""
    unit = np.var(y)
    low = np.zeros(at.size)

    def negative(share: np.ndarray) -> tuple[float, np.ndarray]:
        value, score, _ = one.dense(unit * share, y, method)
        return (1e10, np.zeros(at.size)) if score is None else (-value, -unit * score)

    best, where = -np.inf, at
    for _ in range(3):
        start = 10.0 ** rng.uniform(-3.0, 1.0, at.size)
        bounds = [(bound, None) for bound in low]
        found = scipy.optimize.minimize(negative, start, jac=True, bounds=bounds)
        if -found.fun > best:
            best, where = -float(found.fun), found.x
    return best, where
