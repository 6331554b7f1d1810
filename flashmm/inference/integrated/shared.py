"""What a design says at every point of a grid of ratios, for all features at once.

In the eigenbasis of Z'RZ = K K' a feature is u and a residual sum of squares outside
(`flashmm.likelihood.projection`). With M = I + sum gamma_i K'G_iK and D = sum gamma_i G_i,

    Q = rss + u'M^-1 u,   log |V| + log |X'V^-1 X| = log |M| + constant,
    x'beta + z'b = x'beta_ols + w'D K M^-1 u,   w = z - Z'X (X'X)^-1 x,
    its variance / sigma2 = x'(X'X)^-1 x + w'D w - w'D K M^-1 K'D w

(the last is the variance of the error of prediction where z is not zero). Along a line of ratios M
is diagonal in one basis: sums over r eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.integrated.grid import Line, RatioGrid
from flashmm.likelihood.centring import Turn
from flashmm.likelihood.projection import DENSE_LIMIT, Projection

__all__ = [
    "LinearFunctions",
    "RatioEstimates",
    "SharedDesign",
    "Turned",
    "refuse_turned",
    "share_design",
]


@dataclass(frozen=True)
class RatioEstimates:
    """What features roughly say of k ratios, in internal units; shapes (k,) or (F, k).

    Parameters
    ----------
    typical
        Ratios that double the variance of a typical effect's estimate, tr(A) / tr(A^2).
    largest
        The features' estimates u'Au / (tr(A^2) sigma2), or the largest; NaN where sigma2 is
        unknown.
    degrees
        On how many degrees of freedom such an estimate is, tr(A)^2 / tr(A^2).
    unit
        Units of the ratios.
    """

    typical: FloatArray
    largest: FloatArray
    degrees: FloatArray
    unit: FloatArray


@dataclass(frozen=True)
class _Factor:
    """M along a line: rotation'M rotation = 1 + t values.

    ``rotation`` (r, r), None for the identity; ``values`` (r,); ``log_det`` (T,).
    """

    line: Line
    rotation: FloatArray | None
    values: FloatArray
    log_det: FloatArray

    def turned(self, vectors: FloatArray) -> FloatArray:
        """Vectors (B, r) in the basis of the line."""
        return vectors if self.rotation is None else vectors @ self.rotation

    @property
    def inverse(self) -> FloatArray:
        """Diagonal of M^-1, shape (r, T)."""
        return np.asarray(1.0 / (1.0 + self.values[:, None] * self.line.steps))


@dataclass(frozen=True)
class Turned:
    """The data of B features.

    Parameters
    ----------
    u
        Per line u in the line's basis, shape (B, r).
    rss
        Residual sums of squares on X and Z, in units of ``scale``, shape (B,).
    unit
        Root of ``scale``, shape (B,).
    beta_ols
        Shape (B, p).
    """

    u: tuple[FloatArray, ...]
    rss: FloatArray
    unit: FloatArray
    beta_ols: FloatArray


@dataclass(frozen=True)
class LinearFunctions:
    """c linear functions of beta and b at all G points.

    Parameters
    ----------
    X
        Their coefficients of beta, shape (c, p).
    loadings
        Per line what u is multiplied by in the line's basis, shape (r, c, T).
    covariance
        Their covariances over sigma2, shape (c, c, G); variances alone, (c, G), where only those
        were asked for.
    """

    X: FloatArray
    loadings: tuple[FloatArray, ...]
    covariance: FloatArray


@dataclass(frozen=True)
class SharedDesign:
    """A projection with a grid of ratios.

    Parameters
    ----------
    projection
        The projected statistics.
    grid
        The ratios, in the units of Z.
    factors
        One for each line.
    log_det
        log |V| + log |X'V^-1 X| up to a constant, shape (G,).
    """

    projection: Projection
    grid: RatioGrid
    factors: tuple[_Factor, ...]
    log_det: FloatArray

    @property
    def df(self) -> int:
        """Residual degrees of freedom, n - p."""
        return self.projection.n - self.projection.p

    @property
    def rank(self) -> int:
        """Numbers per function and point that functions keep."""
        return self.projection.r

    @property
    def data_size(self) -> int:
        """Numbers that the data of a feature take."""
        return 2 * len(self.factors) * self.projection.r

    def log_dets(self, features: Turned) -> FloatArray:
        """Log |V| + log |X'V^-1 X| up to a constant, the same for all features, shape (G,)."""
        del features
        return self.log_det

    def degrees(self, features: Turned) -> FloatArray:
        """Residual degrees of freedom n - p of B features, shape (B,)."""
        return np.full(features.rss.size, float(self.df))

    def features(self, positions: IntArray) -> Turned:
        """What the data of features (B,) are on every line."""
        p = self.projection
        u = p.u[positions]
        return Turned(
            tuple(factor.turned(u) for factor in self.factors),
            np.maximum(p.rss[positions], 0.0),
            p.unit[positions],
            p.beta_ols.T[positions],
        )

    def quadratic_forms(self, features: Turned) -> FloatArray:
        """Q of B features, in units of their ``scale``, shape (B, G)."""
        Q = np.empty((features.rss.size, self.grid.size))
        for factor, u in zip(self.factors, features.u, strict=True):
            Q[:, factor.line.columns] = (u * u) @ factor.inverse
        Q += features.rss[:, None]
        return Q

    def functions(
        self,
        X: FloatArray,
        Z: FloatArray | None = None,
        added: FloatArray | None = None,
        *,
        joint: bool = False,
    ) -> LinearFunctions:
        """Linear functions X beta + Z b, for all features.

        Parameters
        ----------
        X
            Shape (c, p).
        Z
            Shape (c, q); None for zeros.
        added
            What (gamma, 1) is multiplied by and added to the variances, shape (c, k + 1).
        joint
            Whether covariances between the functions are wanted.
        """
        p, structure = self.projection, self.projection.structure
        w = -X @ p.H.T if Z is None else Z / p.column_scale - X @ p.H.T
        Kw, wGw = [], []
        for parameter in structure.parameters:
            rows, columns = structure.columns(parameter)
            KG, G = p.K[rows].T @ w[:, columns].T, w[:, rows] @ w[:, columns].T
            if not parameter.is_variance:
                KG, G = KG + p.K[columns].T @ w[:, rows].T, G + G.T
            Kw.append(KG)
            wGw.append(G)
        fixed = X @ p.XX_inverse @ X.T
        c, loadings = X.shape[0], []
        no_K, no_G = np.zeros((p.r, c)), np.zeros((c, c))  # without random effects all there is
        covariance = np.empty((c, c, self.grid.size) if joint else (c, self.grid.size))
        for factor in self.factors:
            line = factor.line
            base, direction = (g / p.param_scale[:-1] for g in (line.base, line.direction))
            start, slope = (
                factor.turned(sum((g * K for g, K in zip(part, Kw, strict=True)), no_K).T).T
                for part in (base, direction)
            )
            f = start[:, :, None] + slope[:, :, None] * line.steps  # (r, c, T)
            load = f * factor.inverse[:, None, :]
            D0, D1 = (
                sum((g * G for g, G in zip(part, wGw, strict=True)), no_G)
                for part in (base, direction)
            )
            if joint:
                shrunk = np.matmul(f.transpose(2, 1, 0), load.transpose(2, 0, 1)).transpose(1, 2, 0)
                part = (fixed + D0)[:, :, None] + D1[:, :, None] * line.steps - shrunk
                part = 0.5 * (part + part.transpose(1, 0, 2))
            else:
                part = np.diag(fixed + D0)[:, None] + np.diag(D1)[:, None] * line.steps
                part = part - (f * load).sum(axis=0)
            covariance[..., line.columns] = part
            loadings.append(load)
        if added is not None:
            one = np.ones((self.grid.size, 1))
            extra = added @ np.hstack([self.grid.ratios, one]).T
            if joint:
                covariance[np.arange(c), np.arange(c)] += extra
            else:
                covariance += extra
        return LinearFunctions(X, tuple(loadings), covariance)

    def covariance(self, functions: LinearFunctions, features: Turned) -> FloatArray:
        """Variances (c, G) or covariances (c, c, G) over sigma2, the same for all features."""
        del features
        return functions.covariance

    def estimates(self, functions: LinearFunctions, features: Turned) -> FloatArray:
        """Estimates of linear functions for B features, in the units of Y, shape (B, c, G)."""
        B, c = features.rss.size, functions.X.shape[0]
        result = np.empty((B, c, self.grid.size))
        for factor, load, u in zip(self.factors, functions.loadings, features.u, strict=True):
            r, _, T = load.shape
            product = u @ load.reshape(r, c * T)
            result[:, :, factor.line.columns] = product.reshape(B, c, T)
        result *= features.unit[:, None, None]
        result += (features.beta_ols @ functions.X.T)[:, :, None]
        return result


