"""Every solver on every problem of the shared list, without another to fall back on."""

from __future__ import annotations

import numpy as np
import problems as pb
import pytest

from flashmm.solvers import SOLVERS
from flashmm.solvers.base import maximise
from flashmm.solvers.space import make_space
from flashmm.solvers.verdict_texts import Status

EPSILON = 1e-5
# Steps that are enough on all of the list; EM takes a step of SQUAREM for one.
LIMIT = 100
WHERE = ("inside", "boundary")


def setting(kind: str, method: str, space_name: str, where: str):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng([7, pb.KINDS.index(kind), WHERE.index(where)])
    theta = problem.theta(rng, "inside")
    if where == "boundary":  # the first random effect has none of the variance
        first = problem.structure.blocks()[0]
        theta[first[first >= 0]] = 0.0
    stats = problem.stats(problem.simulate(theta, 4, rng))
    likelihood = pb.estimator_of(stats, method)
    levels = (*stats.structure.block_levels(), stats.n)
    space = make_space(space_name, stats.structure.blocks(), likelihood.n_params, levels)
    start = np.zeros((4, likelihood.n_params))
    start[:, -1] = 1.0
    return problem, stats, likelihood, space, start


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize("kind", pb.KINDS)
def test_in_the_psd_space_all_find_the_same_maximum(kind, method, where):
    problem, stats, likelihood, space, start = setting(kind, method, "psd", where)
    every, best = np.arange(4), np.full(4, -np.inf)
    found = {}
    for name, solver in SOLVERS.items():
        found[name] = maximise(
            likelihood, space, solver(epsilon=EPSILON), start.copy(), every, max_iter=LIMIT
        )
        best = np.maximum(best, found[name].evaluation.loglik)
    for name, solution in found.items():
        assert np.isin(solution.status, (Status.CONVERGED, Status.BOUNDARY)).all(), name
        natural = likelihood.projection.to_natural(solution.theta)
        at = pb.evaluate(stats, natural, method)
        for j in range(4):
            highest, product = pb.kkt(problem, natural[j], at, j)
            assert max(highest, product) < 2 * EPSILON, name
        # Two maxima of one likelihood are possible; which is found may differ where they are.
        lower = best - solution.evaluation.loglik > 1e-9 * np.abs(best)
        assert lower.sum() <= 1, name


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize("kind", pb.KINDS)
def test_in_the_unconstrained_space_all_end_at_a_stationary_point_or_the_edge(kind, method):
    problem, stats, likelihood, space, start = setting(kind, method, "unconstrained", "inside")
    every = np.arange(4)
    for name, solver in SOLVERS.items():
        if name == "em":
            continue  # its updates are covariance matrices
        solution = maximise(
            likelihood, space, solver(epsilon=EPSILON), start.copy(), every, max_iter=LIMIT
        )
        good = solution.status == Status.CONVERGED
        at = pb.evaluate(stats, likelihood.projection.to_natural(solution.theta), method)
        unit = np.sqrt(np.diagonal(at.expected, axis1=1, axis2=2))
        assert (np.abs(at.score / unit)[good] < EPSILON).all(), name
        assert (likelihood.distance_to_edge(solution.theta)[~good] < 1e-5).all(), name
        if method == "REML" and problem.n_params == 2 and kind != "saturated":
            assert good.all(), name
