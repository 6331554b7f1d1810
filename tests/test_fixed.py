"""Constrained maxima: some parameters held, the others at the best place in their space."""

from __future__ import annotations

import numpy as np
import problems as pb
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from flashmm.inference.constrained import Maximiser
from flashmm.solvers import FisherScoring, Status
from flashmm.solvers.fixed import Fixed
from flashmm.solvers.space import PSD, Unconstrained, make_space


def setting(kind, space, where="singular", seed=11):
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(seed)
    Y = problem.simulate(problem.theta(rng, where), 3, rng)
    likelihood = pb.estimator_of(problem.stats(Y), "REML")
    space = make_space(space, problem.structure.blocks(), problem.n_params)
    solver = FisherScoring(newton_within=10.0)
    return problem, likelihood, Maximiser(likelihood, space, solver, 300, 2**28)


def neighbours(problem, theta, held, rng, size=1e-3):
    """Random points of the psd space near theta whose parameter ``held`` is theta's own."""
    for _ in range(40):
        new = theta * np.exp(size * rng.normal(size=theta.size))
        for block in problem.structure.blocks():
            if block.shape[0] == 1:
                continue
            s = block.shape[0]
            values, vectors = np.linalg.eigh(theta[block])
            root = vectors * np.sqrt(np.maximum(values, 0.0))
            root = root + size * rng.normal(size=(s, s)) * np.abs(root).max()
            B = root @ root.T
            if held in block:
                i, j = np.argwhere(block == held)[0]
                wanted = theta[held]
                if i == j:  # scale its row and column
                    factor = np.ones(s)
                    factor[i] = np.sqrt(wanted / B[i, i])
                    B = B * np.outer(factor, factor)
                else:  # the difference goes into the two variances beside it
                    change = wanted - B[i, j]
                    B[i, j] = B[j, i] = wanted
                    B[i, i] += abs(change)
                    B[j, j] += abs(change)
            new[block] = B
        new[held] = theta[held]
        yield new


@pytest.mark.parametrize("kind", ["correlated", "three_effects"])
def test_no_neighbour_in_the_psd_space_is_better(kind):
    problem, likelihood, maximiser = setting(kind, "psd")
    full = maximiser.at(np.tile(np.eye(problem.n_params)[-1], (3, 1)), np.arange(3))
    rng = np.random.default_rng(1)
    on_edge = 0
    block = problem.structure.blocks()[0]
    for i in (block[0, 0], block[0, -1], problem.n_params - 1):
        start = full.theta.copy()
        start[:, i] *= 1.3
        found = maximiser.at(start, np.arange(3), values=(i,))
        assert (found.status <= Status.INDEFINITE).all()
        assert_array_equal(found.theta[:, i], start[:, i])
        assert maximiser.space.contains(found.theta).all()
        assert (found.loglik <= full.loglik + 1e-9).all()
        on_edge += int(maximiser.space.on_boundary(found.theta).sum())
        for j in range(3):
            around = np.stack(list(neighbours(problem, found.theta[j], i, rng)))
            there = likelihood.evaluate(around, np.full(len(around), j)).loglik
            assert there.max() <= found.loglik[j] + 1e-8
    assert on_edge > 3


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_zeros_are_the_model_without_the_effect(space):
    problem, _, maximiser = setting("slope_and_crossed", space, where="inside")
    start = np.tile(np.eye(problem.n_params)[-1], (3, 1))
    block = problem.structure.blocks()[0]
    zeros = sorted({int(i) for i in block[1]})
    found = maximiser.at(start, np.arange(3), zeros=zeros)
    assert (found.theta[:, zeros] == 0).all()
    # The same by holding the values at zero, where the space is open.
    if space == "unconstrained":
        again = maximiser.at(start, np.arange(3), values=zeros)
        assert_allclose(again.loglik, found.loglik, rtol=1e-10)


def test_a_step_that_stays_inside_is_newtons_step_in_the_free_parameters():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 4, 6))
    information, score = root @ np.swapaxes(root, 1, 2), 1e-3 * rng.normal(size=(2, 4))
    theta = np.array([[1.0, 2.0, 0.3, 1.0], [2.0, 1.0, -0.4, 1.0]])
    block = np.array([[0, 2], [2, 1]])
    for space in (PSD((block,), 4), Unconstrained()):
        step = Fixed.of(space, 4, values=(3,)).step(theta, score, information)
        free = np.linalg.solve(information[:, :3, :3], score[:, :3, None])[:, :, 0]
        assert_allclose(step[:, :3], free, rtol=1e-9)
        assert (step[:, 3] == 0).all()
        step = Fixed.of(space, 4, zeros=(1, 2)).step(theta, score, information)
        kept = np.ix_([0, 1], [0, 3], [0, 3])
        free = np.linalg.solve(information[kept], score[:, [0, 3], None])[:, :, 0]
        assert_allclose(step[:, [0, 3]], free, rtol=1e-9)


def test_a_start_where_the_likelihood_does_not_exist_is_replaced():
    problem, _, maximiser = setting("crossed", "unconstrained", where="inside")
    start = np.array([[-5.0, 0.0, 0.1]] * 3)  # far outside: V has negative eigenvalues
    found = maximiser.at(start, np.arange(3), values=(0,))
    assert np.isfinite(found.loglik).all()
    assert (found.theta[:, 0] == -5.0).all()
    assert problem.n_params == 3
