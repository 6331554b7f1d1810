"""Likelihoods: theta to log-likelihood, score and information, for many features at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flashmm.likelihood.base import Estimator, Evaluation, Likelihood, RandomEffects
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.projection import Projection, project
from flashmm.likelihood.spectral import SpectralLikelihood

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ENGINES",
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
    "general": GeneralLikelihood,
    "spectral": SpectralLikelihood,
}


def make_likelihood(
    projection: Projection, method: Literal["REML", "ML"], engine: str = "auto"
) -> Estimator:
    """The likelihood for a design: ``"spectral"`` for one component, else ``"general"``."""
    if engine == "auto":
        engine = "spectral" if len(projection.structure.parameters) == 1 else "general"
    return ENGINES[engine](projection, method)
