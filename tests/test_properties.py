"""Properties that hold for every design and every data set, on designs drawn by hypothesis.

Differences are in standard errors. Two fits of one model by different routes differ by
rounding.
"""

from __future__ import annotations

import warnings

import numpy as np
import problems as pb
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from flashmm import MultiLMM, SummaryStats
from flashmm.exceptions import ConvergenceWarning, InputError
from flashmm.likelihood import project

seeds = st.integers(0, 10_000)
kinds = st.sampled_from(pb.KINDS)
methods = st.sampled_from(pb.METHODS)
wheres = st.sampled_from(["inside", "singular", "negative"])
spaces = st.sampled_from(["psd", "unconstrained"])
UNFINISHED = {"iteration limit", "no maximum", "stalled"}
FIELDS = ("XX", "XY", "ZX", "ZY", "yy")


@st.composite
def cases(draw, m=3):
    """Draw a problem that can be fitted, a theta and m features."""
    seed, kind, where = draw(seeds), draw(kinds), draw(wheres)
    problem = pb.random_problem(kind, seed)
    rng = np.random.default_rng(seed)
    theta = problem.theta(rng, where)
    Y = problem.simulate(theta, m, rng)
    try:
        project(problem.stats(Y))
    except InputError:  # a draw in which two components coincide
        assume(False)
    return problem, theta, Y


def fit(stats, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MultiLMM(stats).fit(**options, max_iter=30)


def assert_same(one, other, atol=1e-6, scale=1.0):
    """Fits with the same verdicts and estimates; theta of ``one`` times ``scale``^2."""
    unlike = one.status.to_numpy() != other.status.to_numpy()
    # Rounding may decide how a feature without a maximum ends; nothing else may differ.
    assert {*one.status[unlike], *other.status[unlike]} <= UNFINISHED
    good = one.converged.to_numpy()
    if not good.any():
        return
    unit = other.bse_theta.to_numpy()[good]
    difference = (one.theta.to_numpy() * scale**2 - other.theta.to_numpy())[good] / unit
    assert np.abs(difference).max() <= atol
    se = other.bse.to_numpy()[good]
    known = np.isfinite(se)
    difference = ((one.params * scale).to_numpy() - other.params.to_numpy())[good] / se
    assert np.abs(difference[known]).max(initial=0) <= atol


# ---- summary statistics ----------------------------------------------------------------------


@given(cases(), st.data())
def test_statistics_of_two_halves_add_up(case, data):
    problem, _, Y = case
    rng = np.random.default_rng(data.draw(seeds))
    first = rng.random(problem.n) < 0.5

    def part(rows):
        return SummaryStats.from_arrays(
            Y[:, rows], problem.X[rows], problem.Z[rows], components=problem.structure
        )

    total, whole = part(first) + part(~first), problem.stats(Y)
    assert total.n == whole.n == problem.n
    for name in FIELDS:
        assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-11, atol=1e-11)
    assert_allclose(total.ZZ.toarray(), whole.ZZ.toarray(), rtol=1e-11, atol=1e-11)


@settings(max_examples=6)
@given(cases(), methods, spaces, st.integers(1, 5))
def test_fits_do_not_depend_on_how_the_rows_were_split(case, method, space, n_parts):
    problem, _, Y = case
    parts = np.array_split(np.random.default_rng(0).permutation(problem.n), n_parts)
    blocks = ((Y[:, rows], problem.X[rows], problem.Z[rows]) for rows in parts)
    total = SummaryStats.from_blocks(blocks, components=problem.structure)
    options = {"method": method, "parameter_space": space}
    assert_same(fit(total, **options), fit(problem.stats(Y), **options))


# ---- features are alone ----------------------------------------------------------------------


@settings(max_examples=4)
@given(cases(m=4), methods, spaces)
def test_a_joint_fit_is_one_feature_at_a_time_in_any_order(case, method, space):
    problem, _, Y = case
    stats = problem.stats(Y)
    options = {"method": method, "parameter_space": space}
    together = fit(stats, **options)
    # one byte of memory: batches of one feature
    assert_same(fit(stats, memory=1, **options), together)
    order = np.random.default_rng(1).permutation(4)
    shuffled = fit(stats.take(order), **options)
    assert_same(shuffled, Taken(together, order))
    for j in (0, 3):
        assert_same(fit(stats.take([j]), **options), Taken(together, [j]))


class Taken:
    """Some features of a fit, with what `assert_same` looks at."""

    def __init__(self, result, order):
        self.status = result.status.iloc[order]
        self.converged = result.converged.iloc[order]
        self.theta, self.params = result.theta.iloc[order], result.params.iloc[order]
        self.bse = result.bse.iloc[order]
        self.bse_theta = result.bse_theta.iloc[order]


@settings(max_examples=8)
@given(cases(m=3), methods, spaces)
def test_bad_features_do_not_touch_the_others(case, method, space):
    problem, _, Y = case
    options = {"method": method, "parameter_space": space}
    alone = fit(problem.stats(Y), **options)
    bad = np.vstack([np.zeros(problem.n), problem.X[:, 0], problem.X.sum(axis=1) * 1e12])
    mixed = fit(problem.stats(np.vstack([bad[:1], Y, bad[1:]])), **options)
    assert mixed.status.iloc[[0, 4, 5]].tolist() == ["zero variance"] * 3
    assert_same(Taken(mixed, [1, 2, 3]), alone)


# ---- equivariance ----------------------------------------------------------------------------


