"""When a feature counts as converged, and how steps are shortened."""

from __future__ import annotations

import numpy as np
import problems as pb
import pytest

from flashmm.likelihood.base import Evaluation
from flashmm.solvers import Objective, State, within
from flashmm.solvers.damping import damped
from flashmm.solvers.space import Unconstrained

EPSILON = 1e-5


def test_converged_means_within_epsilon_in_every_combination_of_parameters():
    """Scores below epsilon each, of two parameters with a correlation of -1 + 5e-8."""
    r = 1.0 - 5e-8
    expected = np.array([[[4.0, 2.0 * r], [2.0 * r, 1.0]]])
    opposite, alike = np.array([2.0, -1.0]), np.array([2.0, 1.0])
    theta = np.zeros((1, 2))

    def done(score, rounding=0.0):
        at = Evaluation(np.zeros(1), score[None], expected, expected, np.full(1, rounding))
        state = State(theta, at, theta)
        return bool(within(Objective(None, Unconstrained(), np.arange(1)), state, EPSILON)[0])

    assert done(0.5e-5 * alike)
    assert not done(2e-5 * alike)
    assert not done(0.5e-5 * opposite)  # 0.03 standard errors of a combination
    assert done(1e-9 * opposite)
    assert done(0.5e-5 * opposite, rounding=1e-3)  # a gain that the likelihood cannot show


@pytest.mark.parametrize("method", pb.METHODS)
def test_shortened_steps_stay_in_the_domain_and_never_lower_the_likelihood(method):
    """Of features together, whose full steps are good, too long, beyond the domain, or downhill."""
    problem = pb.PROBLEMS["crossed"]
    rng = np.random.default_rng(3)
    Y = np.repeat(problem.simulate(problem.theta(rng, "inside"), 1, rng), 4, axis=0)
    likelihood = pb.estimator_of(problem.stats(Y), method)
    objective = Objective(likelihood, Unconstrained(), np.arange(4))
    theta = np.zeros((4, problem.n_params))
    theta[:, -1] = 1.0
    before = objective.evaluate(theta)
    scoring = np.linalg.solve(before.expected, before.score[:, :, None])[:, :, 0]
    step = scoring * np.array([[1.0], [40.0], [1e6], [-1.0]])
    moved, stalled = damped(objective, State(theta, before, step))
    assert stalled.tolist() == [False, False, False, True]
    assert (moved.evaluation.loglik[:3] > before.loglik[:3]).all()
    np.testing.assert_array_equal(moved.theta[3], theta[3])
    again = likelihood.evaluate(moved.theta, np.arange(4))
    np.testing.assert_allclose(moved.evaluation.loglik, again.loglik, rtol=1e-13)
    np.testing.assert_allclose(moved.evaluation.score, again.score, rtol=1e-10)
    assert (np.abs(moved.theta[2] - theta[2]) < np.abs(step[2])).all()
