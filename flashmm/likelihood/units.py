"""Internal units and those of Y: what a projection has scaled, brought back, and the other way."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.namespaces import namespace
from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.likelihood.centring import Turn
from flashmm.stats.known_levels import RootMap

# Variances below this are not normal numbers: digits are lost.
UNDERFLOW = float(np.finfo(np.float64).tiny)

__all__ = ["UNDERFLOW", "InUnits"]


class InUnits:
    """The units of a projection, whose fields they are.

    ``n``, ``param_scale``, ``log_det_XX`` and ``log_weights`` belong to all features or, with a
    first axis of length m, to each.
    """

    n: Any
    p: int
    scale: FloatArray
    param_scale: FloatArray
    log_det_XX: Any
    log_weights: Any
    turn: Turn | None = None
    roots: RootMap | None = None

    @property
    def absent(self) -> BoolArray | None:
        """Residual variances of groups without samples, which are no parameters; None for none.

        Shape (k + H,) or, where features have samples of their own, (m, k + H). They are NaN in
        the units of Y and one in internal units.
        """
        return None

    def absent_of(self, features: IntArray) -> BoolArray | None:
        """The same of some features, shape (k + H,) or (B, k + H)."""
        absent = self.absent
        return absent if absent is None or absent.ndim == 1 else absent[features]

    @property
    def unit(self) -> FloatArray:
        """Square root of ``scale``, the unit of y, shape (m,)."""
        unit: FloatArray = namespace(self.scale).sqrt(self.scale)
        return unit

    def units(self, features: IntArray | None = None) -> FloatArray:
        """The units of theta of some features, shape (B, k + 1)."""
        here: Any = slice(None) if features is None else features
        each = self.param_scale if self.param_scale.ndim == 1 else self.param_scale[here]
        unit: FloatArray = each * self.scale[here][:, None]
        return unit

    def natural_loglik(
        self, loglik: FloatArray, method: str, features: IntArray | None = None
    ) -> FloatArray:
        """Log-likelihoods (B,) of y itself: the scaling undone, REML with lme4's constant.

        REML loses 1/2 log|X'X|. ``features`` are the positions; all by default.
        """
        here: Any = slice(None) if features is None else features
        n, log_det, log_weights = (
            value[here] if np.ndim(value) else value
            for value in (self.n, self.log_det_XX, self.log_weights)
        )
        df = n - (self.p if method == "REML" else 0)
        natural: FloatArray = loglik - 0.5 * df * np.log(self.scale[here]) + 0.5 * log_weights
        return natural - 0.5 * log_det if method == "REML" else natural

    def natural_score(self, score: FloatArray) -> FloatArray:
        """Internal derivatives by theta (m, k + 1) as those by theta in the units of Y."""
        with np.errstate(over="ignore"):  # scores where a search ran to the edge
            score = score / self.units()
        return score if self.turn is None else score @ self.turn.T

    def natural_information(self, information: FloatArray, features: IntArray) -> FloatArray:
        """Internal information on theta (B, k + 1, k + 1) as that in the units of Y.

        NaN where there is no room for it: it goes with the fourth power of the units.
        """
        unit = self.units(features)
        with np.errstate(over="ignore", under="ignore"):
            natural = information / unit[:, :, None] / unit[:, None, :]
        lost = np.isinf(natural) | ((np.abs(natural) < UNDERFLOW) & (information != 0))
        information = self._without_absent(np.where(lost, np.nan, natural), features)
        if self.turn is None:
            return information
        return np.asarray(self.turn.T.T @ information @ self.turn.T)

    def _without_absent(self, matrices: FloatArray, features: IntArray) -> FloatArray:
        """Matrices (B, k + 1, k + 1) with NaN for what is no parameter."""
        absent = self.absent_of(features)
        if absent is None:
            return matrices
        return np.where(absent[..., :, None] | absent[..., None, :], np.nan, matrices)

    def natural_covariance(self, covariance: FloatArray, features: IntArray) -> FloatArray:
        """Internal covariances of theta (B, k + 1, k + 1) as those in the units of Y."""
        unit = self.units(features)
        with np.errstate(over="ignore"):  # no room for the fourth power of the units of Y
            covariance = covariance * unit[:, :, None] * unit[:, None, :]
        covariance = self._without_absent(covariance, features)
        if self.turn is None:
            return covariance
        return np.asarray(self.turn.T_inverse @ covariance @ self.turn.T_inverse.T)

    def natural_theta(self, theta: FloatArray, features: IntArray) -> FloatArray:
        """Internal theta (B, k + 1) of some features in the units of Y."""
        theta = theta * self.units(features)
        absent = self.absent_of(features)
        if absent is not None:
            return np.where(absent, np.nan, theta)
        return theta if self.turn is None else theta @ self.turn.T_inverse.T

    def to_internal(self, theta: FloatArray) -> FloatArray:
        """Scale theta (m, k + 1) in the units of Y to the internal units."""
        theta = theta if self.turn is None else theta @ self.turn.T.T
        theta = theta / self.units()
        absent = self.absent
        return theta if absent is None else np.where(absent & np.isnan(theta), 1.0, theta)

    def to_natural(self, theta: FloatArray) -> FloatArray:
        """Scale internal theta (m, k + 1) back to the units of Y."""
        theta = theta * self.units()
        absent = self.absent
        if absent is not None:
            return np.where(absent, np.nan, theta)
        return theta if self.turn is None else theta @ self.turn.T_inverse.T
