"""Tests that integrate over the variance ratios, against n x n algebra and the prototype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from problems import PROBLEMS, random_problem
from scipy import stats
from scipy.integrate import quad

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.integrated.grid import RatioGrid, covering_grid, flat_in_logarithm
from flashmm.inference.integrated.integration import Integration, Part
from flashmm.inference.integrated.learning import learn
from flashmm.inference.integrated.posterior import log_evidence
from flashmm.inference.integrated.shared import share_design
from flashmm.inference.integrated.student import f_tail, student_cdf, student_density
from flashmm.inference.moderation import VariancePrior
from flashmm.likelihood import project

REFERENCE = Path(__file__).parent / "reference" / "integrated"
COVERED = (
    "intercept",
    "slope_only",
    "correlated",
    "uncorrelated",
    "nested",
    "crossed",
    "three_crossed",
    "within_treatment",
    "dense",
    "saturated",
)
MEMORY = 2**28


def points(ratios):
    """A grid of these points (G, k), one line each, with equal base weights."""
    ratios = np.atleast_2d(np.asarray(ratios, dtype=float))
    G = len(ratios)
    return RatioGrid(ratios, np.arange(G), np.full(G, 1.0 / G))


def geometric(low, high, count):
    """Zero and a geometric sequence of one ratio."""
    ratios = np.concatenate([[0.0], np.geomspace(low, high, count - 1)])
    return RatioGrid(ratios[:, None], np.zeros(count, int), np.full(count, 1.0 / count))


def at_points(statistics, grid, weights=None, d0=0.0, s0=1.0):
    """The posterior under a given prior."""
    m = statistics.m
    projection = project(statistics)
    weights = np.full(grid.size, 1.0 / grid.size) if weights is None else weights
    prior = VariancePrior(np.full(m, s0), np.full(m, d0), d0)
    shared = share_design(projection, grid, MEMORY)
    part = Part(projection, np.arange(m))
    return Integration((part,), (shared,), weights, prior, part.known, MEMORY)


def learned(statistics, **options):
    return learn(
        [Part(project(statistics), np.arange(statistics.m))], statistics.m, MEMORY, **options
    )


class Dense:
    """Generalised least squares at one point, from V itself."""

    def __init__(self, X, V, Y):
        n, p = X.shape
        self.V = V
        self.P = np.linalg.inv(V)
        A = X.T @ self.P @ X
        self.C = np.linalg.inv(A)
        self.beta = Y @ self.P @ X @ self.C
        resid = Y - self.beta @ X.T
        self.Q = ((resid @ self.P) * resid).sum(axis=1)
        self.log_det = np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1]
        self.df = n - p
        self.resid = resid


def drawn(kind, m=4):
    problem = PROBLEMS[kind]
    rng = np.random.default_rng(3)
    return problem, problem.simulate(problem.theta(rng), m, rng), rng


# ---- exact identities -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COVERED)
def test_every_point_of_a_grid_is_generalised_least_squares(kind):
    problem, Y, _ = drawn(kind)
    statistics = problem.stats(Y)
    projection = project(statistics)
    unit = projection.param_scale[:-1]
    grid = covering_grid(problem.structure, unit, 50.0 * unit)
    shared = share_design(projection, grid, MEMORY)
    data = shared.features(np.arange(4))
    Q = shared.quadratic_forms(data) * projection.scale[:, None]
    L = np.random.default_rng(0).normal(size=(3, problem.p))
    functions = shared.functions(L)
    joint = shared.functions(L, joint=True)
    estimates = shared.estimates(functions, data)
    chosen = np.unique(np.linspace(0, grid.size - 1, 12).astype(int))
    log_det = np.array([])
    for g in chosen:
        V = problem.V(np.append(grid.ratios[g], 1.0))
        dense = Dense(problem.X, V, Y)
        assert_allclose(Q[:, g], dense.Q, rtol=1e-8)
        assert_allclose(estimates[:, :, g], dense.beta @ L.T, rtol=1e-7, atol=1e-8)
        assert_allclose(joint.covariance[:, :, g], L @ dense.C @ L.T, rtol=1e-7, atol=1e-9)
        assert_allclose(functions.covariance[:, g], np.diag(L @ dense.C @ L.T), rtol=1e-7)
        log_det = np.append(log_det, dense.log_det)
    assert_allclose(shared.log_det[chosen] - shared.log_det[0], log_det - log_det[0], atol=1e-8)


@pytest.mark.parametrize("kind", COVERED)
def test_all_mass_at_one_ratio_is_the_exact_t_and_f_test(kind):
    problem, Y, rng = drawn(kind)
    ratio = problem.theta(rng)
    ratio /= ratio[-1]
    dense = Dense(problem.X, problem.V(ratio), Y)
    L = rng.normal(size=(2, problem.p))
    values = rng.normal(size=2)
    where = at_points(problem.stats(Y), points(ratio[:-1]))
    s2 = dense.Q / dense.df
    se = np.sqrt(np.outer(s2, np.diag(L @ dense.C @ L.T)))
    t = (dense.beta @ L.T - values) / se
    tails = {
        "two-sided": 2 * stats.t.sf(np.abs(t), dense.df),
        "greater": stats.t.sf(t, dense.df),
        "less": stats.t.cdf(t, dense.df),
    }
    for side, p in tails.items():
        found = where.contrasts(np.arange(4), L, values, side)
        assert_allclose(found.p, p, rtol=1e-6)
    assert_allclose(found.estimate, dense.beta @ L.T, rtol=1e-7, atol=1e-8)
    assert_allclose(found.se, se, rtol=1e-7)
    assert_allclose(found.df, dense.df, rtol=1e-9)
    limits = where.limits(np.arange(4), L, 0.1)
    half = stats.t.isf(0.05, dense.df) * se
    assert_allclose(limits[..., 1] - dense.beta @ L.T, half, rtol=1e-6)
    assert_allclose(dense.beta @ L.T - limits[..., 0], half, rtol=1e-6)
    if problem.p >= 2:
        difference = dense.beta @ L.T - values
        inner = np.linalg.inv(L @ dense.C @ L.T)
        F = ((difference @ inner) * difference).sum(axis=1) / (2 * s2)
        joint = where.joint(np.arange(4), L, values)
        assert_allclose(joint.F, F, rtol=1e-6)
        assert_allclose(joint.df, dense.df, rtol=1e-9)
        assert_allclose(joint.p, stats.f.sf(F, 2, dense.df), rtol=1e-6)


@pytest.mark.parametrize("kind", ["intercept", "correlated", "crossed"])
def test_predictions_at_one_ratio_are_best_linear_unbiased(kind):
    problem, Y, rng = drawn(kind)
    ratio = problem.theta(rng)
    ratio /= ratio[-1]
    D = problem.D(ratio)
    dense = Dense(problem.X, problem.V(ratio), Y)
    X, Z = rng.normal(size=(3, problem.p)), rng.normal(size=(3, problem.Z.shape[1]))
    blup = dense.resid @ dense.P @ problem.Z @ D
    where = at_points(problem.stats(Y), points(ratio[:-1]))
    found = where.predictions(np.arange(4), X, Z, None)
    assert_allclose(found.estimate, dense.beta @ X.T + blup @ Z.T, rtol=1e-6, atol=1e-8)
    # the error x'(beta_hat - beta) + z'(b_hat - b) is linear in (b, y)
    left = X.T - problem.X.T @ dense.P @ problem.Z @ D @ Z.T
    variance = np.diag(
        left.T @ dense.C @ left + Z @ D @ Z.T - Z @ D @ problem.Z.T @ dense.P @ problem.Z @ D @ Z.T
    )
    assert_allclose(found.se**2, np.outer(dense.Q / dense.df, variance), rtol=1e-6)
    added = np.zeros((3, ratio.size))
    added[:, -1] = 1.0
    wide = where.predictions(np.arange(4), X, Z, added)
    assert_allclose(wide.se**2, np.outer(dense.Q / dense.df, variance + 1.0), rtol=1e-6)


def test_two_equal_groups_and_large_ratios_flat_in_the_logarithm_are_pseudobulk():
    """All the prior far beyond what within-subject noise can be told from: t on subject means."""
    k, r, m = 6, 20, 40
    rng = np.random.default_rng(8)
    group = np.repeat(np.arange(k), r)
    X = np.column_stack([np.ones(k * r), group % 2])
    Z = np.eye(k)[group]
    Y = 1e4 * rng.normal(size=(m, k)) @ Z.T + rng.normal(size=(m, k * r))
    grid = RatioGrid(np.geomspace(1e3, 1e16, 3000)[:, None], np.zeros(3000, int), np.zeros(3000))
    # one line that does not start at zero
    found = at_points(fm.SummaryStats.from_arrays(Y, X, Z), grid).contrasts(
        np.arange(m), np.array([[0.0, 1.0]]), np.zeros(1), "two-sided"
    )
    means = Y.reshape(m, k, r).mean(axis=2)
    p = stats.ttest_ind(means[:, 1::2], means[:, ::2], axis=1).pvalue
    assert_allclose(found.p[:, 0], p, rtol=2e-3)


def test_without_moderation_and_flat_each_feature_is_by_itself():
    """d0 = 0, ratios flat in log(1 + gamma r): the mean over a feature's own restricted likelihood.

    By quadrature of its closed form in balanced groups, where the mean square between subjects has
    variance sigma2 (1 + gamma r); whatever the other features are.
    """
    k, r, m = 6, 8, 12
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(k), r)
    X = np.column_stack([np.ones(k * r), group % 2])
    Y = rng.normal(size=(m, k))[:, group] * rng.uniform(0, 1, size=(m, 1))
    Y += rng.normal(size=(m, k * r))
    top = 1e4
    # Equal steps of the logarithm of growth, each point in the middle of its step.
    growth = np.exp((np.arange(4000) + 0.5) / 4000 * np.log(top))
    ratio = (growth - 1.0) / r
    grid = RatioGrid(ratio[:, None], np.zeros(4000, int), np.zeros(4000))
    contrast = np.array([[0.0, 1.0]])

    def tested(Y):
        where = at_points(fm.SummaryStats.from_arrays(Y, X, np.eye(k)[group]), grid)
        return where.contrasts(np.arange(len(Y)), contrast, np.zeros(1), "two-sided").p[:, 0]

    p = tested(Y)
    means = Y.reshape(m, k, r).mean(axis=2)
    sides = np.stack([means[:, ::2], means[:, 1::2]])
    between = r * ((sides - sides.mean(axis=2, keepdims=True)) ** 2).sum(axis=(0, 2))
    inside = ((Y - means[:, group]) ** 2).sum(axis=1)
    effect = sides[1].mean(axis=1) - sides[0].mean(axis=1)
    df = k * r - 2

    def parts(x, j):
        """Restricted likelihood and p-value at growth exp(x), the likelihood near one."""
        Q = inside[j] + between[j] * np.exp(-x)
        likelihood = np.exp(-0.5 * (k - 2) * x - 0.5 * df * np.log(Q / inside[j]))
        t = effect[j] / np.sqrt(Q / df * 4.0 * np.exp(x) / (k * r))
        return likelihood, 2.0 * stats.t.sf(np.abs(t), df)

    for j in range(m):
        options = {"epsabs": 0, "epsrel": 1e-9, "limit": 200}
        total = quad(lambda x, j=j: parts(x, j)[0], 0, np.log(top), **options)[0]
        mean = quad(lambda x, j=j: np.prod(parts(x, j)), 0, np.log(top), **options)[0] / total
        assert_allclose(p[j], mean, rtol=1e-5)
    others = np.vstack([Y[:1], 100.0 * rng.normal(size=(5, k * r))])
    assert_allclose(tested(others)[0], p[0], rtol=1e-10)


def test_the_prototype_is_reproduced():
    """Written on samples with n x n matrices; see reference/integrated/README.md."""
    case = np.load(REFERENCE / "prototype.npz")
    group, x, Y = case["group"], case["x"], case["Y"]
    X = np.column_stack([np.ones(x.size), group % 2, x])
    statistics = fm.SummaryStats.from_arrays(Y, X, np.eye(6)[group])
    where = learned(statistics, grid=geometric(1e-3, 50, 60), added=0.0)
    found = where.contrasts(np.arange(80), np.eye(3)[1:], np.zeros(2), "two-sided")
    assert_allclose(found.p[:, 0], case["p_between"], rtol=1e-8)
    assert_allclose(found.p[:, 1], case["p_within"], rtol=1e-8)
    assert round(where.sigma2.df_common, 2) == case["d0"]


def test_limits_are_where_one_sided_p_values_are_half_of_alpha():
    problem, Y, rng = drawn("intercept", 30)
    where = learned(problem.stats(Y))
    L = rng.normal(size=(2, problem.p))
    limits = where.limits(np.arange(30), L, 0.05)
    for j in range(5):
        lower = where.contrasts(np.array([j]), L, limits[j, :, 0], "greater").p[0]
        upper = where.contrasts(np.array([j]), L, limits[j, :, 1], "less").p[0]
        assert_allclose([lower, upper], 0.025, rtol=1e-8)


def test_one_row_is_tested_alike_alone_and_jointly():
    problem, Y, rng = drawn("crossed", 30)
    where = learned(problem.stats(Y))
    L = rng.normal(size=(1, problem.p))
    t = where.contrasts(np.arange(30), L, np.zeros(1), "two-sided")
    F = where.joint(np.arange(30), L, np.zeros(1))
    assert_allclose(F.p, t.p[:, 0], rtol=1e-7)
    assert_allclose(F.F, ((t.estimate / t.se) ** 2)[:, 0], rtol=1e-10)
    assert_allclose(F.df, t.df[:, 0], rtol=1e-10)


# ---- the posterior of the variances -------------------------------------------------------------


def test_variances_at_one_ratio_are_inverse_gamma():
    problem, Y, _ = drawn("correlated")
    ratio = np.array([0.5, 0.2, -0.25])
    where = at_points(problem.stats(Y), points(ratio), d0=6.0, s0=0.7)
    found = where.variances(np.arange(4), 0.1)
    dense = Dense(problem.X, problem.V(np.append(ratio, 1.0)), Y)
    df = dense.df + 6.0
    total = 6.0 * 0.7 + dense.Q
    full = np.append(ratio, 1.0)
    assert_allclose(found.mean, np.outer(total / (df - 2), full), rtol=1e-8)
    low, high = (stats.invgamma.ppf(q, df / 2, scale=total / 2) for q in (0.05, 0.95))
    lower = np.where(full > 0, np.outer(low, full), np.outer(high, full))
    upper = np.where(full > 0, np.outer(high, full), np.outer(low, full))
    assert_allclose(found.limits[..., 0], lower, rtol=1e-6)
    assert_allclose(found.limits[..., 1], upper, rtol=1e-6)


def test_a_variance_limit_is_exactly_zero_where_the_atom_holds_enough():
    problem, Y, _ = drawn("intercept")
    where = at_points(problem.stats(Y), points([[0.0], [0.5]]), np.array([1 - 1e-9, 1e-9]))
    found = where.variances(np.arange(4), 0.1)
    assert (found.limits[:, 0] == 0.0).all()
    assert (found.mean[:, 0] >= 0).all()
    share = where.shares(np.arange(4), np.array([[0.0], [1 / 3]]), 0.1)
    assert (share.limits == 0.0).all()


# ---- what must not matter ------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 50),
    kind=st.sampled_from(["intercept", "uncorrelated", "correlated"]),
    log_unit=st.floats(-8, 8),
)
def test_units_and_order_of_features_change_nothing(seed, kind, log_unit):
    problem = random_problem(kind, seed)
    rng = np.random.default_rng(seed)
    Y = problem.simulate(problem.theta(rng), 25, rng)
    L = rng.normal(size=(2, problem.p))
    plain = learned(problem.stats(Y)).contrasts(np.arange(25), L, np.zeros(2), "two-sided")
    unit = 10.0**log_unit
    scaled = learned(problem.stats(unit * Y)).contrasts(np.arange(25), L, np.zeros(2), "two-sided")
    assert_allclose(scaled.p, plain.p, rtol=1e-6)
    assert_allclose(scaled.se, unit * plain.se, rtol=1e-6)
    order = rng.permutation(25)
    other = learned(problem.stats(Y[order])).contrasts(np.arange(25), L, np.zeros(2), "two-sided")
    assert_allclose(other.p, plain.p[order], rtol=1e-7)


def test_units_of_a_slope_change_nothing():
    problem, Y, rng = drawn("correlated", 30)
    effects = len(problem.structure.terms[0].effects)
    Z = problem.Z.copy()
    Z[:, 1::effects] *= 1e3
    L = rng.normal(size=(2, problem.p))
    one = learned(problem.stats(Y)).contrasts(np.arange(30), L, np.zeros(2), "two-sided")
    statistics = fm.SummaryStats.from_arrays(Y, problem.X, Z, components=problem.structure)
    two = learned(statistics).contrasts(np.arange(30), L, np.zeros(2), "two-sided")
    assert_allclose(two.p, one.p, rtol=1e-6)


def test_memory_and_features_asked_for_change_nothing():
    problem, Y, rng = drawn("crossed", 50)
    part = Part(project(problem.stats(Y)), np.arange(50))
    L = rng.normal(size=(3, problem.p))
    much = learn([part], 50, 2**30)
    little = learn([part], 50, 2**19)
    p = much.contrasts(np.arange(50), L, np.zeros(3), "two-sided").p
    again = little.contrasts(np.arange(50), L, np.zeros(3), "two-sided").p
    assert_allclose(again, p, rtol=1e-8)
    some = np.array([7, 3, 3, 49])
    assert_allclose(much.contrasts(some, L, np.zeros(3), "two-sided").p, p[some], rtol=1e-10)


def test_features_without_a_fit_are_nan_and_do_not_disturb_the_others():
    problem, Y, rng = drawn("intercept", 20)
    L = rng.normal(size=(2, problem.p))
    clean = learned(problem.stats(Y)).contrasts(np.arange(20), L, np.zeros(2), "two-sided").p
    bad = np.vstack([np.zeros(problem.n), Y, problem.X @ np.ones(problem.p)])
    where = learned(problem.stats(bad))
    p = where.contrasts(np.arange(22), L, np.zeros(2), "two-sided").p
    assert_allclose(p[1:-1], clean, rtol=1e-10)
    assert np.isnan(p[[0, -1]]).all()
    assert np.isnan(where.limits(np.array([0]), L, 0.05)).all()


@pytest.mark.parametrize("unit", [1e-280, 1e-150, 1.0, 1e150, 1e280])
def test_evidence_whatever_the_prior_degrees_of_freedom_and_units(unit):
    Q = unit * np.array([[1.0, 3.0, 2.0]])
    df, log_det = np.array([9.0]), np.array([0.0, 0.1, 0.2])
    relative = np.log([1.0, 3.0, 2.0])

    def evidence(d0, s0):
        with np.errstate(all="raise", under="ignore"):
            return log_evidence(Q, log_det, df, np.array([d0]), np.array([s0]))[0]

    flat = -0.5 * log_det - 4.5 * relative
    for d0, s0 in ((0.0, 0.0), (1e-320, 1.0), (1e-300, unit), (1e-12, 1e-12 * unit)):
        assert_allclose(evidence(d0, s0), flat - flat.max(), rtol=1e-9)
    given = -0.5 * log_det - 0.5 * (9.0 + 5.0) * np.log1p(np.array([1.0, 3.0, 2.0]) / (5.0 * 2.0))
    assert_allclose(evidence(5.0, 2.0 * unit), given - given.max(), rtol=1e-12)
    known = -0.5 * log_det - 0.5 * np.array([1.0, 3.0, 2.0]) / 2.0
    for d0 in (1e17, np.inf):
        assert_allclose(evidence(d0, 2.0 * unit), known - known.max(), rtol=1e-12)
    for s0 in (1e-320, 1e300):  # a residual variance from another world
        assert np.isfinite(evidence(np.inf, s0)).any()
        assert not np.isnan(evidence(np.inf, s0)).any()


@pytest.mark.parametrize("kind", ["three_effects", "slope_and_crossed"])
def test_a_model_that_no_grid_covers_is_refused_with_advice(kind):
    problem, Y, _ = drawn(kind)
    with pytest.raises(InputError, match=r"other `df`|another `df`"):
        learned(problem.stats(Y))


# ---- numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1.0, 2.7, 9.0, 60.5, 5000.3, np.inf])
def test_student_by_table_is_student(df):
    t = np.concatenate([np.random.default_rng(0).normal(size=40_000) * 4, [0.0, -60.0, 37.5, 900]])
    found = student_cdf(np.array([df]), t[None])[0]
    expected = stats.norm.cdf(t) if np.isinf(df) else stats.t.cdf(t, df)
    assert_allclose(found, expected, rtol=2e-10, atol=1e-300)
    density = student_density(np.array([df]), t[None])[0]
    truth = stats.norm.pdf(t) if np.isinf(df) else stats.t.pdf(t, df)
    assert_allclose(density, truth, rtol=1e-7, atol=1e-290)
    F = np.abs(t[None, :50])
    tail = stats.chi2.sf(3 * F, 3) if np.isinf(df) else stats.f.sf(F, 3, df)
    assert_allclose(f_tail(F, 3.0, np.array([df])), tail, rtol=1e-9)


def test_base_weights_are_flat_in_the_logarithm_of_the_variance():
    ratio = np.concatenate([[0.0], np.geomspace(0.01, 100, 500)])
    weights = flat_in_logarithm(ratio, 2.0)
    assert_allclose(weights[ratio < 2.0].sum(), np.log(2.0), rtol=0.02)
    assert_allclose(weights.sum(), np.log1p(50.0))


# ---- calibration --------------------------------------------------------------------------


def between_subjects(m, reps, group, ratio, rng, zero):
    """Summary statistics of m features without a group effect; a share of ratios is zero."""
    k = reps.size
    sigma2 = 8 / rng.chisquare(8, m)
    tau = ratio * sigma2 * 8 / rng.chisquare(8, m) * (rng.random(m) >= zero)
    means = rng.normal(size=(m, k)) * np.sqrt(tau)[:, None]
    means += rng.normal(size=(m, k)) * np.sqrt(sigma2)[:, None] / np.sqrt(reps)
    within = sigma2 * rng.chisquare(reps.sum() - k, m)
    X = np.column_stack([np.ones(k), group])
    weighted = reps[:, None] * X
    return fm.SummaryStats(
        n=int(reps.sum()),
        XX=X.T @ weighted,
        XY=weighted.T @ means.T,
        ZX=weighted,
        ZY=reps[:, None] * means.T,
        ZZ=np.diag(reps.astype(float)),
        yy=within + (reps * means**2).sum(axis=1),
    )


@pytest.mark.parametrize("zero", [0.0, 0.5])
def test_four_subjects_unbalanced_hold_their_level(zero):
    """The cell where psd with Satterthwaite rejects tens of times too often far in the tail."""
    m = 12_000
    reps, group = np.array([60, 480, 150, 300]), np.array([1, 1, 0, 0])
    statistics = between_subjects(m, reps, group, 0.02, np.random.default_rng(16), zero)
    p = (
        learned(statistics)
        .contrasts(np.arange(m), np.array([[0.0, 1.0]]), np.zeros(1), "two-sided")
        .p
    )
    for level in (0.05, 0.01, 0.001):
        error = np.sqrt(level * (1 - level) / m) / level
        assert abs((p < level).mean() / level - 1.0) < 0.15 + 3 * error, level
    options = {"parameter_space": "psd"}
    satterthwaite = fm.MultiLMM(statistics).fit(**options).t_test([0.0, 1.0]).pvalue.to_numpy()
    assert (satterthwaite < 0.001).mean() > 0.005


def test_p_values_never_exceed_one():
    """Weights that add up to one but for rounding made some 1 + 2e-16."""
    problem, Y, _ = drawn("intercept", 300)
    where = learned(problem.stats(Y))
    at = where.contrasts(np.arange(300), np.eye(problem.p), np.zeros(problem.p), "two-sided")
    for j in range(0, 300, 10):
        value = at.estimate[j]  # where every test given a ratio is about one
        p = where.contrasts(np.arange(300), np.eye(problem.p), value, "two-sided").p
        assert (p <= 1.0).all()
        assert (where.joint(np.arange(300), np.eye(problem.p), value).p <= 1.0).all()
    for side in ("greater", "less"):
        far = np.full(problem.p, -1e6 if side == "greater" else 1e6)
        p = where.contrasts(np.arange(300), np.eye(problem.p), -far, side).p
        assert (p <= 1.0).all()
        assert p.max() > 1 - 1e-9
