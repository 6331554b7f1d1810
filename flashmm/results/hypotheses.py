"""Tests of the fixed effects in numbers: variances, degrees of freedom and F statistics.

Works through the features in batches that fit the memory budget; labels are put on by
`flashmm.results.fixed_effects`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.curved_covariance import covariance_along
from flashmm.inference.degrees_of_freedom import (
    FIXED_DF,
    KNAPP_HARTUNG,
    FStatistic,
    VarianceAndDf,
    adjusted_variance,
    kenward_roger,
    kenward_roger_f,
    satterthwaite,
    satterthwaite_df,
    satterthwaite_f,
)
from flashmm.inference.group_prediction_variance import prediction_errors
from flashmm.inference.moderation import moderate_moments
from flashmm.inference.prediction_variance import prediction_moments
from flashmm.inference.theta_covariance import covariance_on_face, face
from flashmm.likelihood.base import Evaluation, rows_of
from flashmm.likelihood.known_residual import KnownResidual, generalised_sum_of_squares
from flashmm.likelihood.moments import ContrastMoments
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.results.fitted import FittedModel
from flashmm.results.on_request import OnRequest, scaled_inverse, without_known
from flashmm.solvers.space import PSD

__all__ = ["CovarianceOf", "Hypotheses", "hypotheses"]


@dataclass(frozen=True)
class Hypotheses:
    """Hypotheses about the fixed effects of fitted features.

    Parameters
    ----------
    request
        The fitted likelihood.
    blocks
        Positions in theta of the covariance blocks that the psd space keeps positive
        semi-definite, the residual's among them; None in the unconstrained space.
    df_resid
        n - p of each feature, shape (m,).
    residual
        Moderated residual variances, in internal units, and their degrees of freedom, shape
        (m, H, 2) with H residual variances; None for those of the fit.
    dream
        What variances of contrasts are multiplied by, and the degrees of freedom that they gain,
        shape (m, 2): moderation as in limma and dream. None for none.
    """

    request: OnRequest
    blocks: tuple[IntArray, ...] | None
    df_resid: FloatArray
    residual: FloatArray | None = None
    dream: FloatArray | None = None

    def contrasts(self, positions: IntArray, L: FloatArray, df: str) -> VarianceAndDf:
        """Variances of the contrasts in the rows of L (c, p), and their df; both (B, c).

        Where V is not positive definite a variance may be negative; its df are then NaN.
        """
        shape = positions.size, L.shape[0]
        if df in FIXED_DF:
            variance = self.request.contrast_variance(positions, L)
            if df == KNAPP_HARTUNG:
                variance = variance * self.mean_square(positions)[:, None]
            return VarianceAndDf(variance, np.tile(self._fixed_df(positions, df), shape[1]))
        result = VarianceAndDf(np.full(shape, np.nan), np.full(shape, np.nan))
        method = kenward_roger if df == "kenward-roger" else satterthwaite
        for here, chosen, moments, covariance in self._moments(positions, L[:, None, :], df):
            part = method(moments, covariance)
            scale = self.request.projection.scale[positions[here], None]
            result.variance[here, chosen] = part.variance * scale
            result.df[here, chosen] = part.df
        if self.dream is not None:
            ratio, gained = self.dream[positions].T
            result.variance[:] *= ratio[:, None]
            result.df[:] += gained[:, None]
        return result

    def covariance(self, positions: IntArray, L: FloatArray, df: str) -> FloatArray:
        """Covariances of the contrasts in the rows of L (r, p), shape (B, r, r).

        Of the same standard errors as `contrasts` gives, up to dream's common factor.
        """
        request, r = self.request, L.shape[0]
        result = np.full((positions.size, r, r), np.nan)
        if df != "kenward-roger" and self.residual is None:
            for here, batch in request.batches(positions):
                C = request.likelihood.covariance(request.theta[batch], batch)
                result[here] = np.matmul(np.matmul(L, C), L.T)
            if df == KNAPP_HARTUNG:
                result *= self.mean_square(positions)[:, None, None]
            return result
        for here, _, moments, covariance in self._moments(positions, L[None], df):
            found = moments.variance
            if df == "kenward-roger":
                found = adjusted_variance(moments, covariance)
            result[here] = found[:, 0] * request.projection.scale[positions[here], None, None]
        return result

    def joint(
        self, positions: IntArray, difference: FloatArray, L: FloatArray, df: str
    ) -> FStatistic:
        """F statistics that L beta equals its hypothesised values.

        Parameters
        ----------
        positions
            Positions of the features, shape (B,).
        difference
            L beta minus those values, in the units of Y, shape (B, r).
        L
            Linearly independent contrasts, shape (r, p).
        df
            Method for the denominator's degrees of freedom.

        Returns
        -------
        FStatistic
            Shape (B,).
        """
        count = positions.size
        result = FStatistic(np.full(count, np.nan), np.full(count, np.nan))
        scaled = difference / np.sqrt(self.request.projection.scale[positions, None])
        for here, _, moments, covariance in self._moments(positions, L[None], df):
            left = scaled[here, None, :]
            if df == "kenward-roger":
                part = kenward_roger_f(left, moments, covariance)
            else:
                part = satterthwaite_f(left, moments, covariance)
            result.F[here] = part.F[:, 0]
            result.df[here] = part.df[:, 0]
            if df in FIXED_DF:
                result.df[here] = self._fixed_df(positions[here], df)[:, 0]
        if df == KNAPP_HARTUNG:
            result.F[:] /= self.mean_square(positions)
        if self.dream is not None:
            ratio, gained = self.dream[positions].T
            result.F[:] /= ratio
            result.df[:] += gained
        return result

    def predictions(
        self, positions: IntArray, X: FloatArray, Z: sp.csr_array, independent: FloatArray, df: str
    ) -> VarianceAndDf:
        """Variances of X (beta_hat - beta) + Z (b_hat - b) and their df, both (B, c).

        Parameters
        ----------
        positions
            Positions of the features, shape (B,).
        X, Z
            Rows to predict, shapes (c, p) and (c, q).
        independent
            Row i adds ``independent[i] @ theta``, theta in the units of Y; shape (c, k).
        df
            ``"residual"``, ``"normal"``, ``"knapp-hartung"`` or ``"satterthwaite"``.
        """
        request, c = self.request, X.shape[0]
        projection, k = request.projection, request.theta.shape[1]
        shape = positions.size, c
        result = VarianceAndDf(
            np.full(shape, np.nan), np.tile(self._fixed_df(positions, df), shape[1])
        )
        if len(projection.structure.residuals) > 1:
            return self._group_predictions(positions, X, Z, independent, df)
        size = 8 * (k + 4) * max(1, projection.structure.q)
        rows = max(1, min(c, request.memory // size))
        for start in range(0, c, rows):
            part = slice(start, min(start + rows, c))
            roots, turn = projection.roots, projection.turn
            dense, own = Z[part].toarray(), independent[part]
            if roots is not None:
                dense, own = _dense(roots.rows(Z[part])), own + roots.unseen(Z[part])
            if turn is not None:
                dense, own = dense @ turn.A, own @ turn.T_inverse
            for here, batch in request.batches(positions, max(1, request.memory // (size * rows))):
                theta = request.theta[batch]
                columns, params = projection.prediction_units(batch)
                found = prediction_moments(
                    rows_of(request.likelihood, batch),
                    theta,
                    X[part],
                    dense / columns,
                    own * params,
                )
                result.variance[here, part] = found.variance * projection.scale[batch, None]
                if df == KNAPP_HARTUNG:  # of the mean alone: what is added to it is as estimated
                    mean = request.contrast_variance(positions[here], X[part])
                    ratio = self.mean_square(positions[here])[:, None] - 1.0
                    result.variance[here, part] += ratio * mean
                if df == "satterthwaite":
                    at = request.likelihood.evaluate(theta, batch)
                    spread = without_known(self._covariance(theta, at, df), request.likelihood)
                    result.df[here, part] = satterthwaite_df(found.variance, found.gradient, spread)
        return result

    def _group_predictions(
        self, positions: IntArray, X: FloatArray, Z: sp.csr_array, independent: FloatArray, df: str
    ) -> VarianceAndDf:
        """The same where groups of samples have residual variances of their own."""
        request, shape = self.request, (positions.size, X.shape[0])
        projection, roots = request.projection, request.projection.roots
        if not isinstance(request.likelihood, ResidualGroups):
            return self._predicted_means(positions, X, Z, independent, df)
        result = VarianceAndDf(
            np.full(shape, np.nan), np.tile(self._fixed_df(positions, df), shape[1])
        )
        a = projection.structure.q + projection.p
        rows = max(1, min(shape[1], request.memory // (64 * a)))
        limit = max(1, request.memory // (64 * a * (rows + a)))
        for start in range(0, shape[1], rows):
            part = slice(start, min(start + rows, shape[1]))
            dense, own = Z[part].toarray(), independent[part]
            if roots is not None:
                dense, own = _dense(roots.rows(Z[part])), own + roots.unseen(Z[part])
            for here, batch in request.batches(positions, limit):
                theta, likelihood = request.theta[batch], request.likelihood
                assert isinstance(likelihood, ResidualGroups)
                columns, params = projection.prediction_units(batch)
                found = prediction_errors(likelihood, theta, X[part], dense / columns, own * params)
                result.variance[here, part] = found.variance * projection.scale[batch, None]
                if df == "satterthwaite":
                    at = likelihood.evaluate(theta, batch)
                    spread = self._covariance(theta, at, df)
                    result.df[here, part] = satterthwaite_df(found.variance, found.gradient, spread)
        return result

    def _predicted_means(
        self, positions: IntArray, X: FloatArray, Z: sp.csr_array, independent: FloatArray, df: str
    ) -> VarianceAndDf:
        """The same of means, where features have samples of their own."""
        request, shape = self.request, (positions.size, X.shape[0])
        if Z.nnz:
            raise InputError(
                "Standard errors at level='conditional' take one residual variance, or features "
                "that share their samples; here these have their own, and residual variances by "
                "group. Use level='population'."
            )
        result = VarianceAndDf(
            np.full(shape, np.nan), np.tile(self._fixed_df(positions, df), shape[1])
        )
        for here, chosen, moments, spread in self._moments(positions, X[:, None], df):
            batch = positions[here]
            _, params = request.projection.prediction_units(batch)
            own = independent[chosen] * params  # (c, k), or (B, c, k)
            added = np.matmul(own, request.theta[batch][:, :, None])[:, :, 0]
            variance = moments.variance[..., 0, 0] + added
            absent = request.projection.absent_of(batch)
            if absent is not None:  # nothing is known of the variance of these
                unknown = np.atleast_2d(absent) @ (independent[chosen] != 0).T
                variance = np.where(unknown, np.nan, variance)
            result.variance[here, chosen] = variance * request.projection.scale[batch, None]
            if df == "satterthwaite":
                gradient = moments.gradient[..., 0, 0] + own
                result.df[here, chosen] = satterthwaite_df(variance, gradient, spread)
        return result

    def _moments(
        self, positions: IntArray, L: FloatArray, df: str
    ) -> Iterator[tuple[IntArray, slice, ContrastMoments, FloatArray]]:
        """Moments of hypotheses L (g, r, p) and the covariance of theta, batch by batch."""
        request, (g, r, _) = self.request, L.shape
        if df == "kenward-roger" and request.projection.structure.curved is not None:
            raise InputError(
                "df='kenward-roger' expands the covariance of the estimates in parameters that V "
                "is linear in (Kenward & Roger 1997; other structures need the terms of their 2009 "
                "paper). Here a structure (ar1, exp or cs with hom=FALSE) is not: use "
                "df='satterthwaite'."
            )
        k, adjust = request.theta.shape[1], df == "kenward-roger"
        # Per hypothesis and feature: vectors of length q, and a few (k, k, r, r) arrays.
        size = 8 * r * ((2 * k + 4) * request.projection.structure.q + 4 * k * k * r)
        groups = max(1, min(g, request.memory // size))
        limit = max(1, request.memory // (size * groups))
        for here, batch in request.batches(positions, limit):
            theta = request.theta[batch]
            covariance = self._covariance(theta, request.likelihood.evaluate(theta, batch), df)
            covariance = without_known(covariance, request.likelihood)
            rows = rows_of(request.likelihood, batch)
            for start in range(0, g, groups):
                chosen = slice(start, min(start + groups, g))
                moments = rows.contrast_moments(theta, L[chosen], adjustment=adjust)
                spread = covariance
                if self.residual is not None:
                    variance, freedom = np.moveaxis(self.residual[batch], -1, 0)
                    own = theta[:, -variance.shape[1] :]
                    absent = request.projection.absent_of(batch)
                    if absent is not None:  # what is no parameter stays as it is
                        lost = np.broadcast_to(absent, theta.shape)[:, -variance.shape[1] :]
                        variance = np.where(lost, own, variance)
                        freedom = np.where(lost, np.inf, freedom)
                    moments, spread = moderate_moments(moments, covariance, own, variance, freedom)
                yield here, chosen, moments, spread

    def mean_square(self, positions: IntArray) -> FloatArray:
        """Y'Py / (n - p) (Knapp & Hartung 2003, their q), by which variances are widened, (B,).

        Where the residual variance is estimated by REML it is one.
        """
        request, result = self.request, np.full(positions.size, np.nan)
        likelihood: Any = request.likelihood
        if not isinstance(likelihood, KnownResidual):
            raise InputError(
                "df='knapp-hartung' widens standard errors by how far y is from a model whose "
                "residual variance is known; here it is estimated. Fit with residual_variance=, "
                "or use df='satterthwaite' or 'kenward-roger'."
            )
        for here, batch in request.batches(positions):
            total = generalised_sum_of_squares(likelihood, request.theta[batch], batch)
            result[here] = total / self.df_resid[batch]
        return result

    def _fixed_df(self, positions: IntArray, df: str) -> FloatArray:
        """Degrees of freedom that no estimate tells: n - p, or infinity; shape (B, 1)."""
        found = self.df_resid[positions, None]
        return np.full_like(found, np.inf) if df == "normal" else found

    def residual_variances(self) -> tuple[FloatArray, FloatArray]:
        """Residual variances in internal units and their degrees of freedom, both (m, H).

        2 theta^2 / var(theta), with the variance that `satterthwaite` uses; NaN where unknown.
        """
        request, m = self.request, self.request.theta.shape[0]
        several = len(request.projection.structure.residuals)
        variance, df = np.full((m, several), np.nan), np.full((m, several), np.nan)
        limit = max(1, request.memory // (32 * max(1, request.projection.structure.q)))
        for here, batch in request.batches(np.arange(m), limit):
            theta = request.theta[batch]
            at = request.likelihood.evaluate(theta, batch)
            covariance = self._covariance(theta, at, "satterthwaite")
            spread = np.diagonal(covariance, axis1=1, axis2=2)[:, -several:]
            variance[here] = theta[:, -several:]
            with np.errstate(divide="ignore", invalid="ignore"):
                df[here] = 2.0 * theta[:, -several:] ** 2 / spread
            absent = request.projection.absent_of(batch)
            if absent is not None:  # groups without samples
                lost = np.broadcast_to(absent, theta.shape)[:, -several:]
                variance[here], df[here] = (
                    np.where(lost, np.nan, values[here]) for values in (variance, df)
                )
        return variance, df

    def hat_df(self) -> FloatArray:
        """Residual degrees of freedom n - 2 tr H + tr HH' of the fitted values H y, shape (m,).

        I - H is sigma2 P, so they are sigma2^2 tr(PP), twice what E tells of sigma2 (REML).
        """
        request, m = self.request, self.request.theta.shape[0]
        df = np.full(m, np.nan)
        limit = max(1, request.memory // (32 * max(1, request.projection.structure.q)))
        for here, batch in request.batches(np.arange(m), limit):
            theta = request.theta[batch]
            at = request.likelihood.evaluate(theta, batch)
            df[here] = 2.0 * theta[:, -1] ** 2 * at.expected[:, -1, -1]
        return df

    def _covariance(self, theta: FloatArray, at: Evaluation, df: str) -> FloatArray:
        """Asymptotic covariance of theta, shape (B, k, k).

        Kenward and Roger take the inverse of the expected information. Satterthwaite's method
        takes that of the observed information, along the face of the psd cone that theta lies
        on: what the boundary holds does not vary. Where the observed information is not
        positive definite the expected one stands in. NaN where the likelihood does not exist, as
        where a fit stalled at the edge of its domain.
        """
        structure = self.request.projection.structure
        if structure.curved is not None:
            sharp = df == "satterthwaite"
            return covariance_along(structure, theta, at, observed=sharp)[0]
        if df != "satterthwaite":
            return scaled_inverse(at.expected)
        known = np.isfinite(at.score).all(axis=1) & np.isfinite(at.observed).all(axis=(1, 2))
        known = np.asarray(known)
        result = np.full(at.expected.shape, np.nan)
        if known.any():
            result[known] = self._covariance_where_known(theta[known], at.take(known))
        return result

    def _covariance_where_known(self, theta: FloatArray, at: Evaluation) -> FloatArray:
        """Satterthwaite's covariance of theta, shape (B, k, k)."""
        blocks = self.blocks
        if blocks is None:
            blocks = tuple(np.array([[i]]) for i in range(theta.shape[1]))
            theta = np.ones_like(theta)  # nothing is held
        covariance, indefinite = covariance_on_face(
            face(theta, at.score, at.observed, blocks), at.expected
        )
        if indefinite.any():
            again = at.take(indefinite)
            covariance[indefinite], _ = covariance_on_face(
                face(theta[indefinite], 0.0 * again.score, again.expected, blocks), again.expected
            )
        return covariance


@dataclass(frozen=True)
class CovarianceOf:
    """Covariances of contrasts for some of the tested features, to be asked for later.

    Parameters
    ----------
    tests
        The hypotheses of the fit.
    positions
        Positions of the tested features, shape (m,).
    df
        How their degrees of freedom were found.
    """

    tests: Hypotheses
    positions: IntArray
    df: str

    def __call__(self, here: IntArray, rows: FloatArray) -> FloatArray:
        """Covariances of the contrasts ``rows`` (r, p), shape (B, r, r); ``here`` (B,)."""
        return self.tests.covariance(self.positions[here], rows, self.df)


def _dense(rows: Any) -> FloatArray:
    return np.asarray(rows.toarray() if sp.issparse(rows) else rows)


def hypotheses(fitted: FittedModel) -> Hypotheses:
    """The hypotheses of a fit."""
    blocks = None
    if fitted.options.parameter_space == "psd":
        structure = fitted.stats.structure
        blocks = PSD(tuple(structure.blocks()), len(structure.param_names)).all_blocks
    df = np.broadcast_to(np.asarray(fitted.nobs - fitted.stats.p, dtype=np.float64), fitted.stats.m)
    return Hypotheses(fitted.on_request, blocks, df)
