"""Whether a fit is what its verdict says, by the plain likelihood and by definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import problems as pb
import scipy.optimize

from flashmm import MultiLMM, SummaryStats
from flashmm.likelihood.own_parameters import OwnParameters
from flashmm.solvers.base import maximise
from flashmm.solvers.batches import maximise_in_batches
from flashmm.solvers.em import EM
from flashmm.solvers.fisher_scoring import FisherScoring
from flashmm.solvers.newton_raphson import NewtonRaphson
from flashmm.solvers.restart import second_starts
from flashmm.solvers.space import PSD, Unconstrained, make_space
from flashmm.solvers.start import Starts
from flashmm.solvers.verdict_texts import Status

EPSILON = 1e-5
# Sums of squares of n numbers tell a residual from rounding down to about this share of them.
RELATIVE_RESIDUAL = 1e-5
GOOD = ("converged", "boundary", "indefinite")
UNFINISHED = ("no maximum", "stalled", "iteration limit")
Finding = tuple[str, str]
"""What is wrong, in a few words that stay the same, and the figure."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The features Y (m, n) of a problem, fitted in one space by one method."""

    problem: pb.Problem
    Y: pb.FloatArray
    stats: SummaryStats
    method: str
    space: str
    result: Any

    @cached_property
    def theta(self) -> pb.FloatArray:
        """Estimates, (m, k)."""
        return np.asarray(self.result.theta.to_numpy())

    @cached_property
    def status(self) -> list[str]:
        """Verdicts."""
        return [str(label) for label in self.result.status]

    @cached_property
    def plain(self) -> Any:
        """The plain likelihood of all features at their estimates, in the units of Y."""
        theta = np.where(np.isfinite(self.theta), self.theta, 0.0)
        fitted = np.isfinite(self.theta).all(axis=1) & (theta != 0.0).any(axis=1)
        theta[~fitted, -1] = pb.projection_of(self.stats).scale[~fitted]
        with np.errstate(all="ignore"):  # features without a fit have no likelihood either
            return pb.evaluate(self.stats, theta, self.method)

    def rounding(self, j: int) -> float:
        """Rounding error of a log-likelihood, and of a score in standard errors.

        A sum of squares of n numbers is known to about n eps of itself, and y'Py divides it by
        no less than the smallest eigenvalue of the contrasts' covariance, or of V under ML.
        """
        Q = self.problem.contrasts if self.method == "REML" else np.eye(self.problem.n)
        smallest = np.linalg.eigvalsh(Q.T @ self.problem.V(self.theta[j]) @ Q)[0]
        scale = pb.projection_of(self.stats).scale[j]
        return 1e-15 * self.problem.n * (1.0 + float(scale / max(smallest, 1e-15 * scale)))

    @cached_property
    def ends(self) -> dict[int, pb.FloatArray]:
        """Where the features without a maximum ended, in internal units."""
        features = np.flatnonzero([label == "no maximum" for label in self.status])
        likelihood = pb.estimator_of(self.stats, self.method)
        structure, k = self.problem.structure, self.problem.n_params
        levels = (*structure.block_levels(), self.problem.n)
        space = make_space(self.space, structure.blocks(), k, levels)
        start = np.zeros((likelihood.m, k))
        start[:, -1] = 1.0
        first = Starts(start, np.zeros(likelihood.m, dtype=bool))
        with np.errstate(all="ignore"):
            end = maximise_in_batches(
                likelihood,
                space,
                FisherScoring(EPSILON),
                start,
                np.isin(np.arange(likelihood.m), features),
                max_iter=50,
                memory=2**30,
                fallback=EM(EPSILON) if self.space == "psd" else NewtonRaphson(EPSILON),
                again_from=second_starts(first, structure.is_variance),
            )
        return {int(j): end.theta[j] for j in features}

    def alone(self, j: int) -> tuple[Any, pb.FloatArray]:
        """The plain likelihood of feature j by itself, and its theta, both in internal units."""
        likelihood = pb.estimator_of(self.problem.stats(self.Y[[j]]), self.method)
        return likelihood, likelihood.projection.to_internal(self.theta[[j]])


