"""Covariances of a level's effects that are not linear in their parameters: ar1, exp, cs of sds.

D stays linear in theta, the covariances at each distance (or of each pair of effects), so that
every engine serves as it is. Only few theta are those of a structure: they lie on a curve (a
surface) theta(u) of its own parameters u, and what asks for derivatives takes them along it,

    score_u = J'score,    E_u = J'E J,    O_u = J'O J - sum_l score_l d2 theta_l / du du'

with J = d theta / du. The variance of a function of theta-hat follows from J E_u^-1 J' in the
place of E^-1.

With distances in units of the smallest, so that the smallest is 1, ``"ar1"`` (Pinheiro & Bates
2000, section 5.3) and ``"exp"`` are the same curve: variance v, correlation rho of neighbours,
covariance v rho^d at distance d. Exponential decay exp(-d / range) has rho = exp(-1 / range) >= 0.
``"csh"`` has a standard deviation per effect and one correlation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray

__all__ = ["ALONG", "CURVED", "Curve", "CurvedParameters", "Decay", "Heterogeneous", "distances"]

# Structures whose parameters D is not linear in.
CURVED = ("ar1", "exp", "csh")
# Those along positions.
ALONG = ("ar1", "exp")
# Distances that differ by less, relative to the largest, are the same.
_SAME = 1e-9


def distances(positions: tuple[float, ...]) -> tuple[FloatArray, NDArray[np.intp]]:
    """The different distances of some positions (s,), ascending, and which each pair has, (s, s).

    The first is 0, of a position to itself.
    """
    at = np.array(positions, dtype=np.float64)
    apart = np.abs(at[:, None] - at[None, :])
    values = np.sort(np.unique(apart))
    # Positions far from zero (dates, 1e6 + 0.001) have rounding of their own in their differences.
    rounded = 4.0 * float(np.spacing(np.abs(at).max(initial=0.0)))
    step = max(_SAME * max(float(values[-1]), np.finfo(float).tiny), rounded)
    new = np.concatenate([[True], np.diff(values) > step])
    found = values[new]
    place = np.cumsum(new) - 1
    return found, place[np.searchsorted(values, apart.ravel())].reshape(apart.shape)


@dataclass(frozen=True)
class Decay:
    """Covariance v rho^d of effects at distance d: own parameters (v, rho).

    Parameters
    ----------
    exponents
        The distances in units of the smallest that is not 0, ascending from 0, shape (k,).
    lowest
        The smallest correlation: -1 for ``"ar1"``, 0 for ``"exp"``.
    """

    exponents: tuple[float, ...]
    lowest: float

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Smallest and largest own parameters, each (2,)."""
        return np.array([0.0, self.lowest]), np.array([np.inf, 1.0])

    @property
    def is_cone(self) -> BoolArray:
        """Which own parameters are bounded by zero alone, (2,)."""
        return np.array([True, False])

    def starts(self) -> tuple[FloatArray, int]:
        """Own parameters (g, 2) of variance 1 that a search starts from, and how many are in order.

        Those are neighbours by their correlation.
        """
        rho = [-0.95, -0.7, -0.35, 0.05, 0.35, 0.7, 0.95]
        if self.lowest == 0.0:
            rho = [0.03, 0.2, 0.4, 0.6, 0.8, 0.95]
        return np.column_stack([np.ones(len(rho)), rho]), len(rho)

    def directions(self, count: int) -> FloatArray:
        """Own parameters (d, 2) in whose directions a variance of zero may grow."""
        return np.column_stack([np.ones(count), np.linspace(self.lowest, 1.0, count)])

    def theta(self, u: FloatArray) -> FloatArray:
        """Covariances by distance, (B, k)."""
        e = np.array(self.exponents)
        return np.asarray(u[:, :1] * self._power(u[:, 1:2], e))

    def own(self, theta: FloatArray) -> FloatArray:
        """The inverse of `theta`, (B, 2); a correlation of NaN without variance."""
        v = theta[:, 0]
        rho = theta[:, 1] / np.where(v > 0, v, np.nan)
        return np.stack([v, np.clip(rho, self.lowest, 1.0)], axis=1)

    def jacobian(self, u: FloatArray) -> FloatArray:
        """Derivatives of theta by u, (B, k, 2)."""
        e, v, rho = np.array(self.exponents), u[:, :1], u[:, 1:2]
        slope = e * self._power(rho, np.maximum(e - 1.0, 0.0))
        return np.stack([self._power(rho, e), v * slope], axis=2)

    def bend(self, u: FloatArray, score: FloatArray) -> FloatArray:
        """Sum over theta of score (B, k) times the second derivatives by u, (B, 2, 2)."""
        e, v, rho = np.array(self.exponents), u[:, :1], u[:, 1:2]
        result = np.zeros((u.shape[0], 2, 2))
        slope = e * self._power(rho, np.maximum(e - 1.0, 0.0))
        result[:, 0, 1] = result[:, 1, 0] = (score * slope).sum(axis=1)
        # Of a distance between one and two steps this has no limit at rho = 0.
        safe = np.where((np.abs(rho) < 1e-8) & (e < 2.0) & (e > 1.0), 1e-8, rho)
        twice = e * (e - 1.0) * self._power(safe, np.where(e > 1.0, e - 2.0, 0.0))
        result[:, 1, 1] = (score * v * twice).sum(axis=1)
        return result

    @staticmethod
    def _power(rho: FloatArray, exponents: FloatArray) -> FloatArray:
        """rho^e, of a negative rho for whole e alone; 1 for e = 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            size = np.abs(rho) ** exponents
        odd = np.round(exponents) % 2 == 1
        return np.asarray(np.where((rho < 0) & odd, -size, size))


@dataclass(frozen=True)
class Heterogeneous:
    """A standard deviation for each of s effects, one correlation: own parameters (sd_1.., rho).

    theta holds the variances, then the covariances of pairs in the order of a full matrix.

    Parameters
    ----------
    s
        Effects, at least 3.
    """

    s: int

    @property
    def pairs(self) -> tuple[IntArray, IntArray]:
        """First and second effect of each covariance."""
        a, b = np.triu_indices(self.s, 1)
        return a, b

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Smallest and largest own parameters, each (s + 1,)."""
        lower, upper = np.zeros(self.s + 1), np.full(self.s + 1, np.inf)
        lower[-1], upper[-1] = -1.0 / (self.s - 1), 1.0
        return lower, upper

    @property
    def is_cone(self) -> BoolArray:
        """Which own parameters are bounded by zero alone, (s + 1,)."""
        return np.arange(self.s + 1) < self.s

    def starts(self) -> tuple[FloatArray, int]:
        """Own parameters (g, s + 1) that a search starts from, and how many are in order.

        Those have about equal variances (not quite: there the parameters of many designs cannot be
        told apart) and are neighbours by their correlation. In the others one effect is large, or
        one is small.
        """
        s = self.s
        spread = 1.0 + 0.1 * np.linspace(-1.0, 1.0, s)
        rho = [-0.6 / (s - 1), 0.05, 0.3, 0.6, 0.9]
        equal = np.column_stack([np.tile(spread, (len(rho), 1)), rho])
        own = np.eye(s, dtype=bool)
        large = np.column_stack([np.where(own, 1.5, 0.3), np.full(s, 0.3)])
        small = np.column_stack([np.where(own, 0.2, 1.0), np.full(s, 0.6)])
        smaller = np.column_stack([np.where(own, 0.1, 1.0), np.full(s, 0.95)])
        return np.concatenate([equal, large, small, smaller]), len(rho)

    def directions(self, count: int) -> FloatArray:
        """Own parameters (d, s + 1) in whose directions effects without variance may get some.

        Equal ones of all effects, of all but one and of two, by ``count`` correlations.
        """
        s = self.s
        own, (a, b) = np.eye(s), self.pairs
        sds = np.concatenate([np.ones((1, s)), 1.0 - own, own[a] + own[b]])
        lower, upper = (bound[-1] for bound in self.bounds)
        rho = np.linspace(lower, upper, count)
        return np.column_stack([np.repeat(sds, count, axis=0), np.tile(rho, len(sds))])

    def theta(self, u: FloatArray) -> FloatArray:
        """Variances and covariances, (B, s (s + 1) / 2)."""
        a, b = self.pairs
        sd, rho = u[:, : self.s], u[:, self.s :]
        return np.concatenate([sd**2, rho * sd[:, a] * sd[:, b]], axis=1)

    def own(self, theta: FloatArray) -> FloatArray:
        """The inverse of `theta`, (B, s + 1); NaN for a correlation of fewer than two variances."""
        a, b = self.pairs
        sd = np.sqrt(np.maximum(theta[:, : self.s], 0.0))
        size = sd[:, a] * sd[:, b]
        total = (size**2).sum(axis=1)
        rho = (size * theta[:, self.s :]).sum(axis=1) / np.where(total > 0, total, np.nan)
        rho = np.clip(rho, -1.0 / (self.s - 1), 1.0)
        return np.concatenate([sd, rho[:, None]], axis=1)

    def jacobian(self, u: FloatArray) -> FloatArray:
        """Derivatives of theta by u, (B, s (s + 1) / 2, s + 1)."""
        s, (a, b) = self.s, self.pairs
        sd, rho = u[:, :s], u[:, s]
        J = np.zeros((u.shape[0], s + a.size, s + 1))
        every, each = np.arange(s), s + np.arange(a.size)
        J[:, every, every] = 2.0 * sd
        J[:, each, a] = rho[:, None] * sd[:, b]
        J[:, each, b] = rho[:, None] * sd[:, a]
        J[:, each, s] = sd[:, a] * sd[:, b]
        return J

    def bend(self, u: FloatArray, score: FloatArray) -> FloatArray:
        """Sum over theta of score times the second derivatives by u, (B, s + 1, s + 1)."""
        s, (a, b) = self.s, self.pairs
        sd, rho = u[:, :s], u[:, s]
        result = np.zeros((u.shape[0], s + 1, s + 1))
        every, own = np.arange(s), score[:, s:]
        result[:, every, every] = 2.0 * score[:, :s]
        result[:, a, b] = result[:, b, a] = rho[:, None] * own
        for i in range(a.size):  # pairs of effects
            result[:, a[i], s] += own[:, i] * sd[:, b[i]]
            result[:, b[i], s] += own[:, i] * sd[:, a[i]]
        result[:, s, :s] = result[:, :s, s]
        return result


