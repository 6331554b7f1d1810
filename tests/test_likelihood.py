"""Likelihoods and estimates against n x n matrices, finite differences and exact expectations.

Errors are in units of the score's standard errors, sqrt(E_ii). Over 20 seeds of each kind of
problem the largest difference from the n x n formulas was 2e-13.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import problems as pb
import pytest
from numpy.testing import assert_allclose

import flashmm as fm

WHERE = ("inside", "singular", "negative")
ENGINE_OF_KIND = [(kind, name) for kind in pb.KINDS for name in pb.engines(pb.PROBLEMS[kind])]

methods = pytest.mark.parametrize("method", pb.METHODS)
kinds = pytest.mark.parametrize("kind", pb.KINDS)
places = pytest.mark.parametrize("where", WHERE)
engines = pytest.mark.parametrize(("kind", "engine"), ENGINE_OF_KIND)


@cache
def case(kind: str, where: str, m: int = 2):
    """Return a problem, a theta and m features drawn there."""
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng([pb.KINDS.index(kind), WHERE.index(where)])
    theta = problem.theta(rng, where)
    return problem, theta, problem.simulate(theta, m, rng)


@cache
def truths(kind: str, where: str, method: str):
    """Return what dense matrices say about the two features of a case."""
    problem, theta, Y = case(kind, where)
    return [pb.dense(problem, y, theta, method) for y in Y]


def error_units(expected):
    return np.sqrt(np.diag(expected))


@methods
@places
@engines
def test_derivatives_equal_those_from_dense_matrices(kind, where, method, engine):
    problem, theta, Y = case(kind, where)
    found = problem.evaluate(Y, theta, method, engine)
    for j, truth in enumerate(truths(kind, where, method)):
        unit = error_units(truth.expected)
        pairs = np.outer(unit, unit)
        assert found.loglik[j] == pytest.approx(truth.loglik, abs=1e-10)
        assert_allclose(found.score[j] / unit, truth.score / unit, atol=1e-11)
        assert_allclose(found.expected[j] / pairs, truth.expected / pairs, atol=1e-11)
        assert_allclose(found.average[j] / pairs, truth.average / pairs, atol=1e-11)
        observed = 2 * truth.average - truth.expected
        assert_allclose(found.observed[j] / pairs, observed / pairs, atol=1e-11)


@methods
@places
@engines
def test_estimates_equal_those_from_dense_matrices(kind, where, method, engine):
    problem, theta, Y = case(kind, where)
    projection = pb.projection_of(problem.stats(Y))
    features = np.arange(2)
    internal = projection.to_internal(np.tile(theta, (2, 1)))
    estimator = pb.estimator_of(problem.stats(Y), method, engine)
    beta = estimator.beta(internal, features)
    covariance = estimator.covariance(internal, features)
    L = np.vstack([np.eye(problem.p), np.ones(problem.p), np.arange(problem.p) - 0.5])
    variances = estimator.contrast_variance(internal, features, L)
    effects = {se: estimator.random_effects(internal, features, se) for se in SE}
    for j, truth in enumerate(truths(kind, where, method)):
        unit = np.sqrt(np.diag(truth.covariance))
        assert_allclose(beta[j] / unit, truth.beta / unit, atol=1e-10)
        pairs = np.outer(unit, unit)
        assert_allclose(covariance[j] / pairs, truth.covariance / pairs, atol=1e-10)
        of_contrasts = np.diag(L @ truth.covariance @ L.T)
        assert_allclose(variances[j], of_contrasts, rtol=1e-9)
        size = np.abs(truth.blup).max() + 1e-12
        for kind_of_error, name in SE.items():
            assert_allclose(
                effects[kind_of_error].blup[j] / size, truth.blup / size, rtol=0, atol=1e-10
            )
            if name is None:
                assert effects[kind_of_error].se is None
                continue
            variance = np.diag(getattr(truth, name))
            top = np.abs(problem.D(theta)).max()
            # A negative variance has no standard error; sqrt doubles digits lost near zero.
            positive = variance > 1e-9 * top
            negative = variance < -1e-9 * top
            se = effects[kind_of_error].se[j]
            assert_allclose(se[positive] ** 2, variance[positive], rtol=1e-8, atol=1e-12 * top)
            assert np.isnan(se[negative]).all()
            assert (se[~positive & ~negative] <= 1e-4 * np.sqrt(top)).all()


SE = {None: None, "conditional": "conditional", "prediction": "prediction"}


@methods
@places
@kinds
def test_score_is_the_finite_difference_of_loglik(kind, where, method):
    problem, theta, Y = case(kind, where)
    stats = problem.stats(Y)
    projection = pb.projection_of(stats)
    raw = pb.estimator_of(stats, method)
    features = np.arange(2)
    internal = projection.to_internal(np.tile(theta, (2, 1)))
    assert_score_and_observed(lambda t: raw.evaluate(t, features), internal)
    assert_score_and_observed(lambda t: pb.evaluate(stats, t, method), np.tile(theta, (2, 1)))


def assert_score_and_observed(evaluate, theta):
    """Central differences with an error of order h^4, steps of 1e-3 standard errors."""
    here = evaluate(theta)
    unit = np.sqrt(np.diagonal(here.expected, axis1=1, axis2=2))
    for i in range(theta.shape[1]):
        h = 1e-3 / unit[:, i]
        shift = np.zeros_like(theta)
        shift[:, i] = h
        near, far = (evaluate(theta + s * shift) for s in (1, 2))
        near_, far_ = (evaluate(theta - s * shift) for s in (1, 2))
        slope = (8 * (near.loglik - near_.loglik) - (far.loglik - far_.loglik)) / (12 * h)
        assert_allclose(slope / unit[:, i], here.score[:, i] / unit[:, i], rtol=1e-6, atol=1e-7)
        h = h[:, None]
        curvature = -(8 * (near.score - near_.score) - (far.score - far_.score)) / (12 * h)
        pairs = unit * unit[:, i, None]
        # O = 2 A - E: the average information is exactly half way between the other two.
        if_reml = here.observed[:, i] / pairs
        assert_allclose(curvature / pairs, if_reml, rtol=1e-6, atol=1e-6)


@kinds
def test_reml_information_is_its_expectation(kind):
    """A is quadratic in y, so with V = L L' its expectation is the sum of A over L's columns."""
    problem, theta, _ = case(kind, "inside")
    columns = np.linalg.cholesky(problem.V(theta)).T
    at = problem.evaluate(columns, theta, "REML")
    unit = error_units(at.expected[0])
    pairs = np.outer(unit, unit)
    assert_allclose(at.average.sum(axis=0) / pairs, at.expected[0] / pairs, atol=1e-9)
    # score = quadratic form - 1/2 trace, and its expectation is zero
    traces = pb.dense(problem, np.zeros(problem.n), theta, "REML").score  # -1/2 tr(P V_i)
    quadratic = (at.score - traces).sum(axis=0)
    assert_allclose(quadratic / unit, -traces / unit, atol=1e-9)


@pytest.mark.parametrize("kind", ["correlated", "crossed", "within_treatment"])
def test_reml_information_is_the_covariance_of_simulated_scores(kind):
    problem, theta, _ = case(kind, "inside")
    m = 5_000
    Y = problem.simulate(theta, m, np.random.default_rng(1))
    at = problem.evaluate(Y, theta, "REML")
    unit = error_units(at.expected[0])
    score = at.score / unit
    # The scores are standardised; a mean of m of them has standard error 1/sqrt(m), a mean of
    # products with kurtosis up to 15 at most sqrt(15/m).
    assert_allclose(score.mean(axis=0), 0.0, atol=4.5 / np.sqrt(m))
    expected = at.expected[0] / np.outer(unit, unit)
    assert_allclose(score.T @ score / m, expected, atol=4.5 * np.sqrt(15 / m))


@methods
@places
@kinds
def test_the_residual_row_follows_from_the_others(kind, where, method):
    problem, theta, Y = case(kind, where)
    at = problem.evaluate(Y, theta, method)
    zero = pb.dense(problem, np.zeros(problem.n), theta, method)
    traces, df = -2 * zero.score, problem.n - problem.p * (method == "REML")
    for j in range(2):
        unit = error_units(at.expected[j])
        # sum_j theta_j E_ij = 1/2 tr(P V_i) and sum_i theta_i tr(P V_i) = n - p (n for ML)
        assert_allclose(at.expected[j] @ theta / unit, 0.5 * traces / unit, atol=1e-9)
        assert traces @ theta == pytest.approx(df, rel=1e-10)
        # sum_j theta_j A_ij = 1/2 y'P V_i P y = score_i + 1/2 tr(P V_i)
        quadratic = at.score[j] + 0.5 * traces
        assert_allclose(at.average[j] @ theta / unit, quadratic / unit, atol=1e-9)
        # sum_i theta_i score_i = 1/2 [y'Py - (n - p)]
        yPy = 2 * (zero.loglik - at.loglik[j])
        assert theta @ at.score[j] == pytest.approx(0.5 * (yPy - df), abs=1e-9)


@pytest.mark.parametrize("engine", pb.engines(pb.PROBLEMS["within_treatment"]))
def test_restricted_likelihood_exists_beyond_a_positive_definite_v(engine):
    """Z'Z has larger eigenvalues than Z'RZ where groups lie within treatments."""
    problem = pb.PROBLEMS["within_treatment"]
    Q, Z = problem.contrasts, problem.Z
    largest = np.linalg.eigvalsh(Z.T @ Q @ Q.T @ Z)[-1]
    assert largest < 0.99 * np.linalg.eigvalsh(Z.T @ Z)[-1]
    theta = np.array([-0.995 / largest, 1.0])
    V = problem.V(theta)
    assert np.linalg.eigvalsh(V)[0] < 0 < np.linalg.eigvalsh(Q.T @ V @ Q)[0]
    y = np.random.default_rng(2).normal(size=problem.n)
    found = problem.evaluate(y, theta, "REML", engine)
    truth = pb.dense(problem, y, theta, "REML")
    assert found.loglik[0] == pytest.approx(truth.loglik, rel=1e-11)
    assert_allclose(found.score[0], truth.score, rtol=1e-9)
    assert_allclose(found.observed[0], 2 * truth.average - truth.expected, rtol=1e-8)
    assert problem.evaluate(y, theta, "ML", engine).loglik[0] == -np.inf


@methods
@engines
def test_outside_its_domain_the_likelihood_is_minus_infinity(kind, method, engine):
    problem, theta, Y = case(kind, "inside", m=4)
    inside = problem.evaluate(Y, theta, method, engine)
    thetas = np.tile(theta, (4, 1))
    variances = problem.structure.is_variance
    thetas[1, variances] = -1.0
    thetas[2, 0] = -1e6
    mixed = problem.evaluate(Y, thetas, method, engine)
    assert (mixed.loglik[1:3] == -np.inf).all()
    assert np.isnan(mixed.score[1:3]).all()
    assert np.isnan(mixed.expected[1:3]).all()
    assert np.isnan(mixed.average[1:3]).all()
    # and the other features of the batch do not notice
    for name in ("loglik", "score", "expected", "average"):
        expected = getattr(inside, name)[[0, 3]]
        atol = 1e-12 * np.abs(expected).max()  # a score is what two larger numbers leave
        assert_allclose(getattr(mixed, name)[[0, 3]], expected, rtol=0, atol=atol)


@methods
@engines
def test_a_batch_takes_at_least_one_feature_and_more_with_more_memory(kind, method, engine):
    problem, _, Y = case(kind, "inside")
    raw = pb.estimator_of(problem.stats(Y), method, engine)
    assert (raw.m, raw.n_params) == (2, problem.n_params)
    assert raw.batch_size(1) == 1
    assert raw.batch_size(2**30) > 10 * raw.batch_size(2**20)


@methods
@places
@engines
def test_where_v_ends_and_where_the_likelihood_does(kind, where, method, engine):
    problem, theta, Y = case(kind, where)
    projection = pb.projection_of(problem.stats(Y))
    estimator = pb.estimator_of(problem.stats(Y), method, engine)
    V, Q = problem.V(theta), problem.contrasts
    assert estimator.is_definite(projection.to_internal(np.tile(theta, (2, 1)))).all()
    edge = V if method == "ML" else Q.T @ V @ Q
    values = np.linalg.eigvalsh(edge)
    found = estimator.distance_to_edge(projection.to_internal(np.tile(theta, (2, 1))))
    exact = np.full(2, values[0] / values[-1])
    # Blocks only bound it; what matters is that it goes to zero at the edge.
    assert (found > exact / 100).all()
    assert (found < exact * 100).all()
    if engine not in ("blocked", "nested"):
        assert_allclose(found, exact, rtol=1e-9)
    beyond = theta.copy()
    first = problem.structure.blocks()[0]
    beyond[first] = -20.0 * np.eye(len(first))
    assert np.linalg.eigvalsh(problem.V(beyond))[0] < 0
    assert not estimator.is_definite(projection.to_internal(np.tile(beyond, (2, 1)))).any()


@pytest.mark.parametrize("kind", ["crossed", "slope_and_crossed", "nested"])
@pytest.mark.parametrize("method", ["REML", "ML"])
def test_features_at_one_point_share_what_does_not_depend_on_y(kind, method):
    """All at the same theta is one at a time, in and outside the domain."""
    problem = pb.PROBLEMS[kind]
    rng = np.random.default_rng(4)
    stats = problem.stats(rng.normal(size=(4, problem.n)))
    likelihood = pb.estimator_of(stats, method, "bordered")
    features = np.arange(4)
    inside = likelihood.projection.to_internal(np.tile(problem.theta(rng), (4, 1)))[:1]
    outside = inside.copy()
    outside[:, -1] = -1.0
    for theta in (inside, outside):
        together = likelihood.evaluate(np.repeat(theta, 4, axis=0), features)
        for j in features:
            alone = likelihood.evaluate(theta, features[j : j + 1])
            for name in ("loglik", "score", "expected", "average"):
                one, all_ = getattr(alone, name)[0], getattr(together, name)[j]
                np.testing.assert_allclose(all_, one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["crossed", "three_crossed", "child_first"])
def test_statistics_stay_as_they_are(kind):
    # A likelihood sorts the indices of its sparse matrices, which must not be the statistics'.
    problem = pb.PROBLEMS[kind]
    stats = replace(problem.stats(np.random.default_rng(3).normal(size=(2, problem.n))))
    before = stats.ZZ.toarray()
    for engine in pb.engines(problem):
        fm.MultiLMM(stats).fit(parameter_space="psd", engine=engine)
        np.testing.assert_array_equal(stats.ZZ.toarray(), before)


@pytest.mark.parametrize("missing", [False, True])
def test_a_singular_covariance_stops_no_other_feature(missing):
    """Standard errors given beta where V is singular, at a residual variance of zero."""
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(list("abcdef"), 2), "x": np.tile([0.0, 1.0], 6)})
    Y = rng.normal(size=(3, 12)) + 0.0 * data.x.to_numpy()
    options = {}
    if missing:
        Y[0, 3], options["missing"] = np.nan, "feature"
    model = fm.MultiLMM.from_formula("~ x", "(1 | g)", data, Y, **options)
    result = model.fit(parameter_space="psd", engine="general")
    likelihood, theta = result.fitted.likelihood, np.array([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0]])
    features = np.arange(3)
    alone = likelihood.random_effects(theta[1:2], features[1:2], "conditional")
    joint = likelihood.random_effects(theta, features, "conditional")
    np.testing.assert_array_equal(joint.se[1], alone.se[0])
    assert np.isfinite(likelihood.covariance(theta, features)[1]).all()
    assert np.isfinite(likelihood.beta(theta, features)[1]).all()
