"""What is too large to store: computed from theta and the statistics when asked for.

Arrays in, arrays out, in batches that fit the memory budget; features without an estimate
give NaN. Labels are put on by `flashmm.results`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.inference.curved_covariance import covariance_along
from flashmm.inference.group_prediction_variance import effect_covariance, own_effect_errors
from flashmm.likelihood import AnyEstimator, AnyProjection
from flashmm.likelihood.base import RandomEffects, StandardErrorKind, rows_of
from flashmm.likelihood.known_residual import known_residual_of
from flashmm.likelihood.moments import effect_variances
from flashmm.likelihood.residual_groups.groups import ResidualGroups

__all__ = ["Information", "OnRequest", "scaled_inverse", "without_known"]


@dataclass(frozen=True)
class Information:
    """Fisher information in the units of Y: theta (B, k, k) and beta (B, p, p)."""

    theta: FloatArray
    beta: FloatArray


@dataclass(frozen=True)
class OnRequest:
    """The fitted likelihood, ready to be asked.

    Parameters
    ----------
    likelihood
        Likelihood of all features.
    projection
        The projected statistics behind it.
    theta
        Estimates in internal units, shape (m, k).
    known
        Features that have an estimate, shape (m,).
    memory
        Bytes that one batch may take.
    """

    likelihood: AnyEstimator
    projection: AnyProjection
    theta: FloatArray
    known: BoolArray
    memory: int

    def covariance(self, positions: IntArray) -> FloatArray:
        """cov(beta) of the features at ``positions``, shape (B, p, p)."""
        result = np.full((positions.size, self.projection.p, self.projection.p), np.nan)
        for here, batch in self.batches(positions):
            result[here] = self.likelihood.covariance(self.theta[batch], batch)
        return result

    def contrast_variance(self, positions: IntArray, L: FloatArray) -> FloatArray:
        """Variances of the contrasts in the rows of L (c, p), shape (B, c)."""
        result = np.full((positions.size, L.shape[0]), np.nan)
        for here, batch in self.batches(positions):
            result[here] = self.likelihood.contrast_variance(self.theta[batch], batch, L)
        return result

    def theta_information(self, positions: IntArray) -> FloatArray:
        """Expected information of theta in the units of Y, shape (B, k, k)."""
        k = self.theta.shape[1]
        result = np.full((positions.size, k, k), np.nan)
        for here, batch in self.batches(positions):
            expected = self.likelihood.evaluate(self.theta[batch], batch).expected
            result[here] = self.projection.natural_information(expected, batch)
        if known_residual_of(self.likelihood) is not None:
            result[:, -1, :], result[:, :, -1] = 0.0, 0.0
        return result

    def theta_covariance(self, positions: IntArray, *, relative: bool = False) -> FloatArray:
        """Inverse of the expected information of theta in the units of Y, shape (B, k, k).

        ``relative``: of theta over the feature's ``scale``, for the squares of which there is room.
        """
        k, projection = self.theta.shape[1], self.projection
        curved = projection.structure.curved
        if relative:
            projection = replace(projection, scale=np.ones_like(projection.scale))
        result = np.full((positions.size, k, k), np.nan)
        for here, batch in self.batches(positions):
            at = self.likelihood.evaluate(self.theta[batch], batch)
            if curved is None:
                inverse = scaled_inverse(at.expected)
            else:
                inverse, _ = covariance_along(self.projection.structure, self.theta[batch], at)
            inverse = without_known(inverse, self.likelihood)
            result[here] = projection.natural_covariance(inverse, batch)
        return result

    def own_parameters(self, positions: IntArray) -> tuple[FloatArray, FloatArray]:
        """Own parameters of structures in the units of Y, (B, k), and their covariances (B, k, k).

        Of a model in which theta is all of them, theta and `theta_covariance`.
        """
        structure = self.projection.structure
        curved, k = structure.curved, structure.n_own
        values = np.full((positions.size, k), np.nan)
        spread = np.full((positions.size, k, k), np.nan)
        if curved is None:
            for here, batch in self.batches(positions):
                values[here] = self.projection.natural_theta(self.theta[batch], batch)
            return values, self.theta_covariance(positions)
        for here, batch in self.batches(positions):
            theta = self.theta[batch]
            _, own = covariance_along(structure, theta, self.likelihood.evaluate(theta, batch))
            inside = curved.own(theta)
            values[here] = curved.own(self.projection.natural_theta(theta, batch))
            with np.errstate(invalid="ignore", divide="ignore"):
                unit = np.where(inside == 0, 0.0, values[here] / inside)
            for curve, _, at in curved.parts():  # correlations have no unit
                if curve is not None:
                    unit[:, at] = np.where(curve.is_cone, unit[:, at], 1.0)
            spread[here] = own * unit[:, :, None] * unit[:, None, :]
        return values, spread

    def information(self, positions: IntArray) -> Information:
        """Expected information of theta, and X'V^-1X."""
        p = self.projection.p
        theta = self.theta_information(positions)
        beta = np.full((positions.size, p, p), np.nan)
        for here, batch in self.batches(positions):
            beta[here] = _inverse(self.likelihood.covariance(self.theta[batch], batch))
        return Information(theta, beta)

    def random_effects(
        self, positions: IntArray, kind: StandardErrorKind | None
    ) -> tuple[FloatArray, FloatArray]:
        """Predictions and their standard errors (NaN when not asked for), both (B, q)."""
        blup = np.full((positions.size, self.projection.structure.q), np.nan)
        errors = np.full_like(blup, np.nan)
        for here, batch in self.batches(positions):
            theta = self.theta[batch]
            effects: RandomEffects = self.likelihood.random_effects(theta, batch, kind)
            blup[here] = effects.blup
            if effects.se is not None:
                errors[here] = effects.se
            if kind == "conditional":  # a distribution given y and beta needs a proper V
                errors[here[~rows_of(self.likelihood, batch).is_definite(theta)]] = np.nan
        turn, roots = self.projection.turn, self.projection.roots
        if turn is not None:  # the likelihood's effects are others
            blup = np.asarray(blup @ turn.A.T)
        if roots is not None:
            blup = roots.to_levels(blup)
        if kind is not None and not (turn is None and roots is None):
            errors = self._turned_errors(positions, kind, errors)
        return blup, errors

    def conditional_covariance(self, position: int) -> FloatArray:
        """var(b | y, beta) of one feature with residual variances by group, shape (q, q).

        Of independent effects, where those of the levels have a known covariance.
        """
        likelihood, batch = self.likelihood, np.array([position], dtype=np.intp)
        assert isinstance(likelihood, ResidualGroups)
        columns, _ = self.projection.prediction_units(batch)
        inside = effect_covariance(likelihood, self.theta[batch])[0]
        scale = np.asarray(self.projection.scale[position])
        return np.asarray(inside * scale / np.outer(columns, columns))

    def level_effects(
        self, positions: IntArray, kind: StandardErrorKind | None
    ) -> tuple[FloatArray, FloatArray]:
        """The same of the effects themselves, where columns of Z are directions of several."""
        blup, errors = self.random_effects(positions, kind)
        structure = self.projection.structure
        if not structure.turned:
            return blup, errors
        if kind is not None:
            errors = self._turned_errors(positions, kind, errors)
        return np.asarray(blup @ structure.turn()), errors

    def _turned_errors(
        self, positions: IntArray, kind: StandardErrorKind, errors: FloatArray
    ) -> FloatArray:
        """Standard errors (B, q) of the effects where others are fitted, whose are ``errors``."""
        p = self.projection
        turn, roots = p.turn, p.roots
        rows = np.eye(p.structure.q) if roots is None else roots.A
        if p.structure.turned:  # never beside roots
            rows = p.structure.turn().toarray()
        if turn is not None:
            rows = rows @ turn.A
        result = np.full((positions.size, rows.shape[0]), np.nan)
        unseen = np.zeros((rows.shape[0], self.theta.shape[1]))
        if roots is not None:
            unseen = roots.unseen(sp.eye_array(rows.shape[0], format="csr"))
        size = max(1, self.memory // (8 * 6 * rows.shape[0] * rows.shape[1]))
        for here, batch in self.batches(positions, size):
            theta, likelihood = self.theta[batch], rows_of(self.likelihood, batch)
            C = self.likelihood.covariance(theta, batch) / p.scale[batch, None, None]
            given = _inverse(C) if kind == "conditional" else None
            columns, _ = p.prediction_units(batch)
            if len(p.structure.residuals) > 1:
                whole = given is not None
                variance = own_effect_errors(likelihood, theta, rows / columns, given=whole)
            else:
                variance = effect_variances(likelihood, theta, rows / columns, given)
            variance = variance * p.scale[batch, None]
            if unseen.any():
                variance = variance + p.natural_theta(theta, batch) @ unseen.T
            with np.errstate(invalid="ignore"):
                result[here] = np.sqrt(variance)
        result[np.isnan(errors).any(axis=1)] = np.nan
        return result

    def batches(
        self, positions: IntArray, limit: int | None = None
    ) -> Iterator[tuple[IntArray, IntArray]]:
        """Known features: where they are in ``positions``, and their positions."""
        fitted = np.flatnonzero(self.known[positions])
        size = self.likelihood.batch_size(self.memory)
        size = size if limit is None else min(size, limit)
        for start in range(0, fitted.size, size):
            here = fitted[start : start + size]
            yield here, positions[here]


def without_known(covariance: FloatArray, likelihood: AnyEstimator) -> FloatArray:
    """Covariances of theta (B, k, k), zero for a residual variance that is known."""
    if known_residual_of(likelihood) is not None:
        covariance[:, -1, :], covariance[:, :, -1] = 0.0, 0.0
    return covariance


def scaled_inverse(information: FloatArray) -> FloatArray:
    """Inverse of positive definite matrices (B, k, k), scaled to unit diagonal meanwhile.

    NaN for matrices that are not finite, as at the edge of the likelihood's domain.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        length = np.sqrt(np.diagonal(information, axis1=-2, axis2=-1))
        scale = length[:, :, None] * length[:, None, :]
        scaled = information / scale
    known = np.isfinite(scaled).all(axis=(1, 2))
    result = np.full(information.shape, np.nan)
    result[known] = np.linalg.pinv(scaled[known], hermitian=True) / scale[known]
    return result


def _inverse(matrices: FloatArray) -> FloatArray:
    """Inverse of each matrix (B, p, p); NaN for those that have none."""
    with np.errstate(all="ignore"):
        known = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
        known[known] = np.linalg.slogdet(matrices[known])[0] != 0
    result = np.full(matrices.shape, np.nan)
    result[known] = np.linalg.inv(matrices[known])
    return result