@settings(max_examples=8)
@given(cases(), methods, spaces, st.floats(-6, 6))
def test_units_of_y_come_out_as_units_of_theta(case, method, space, exponent):
    problem, _, Y = case
    c = 10.0**exponent
    options = {"method": method, "parameter_space": space}
    one, scaled = fit(problem.stats(Y), **options), fit(problem.stats(c * Y), **options)
    assert_same(one, scaled, scale=c)
    good = one.converged.to_numpy()
    df = problem.n - problem.p * (method == "REML")
    shifted = one.llf.to_numpy()[good] - df * np.log(c)
    assert_allclose(scaled.llf.to_numpy()[good], shifted, rtol=0, atol=1e-8)


@settings(max_examples=8)
@given(cases(), methods, spaces, st.floats(-3, 3))
def test_adding_fixed_effects_to_y_moves_only_those(case, method, space, exponent):
    problem, _, Y = case
    a = 10.0**exponent * np.random.default_rng(2).normal(size=(len(Y), problem.p))
    options = {"method": method, "parameter_space": space}
    one, moved = (
        fit(problem.stats(Y), **options),
        fit(problem.stats(Y + a @ problem.X.T), **options),
    )
    back = Taken(moved, np.arange(len(Y)))
    back.params = moved.params - a
    # y'y loses digits as the fixed effects outgrow the rest (2 * exponent of 16)
    assert_same(back, one, 1e-5)


@settings(max_examples=8)
@given(cases(), methods, spaces)
def test_other_columns_that_span_x_leave_theta(case, method, space):
    problem, _, Y = case
    A = np.random.default_rng(3).normal(size=(problem.p, problem.p)) + 2 * np.eye(problem.p)
    assume(np.linalg.cond(A) < 100)
    turned = SummaryStats.from_arrays(Y, problem.X @ A, problem.Z, components=problem.structure)
    options = {"method": method, "parameter_space": space}
    one, other = fit(problem.stats(Y), **options), fit(turned, **options)
    back = Taken(other, np.arange(len(Y)))
    back.params = one.params * 0 + other.params.to_numpy() @ A.T
    assert_same(back, one)
    good = one.converged.to_numpy()
    # The REML constant holds 1/2 log |X'X|, which is not invariant; the ML one does not.
    constant = np.linalg.slogdet(A)[1] if method == "REML" else 0.0
    expected = one.llf.to_numpy()[good] - constant
    assert_allclose(other.llf.to_numpy()[good], expected, rtol=0, atol=1e-8)


# ---- likelihood, on designs that nobody chose ------------------------------------------------


@settings(max_examples=25)
@given(cases(), methods)
def test_likelihood_and_estimates_equal_those_from_dense_matrices(case, method):
    problem, theta, Y = case
    stats = problem.stats(Y)
    internal = project(stats).to_internal(np.tile(theta, (3, 1)))
    for engine in pb.engines(problem):
        at = problem.evaluate(Y, theta, method, engine)
        estimator = pb.estimator_of(stats, method, engine)
        beta = estimator.beta(internal, np.arange(3))
        covariance = estimator.covariance(internal, np.arange(3))
        blup = estimator.random_effects(internal, np.arange(3), "conditional").blup
        for j, y in enumerate(Y):
            truth = pb.dense(problem, y, theta, method)
            unit = np.sqrt(np.diag(truth.expected))
            pairs = np.outer(unit, unit)
            assert_allclose(at.loglik[j], truth.loglik, rtol=0, atol=1e-9)
            assert_allclose(at.score[j] / unit, truth.score / unit, atol=1e-9)
            assert_allclose(at.expected[j] / pairs, truth.expected / pairs, atol=1e-9)
            assert_allclose(at.average[j] / pairs, truth.average / pairs, atol=1e-9)
            se = np.sqrt(np.diag(truth.covariance))
            assert_allclose(beta[j] / se, truth.beta / se, atol=1e-8)
            both = np.outer(se, se)
            assert_allclose(covariance[j] / both, truth.covariance / both, atol=1e-8)
            size = np.abs(truth.blup).max() + 1e-12
            assert_allclose(blup[j] / size, truth.blup / size, atol=1e-8)


@given(cases(m=1), methods)
def test_score_is_the_derivative_of_loglik(case, method):
    problem, theta, Y = case
    stats = problem.stats(Y)
    at = pb.evaluate(stats, theta, method)
    unit = np.sqrt(np.diag(at.expected[0]))
    direction = np.random.default_rng(4).normal(size=theta.size) / unit
    h = 1e-4

    def loglik(step):
        return pb.evaluate(stats, theta + step * direction, method).loglik[0]

    slope = (8 * (loglik(h) - loglik(-h)) - (loglik(2 * h) - loglik(-2 * h))) / (12 * h)
    assert_allclose(slope, at.score[0] @ direction, rtol=1e-5, atol=1e-6)


@settings(max_examples=8)
@given(cases(), methods, spaces)
def test_results_report_the_likelihood_at_their_estimates(case, method, space):
    problem, _, Y = case
    result = fit(problem.stats(Y), method=method, parameter_space=space)
    good = np.flatnonzero(result.converged)
    for j in good:
        theta = result.theta.to_numpy()[j]
        V = problem.V(theta)
        assume(np.linalg.cond(V) < 1e6)  # the yardstick itself inverts V
        truth = pb.dense(problem, Y[j], theta, method)
        assert_allclose(result.llf.iloc[j], truth.loglik, rtol=0, atol=1e-7)
        unit = np.sqrt(np.diag(truth.expected))
        assert_allclose(result.score.iloc[j] / unit, truth.score / unit, rtol=0, atol=1e-6)
        se = np.sqrt(np.abs(np.diag(truth.covariance)))
        assert_allclose(result.params.iloc[j] / se, truth.beta / se, rtol=1e-7, atol=1e-6)
        assert_allclose(result.blup().isel(feature=j), truth.blup, atol=1e-6)
