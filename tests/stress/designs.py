"""Random designs of many kinds, most of them hard, some impossible."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import problems as pb

from flashmm.designs.covariances import Covariance
from flashmm.designs.design import CovarianceStructure
from flashmm.designs.from_arrays import as_structure
from flashmm.exceptions import CovarianceWarning
from flashmm.formulas.build import build_design
from flashmm.stats.known_levels import known_structure

Rng = np.random.Generator


@dataclass(frozen=True)
class Draw:
    """A table of samples and the formulas of a model of it."""

    fixed: str
    random: str
    data: pd.DataFrame


def _labels(rng: Rng, n: int, levels: int, evenness: float = 1.0) -> list[str]:
    """Group labels; the smaller the evenness, the less alike the groups' sizes."""
    drawn = rng.choice(levels, size=n, p=rng.dirichlet(np.full(levels, evenness)))
    return [f"g{label}" for label in drawn]


def _table(rng: Rng, n: int, **factors: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"x": rng.normal(size=n), "w": rng.uniform(-1, 1, size=n), **factors})


def _unbalanced(rng: Rng) -> Draw:
    n = int(rng.integers(20, 60))
    return Draw("~ x", "(1 | g)", _table(rng, n, g=_labels(rng, n, 8, 0.3)))


def _once(rng: Rng) -> Draw:
    """Levels seen once, and a few that are seen twice or three times."""
    single, repeated = int(rng.integers(6, 25)), int(rng.integers(1, 5))
    g = [f"g{i}" for i in range(single)]
    g += [f"r{i}" for i in range(repeated) for _ in range(int(rng.integers(2, 4)))]
    return Draw("~ x", "(1 | g)", _table(rng, len(g), g=g))


def _one_per_level(rng: Rng) -> Draw:
    """Every level once: an intercept is the residual, a slope is not."""
    n = int(rng.integers(12, 40))
    random = str(rng.choice(["(1 | g)", "(0 + w | g)", "(1 + w | g)"], p=[0.2, 0.6, 0.2]))
    return Draw("~ x", random, _table(rng, n, g=[f"g{i}" for i in range(n)]))


def _collinear(rng: Rng) -> Draw:
    n = int(rng.integers(25, 60))
    data = _table(rng, n, g=_labels(rng, n, 7))
    data["again"] = data["x"] + 10.0 ** -rng.uniform(2, 7) * rng.normal(size=n)
    return Draw("~ x + again", str(rng.choice(["(1 | g)", "(1 + w || g)"])), data)


def _q_near_n(rng: Rng) -> Draw:
    n = int(rng.integers(12, 30))
    g = [f"g{i}" for i in range(n - int(rng.integers(1, 5)))]
    g += list(rng.choice(g, size=n - len(g)))
    random = str(rng.choice(["(1 | g)", "(1 | g) + (1 | h)"]))
    return Draw("~ x", random, _table(rng, n, g=g, h=_labels(rng, n, 3)))


def _crossed(rng: Rng) -> Draw:
    n, count = int(rng.integers(30, 60)), int(rng.integers(2, 5))
    names = ["g", "h", "k", "l"][:count]
    levels = rng.integers(2, 8, size=count)
    factors = {name: _labels(rng, n, int(many)) for name, many in zip(names, levels, strict=True)}
    return Draw("~ x", " + ".join(f"(1 | {name})" for name in names), _table(rng, n, **factors))


def _nested(rng: Rng) -> Draw:
    n = int(rng.integers(40, 70))
    data = _table(rng, n, g=_labels(rng, n, 6), h=_labels(rng, n, 3), k=_labels(rng, n, 2))
    choices = ["(1 | g / h)", "(1 | k / g / h)", "(1 + x | g) + (1 | g:h)"]
    return Draw("~ x", str(rng.choice(choices)), data)


def _units(rng: Rng) -> Draw:
    """Slopes in tiny or huge units."""
    n = int(rng.integers(35, 60))
    data = _table(rng, n, g=_labels(rng, n, 7, 3.0))
    data["w"] *= 10.0 ** (rng.uniform(3, 8) * rng.choice([-1, 1]))
    return Draw("~ x + w", str(rng.choice(["(w || g)", "(1 + w | g)", "(0 + w | g)"])), data)


def _correlated(rng: Rng) -> Draw:
    n = int(rng.integers(40, 70))
    data = _table(rng, n, g=_labels(rng, n, 8, 3.0), h=_labels(rng, n, 4, 3.0))
    choices = [
        "(1 + x | g)",
        "(1 + x + w | g)",
        "(1 + x | g) + (1 | h)",
        "(1 + x | g) + (1 + w | h)",
    ]
    return Draw("~ x", str(rng.choice(choices)), data)


def _within_treatment(rng: Rng) -> Draw:
    """Groups within treatments: V may be indefinite where the restricted likelihood exists."""
    n = int(rng.integers(20, 50))
    data = _table(rng, n, g=_labels(rng, n, 7))
    data["trt"] = data["g"].map({f"g{i}": "B" if i % 2 else "A" for i in range(7)})
    return Draw("~ 0 + trt + x", str(rng.choice(["(1 | g)", "(1 + w || g)"])), data)


