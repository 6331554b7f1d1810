"""Likelihoods: theta to log-likelihood, score and information, for many features at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flashmm.exceptions import InputError
from flashmm.likelihood.base import Estimator, Evaluation, Likelihood, RandomEffects
from flashmm.likelihood.blocked import BlockedLikelihood
from flashmm.likelihood.bordered import BorderedLikelihood, border_applies, main_component
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.layout import MAX_EFFECTS, find_layout
from flashmm.likelihood.projection import DENSE_LIMIT, Projection, project
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

# Up to this many random effects the eigenbasis of a bordered likelihood is worth its q^3.
EIGENBASIS_LIMIT = 1500

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

    Parameters
    ----------
    projection
        Projected statistics.
    method
        ``"REML"`` or ``"ML"``.
    engine
        A name in `ENGINES`, or ``"auto"``.

    Returns
    -------
    Estimator

    Raises
    ------
    InputError
        If the engine asked for cannot do this design.
    """
    host = projection.in_numpy
    if engine == "auto":
        engine = _choose(host)
    if engine == "spectral" and len(projection.structure.parameters) > 1:
        raise InputError(
            "engine='spectral' needs a single variance component; this model has "
            f"{len(projection.structure.parameters)}. Use 'auto' or 'general'."
        )
    alone = len(projection.structure.parameters) == 1
    if engine == "bordered" and (alone or main_component(host) is None):
        raise InputError(
            "engine='bordered' needs several variance components, one of them a term's only one. "
            "Use 'auto' or 'general'."
        )
    if engine == "blocked" and find_layout(host) is None:
        raise InputError(
            "engine='blocked' needs a grouping factor whose levels share no samples and that has "
            f"at most {MAX_EFFECTS} effects per level. Use 'auto' or 'general'."
        )
    return ENGINES[engine](projection, method)


def _choose(projection: Projection) -> str:
    """The fastest engine that applies.

    ``"spectral"`` for one component and ``"bordered"`` for a narrow border beside a large
    component, as long as an eigenbasis is cheap; else ``"blocked"`` when blocks make up most of
    Z or Z is too large for dense matrices; else ``"general"``.
    """
    q = projection.structure.q
    if len(projection.structure.parameters) == 1 and q <= DENSE_LIMIT:
        return "spectral"
    if q <= EIGENBASIS_LIMIT and border_applies(projection):
        return "bordered"
    layout = find_layout(projection)
    if layout is not None and (layout.q_z <= 0.5 * q or q > DENSE_LIMIT):
        return "blocked"
    return "spectral" if len(projection.structure.parameters) == 1 else "general"