def check_good(fit: Fit, j: int) -> Iterator[Finding]:
    """Stationary by the plain likelihood, and nothing that is not finite."""
    with np.errstate(all="ignore"):
        yield from _check_good(fit, j)


def _check_good(fit: Fit, j: int) -> Iterator[Finding]:
    one, at, label = fit.result.ds.isel(feature=j), fit.plain, fit.status[j]
    names = ["beta", "theta", "se_theta", "score", "loglik"]
    if label != "indefinite":
        names.append("se_beta")
    wrong = [name for name in names if not np.isfinite(one[name].to_numpy()).all()]
    if wrong:
        yield "not finite under a good verdict", ", ".join(wrong)
        return
    if fit.problem.structure.curved is not None:
        yield from check_curved(fit, j)
        return
    unit = np.sqrt(np.diag(at.expected[j]))
    # What cancels in y'Py leaves an error of this size in a score in standard errors.
    allowance = 10.0 * fit.rounding(j)
    if fit.space == "psd":
        highest, product = pb.kkt(fit.problem, fit.theta[j], at, j)
        left = max(highest, product)
        for block in fit.problem.structure.blocks():
            values = np.linalg.eigvalsh(fit.theta[j][block])
            if values[0] < -1e-10 * max(values[-1], 1e-300):
                yield "outside the psd space", f"{values[0]:.1e}"
    else:
        left = float(np.abs(at.score[j] / unit).max())
        yield from _check_combinations(at.score[j] / unit, at.expected[j], unit, fit.rounding(j))
    # The conditions of the cone are measured by S B, a fit by its next step: the two agree within
    # a factor of three where a block is singular.
    most = 3.0 * EPSILON if fit.space == "psd" else EPSILON
    if not left < most:
        within = left < most + allowance
        what = "score above epsilon, within rounding" if within else "score above epsilon"
        yield what, f"{left:.1e}, rounding {allowance:.0e}"
    difference = abs(float(at.loglik[j]) - float(one["loglik"]))
    if not difference < 1e-8 * (1 + abs(float(one["loglik"]))) + allowance:
        yield "log-likelihood differs from the plain one", f"{difference:.1e}"
    # Twice the average minus the expected information is the observed one.
    observed = (2 * at.average[j] - at.expected[j]) / np.outer(unit, unit)
    lowest = float(np.linalg.eigvalsh(observed)[0])
    edge = label == "boundary" or (fit.space == "psd" and fit.theta[j, -1] == 0.0)
    if not edge and lowest < -1e-6 - allowance:
        yield "not a maximum but a saddle", f"{lowest:.1e}"
    values = np.linalg.eigvalsh(fit.problem.V(fit.theta[j]))
    told = abs(values[0]) > 1e-8 * np.abs(values).max()
    if told and (label == "indefinite") != bool(values[0] < 0):
        yield "V is definite where the verdict says otherwise", f"{values[0]:.1e}"
    if label == "converged" and fit.space == "psd" and fit.theta[j, -1] == 0.0:
        yield "converged with a residual variance of zero", ""


def _check_combinations(
    score: pb.FloatArray, expected: pb.FloatArray, unit: pb.FloatArray, rounding: float
) -> Iterator[Finding]:
    """No combination of the scores (in standard errors) is large: sqrt(s'E^-1 s) is the largest."""
    values, vectors = np.linalg.eigh(expected / np.outer(unit, unit))
    values = np.maximum(values, 1e-15)
    largest = float(np.linalg.norm(vectors.T @ score / np.sqrt(values)))
    # What rounding leaves of a gain, and of the score of the worst combination.
    allowance = np.sqrt(1e-11 + 10 * rounding) + 10 * rounding / np.sqrt(values[0])
    if not largest < EPSILON + allowance:
        yield "a combination of scores above epsilon", f"{largest:.1e}, rounding {allowance:.0e}"