def share_design(projection: Projection, grid: RatioGrid, memory: int) -> SharedDesign:
    """Factorise M along the lines of a grid.

    Raises
    ------
    InputError
        If there are too many random effects, or the factors would not fit into ``memory`` bytes.
    """
    q = projection.structure.q
    if q > DENSE_LIMIT:
        raise InputError(
            f"Integrated tests take up to {DENSE_LIMIT} random effects; this model has {q}. "
            "With so many levels use df='satterthwaite'."
        )
    refuse_turned(projection.turn)
    lines, r = grid.lines(), projection.r
    if 8 * r * r * len(lines) > memory and len(projection.structure.parameters) > 1:
        raise InputError(
            f"Integrated tests would need {8 * r * r * len(lines) / 2**30:.1f} GiB for the "
            f"{len(lines)} factors of rank {r} of this model: raise `memory`, drop a random term, "
            "or use another `df`."
        )
    factors = tuple(_factor(projection, line) for line in lines)
    log_det = np.empty(grid.size)
    for factor in factors:
        log_det[factor.line.columns] = factor.log_det
    return SharedDesign(projection, grid, factors, log_det)


def _factor(projection: Projection, line: Line) -> _Factor:
    base, direction = (g / projection.param_scale[:-1] for g in (line.base, line.direction))
    A, r = projection.A, projection.r
    if r == 0:
        return _Factor(line, None, np.zeros(0), np.zeros(line.steps.size))
    if A.shape[0] == 1 and not line.base.any():
        values = direction[0] * np.diagonal(A[0])
        return _Factor(line, None, values, _log_det(values, line.steps))
    start = np.eye(r) + np.tensordot(base, A, 1)
    root = scipy.linalg.cholesky(start, lower=True)
    inverse = scipy.linalg.solve_triangular(root, np.eye(r), lower=True)
    values, vectors = scipy.linalg.eigh(inverse @ np.tensordot(direction, A, 1) @ inverse.T)
    values = np.maximum(values, -1.0 + 1e-12)  # D is positive semi-definite at both ends
    log_det = 2.0 * float(np.log(np.diagonal(root)).sum()) + _log_det(values, line.steps)
    return _Factor(line, inverse.T @ vectors, values, log_det)


def _log_det(values: FloatArray, steps: FloatArray) -> FloatArray:
    return np.asarray(np.log1p(values[:, None] * steps).sum(axis=0))


def refuse_turned(turn: Turn | None) -> None:
    """Raise where other effects are fitted than those of the model; see `centring`."""
    if turn is not None:
        raise InputError(
            "Integrated tests need random effects that are not almost collinear: centre the "
            "variable of the slope (calendar years, say), or use another `df`."
        )
