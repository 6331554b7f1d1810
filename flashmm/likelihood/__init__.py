"""Likelihoods: theta to log-likelihood, score and information, for many features at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from flashmm.arrays.devices import example_on
from flashmm.exceptions import InputError
from flashmm.likelihood.base import Estimator, Evaluation, Likelihood, RandomEffects
from flashmm.likelihood.bordered.bordered import BorderedLikelihood, main_component
from flashmm.likelihood.choose_engine import choose
from flashmm.likelihood.elimination.blocked import BlockedLikelihood
from flashmm.likelihood.elimination.layout import find_partition, make_layout
from flashmm.likelihood.general import GeneralLikelihood
from flashmm.likelihood.hosted import HostedLikelihood
from flashmm.likelihood.own_rows.patterned import PatternedLikelihood
from flashmm.likelihood.own_rows.patterned_projection import PatternedProjection, project_patterns
from flashmm.likelihood.projection import GroupedProjection, Projection, project, project_groups
from flashmm.likelihood.residual_groups.present_groups import residual_groups_of
from flashmm.likelihood.spectral import SpectralLikelihood
from flashmm.likelihood.structure import MAX_EFFECTS
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

__all__ = [
    "ENGINES",
    "AnyEstimator",
    "AnyProjection",
    "BlockedLikelihood",
    "BorderedLikelihood",
    "Estimator",
    "Evaluation",
    "GeneralLikelihood",
    "Likelihood",
    "PatternedLikelihood",
    "PatternedProjection",
    "Projection",
    "RandomEffects",
    "SpectralLikelihood",
    "make_likelihood",
    "on_device",
    "project",
    "project_any",
]

_WITHOUT_BLOCKS: dict[str, Callable[[Projection, Literal["REML", "ML"]], Estimator]] = {
    "bordered": BorderedLikelihood,
    "general": GeneralLikelihood,
    "spectral": SpectralLikelihood,
}
ENGINES = ("blocked", "nested", *_WITHOUT_BLOCKS)


AnyProjection: TypeAlias = Projection | PatternedProjection
AnyEstimator: TypeAlias = Estimator | PatternedLikelihood


def make_likelihood(
    projection: AnyProjection,
    method: Literal["REML", "ML"],
    engine: str = "auto",
) -> AnyEstimator:
    """The likelihood for a design.

    Parameters
    ----------
    projection
        Projected statistics.
    method
        ``"REML"`` or ``"ML"``.
    engine
        A name in `ENGINES`, or ``"auto"``: see `flashmm.likelihood.choose_engine`. Where samples
        are missing it is that of the patterns which many features share.

    Returns
    -------
    Estimator

    Raises
    ------
    InputError
        If the engine asked for cannot do this design.
    """
    if isinstance(projection, GroupedProjection):
        if engine not in ("auto", "groups"):
            raise InputError(f"residual_by has an engine of its own; leave out {engine=}.")
        return residual_groups_of(projection, method)
    if isinstance(projection, PatternedProjection):
        if projection.sizes is not None and engine not in ("auto", "patterned"):
            raise InputError(f"residual_by has an engine of its own; leave out {engine=}.")
        engine = "auto" if engine == "patterned" else engine
        dense = engine == "general"

        def make(part: Projection) -> Any:
            return make_likelihood(part, method, engine)

        return PatternedLikelihood.of_projection(projection, method, make, dense=dense)
    host, partition = projection.in_numpy, None
    if engine == "auto":
        engine, partition = choose(host)
    if not projection.structure.parameters and engine not in ("auto", "general"):
        raise InputError(f"engine={engine!r} needs random effects. Use 'auto'.")
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
    if engine in ("blocked", "nested"):
        nested = engine == "nested"
        if partition is None:
            found = find_partition(host, nested=nested)
            if found is None:
                raise InputError(_NO_BLOCKS[nested])
            partition = found[1]
        layout = make_layout(host, partition).on(projection.ZRy)
        return BlockedLikelihood(projection, method, engine, layout)
    return _WITHOUT_BLOCKS[engine](projection, method)


def project_any(
    stats: SummaryStats | PatternedStats, *, known_residual: bool = False
) -> AnyProjection:
    """Project statistics off X, of features that have all samples or of such that do not.

    ``known_residual``: the residual variance is known, so that a component may have a level per
    sample.
    """
    if len(stats.structure.residuals) > 1 and isinstance(stats, SummaryStats):
        return project_groups(stats)
    if isinstance(stats, PatternedStats):
        return project_patterns(stats, known_residual=known_residual)
    return project(stats, known_residual=known_residual)


def on_device(
    projection: Projection, method: Literal["REML", "ML"], engine: str, device: Any
) -> Estimator:
    """The likelihood for a design, computed by PyTorch on a device, for numpy's arrays.

    Raises
    ------
    InputError
        If PyTorch or the device is absent, or the device lacks float64.
    """
    example = example_on(device)
    inner: Any = make_likelihood(projection.on(example), method, engine)
    return HostedLikelihood(inner, example)


_NO_BLOCKS = (
    "engine='blocked' needs a grouping factor whose levels share no samples and that has at most "
    f"{MAX_EFFECTS} effects per level. Use 'auto' or 'general'.",
    "engine='nested' needs a grouping factor nested in another, each with at most "
    f"{MAX_EFFECTS} effects per level. Use 'auto' or 'blocked'.",
)
