"""``python -m tests.stress.maxima``: whether searches from many random starts find higher maxima.

Every design is fitted in each space, then searched from random starts by the same solvers without
second searches. Counted are features under a good verdict that have a higher maximum, or are lower
than in the psd space, and features without a maximum that have one (in the unconstrained space: one
no lower than the maximum of the psd space, if that has a residual variance).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where pytest finds the module problems

import numpy as np
import pandas as pd
import problems as pb

from flashmm import MultiLMM
from flashmm.exceptions import InputError
from flashmm.formulas.build import build_design
from flashmm.solvers.fallback import fallback_of, maximise_in_stages
from flashmm.solvers.fisher_scoring import FisherScoring
from flashmm.solvers.space import make_space
from flashmm.solvers.verdict_texts import Status

from .designs import draw
from .responses import responses

# A maximum is higher by so many units of log-likelihood.
HIGHER = 1e-4
KINDS = ("Gaussian", "Gaussian, again", "noise alone", "groups alike", "counts")
SMALL = (
    *("(1|a)+(1|b)", "(1|a)+(1|b)+(1|c)", "(1|a/b)", "(1|a/b/c)", "(1|a)+(1|a:b)+(1|c)"),
    *("(1|a)+(0+x|a)", "(x||a)+(1|b)", "(1|a)+(x||b)", "(x|a)", "(x|a)+(1|b)"),
)


@dataclass(frozen=True)
class Finding:
    """A higher maximum."""

    index: int
    method: str
    space: str
    feature: int
    verdict: str
    ours: float
    other: float
    theta: Any
    where: Any

    def __str__(self) -> str:
        """One line."""
        gap = f"higher by {self.other - self.ours:.2g}" if np.isfinite(self.ours) else "exists"
        ours, where = (np.array2string(x, precision=4) for x in (self.theta, self.where))
        return (
            f"design {self.index} {self.method} {self.space} feature {self.feature} "
            f"{self.verdict}: a maximum {gap}; {ours} -> {where}"
        )


def drawn(seed: int, index: int, small: bool) -> tuple[pb.Problem, pb.FloatArray]:
    """A design and its features (m, n)."""
    rng = np.random.default_rng([seed, index, 99])
    if not small:
        problem = draw(seed, index)
        kinds = responses(problem, rng)
        return problem, np.array([kinds[kind] for kind in KINDS])
    n = int(rng.integers(10, 36))
    codes = {name: rng.integers(0, int(rng.integers(2, 8)), n) for name in "abc"}
    data = pd.DataFrame({name: [f"{name}{i}" for i in code] for name, code in codes.items()})
    data["x"] = rng.normal(size=n)
    random = str(rng.choice(SMALL))
    fixed = str(rng.choice(["~ 1", "~ x", "~ c" if "c" not in random else "~ x"]))
    Y = rng.normal(size=(12, n))
    for code in codes.values():
        Y += rng.normal(size=(12, 8))[:, code] * rng.choice([0, 0.5, 3], size=(12, 1))
    design = build_design(fixed, random, data).design
    where = f"{fixed} + {random}, n = {n}"
    return pb.Problem(where, design.X, design.Z.toarray(), design.structure, index), Y


def random_starts(
    structure: Any, shape: tuple[int, int], space: str, rng: np.random.Generator
) -> pb.FloatArray:
    """Starts in internal units, shape (starts, m, k + 1): ratios of all sizes, some negative."""
    is_variance = structure.is_variance
    theta = 10.0 ** rng.uniform(-3, 2.5, size=(*shape, is_variance.size))
    theta *= rng.random(theta.shape) > 0.2  # a fifth of the variances are zero
    if space != "psd":
        theta *= np.where(rng.random(theta.shape) < 0.2, -0.1, 1.0)
    theta[..., -1] = 1.0
    for block in structure.blocks():
        for i in range(len(block)):
            for j in range(i):
                product = theta[..., block[i, i]] * theta[..., block[j, j]]
                share = rng.uniform(-0.9, 0.9, size=shape) / max(len(block) - 1, 1)
                theta[..., block[i, j]] = share * np.sqrt(np.abs(product))
    return np.asarray(theta * 10.0 ** rng.uniform(-2, 0.1, size=(*shape, 1)))


def search(
    problem: pb.Problem, Y: pb.FloatArray, method: str, space: str, starts: int, seed: int
) -> Iterator[Finding]:
    """Features with a higher maximum than the one that was fitted."""
    model = MultiLMM(problem.stats(Y))
    found = model.fit(method, parameter_space=space)
    likelihood, projection = pb.estimator_of(model.stats, method), model.projection
    structure = problem.structure
    levels = (*structure.block_levels(), problem.n)
    inside = make_space(space, structure.blocks(), problem.n_params, levels)
    fallback = fallback_of("fisher_scoring", space, 1e-5) if space == "psd" else None
    stages = tuple(s for s in (FisherScoring(1e-5), fallback) if s is not None)
    usable = np.flatnonzero(projection.varies & ~likelihood.perfect_fit)
    rng = np.random.default_rng([seed, problem.seed, 7])
    start = random_starts(structure, (starts, usable.size), space, rng).reshape(
        -1, problem.n_params
    )
    features = np.tile(usable, starts)
    exists = np.isfinite(likelihood.evaluate(start, features).loglik)
    start, features = start[exists], features[exists]
    if features.size == 0:
        return
    end = maximise_in_stages(likelihood, inside, stages, start, features, max_iter=50)
    good = np.asarray(end.status) <= Status.INDEFINITE
    rounding = np.asarray(end.evaluation.rounding)
    # Where what is left of the residual is rounding, so is the likelihood.
    good &= (rounding < 0.1 * HIGHER) | (end.theta[:, -1] == 0.0)
    definite = good.copy()
    definite[good] = likelihood.is_definite(np.asarray(end.theta)[good])
    llf = projection.natural_loglik(np.asarray(end.evaluation.loglik), method, features)
    inner = found if space == "psd" else model.fit(method, parameter_space="psd")
    residual = inner.theta.to_numpy()[:, -1] > 1e-6 * projection.scale
    floor = np.where(inner.converged & residual, inner.llf, -np.inf)
    for j in usable:
        mine = np.flatnonzero(good & (features == j))
        status, ours = str(found.status.iloc[j]), float(found.llf.iloc[j])
        well, unit = bool(found.converged.iloc[j]), projection.param_scale * projection.scale[j]
        theta = found.theta.to_numpy()[j] / unit
        what = problem.seed, method, space, int(j), status
        if well and floor[j] > ours + HIGHER:
            psd = inner.theta.to_numpy()[j] / unit
            yield Finding(*what, ours, float(floor[j]), theta, psd)
            continue
        if well:  # maxima with V indefinite are not preferred
            mine = mine[definite[mine]]
        if mine.size:
            best = mine[np.argmax(llf[mine])]
            if llf[best] > (ours + HIGHER if well else floor[j] - HIGHER):
                higher = ours if well else np.nan
                yield Finding(*what, higher, float(llf[best]), theta, end.theta[best])


def main() -> int:
    """Search, print, and return 1 where a higher maximum was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.stress.maxima", description=__doc__)
    parser.add_argument("--designs", type=int, default=300)
    parser.add_argument("--starts", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="index of the first design")
    parser.add_argument("--small", action="store_true", help="designs of 10 to 35 samples")
    parser.add_argument("--spaces", default="psd,unconstrained")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop early")
    options = parser.parse_args()
    end, count = time.monotonic() + 60.0 * options.minutes, Counter[str]()
    for index in range(options.first, options.first + options.designs):
        if time.monotonic() > end:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                problem, Y = drawn(options.seed, index, options.small)
                pb.projection_of(problem.stats(Y))
            except InputError:
                count["designs refused"] += 1
                continue
            count["designs"] += 1
            for space in options.spaces.split(","):
                for method in pb.METHODS:
                    count[f"fits, {space}"] += len(Y)
                    with np.errstate(all="ignore"):
                        findings = list(
                            search(problem, Y, method, space, options.starts, options.seed)
                        )
                    for finding in findings:
                        what = "higher maximum" if np.isfinite(finding.ours) else "missed maximum"
                        count[f"{what}, {space}"] += 1
                        print(problem.kind, finding, flush=True)
    print(dict(count))
    return int(any("maximum" in what for what in count))


if __name__ == "__main__":
    sys.exit(main())