Curve = Decay | Heterogeneous


@dataclass(frozen=True)
class CurvedParameters:
    """The own parameters u of all terms of a model, and theta as a function of them.

    Terms without a curve have theta itself; so have the residual variances, which are last.

    Parameters
    ----------
    curves
        The curve of each term, None without one.
    sizes
        Parameters of each term in theta.
    residuals
        Number of residual variances.
    """

    curves: tuple[Curve | None, ...]
    sizes: tuple[int, ...]
    residuals: int = 1

    @property
    def own_sizes(self) -> tuple[int, ...]:
        """Own parameters of each term."""
        return tuple(
            size if curve is None else curve.bounds[0].size
            for curve, size in zip(self.curves, self.sizes, strict=True)
        )

    @property
    def k(self) -> int:
        """Number of own parameters, residual variances included."""
        return sum(self.own_sizes) + self.residuals

    def parts(self) -> Iterator[tuple[Curve | None, slice, slice]]:
        """Each term's curve and where its parameters are, in theta and in u."""
        linear = pairwise(np.cumsum([0, *self.sizes]).tolist())
        own = pairwise(np.cumsum([0, *self.own_sizes]).tolist())
        for curve, (a, b), (c, d) in zip(self.curves, linear, own, strict=True):
            yield curve, slice(a, b), slice(c, d)
        last, first = sum(self.sizes), sum(self.own_sizes)
        yield None, slice(last, last + self.residuals), slice(first, first + self.residuals)

    @property
    def bounds(self) -> tuple[FloatArray, FloatArray]:
        """Bounds of the correlations of curves, infinite for all other parameters; each (k,)."""
        lower, upper = np.full(self.k, -np.inf), np.full(self.k, np.inf)
        for curve, _, own in self.parts():
            if curve is not None:
                boxed = ~curve.is_cone
                lower[own] = np.where(boxed, curve.bounds[0], -np.inf)
                upper[own] = np.where(boxed, curve.bounds[1], np.inf)
        return lower, upper

    @property
    def degrees(self) -> FloatArray:
        """Powers d with u(c theta) = c^d u: 1 of variances, 1/2 of sds, 0 of correlations, (k,).

        So sum_i d_i u_i dtheta / du_i = theta (Euler).
        """
        degrees = np.ones(self.k)
        for curve, _, own in self.parts():
            if curve is not None:
                size = 1.0 if isinstance(curve, Decay) else 0.5
                degrees[own] = np.where(curve.is_cone, size, 0.0)
        return degrees

    def theta(self, u: FloatArray) -> FloatArray:
        """Theta (B, k_theta) of own parameters (B, k)."""
        return np.concatenate(
            [
                u[:, own] if curve is None else curve.theta(u[:, own])
                for curve, _, own in self.parts()
            ],
            axis=1,
        )

    def own(self, theta: FloatArray) -> FloatArray:
        """The inverse of `theta`; a correlation is NaN where nothing has it."""
        return np.concatenate(
            [
                theta[:, linear] if curve is None else curve.own(theta[:, linear])
                for curve, linear, _ in self.parts()
            ],
            axis=1,
        )

    def jacobian(self, u: FloatArray) -> FloatArray:
        """Derivatives of theta by u, (B, k_theta, k)."""
        J = np.zeros((u.shape[0], sum(self.sizes) + self.residuals, self.k))
        for curve, linear, own in self.parts():
            size = own.stop - own.start
            J[:, linear, own] = np.eye(size) if curve is None else curve.jacobian(u[:, own])
        return J

    def bend(self, u: FloatArray, score: FloatArray) -> FloatArray:
        """Sum over theta of score (B, k_theta) times second derivatives by u, (B, k, k)."""
        result = np.zeros((u.shape[0], self.k, self.k))
        for curve, linear, own in self.parts():
            if curve is not None:
                result[:, own, own] = curve.bend(u[:, own], score[:, linear])
        return result
