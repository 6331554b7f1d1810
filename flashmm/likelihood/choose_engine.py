"""Which engine does a design with least work."""

from __future__ import annotations

from flashmm.likelihood.bordered.bordered import main_component
from flashmm.likelihood.elimination.layout import find_partition
from flashmm.likelihood.projection import DENSE_LIMIT, Projection
from flashmm.likelihood.structure import MAX_EFFECTS, Partition

__all__ = ["choose", "works"]

# Evaluations of the likelihood that a fit takes, about.
_EVALUATIONS = 8
# Multiplications of all features that take less time than looking for blocks would.
_SMALL = 2e7


def choose(projection: Projection) -> tuple[str, Partition | None]:
    """The engine with the least work for a design, and its partition of Z if it works by blocks.

    The work is counted in multiplications per feature from the structure of Z'Z: with q random
    effects, k parameters of D, m features and, for a border, its width w,

    ==========  ===================  =====================================================
    engine      once, for all        each evaluation
    ==========  ===================  =====================================================
    spectral    10 q^3               20 q; one parameter only
    bordered    (10 + 4 k) q^3       3 q w^2 + (10 + 4 k) w^3; several parameters
    general     (10 + 4 k) q^3       (3 + 2 k) q^3
    blocked     nothing to speak of  blocks, shared outer products, w^3
    nested      nothing to speak of  the same, and the coarse blocks' products with w^2
    ==========  ===================  =====================================================

    Without random effects the general engine's matrices have size 0. One parameter is always
    spectral up to q = 3,000, and where the general engine needs fewer than 2e7 multiplications
    for all features, nothing else is looked at. The first three hold q x q matrices and are beyond
    that considered only where nothing falls into blocks.
    """
    found = works(projection)
    best = min(found, key=lambda engine: found[engine][0])
    return best, found[best][1]


def works(projection: Projection) -> dict[str, tuple[float, Partition | None]]:
    """Multiplications per feature of each engine that applies; the partition of those by blocks."""
    structure, m = projection.structure, max(projection.m, 1)
    k, q = len(structure.parameters), structure.q
    if k == 0:
        return {"general": (0.0, None)}
    if k == 1 and q <= DENSE_LIMIT:
        return {"spectral": (10 * q**3 / m + _EVALUATIONS * 20 * q, None)}
    once = (10 + 4 * k) * q**3 / m
    general = once + _EVALUATIONS * (3 + 2 * k) * q**3
    # In turned coordinates blocks keep more digits: the general engine's eigenbasis mixes effects.
    if k > 1 and general * m <= _SMALL and projection.turn is None:
        return {"general": (general, None)}
    found: dict[str, tuple[float, Partition | None]] = {}
    # The blocks of a single term hold all that its columns meet, so that few products are not zero.
    crowded = len(structure.terms) == 1 and projection.ZZ.nnz > MAX_EFFECTS * q
    for engine in () if crowded else ("blocked", "nested"):
        partition = find_partition(projection, nested=engine == "nested")
        if partition is not None:
            found[engine] = (_EVALUATIONS * partition[0], partition[1])
    if found and q > DENSE_LIMIT:
        return found
    if k == 1:
        return {"spectral": (once, None)}
    found["general"] = (general, None)
    main = main_component(projection)
    if main is not None:
        w = q - structure.columns(structure.parameters[main])[0].size
        each = 3 * q * w**2 + (10 + 4 * k) * w**3
        found["bordered"] = (once + _EVALUATIONS * each, None)
    return found
