"""What is measured: the cases, their sizes, their peers, and the targets they are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import designs
from .designs import Term

__all__ = ["CASES", "LEVELS", "Case", "Size", "Target"]

LEVELS = ("quick", "medium", "full")
Space = Literal["unconstrained", "psd"]
Design = tuple[NDArray[np.float64], tuple[Term, ...]]


@dataclass(frozen=True)
class Size:
    """How large a case is.

    Parameters
    ----------
    m
        Features.
    n
        Samples.
    peers
        Peer to number of features that it fits; the first ones of the m.
    levels
        Sizes of the factors, as the design takes them.
    """

    m: int
    n: int
    peers: Mapping[str, int] = field(default_factory=dict)
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a case must reach at full size.

    Parameters
    ----------
    kind
        ``"ratio"``: the peer's time over ours is at least ``bound``; ``"within"``: ours over the
        peer's at most ``bound``; ``"loglik"``: relative difference of the log-likelihoods at
        most ``bound``; ``"seconds"``: the whole fit takes at most that; ``"gigabytes"``: the
        process takes at most that (10^9 bytes).
    bound
        In the unit of the kind.
    peer
        For the kinds that have one.
    """

    kind: Literal["ratio", "within", "loglik", "seconds", "gigabytes"]
    bound: float
    peer: str = ""


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Parameters
    ----------
    name, title
        For the command line and for readers.
    design
        ``design(size, rng)`` gives X and the random terms.
    sizes
        Level to size.
    targets
        What must be reached.
    space
        Parameter space of our fit; peers in another space get a fit of ours in theirs.
    df
        Degrees of freedom: then a t-test of all features is timed, the fit being there.
    contrasts
        ``contrasts(p)`` gives the contrasts that are tested, shape (c, p).
    simultaneous
        How the contrasts are tested at once, which is then timed too; empty if they are not.
    from_samples
        Whether the statistics are timed too, and the peer's whole call counts, not a refit.
    """

    name: str
    title: str
    design: Callable[[Size, np.random.Generator], Design]
    sizes: Mapping[str, Size]
    targets: tuple[Target, ...]
    space: Space = "unconstrained"
    from_samples: bool = False
    df: str = ""
    contrasts: Callable[[int], NDArray[np.float64]] = np.eye
    simultaneous: str = ""


def _cells(size: Size, rng: np.random.Generator) -> Design:
    donors, *batches = size.levels
    return designs.cells(size.n, donors, 29, rng, batches=sum(batches))


def _nested(size: Size, rng: np.random.Generator) -> Design:
    return designs.nested_cells(size.n, size.levels[0], 29, rng)


def _groups(size: Size, rng: np.random.Generator) -> Design:
    return designs.groups(size.n, size.levels, rng)


def _slopes(size: Size, rng: np.random.Generator) -> Design:
    return designs.groups(size.n, size.levels, rng, slope=True)


def _tissues(size: Size, rng: np.random.Generator) -> Design:
    return designs.tissues(rng)


def _ratings(size: Size, rng: np.random.Generator) -> Design:
    students, teachers = size.levels
    return designs.ratings(size.n, students, teachers, rng)


def _treatment_effects(p: int) -> NDArray[np.float64]:
    """Each cell type's treatment effect, their mean, and a difference: 31 contrasts."""
    each = np.eye(p)[-29:]
    return np.vstack([each, each.mean(axis=0), each[0] - each[1]])


def _five_means(p: int) -> NDArray[np.float64]:
    """All ten differences of five means: four coefficients and the reference at zero."""
    means = np.vstack([np.zeros(p), np.eye(p)[:4]])
    first, second = np.triu_indices(5, 1)
    return means[second] - means[first]


_TESTED = {
    "quick": Size(1_160, 50_000, {}, (259,)),
    "medium": Size(11_600, 100_000, {}, (259,)),
    "full": Size(11_600, 500_000, {}, (259,)),
}