def check_dense(fit: Fit, j: int) -> Iterator[Finding]:
    """The log-likelihood from V itself, where V can be inverted well."""
    V = fit.problem.V(fit.theta[j])
    X = fit.problem.X
    if fit.status[j] == "indefinite" or max(np.linalg.cond(V), np.linalg.cond(X) ** 2) > 1e6:
        return
    y = fit.Y[j] - X @ np.linalg.lstsq(X, fit.Y[j], rcond=None)[0]  # a large mean spoils y'Py
    truth = pb.dense(fit.problem, y, fit.theta[j], fit.method)
    difference = abs(truth.loglik - float(fit.result.llf.iloc[j]))
    if not difference < 1e-6 + 10 * fit.rounding(j):
        yield "log-likelihood differs from that of V", f"{difference:.1e}"


def check_search(fit: Fit, j: int, rng: np.random.Generator) -> Iterator[Finding]:
    """No search from other starts finds a higher likelihood."""
    if fit.problem.structure.curved is not None:
        yield from search_curved(fit, j, rng)
        return
    likelihood, theta = fit.alone(j)
    ours = float(likelihood.evaluate(theta, np.array([0])).loglik[0])
    edge = 1.0
    with np.errstate(all="ignore"):
        space: PSD | Unconstrained = Unconstrained()
        if fit.space == "psd":
            space = PSD(tuple(fit.problem.structure.blocks()), fit.problem.n_params)
            best, where = pb.search_point(likelihood, space, rng)
        else:
            best, where = search_domain(likelihood, theta[0], rng)
        if best > ours:  # to the end, which may be the edge
            end = maximise(
                *(likelihood, space, FisherScoring(EPSILON), where[None], np.array([0])),
                max_iter=100,
            ).theta
            edge = float(likelihood.distance_to_edge(end)[0])
    if best > ours + 1e-5 + 10 * fit.rounding(j):
        unbounded = edge < 1e-6
        what = "a maximum, but unbounded elsewhere" if unbounded else "a higher likelihood exists"
        yield what, f"by {best - ours:.1e}"


def search_domain(
    likelihood: Any, theta: pb.FloatArray, rng: np.random.Generator, starts: int = 2
) -> tuple[float, pb.FloatArray]:
    """Best log-likelihood that scipy finds with V free to be indefinite, and where."""
    expected = likelihood.evaluate(theta[None], np.array([0])).expected[0]
    unit = 1.0 / np.sqrt(np.diag(expected))

    def objective(x: pb.FloatArray) -> tuple[float, pb.FloatArray]:
        at = likelihood.evaluate((x * unit)[None], np.array([0]))
        if not (np.isfinite(at.loglik[0]) and np.isfinite(at.score[0]).all()):
            return 1e10, np.zeros_like(x)
        return -float(at.loglik[0]), -np.asarray(at.score[0]) * unit

    best, where = -np.inf, theta
    for _ in range(starts):
        start = theta / unit + rng.normal(size=theta.size) * 3.0
        for _ in range(40):
            if objective(start)[0] < 1e10:
                break
            start = 0.7 * start + 0.3 * theta / unit
        run = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B")
        if -run.fun > best:
            best, where = -float(run.fun), run.x * unit
    return best, where


def check_curved(fit: Fit, j: int) -> Iterator[Finding]:
    """Stationary in own parameters, or held by their bounds; a maximum where nothing holds them."""
    likelihood, theta = fit.alone(j)
    u, lower, upper, own = _own(fit, likelihood, theta)
    at = own.evaluate(u[None], np.array([0]))
    unit, allowance = np.sqrt(np.diag(at.expected[0])), 10.0 * fit.rounding(j)
    score, most = at.score[0] / unit, 3.0 * EPSILON + allowance
    near = np.where(np.isfinite(upper), 1e-8, 1e-12)  # of correlations, and of variances
    low, high = u <= lower + near, u >= upper - near
    wrong = np.where(low, score > most, np.where(high, score < -most, np.abs(score) > most))
    for i in np.flatnonzero(wrong & low & (u == 0.0) & np.isfinite(upper)):
        # Of broken powers of a correlation the slope at zero is no measure: what it gains is.
        further = u.copy()
        further[i] = 1e-6
        gain = own.evaluate(further[None], np.array([0])).loglik[0] - at.loglik[0]
        wrong[i] = gain > 1e-9 + fit.rounding(j)
    if wrong.any() or (u < lower - 1e-9).any() or (u > upper + 1e-9).any():
        yield "score above epsilon", f"{np.abs(score[wrong]).max(initial=0.0):.1e}"
    difference = abs(float(fit.plain.loglik[j]) - float(fit.result.llf.iloc[j]))
    if not difference < 1e-8 * (1 + abs(float(fit.result.llf.iloc[j]))) + allowance:
        yield "log-likelihood differs from the plain one", f"{difference:.1e}"
    if not (low | high).any():
        lowest = float(np.linalg.eigvalsh(at.observed[0] / np.outer(unit, unit))[0])
        if lowest < -1e-6 - allowance:
            yield "not a maximum but a saddle", f"{lowest:.1e}"
    elif fit.status[j] == "converged":
        yield "converged at a bound", ""


