"""Likelihoods in arrays of PyTorch and of a strict implementation of the standard.

What numpy gives is proved elsewhere; the others must give the same to rounding.
"""

from __future__ import annotations

from functools import cache

import array_api_strict
import numpy as np
import problems as pb
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from flashmm.arrays.namespaces import like, namespace, to_numpy
from flashmm.likelihood import make_likelihood
from flashmm.likelihood.base import log_of_product
from flashmm.likelihood.elimination.indefinite import covariance_is_definite

CASES = [(kind, name) for kind in pb.KINDS for name in pb.engines(pb.PROBLEMS[kind])]
WHERE = ("inside", "singular", "negative")


@pytest.fixture(params=["array_api_strict", "torch"])
def example(request):
    """An array of each library, to make others like it."""
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        return torch.zeros(1, dtype=torch.float64)
    return array_api_strict.asarray([0.0])


@cache
def case(kind: str, method: str):
    """Four features, each with its own theta: inside, singular, negative, outside the space."""
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(pb.KINDS.index(kind))
    thetas = np.stack([problem.theta(rng, where) for where in (*WHERE, "inside")])
    Y = np.concatenate([problem.simulate(theta, 1, rng) for theta in thetas])
    thetas[3, problem.structure.is_variance] = -1.0
    projection = pb.projection_of(problem.stats(Y))
    return projection, projection.to_internal(thetas), np.arange(4)


def assert_equal_to_rounding(there, here, message=""):
    there, size = to_numpy(there), np.nanmax(np.abs(here), initial=1e-300)
    assert there.shape == here.shape
    assert_allclose(there / size, here / size, rtol=0, atol=1e-10, err_msg=message)


@pytest.mark.parametrize("method", pb.METHODS)
@pytest.mark.parametrize(("kind", "engine"), CASES)
def test_likelihoods_are_the_same_in_every_library(kind, engine, method, example):
    projection, theta, features = case(kind, method)
    here = make_likelihood(projection, method, engine)
    there = make_likelihood(projection.on(example), method, engine)
    theta_there, features_there = like(theta, example), like(features, example)
    assert (there.m, there.n_params, there.engine) == (here.m, here.n_params, here.engine)
    if getattr(here, "alike", None) is None:  # numpy alone has stacks of blocks that are alike
        assert there.batch_size(2**20) == here.batch_size(2**20)
    assert_array_equal(to_numpy(there.perfect_fit), here.perfect_fit)

    expected = here.evaluate(theta, features)
    found = there.evaluate(theta_there, features_there)
    assert_array_equal(np.isfinite(expected.loglik), [True, True, True, False])
    assert namespace(found.loglik) is namespace(example)
    unit = np.sqrt(np.diagonal(expected.expected, axis1=1, axis2=2))
    pairs = unit[:, :, None] * unit[:, None, :]
    assert_allclose(to_numpy(found.loglik), expected.loglik, atol=1e-9)
    assert_allclose(to_numpy(found.score) / unit, expected.score / unit, atol=1e-9)
    for name in ("expected", "average", "observed"):
        matrices = to_numpy(getattr(found, name)), getattr(expected, name)
        assert_allclose(*(matrix / pairs for matrix in matrices), atol=1e-9, err_msg=name)
    assert_allclose(to_numpy(found.rounding), expected.rounding, rtol=1e-12)

    assert_array_equal(to_numpy(there.is_definite(theta_there)), here.is_definite(theta))
    assert_equal_to_rounding(there.distance_to_edge(theta_there), here.distance_to_edge(theta))
    # what theta implies, for the features that have an estimate
    theta, features = theta[:3], features[:3]
    theta_there, features_there = like(theta, example), like(features, example)
    L = np.vstack([np.eye(projection.p), np.ones(projection.p)])
    for name, arguments in {"beta": (), "covariance": (), "contrast_variance": (L,)}.items():
        moved = (like(argument, example) for argument in arguments)
        result = getattr(there, name)(theta_there, features_there, *moved)
        truth = getattr(here, name)(theta, features, *arguments)
        assert_equal_to_rounding(result, truth, name)
    vectors = np.random.default_rng(0).normal(size=(3, 2, projection.structure.q))
    result, truth = there.apply_T(theta_there, like(vectors, example)), here.apply_T(theta, vectors)
    assert_equal_to_rounding(result, truth, "apply_T")
    for kind_of_error in (None, "conditional", "prediction"):
        effects = there.random_effects(theta_there, features_there, kind_of_error)
        truth = here.random_effects(theta, features, kind_of_error)
        assert_equal_to_rounding(effects.blup, truth.blup)
        if truth.se is None:
            assert effects.se is None
        else:  # a square root doubles the digits lost near zero
            assert_equal_to_rounding(effects.se**2, truth.se**2)


@pytest.mark.parametrize("r", [0, 1, 7, 8, 29])
def test_logarithms_of_products(example, r):
    values = np.exp(np.random.default_rng(r).normal(scale=5.0, size=(3, r)))
    values[1] = 1e250  # the product of two of these is infinite
    values[2, : r // 2] = 1e-200
    found = to_numpy(log_of_product(like(values, example)))
    assert_allclose(found, np.log(values).sum(axis=1), rtol=1e-13, atol=1e-13)
    assert_allclose(log_of_product(values), found, rtol=1e-14)


def test_where_covariance_blocks_are_definite_in_every_library(example):
    blocks = pb.PROBLEMS["correlated"].structure.blocks()  # one of two effects, then sigma2
    theta = np.ones((5, 4))
    first, second, covariance = blocks[0][0, 0], blocks[0][1, 1], blocks[0][0, 1]
    theta[0, covariance] = 0.9
    theta[1, covariance] = 1.1
    theta[2, second], theta[2, covariance] = 0.0, 0.0
    theta[3, first], theta[3, covariance] = -0.1, 0.0
    theta[4, -1] = np.nan
    expected = [True, False, True, False, False]
    assert covariance_is_definite(blocks, theta).tolist() == expected
    assert to_numpy(covariance_is_definite(blocks, like(theta, example))).tolist() == expected
