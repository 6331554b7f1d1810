"""Groups of samples whose residual variance may go to zero without bound, by name."""

from __future__ import annotations

import numpy as np

from flashmm.exceptions import listing
from flashmm.likelihood.residual_groups.explained import explained_by_effects, explained_is_cheap
from flashmm.likelihood.residual_groups.groups import ResidualGroups
from flashmm.results.fitted import FittedModel
from flashmm.solvers.verdict_texts import Status

__all__ = ["SMALL_GROUP", "explained_groups"]

# Residual groups of fewer samples are looked at more closely.
SMALL_GROUP = 20


def explained_groups(fitted: FittedModel, position: int | None = None) -> str:
    """Which groups' samples the effects explain exactly, for any data or of which features.

    A sentence for each; empty where there are none. ``position``: of one feature. Without a group
    of few samples only features without a fit are looked at.
    """
    likelihood, structure = fitted.likelihood, fitted.stats.structure
    if not isinstance(likelihood, ResidualGroups) or not explained_is_cheap(likelihood):
        return ""
    features = np.arange(likelihood.m) if position is None else np.array([position])
    if min(structure.residual_sizes) >= SMALL_GROUP:
        unbounded = (Status.NO_MAXIMUM, Status.STALLED, Status.PERFECT_FIT)
        features = features[np.isin(fitted.array("status")[features], unbounded)]
        if features.size == 0:
            return ""
    always, found = explained_by_effects(likelihood, features)
    names, said = structure.residuals, []
    if always.any():
        shown = listing([names[h] for h in np.flatnonzero(always)])
        said.append(
            f"X and the random effects explain any values of so few samples: the ML likelihood "
            f"has no bound as {shown} goes to zero, and every maximum lies below. Use REML, or "
            "join the group with another: residual_by={'group': 'coarser', ...}."
        )
    for h in np.flatnonzero(found.any(axis=0)):
        of = (
            "this feature"
            if position is not None
            else listing(fitted.names[features[found[:, h]]], 3)
        )
        said.append(
            f"X and the random effects explain the samples of {names[h]} exactly for {of}: the "
            "likelihood has no bound as that variance goes to zero."
        )
    return " ".join(said)
