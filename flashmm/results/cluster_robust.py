"""Cluster-robust tests of the fixed effects: options to clusters, features to batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashmm.arrays.blas import one_blas_thread
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, check_option, listing
from flashmm.inference.cluster_robust import (
    KINDS,
    Cluster,
    ClusterDesign,
    RobustF,
    RobustKind,
    RobustTests,
    cluster_design,
    robust,
    robust_f,
    robust_t,
)
from flashmm.results.fitted import FittedModel
from flashmm.stats.families import by_family
from flashmm.stats.fields import GroupSums, Sums
from flashmm.stats.group_names import known_groups
from flashmm.stats.groups import grouped_by, shared_columns

__all__ = ["MODEL", "Clusters", "RobustCovarianceOf", "Sandwich", "clusters_of", "sandwich_of"]

MODEL = "model"
# Arrays of so many bytes are worked on at once.
_BATCH = 2**27


@dataclass(frozen=True)
class Clusters:
    """The clusters of a fit, ready to be asked for the residuals of some features.

    Parameters
    ----------
    fitted
        The fit.
    groups
        The sums of each cluster.
    designs
        Their rows.
    """

    fitted: FittedModel
    groups: GroupSums
    designs: tuple[ClusterDesign, ...]

    @property
    def largest(self) -> int:
        """Columns of the largest basis of a cluster."""
        return max(int(design.X.shape[0]) for design in self.designs)

    def batches(
        self, positions: IntArray, per_feature: int
    ) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
        """Where features with an estimate are among ``positions``, theirs, and their scale.

        ``per_feature``: numbers that a feature takes.
        """
        fitted = self.fitted
        theta = fitted.ds["theta"].to_numpy()[positions]
        known = np.isfinite(theta).all(axis=1) & (theta[:, -1] > 0)
        here = np.flatnonzero(known & fitted.on_request.known[positions])
        size = max(1, min(fitted.options.memory, _BATCH) // (8 * per_feature))
        with one_blas_thread():
            for start in range(0, here.size, size):
                batch = here[start : start + size]
                scale = np.asarray(fitted.projection.scale)[positions[batch]]
                yield batch, positions[batch], scale

    def at(
        self, features: IntArray, beta: FloatArray, scale: FloatArray
    ) -> tuple[list[Cluster], FloatArray]:
        """The clusters with the residuals of some features, and theta, in units of their scale.

        Parameters
        ----------
        features
            Positions, shape (B,).
        beta
            Coefficients that the residuals are about, shape (B, p).
        scale
            Residual variance of y on X, shape (B,).
        """
        unit = np.sqrt(scale)[:, None]
        clusters = []
        for part, design in zip(self.groups.parts, self.designs, strict=True):
            left = _residual_sums(part, features, beta) / unit
            clusters.append(Cluster(design, left))
        theta = self.fitted.ds["theta"].to_numpy()[features] / scale[:, None]
        return clusters, theta


def _residual_sums(part: Sums, features: IntArray, beta: FloatArray) -> FloatArray:
    """[X, Z]'(y - X beta) of one cluster for some features, shape (B, p + q_i)."""
    of = part.centred_at(features)
    change = beta.T - of.a
    return np.concatenate([of.XY - part.XX @ change, of.ZY - part.ZX @ change]).T


def clusters_of(fitted: FittedModel, cluster: Any, what: str, option: str) -> Clusters:
    """The clusters that a user asks for.

    Raises
    ------
    InputError
        If there are no sums by group, or random effects reach from one cluster to another.
    """
    fitted.one_residual(what, "Robust tests hold without it: fit without `residual_by`.")
    stats = by_family(grouped_by(fitted.of_groups(what), cluster, what, option))
    groups = known_groups(stats)
    if groups.k < 2:
        raise InputError(f"{what} needs several clusters; {groups.name!r} has one.")
    shared = shared_columns(stats)
    if shared:
        raise InputError(
            f"{what} needs clusters that are independent of each other, but random effects reach "
            f"from one group of {groups.name!r} to another: {listing(shared)}. Take clusters that "
            f"hold all samples of each level of the random effects, and of levels that a known "
            f"covariance relates (whole families), or leave those out."
        )
    designs = tuple(
        cluster_design(part.XX, part.ZX, part.ZZ.toarray(), part.structure) for part in groups.parts
    )
    return Clusters(fitted, groups, designs)