def _one_factor_in_X(rng: Rng) -> Draw:
    """A random factor one of whose levels has a coefficient of its own."""
    n = int(rng.integers(20, 50))
    data = _table(rng, n, g=_labels(rng, n, 6, 0.7))
    data["own"] = (data["g"] == data["g"].iloc[0]).astype(float)
    return Draw("~ own", "(1 | g)", data)


def _structured(rng: Rng) -> Draw:
    """Compound symmetry, or one variance, of the effects of a level."""
    n = int(rng.integers(40, 80))
    data = _table(rng, n, g=_labels(rng, n, 8, 3.0), h=_labels(rng, n, 4, 3.0))
    data["k"] = _labels(rng, n, 3, 3.0)
    choices = [
        "cs(0 + k | g)",
        "cs(1 + x | g) + (1 | h)",
        "cs(0 + k | g) + cs(1 + w | h)",
        "diag(1 + x + w | g, hom=TRUE)",
        "diag(1 + x | g, hom=TRUE) + us(1 + w | h)",
    ]
    return Draw("~ x", str(rng.choice(choices)), data)


def _curved(rng: Rng) -> Draw:
    """Structures that are not linear in their parameters."""
    n = int(rng.integers(50, 90))
    data = _table(rng, n, g=_labels(rng, n, 8, 3.0), h=_labels(rng, n, 4, 3.0))
    data["t"] = rng.choice([0, 1, 2, 3, 5][: int(rng.integers(3, 6))], size=n)
    data["at"] = rng.choice(rng.uniform(0.0, 4.0, size=4), size=n)
    data["k"] = _labels(rng, n, 3, 3.0)
    choices = [
        "ar1(t | g)",
        "exp(at | g)",
        "cs(0 + k | g, hom=FALSE)",
        "ar1(t | g) + (1 | h)",
        "exp(at | g) + (1 | h)",
        "cs(0 + k | g, hom=FALSE) + (0 + w | h)",
    ]
    return Draw("~ x", str(rng.choice(choices)), data)


def _known(rng: Rng) -> Draw:
    """Levels that covary as a known matrix says, which `draw` makes up."""
    return [_unbalanced, _crossed, _correlated, _within_treatment][rng.integers(4)](rng)


def _with_covariance(rng: Rng, structure: CovarianceStructure) -> CovarianceStructure:
    """A known covariance of one of the terms, which may be singular, on any scale."""
    term = structure.terms[rng.integers(len(structure.terms))]
    size = len(term.levels)
    root = rng.normal(size=(size, int(rng.integers(max(2, size // 2), size + 4))))
    K = 10.0 ** rng.uniform(-2, 2) * (root @ root.T) / root.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CovarianceWarning)
        return known_structure(structure, {term.name: Covariance(K, term.levels)})


DRAWS: dict[str, Callable[[Rng], Draw]] = {
    "unbalanced": _unbalanced,
    "levels seen once": _once,
    "one per level": _one_per_level,
    "near-collinear X": _collinear,
    "q close to n": _q_near_n,
    "2 to 4 crossed": _crossed,
    "nested": _nested,
    "slope units": _units,
    "correlated slopes": _correlated,
    "groups in treatments": _within_treatment,
    "level with its own coefficient": _one_factor_in_X,
}
KINDS = (*DRAWS, "any Z")
# Kinds that came later are drawn from this index on, so that those before stay what they were.
LATER = 1_000_000
# And from this one on those of `tests.stress.residual_groups`.
GROUPED = 2_000_000
LATER_DRAWS: dict[str, Callable[[Rng], Draw]] = {
    "structured effects": _structured,
    "known covariance": _known,
}
# And from this one on, kinds that are fitted in the psd space alone.
LATEST = 3_000_000
LATEST_DRAWS: dict[str, Callable[[Rng], Draw]] = {"curved structures": _curved}


def kind_of(index: int) -> str:
    """The kind of design number ``index``: all kinds take turns."""
    if index >= LATEST:
        return tuple(LATEST_DRAWS)[index % len(LATEST_DRAWS)]
    if index >= GROUPED:
        return "residual variances by group"
    if index >= LATER:
        return tuple(LATER_DRAWS)[index % len(LATER_DRAWS)]
    return KINDS[index % len(KINDS)]


def draw(seed: int, index: int) -> pb.Problem:
    """Design number ``index`` of a seed."""
    kind = kind_of(index)
    rng = np.random.default_rng([seed, index])
    if kind == "any Z":
        n, sizes = int(rng.integers(15, 40)), rng.integers(1, 8, size=rng.integers(1, 5))
        X = np.column_stack([np.ones(n), rng.normal(size=n)])
        Z = rng.normal(size=(n, sizes.sum()))
        structure = as_structure(sizes.tolist(), Z.shape[1])
    else:
        model = {**DRAWS, **LATER_DRAWS, **LATEST_DRAWS}[kind](rng)
        design = build_design(model.fixed, model.random, model.data).design
        if kind == "structured effects":
            return pb.of_design(kind, design, index)
        X, Z, structure = design.X, design.Z.toarray(), design.structure
        if kind == "known covariance":
            structure = _with_covariance(rng, structure)
    return pb.Problem(kind, X, Z, structure, index)
