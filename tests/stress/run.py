"""One design after another: fit, check, count."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import problems as pb

from flashmm import MultiLMM
from flashmm.exceptions import ConvergenceWarning, InputError

from .checks import (
    GOOD,
    VERDICTS,
    Fit,
    check_company,
    check_dense,
    check_refusal,
    check_search,
)
from .designs import GROUPED, LATEST, draw, kind_of
from .residual_groups import draw_grouped, findings
from .responses import responses

SPACES = ("unconstrained", "psd")
SETTINGS = [(method, space) for method in pb.METHODS for space in SPACES]


@dataclass(frozen=True)
class Violation:
    """Something that is not as it should be, and how to see it again."""

    seed: int
    index: int
    kind: str
    method: str
    space: str
    feature: str
    verdict: str
    what: str
    figure: str

    @property
    def replay(self) -> str:
        """The command that fits this design alone."""
        return f"python -m tests.stress --seed {self.seed} --first {self.index} --designs 1"


@dataclass
class Tally:
    """Verdicts counted by (kind, method, space), what was checked, and the violations."""

    verdicts: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another one in."""
        for key, counts in other.verdicts.items():
            self.verdicts.setdefault(key, Counter()).update(counts)
        self.refused.update(other.refused)
        self.checked.update(other.checked)
        self.violations += other.violations


def run_design(
    seed: int, index: int, settings: Sequence[tuple[str, str]] = tuple(SETTINGS), every: int = 1
) -> Tally:
    """Fit every so many features of a design by each method in each space, check the fits."""
    if GROUPED <= index < LATEST:
        return _run_grouped(seed, index, settings)
    kind, tally = kind_of(index), Tally()

    def blame(where: tuple[str, str], feature: str, verdict: str, what: str, figure: str) -> None:
        tally.violations.append(
            Violation(seed, index, kind, *where, feature, verdict, what, figure)
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of our own evaluations; those of a fit are findings
        try:
            problem = draw(seed, index)
            features = responses(problem, np.random.default_rng([seed, index, 1]))
            names = list(features)[index % every :: every]
            Y = np.stack([features[name] for name in names])
            stats = problem.stats(Y)
            pb.projection_of(stats)
        except InputError:
            tally.refused[kind] += 1
            for what, figure in check_refusal(problem):
                blame(("", ""), "", "refused", what, figure)
            return tally
        for method, space in settings:
            if problem.structure.curved is not None and space != "psd":
                continue
            where = (method, space)
            counts = tally.verdicts.setdefault((kind, method, space), Counter())
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    result = MultiLMM(stats).fit(method, parameter_space=space)
                others = [w for w in caught if w.category is not ConvergenceWarning]
                for message in sorted({str(warning.message)[:80] for warning in others}):
                    blame(where, "", "", "warned", message)
                fit = Fit(problem, Y, stats, method, space, result)
                for j, feature, what, figure in _findings(fit, seed, index, tally.checked):
                    blame(where, names[feature], fit.status[j], what, figure)
                counts.update(fit.status)
            except Exception as error:
                blame(where, "", "", "raised", f"{type(error).__name__}: {str(error)[:80]}")
    return tally


def _run_grouped(seed: int, index: int, settings: Sequence[tuple[str, str]]) -> Tally:
    """The same of a design with residual variances by group."""
    kind, tally = kind_of(index), Tally()
    for method, space in settings:
        counts = tally.verdicts.setdefault((kind, method, space), Counter())
        rng = np.random.default_rng([seed, index, 2])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                one = draw_grouped(seed, index)
            for j, verdict, what, figure in findings(one, method, space, rng):
                if not what:
                    counts[verdict] += 1
                    tally.checked["verdicts"] += 1
                    continue
                tally.violations.append(
                    Violation(seed, index, kind, method, space, str(j), verdict, what, figure)
                )
        except InputError:
            tally.refused[kind] += 1
        except Exception as error:
            figure = f"{type(error).__name__}: {str(error)[:80]}"
            tally.violations.append(
                Violation(seed, index, kind, method, space, "", "", "raised", figure)
            )
    return tally


def _findings(
    fit: Fit, seed: int, index: int, checked: Counter[str]
) -> Iterator[tuple[int, int, str, str]]:
    rng = np.random.default_rng([seed, index, 2])
    for j, label in enumerate(fit.status):
        checked["verdicts"] += 1
        for what, figure in VERDICTS[label](fit, j):
            yield j, j, what, figure
    good = [j for j, label in enumerate(fit.status) if label in GOOD]
    for j in rng.permutation(good)[:1]:
        checked["searches from other starts"] += 1
        for what, figure in (*check_search(fit, j, rng), *check_dense(fit, j)):
            yield j, j, what, figure
    for j in rng.permutation(len(fit.status))[:1]:
        checked["fits alone"] += 1
        for what, figure in check_company(fit, j):
            yield j, j, what, figure