_ALL = (
    Case(
        "one_component",
        "one component, q = 259, p = 62",
        _cells,
        {
            "quick": Size(1_160, 50_000, {"FLASHMM": 3, "FLASH-MM": 3}, (259,)),
            "medium": Size(11_600, 100_000, {"FLASHMM": 10, "FLASH-MM": 10}, (259,)),
            "full": Size(11_600, 500_000, {"FLASHMM": 40, "FLASH-MM": 40}, (259,)),
        },
        (Target("ratio", 1000, "FLASHMM"), Target("seconds", 1.0)),
    ),
    Case(
        "one_component_small",
        "one component, q = 25, p = 4",
        _groups,
        {
            "quick": Size(
                2_000,
                10_000,
                {"lme-python": 40, "FLASHMM": 40, "FLASH-MM": 40, "lme4": 6, "statsmodels": 1},
                (25,),
            ),
            "medium": Size(
                10_000,
                10_000,
                {"lme-python": 100, "FLASHMM": 100, "FLASH-MM": 100, "lme4": 20, "statsmodels": 2},
                (25,),
            ),
            "full": Size(
                10_000,
                10_000,
                {"lme-python": 400, "FLASHMM": 400, "FLASH-MM": 400, "lme4": 50, "statsmodels": 5},
                (25,),
            ),
        },
        (Target("ratio", 20, "lme-python"), Target("ratio", 150, "FLASHMM")),
    ),
    Case(
        "two_crossed",
        "two crossed, q = 259 + 20, p = 62",
        _cells,
        {
            "quick": Size(200, 50_000, {"FLASHMM": 3, "FLASH-MM": 3}, (259, 20)),
            "medium": Size(2_000, 100_000, {"FLASHMM": 10, "FLASH-MM": 10}, (259, 20)),
            "full": Size(11_600, 500_000, {"FLASHMM": 40, "FLASH-MM": 40}, (259, 20)),
        },
        (Target("ratio", 60, "FLASHMM"),),
    ),
    Case(
        "two_crossed_small",
        "two crossed, q = 250 + 46, n = 50,000, p = 4",
        _groups,
        {
            "quick": Size(300, 50_000, {"lme-python": 3}, (250, 46)),
            "medium": Size(
                2_000, 50_000, {"lme-python": 10, "lme4": 3, "FLASHMM": 5, "FLASH-MM": 5}, (250, 46)
            ),
            "full": Size(
                10_000,
                50_000,
                {"lme-python": 30, "lme4": 8, "FLASHMM": 20, "FLASH-MM": 20},
                (250, 46),
            ),
        },
        (Target("ratio", 20, "lme-python"),),
    ),
    Case(
        "nested",
        "nested (1 | donor/type), 29 types",
        _nested,
        {
            "quick": Size(50, 5_000, {}, (20,)),
            "medium": Size(500, 20_000, {}, (120,)),
            "full": Size(2_000, 50_000, {}, (259,)),
        },
        (Target("seconds", 180), Target("gigabytes", 6)),
    ),
    Case(
        "slopes",
        "(1 + x | g), 500 groups",
        _slopes,
        {
            "quick": Size(200, 10_000, {"lme4": 3}, (500,)),
            "medium": Size(2_000, 10_000, {"lme4": 5, "lme-python": 10}, (500,)),
            "full": Size(10_000, 10_000, {"lme4": 10, "lme-python": 20, "statsmodels": 2}, (500,)),
        },
        (Target("seconds", 30),),
        space="psd",
    ),
    Case(
        "three_crossed",
        "three crossed, q = 25 + 3 + 4, p = 2, n = 100",
        _tissues,
        {
            "quick": Size(1_000, 100, {"lme4": 5}),
            "medium": Size(10_000, 100, {"lme4": 60, "lme-python": 60}),
            "full": Size(10_000, 100, {"lme4": 200, "lme-python": 200}),
        },
        (Target("ratio", 50, "lme4"),),
        space="psd",
    ),
    Case(
        "one_response",
        "one response, crossed and unbalanced (lme4's InstEval)",
        _ratings,
        {
            "quick": Size(1, 4_000, {"lme4": 1}, (200, 80)),
            "medium": Size(1, 25_000, {"lme4": 1}, (1_000, 400)),
            "full": Size(1, 73_421, {"lme4": 1}, (2_972, 1_128)),
        },
        (Target("within", 3, "lme4"), Target("loglik", 1e-6, "lme4")),
        space="psd",
        from_samples=True,
    ),
    Case(
        "satterthwaite",
        "Satterthwaite t-tests after the fit, 31 contrasts, q = 259, p = 62",
        _cells,
        _TESTED,
        (Target("seconds", 10),),
        df="satterthwaite",
        contrasts=_treatment_effects,
    ),
    Case(
        "kenward_roger",
        "Kenward-Roger t-tests after the fit, 31 contrasts, q = 259, p = 62",
        _cells,
        _TESTED,
        (Target("seconds", 60),),
        df="kenward-roger",
        contrasts=_treatment_effects,
    ),
    Case(
        "integrated",
        "integrated t-tests after the fit, prior included, 31 contrasts, q = 259, p = 62",
        _cells,
        _TESTED,
        (Target("seconds", 15),),
        space="psd",
        df="integrated",
        contrasts=_treatment_effects,
    ),
    Case(
        "integrated_two",
        "integrated t-tests after the fit, 31 contrasts, two crossed, q = 259 + 20, p = 62",
        _cells,
        {
            "quick": Size(200, 50_000, {}, (259, 20)),
            "medium": Size(2_000, 100_000, {}, (259, 20)),
            "full": Size(11_600, 500_000, {}, (259, 20)),
        },
        (Target("seconds", 180),),
        space="psd",
        df="integrated",
        contrasts=_treatment_effects,
    ),
    Case(
        "integrated_few",
        "integrated t-tests after the fit, 4 coefficients, 6 subjects, n = 1,800",
        _groups,
        {
            "quick": Size(2_000, 1_800, {}, (6,)),
            "medium": Size(10_000, 1_800, {}, (6,)),
            "full": Size(50_000, 1_800, {}, (6,)),
        },
        (Target("seconds", 4),),
        space="psd",
        df="integrated",
    ),
    Case(
        "satterthwaite_small",
        "Satterthwaite t-tests after the fit, 4 coefficients, q = 25, n = 10,000",
        _groups,
        {
            "quick": Size(2_000, 10_000, {"lme-python, Satterthwaite": 10, "lmerTest": 2}, (25,)),
            "medium": Size(10_000, 10_000, {"lme-python, Satterthwaite": 40, "lmerTest": 4}, (25,)),
            "full": Size(10_000, 10_000, {"lme-python, Satterthwaite": 100, "lmerTest": 10}, (25,)),
        },
        (Target("ratio", 50, "lme-python, Satterthwaite"),),
        space="psd",
        df="satterthwaite",
    ),
    Case(
        "simultaneous",
        "ten contrasts at once (single-step) after the fit, their t-tests included, q = 25, p = 4",
        _groups,
        {
            "quick": Size(200, 10_000, {"emmeans": 1}, (25,)),
            "medium": Size(10_000, 10_000, {"emmeans": 3}, (25,)),
            "full": Size(10_000, 10_000, {"emmeans": 10}, (25,)),
        },
        (Target("seconds", 20),),
        space="psd",
        df="satterthwaite",
        contrasts=_five_means,
        simultaneous="mvt",
    ),
    Case(
        "kenward_roger_small",
        "Kenward-Roger t-tests after the fit, 4 coefficients, q = 25, n = 10,000",
        _groups,
        {
            "quick": Size(2_000, 10_000, {}, (25,)),
            "medium": Size(10_000, 10_000, {"pbkrtest": 1}, (25,)),
            "full": Size(10_000, 10_000, {"pbkrtest": 3}, (25,)),
        },
        (Target("ratio", 1000, "pbkrtest"),),
        space="psd",
        df="kenward-roger",
    ),
)

CASES: dict[str, Case] = {case.name: case for case in _ALL}