def _own(
    fit: Fit, likelihood: Any, theta: pb.FloatArray
) -> tuple[pb.FloatArray, pb.FloatArray, pb.FloatArray, OwnParameters]:
    """Own parameters at theta, their bounds, and the plain likelihood of them."""
    structure = fit.problem.structure
    curved = structure.curved
    assert curved is not None
    lower, upper = np.zeros(curved.k), np.full(curved.k, np.inf)
    for curve, _, own in curved.parts():
        if curve is not None:
            lower[own], upper[own] = curve.bounds
    u = np.nan_to_num(curved.own(theta)[0])
    return u, lower, upper, OwnParameters(likelihood, curved)


def search_curved(fit: Fit, j: int, rng: np.random.Generator, starts: int = 4) -> Iterator[Finding]:
    """No search of scipy's over own parameters, from random starts, finds more."""
    likelihood, theta = fit.alone(j)
    _, lower, upper, own = _own(fit, likelihood, theta)
    ours = float(likelihood.evaluate(theta, np.array([0])).loglik[0])
    lower = np.where(np.arange(lower.size) == lower.size - 1, 1e-9, lower)

    def objective(u: pb.FloatArray) -> tuple[float, pb.FloatArray]:
        at = own.evaluate(u[None], np.array([0]))
        if not (np.isfinite(at.loglik[0]) and np.isfinite(at.score[0]).all()):
            return 1e10, np.zeros_like(u)
        return -float(at.loglik[0]), -np.asarray(at.score[0])

    best = -np.inf
    with np.errstate(all="ignore"):
        for _ in range(starts):
            boxed = np.isfinite(upper)
            inside = np.where(
                boxed, rng.uniform(np.where(boxed, lower, 0), np.where(boxed, upper, 1)), 0
            )
            start = np.where(boxed, inside, rng.exponential(size=lower.size) + 1e-3)
            run = scipy.optimize.minimize(
                objective, start, jac=True, method="L-BFGS-B",
                bounds=list(zip(lower, upper, strict=True)),
            )  # fmt: skip
            best = max(best, -float(run.fun))
    if best > ours + 1e-5 + 10 * fit.rounding(j):
        yield "a higher likelihood exists", f"by {best - ours:.1e}"


def check_company(fit: Fit, j: int) -> Iterator[Finding]:
    """The same verdict and estimate for the feature alone."""
    result = MultiLMM(fit.problem.stats(fit.Y[[j]])).fit(fit.method, parameter_space=fit.space)
    label = str(result.status.iloc[0])
    if label != fit.status[j] and {label, fit.status[j]} <= {*UNFINISHED}:
        yield "no fit alone either, by another verdict", f"{label}, in company {fit.status[j]}"
    elif label != fit.status[j]:
        yield "another verdict alone", f"{label}, in company {fit.status[j]}"
    elif label in GOOD:
        se = fit.result.ds["se_theta"].to_numpy()[j]
        if fit.problem.structure.curved is not None:  # what a bound holds has no error
            se = np.maximum(se, 1e-6 * np.abs(fit.theta[j]).max())
        change = float((np.abs(result.theta.to_numpy()[0] - fit.theta[j]) / se).max())
        if not change < 1e-7 + 10 * fit.rounding(j):
            yield "another estimate alone", f"{change:.1e} standard errors"


def _explained(columns: pb.FloatArray, y: pb.FloatArray) -> bool:
    """Whether the columns explain y, up to what sums of squares can tell."""
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    left = y - columns @ np.linalg.lstsq(columns, y, rcond=1e-12)[0]
    size = np.abs(y).max()
    return bool(np.abs(left).max() <= RELATIVE_RESIDUAL * size)


