"""Likelihoods: theta to log-likelihood, score and information, for many features at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flashmm.likelihood.base import Estimator, Evaluation, Likelihood, RandomEffects
from flashmm.likelihood.blocked import BlockedLikelihood
from flashmm.likelihood.bordered import BorderedLikelihood, border_applies
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.projection import Projection, project
from flashmm.likelihood.spectral import SpectralLikelihood

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ENGINES",
    "BlockedLikelihood",
    "BorderedLikelihood",
    "Estimator",
    "Evaluation",
    "GeneralLikelihood",
    "Likelihood",
    "Projection",
    "RandomEffects",
    "SpectralLikelihood",
    "make_likelihood",
    "project",
]

ENGINES: dict[str, Callable[[Projection, Literal["REML", "ML"]], Estimator]] = {
    "blocked": BlockedLikelihood,
    "bordered": BorderedLikelihood,
    "general": GeneralLikelihood,
    "spectral": SpectralLikelihood,
}


def make_likelihood(
    projection: Projection, method: Literal["REML", "ML"], engine: str = "auto"
) -> Estimator:
    """The likelihood for a design.

    ``"spectral"`` for one component, ``"bordered"`` for several when one of them has most of
    the columns, else ``"general"``.
    """
    if engine == "auto":
        if len(projection.structure.parameters) == 1:
            engine = "spectral"
        else:
            engine = "bordered" if border_applies(projection) else "general"
    return ENGINES[engine](projection, method)