@dataclass(frozen=True)
class Sandwich:
    """Cluster-robust covariances of a fit.

    Parameters
    ----------
    clusters
        Its clusters.
    kind
        Which adjustment.
    """

    clusters: Clusters
    kind: RobustKind

    @property
    def name(self) -> str:
        """What tests are called in their tables."""
        return f"satterthwaite, {self.kind} by {self.clusters.groups.name}"

    def contrasts(self, positions: IntArray, L: FloatArray) -> RobustTests:
        """Variances of the contrasts in the rows of L (c, p), in the units of Y, and their df."""
        shape = positions.size, L.shape[0]
        result = RobustTests(np.full(shape, np.nan), np.full(shape, np.nan))
        for here, features, scale in self.clusters.batches(positions, self._size(L.shape[0])):
            found = self._robust(features, scale)
            part = robust_t(found, L)
            result.variance[here] = part.variance * scale[:, None]
            result.df[here] = part.df
        return result

    def joint(self, positions: IntArray, difference: FloatArray, L: FloatArray, df: str) -> RobustF:
        """HTZ tests that L beta equals its hypothesised values; ``difference`` (B, s)."""
        del df  # Hotelling's approximation has its own
        result = RobustF(np.full(positions.size, np.nan), np.full(positions.size, np.nan))
        size = self._size(L.shape[0] ** 2)
        for here, features, scale in self.clusters.batches(positions, size):
            found = self._robust(features, scale)
            part = robust_f(found, L, difference[here] / np.sqrt(scale)[:, None])
            result.F[here], result.df[here] = part.F, part.df
        return result

    def covariance(self, positions: IntArray) -> FloatArray:
        """Covariance matrices of the fixed effects in the units of Y, shape (B, p, p)."""
        p = self.clusters.fitted.stats.p
        result = np.full((positions.size, p, p), np.nan)
        for here, features, scale in self.clusters.batches(positions, self._size(1)):
            result[here] = self._robust(features, scale).covariance * scale[:, None, None]
        return result

    def _robust(self, features: IntArray, scale: FloatArray) -> Any:
        beta = self.clusters.fitted.values("beta", features)
        clusters, theta = self.clusters.at(features, beta, scale)
        return robust(clusters, theta, self.kind, self.clusters.fitted.stats.n)

    def _size(self, hypotheses: int) -> int:
        """Numbers that one feature takes."""
        p, k, r = self.clusters.fitted.stats.p, self.clusters.groups.k, self.clusters.largest
        return k * (r * r + 2 * r * p + 3 * p * p + 2 * r) + 8 * r * r + 3 * hypotheses * p * p


@dataclass(frozen=True)
class RobustCovarianceOf:
    """Robust covariances of contrasts for some of the tested features, to be asked for later.

    Parameters
    ----------
    sandwich
        The robust covariances.
    positions
        Positions of the tested features, shape (m,).
    """

    sandwich: Sandwich
    positions: IntArray

    def __call__(self, here: IntArray, rows: FloatArray) -> FloatArray:
        """Covariances of the contrasts ``rows`` (r, p), shape (B, r, r); ``here`` (B,)."""
        return np.asarray(rows @ self.sandwich.covariance(self.positions[here]) @ rows.T)


def sandwich_of(
    fitted: FittedModel, cov: str, cluster: Any, df: str, moderated: Any, prior: Any
) -> Sandwich | None:
    """The cluster-robust covariances that options of a test ask for; None for the model's."""
    check_option("cov", cov, (MODEL, *KINDS))
    if cov == MODEL:
        if cluster is not None:
            raise InputError('`cluster` goes with a cluster-robust covariance: cov="CR2", for one.')
        return None
    if df != "satterthwaite":
        raise InputError(
            f"cov={cov!r} has Satterthwaite's degrees of freedom under the fitted model: leave out "
            f"df={df!r}."
        )
    if moderated is not False or prior is not None:
        raise InputError(
            f"cov={cov!r} does not rest on the model's residual variance: leave out `moderated` "
            "and `prior`."
        )
    kind = next(one for one in KINDS if one == cov)
    return Sandwich(clusters_of(fitted, cluster, f"cov={cov!r}", "cluster"), kind)