def check_zero_variance(fit: Fit, j: int) -> Iterator[Finding]:
    """X explains the feature."""
    if not _explained(fit.problem.X, fit.Y[j]):
        yield "not explained by X", ""


def check_perfect_fit(fit: Fit, j: int) -> Iterator[Finding]:
    """X and Z explain the feature."""
    if not _explained(np.hstack([fit.problem.X, fit.problem.Z]), fit.Y[j]):
        yield "not explained by X and Z", ""


def check_no_maximum(fit: Fit, j: int) -> Iterator[Finding]:
    """Close to the point where the fit ended the likelihood rises, decade by decade.

    Where V turns singular in a direction that y does not have, log |V| alone counts, and each
    factor of ten in the distance from the edge adds at least 1/2 log 10 = 1.15.
    """
    if fit.problem.structure.curved is not None:
        return  # on the way to a residual variance of zero; not followed here
    likelihood = pb.estimator_of(fit.stats, fit.method)
    start = np.append(np.zeros(fit.problem.n_params - 1), 1.0)
    end, feature = fit.ends[j], np.full(4, j)
    with np.errstate(all="ignore"):
        distance = max(float(likelihood.distance_to_edge(end[None])[0]), 1e-12)
        farther = (end + distance * (start - end))[None]
        slope = max(float(likelihood.distance_to_edge(farther)[0]) / distance - 1.0, 1.0)
    path = end + distance / slope * 10.0 ** np.arange(4, 0, -1)[:, None] * (start - end)
    with np.errstate(all="ignore"):
        values = likelihood.evaluate(path, feature).loglik
    rises = np.diff(values)  # farthest from the edge the rise may still be on its way to its limit
    if not (rises[0] > 0 and (rises[1:] > 0.95).all()):
        yield "the likelihood stops rising", ", ".join(f"{rise:.1e}" for rise in rises)


def check_non_finite(fit: Fit, j: int) -> Iterator[Finding]:
    """The sums of squares overflow."""
    with np.errstate(over="ignore"):
        if np.isfinite(fit.Y[j] @ fit.Y[j]):
            yield "the sums are finite", ""


def check_unfinished(fit: Fit, j: int) -> Iterator[Finding]:
    """An honest verdict is one whose score is not small, or standard errors lost in rounding."""
    with np.errstate(all="ignore"):
        left = float(np.abs(fit.plain.score[j] / np.sqrt(np.diag(fit.plain.expected[j]))).max())
    known = np.isfinite(fit.result.ds["se_theta"][j].to_numpy()).all()
    if left < EPSILON and known and fit.space == "unconstrained":
        yield "unfinished, but the score is small", f"{left:.1e}"


VERDICTS: dict[str, Callable[[Fit, int], Iterator[Finding]]] = {
    **dict.fromkeys(GOOD, check_good),
    Status.ZERO_VARIANCE.label: check_zero_variance,
    Status.PERFECT_FIT.label: check_perfect_fit,
    Status.NO_MAXIMUM.label: check_no_maximum,
    Status.NON_FINITE.label: check_non_finite,
    Status.ITERATION_LIMIT.label: check_unfinished,
    Status.STALLED.label: check_unfinished,
}


def check_refusal(problem: pb.Problem) -> Iterator[Finding]:
    """A design is refused where X loses rank, or the covariances of the contrasts do."""
    X = problem.X / np.maximum(np.linalg.norm(problem.X, axis=0), 1e-300)
    if problem.n <= problem.p or np.linalg.cond(X) > 1e6:
        return
    Q = problem.contrasts
    parts = np.stack([(Q.T @ part @ Q).ravel() for part in problem.derivatives])
    length = np.linalg.norm(parts, axis=1)
    raw = np.linalg.norm(problem.derivatives.reshape(len(parts), -1), axis=1)
    if (length <= 1e-6 * raw).any():
        return
    parts = parts / length[:, None]
    if np.linalg.eigvalsh(parts @ parts.T)[0] > 1e-7:
        yield "refused, but it can be fitted", ""
