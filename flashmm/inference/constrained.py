"""Maxima of the likelihood with some parameters held: what tests and profiles are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.base import Likelihood
from flashmm.solvers.base import Solver, maximise
from flashmm.solvers.batches import over_batches, usable_cores
from flashmm.solvers.fixed import Fixed
from flashmm.solvers.space import PSD, ParameterSpace
from flashmm.solvers.verdict_texts import Status

__all__ = ["Maximiser", "Maximum"]

_DOUBLINGS = 80


@dataclass(frozen=True)
class Maximum:
    """Constrained maxima of B rows, in internal units.

    Parameters
    ----------
    loglik
        Shape (B,); -inf where the likelihood exists nowhere that was tried.
    theta
        Where, shape (B, k).
    score
        Derivatives there, the fixed parameters' included, shape (B, k).
    status
        Verdicts, shape (B,).
    """

    loglik: FloatArray
    theta: FloatArray
    score: FloatArray
    status: NDArray[np.int8]


@dataclass(frozen=True)
class Maximiser:
    """A likelihood, the space of its theta and how it is maximised.

    Parameters
    ----------
    likelihood, space, solver
        As for `flashmm.solvers.base.maximise`.
    max_iter
        Limit on the number of steps.
    memory
        Bytes that one batch may take.
    """

    likelihood: Likelihood
    space: ParameterSpace
    solver: Solver
    max_iter: int
    memory: int

    def at(
        self,
        start: FloatArray,
        features: IntArray,
        *,
        values: Sequence[int] = (),
        zeros: Sequence[int] = (),
        done: Callable[[int], None] | None = None,
    ) -> Maximum:
        """Maximise with the parameters at ``values`` as in ``start`` and those at ``zeros`` zero.

        Parameters
        ----------
        start
            Starting values in internal units, shape (B, k).
        features
            Position of the feature of each row, shape (B,); a feature may occur repeatedly.
        values, zeros
            Positions in theta, as in `Fixed.of`.
        done
            Told how many rows more are done.

        Returns
        -------
        Maximum
        """
        count, k = start.shape
        space = Fixed.of(self.space, k, values=values, zeros=zeros)
        result = Maximum(
            np.full(count, -np.inf),
            np.full((count, k), np.nan),
            np.full((count, k), np.nan),
            np.full(count, Status.RUNNING, dtype=np.int8),
        )

        def fit(rows: IntArray) -> None:
            theta, usable = self._inside(start[rows], features[rows], space, values, zeros)
            rows, theta = rows[usable], theta[usable]
            if rows.size == 0:
                return
            found = maximise(
                self.likelihood,
                space,
                self.solver,
                theta,
                features[rows],
                max_iter=self.max_iter,
            )
            result.loglik[rows], result.theta[rows] = found.evaluation.loglik, found.theta
            result.score[rows], result.status[rows] = found.evaluation.score, found.status

        self._over(fit, count, done)
        return result

    def loglik(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Log-likelihoods at theta (B, k), shape (B,)."""
        result = np.empty(features.size)

        def evaluate(rows: IntArray) -> None:
            result[rows] = self.likelihood.evaluate(theta[rows], features[rows]).loglik

        self._over(evaluate, features.size)
        return result

    def _over(
        self,
        function: Callable[[IntArray], None],
        count: int,
        done: Callable[[int], None] | None = None,
    ) -> None:
        """Call a function for ``count`` rows, batch by batch and in threads."""
        over_batches(
            function,
            self.likelihood,
            np.arange(count),
            memory=self.memory,
            n_jobs=usable_cores(),
            done=done,
        )

    def _inside(
        self,
        start: FloatArray,
        features: IntArray,
        space: Fixed,
        values: Sequence[int],
        zeros: Sequence[int],
    ) -> tuple[FloatArray, BoolArray]:
        """Starts at which the likelihood exists, and whether one was found.

        The first attempt is ``start`` itself. Then the other random effects go to zero (where
        that leaves a covariance matrix), and the residual variance doubles until the likelihood
        exists.
        """
        k = start.shape[1]
        theta = start.copy()
        theta[:, list(zeros)] = 0.0
        bare = np.zeros_like(theta)
        bare[:, list(values)] = theta[:, list(values)]
        if k - 1 not in values:
            bare[:, -1] = 1.0
        if isinstance(self.space, PSD):
            _make_room(bare, self.space, list(values))
        pending = np.flatnonzero(~self._exists(theta, features, space))
        theta[pending] = bare[pending]
        pending = pending[~self._exists(theta[pending], features[pending], space)]
        if k - 1 not in values:
            for _ in range(_DOUBLINGS):
                if pending.size == 0:
                    break
                theta[pending, -1] *= 2.0
                pending = pending[~self._exists(theta[pending], features[pending], space)]
        usable = np.ones(theta.shape[0], dtype=bool)
        usable[pending] = False
        return theta, usable

    def _exists(self, theta: FloatArray, features: IntArray, space: Fixed) -> BoolArray:
        inside = space.contains(theta)
        if inside.any():
            at = self.likelihood.evaluate(theta[inside], features[inside])
            inside[inside] = np.isfinite(at.loglik)
        return np.asarray(inside)


def _make_room(theta: FloatArray, space: PSD, values: Sequence[int]) -> None:
    """Give the variances beside a fixed covariance its size, so that the block is psd."""
    for block in space.blocks:
        s = block.shape[0]
        for a in range(s):
            for b in range(a + 1, s):
                if block[a, b] in values:
                    size = np.abs(theta[:, block[a, b]])
                    for i in (block[a, a], block[b, b]):
                        if i not in values:
                            theta[:, i] += size
