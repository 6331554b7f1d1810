"""Residual variances of small groups: designs of the stress suite that failed once."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.inference.group_prediction_variance import effect_errors, prediction_errors
from flashmm.likelihood import make_likelihood, project_any
from flashmm.likelihood.base import Evaluation
from flashmm.likelihood.residual_groups import near_zero
from flashmm.results import fitting, fitting_curves
from flashmm.solvers import restart
from flashmm.solvers.base import Solution
from flashmm.solvers.space import Unconstrained
from flashmm.solvers.verdict_texts import Status
from flashmm.stats.groups import with_residual_groups
from tests.stress.residual_groups import draw_grouped

# Design, method and feature, and the log-likelihood that searches with n x n matrices found
# (scipy's L-BFGS-B, 18 random starts); the fit ended 0.90, 0.11 and 0.22 below.
HIGHER = (
    (3000006, "REML", 1, -14.6243),
    (3000020, "ML", 0, -74.7994),
    (3000022, "ML", 0, -69.9352),
)


@pytest.mark.parametrize(("index", "method", "feature", "best"), HIGHER)
def test_the_highest_of_several_maxima(index, method, feature, best):
    """Groups of 5 to 19 samples, residual variances up to 6e3 times each other."""
    one = draw_grouped(2912, index)
    result = one.fit(method, "psd")
    assert result.llf.iloc[feature] > best - 1e-3
    alone = type(one)(one.model, one.Y[[feature]], one.X, one.G, one.K).fit(method, "psd")
    np.testing.assert_allclose(alone.llf.iloc[0], result.llf.iloc[feature], rtol=1e-9)


def test_a_singular_matrix_on_the_way_ends_one_feature():
    """numpy raises for a whole stack of matrices where one has no inverse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = draw_grouped(2912, 3000044).fit("ML", "unconstrained")
    assert result.status.isin(["converged", "no maximum", "stalled"]).all()
    assert (result.status == "converged").any()


# Groups of levels that are seen once, and the likelihood highest where a residual variance is zero.
AT_ZERO = ((3000026, 4), (3000046, 3))


@pytest.mark.parametrize(("index", "feature"), AT_ZERO)
def test_a_residual_variance_of_zero_is_a_boundary(index, feature):
    """Of the likelihood divided by it, and with it of the verdict, rounding left nothing."""
    one = draw_grouped(2912, index)
    result, y = one.fit("ML", "psd"), one.Y[feature]
    theta = theta_of(one, result)[feature]
    assert result.status.iloc[feature] == "boundary"
    value, score, E = one.dense(theta, y, "ML")
    assert result.llf.iloc[feature] == pytest.approx(value, abs=1e-8)
    assert (theta == 0.0).sum() == 1
    left = score / np.sqrt(np.diag(E))
    assert left[theta == 0.0] < 0.0
    np.testing.assert_allclose(left[theta > 0.0], 0.0, atol=2e-5)
    alone = type(one)(one.model, one.Y[[feature]], one.X, one.G, one.K).fit("ML", "psd")
    np.testing.assert_allclose(alone.llf.iloc[0], value, rtol=1e-9)


def theta_of(one, result):
    names = [f"Residual[{label}]" for label in dict.fromkeys(one.model.data["batch"])]
    return result.theta[[*result.theta.columns[: len(one.G) - len(names)], *names]].to_numpy()


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_what_rests_on_a_residual_variance_of_zero_or_below(space):
    """Numbers or NaN, and no warning of a division."""
    one = draw_grouped(2912, 3000026)
    result, data = one.fit("REML", space), one.model.data
    rows = data[data["batch"] == "b0"].iloc[:3]
    for level in ("population", "conditional"):
        found = result.predict(rows, interval="prediction", level=level, features=[4])
        assert np.isfinite(found["prediction"]).all()
    assert np.isfinite(result.draw(2, features=[4], rng=1).yy).all()
    errors = result.resid(one.Y, data, kind="pearson").sel(feature=4).to_numpy()
    zero = data["batch"].map(dict(result.theta.iloc[4].rename(lambda n: n[9:-1]))) <= 0.0
    assert (np.isnan(errors) == zero.to_numpy()).all()
    assert zero.any()


def test_a_residual_variance_below_zero_without_bounds():
    one = draw_grouped(2912, 3000026)
    result = one.fit("REML", "unconstrained")
    theta = theta_of(one, result)[4]
    assert result.status.iloc[4] == "converged"
    assert theta.min() < 0.0
    value, score, E = one.dense(theta, one.Y[4], "REML")
    assert result.llf.iloc[4] == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(score / np.sqrt(np.diag(E)), 0.0, atol=2e-5)
    assert value > one.fit("REML", "psd").llf.iloc[4]


@pytest.mark.parametrize(("index", "method"), [(3000026, "REML"), (3000053, "REML")])
def test_where_rounding_leaves_no_digits_nothing_is_shown(index, method, monkeypatch):
    """In large designs, whose groups' roots have too many rows: what is shown is right, or NaN."""
    monkeypatch.setattr(near_zero, "_SMALL", ())
    monkeypatch.setattr(near_zero, "_FEW_ROWS", 0)
    one = draw_grouped(2912, index)
    result = one.fit(method, "unconstrained")
    theta, stalled = theta_of(one, result), (result.status == "stalled").to_numpy()
    lost = stalled & np.isnan(theta).any(axis=1)
    assert lost.any()
    for name in ("theta", "se_theta", "score", "beta", "se_beta", "loglik"):
        assert np.isnan(result.ds[name].to_numpy()[lost]).all(), name
    for j in np.flatnonzero(np.isfinite(result.llf)):
        truth = one.dense(theta[j], one.Y[j], method)[0]
        assert result.llf.iloc[j] == pytest.approx(truth, abs=1e-4)


@cache
def likelihoods(random, method):
    """Both likelihoods of a design with groups of 3, 5 and 22 samples."""
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"x": rng.normal(size=30), "g": [f"g{i % 6}" for i in range(30)]})
    data["h"], data["b"] = rng.choice(list("pqr"), 30), ["s"] * 3 + ["t"] * 5 + ["u"] * 22
    Y = rng.normal(size=(2, 30)) + 20.0
    model = fm.MultiLMM.from_formula("~ x", random, data, Y, sums_by="b")
    projection = project_any(with_residual_groups(model.stats, "b"))
    return make_likelihood(projection, method)


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("random", ["(1 | g)", "(1 | g) + (1 | h)", "(1 + x | g)"])
def test_both_likelihoods_say_the_same(random, method):
    """By sums divided by residual variances, and by their roots."""
    both, features = likelihoods(random, method), np.arange(2)
    ours, theirs = super(near_zero.GroupsOfAnySize, both), both.near_zero
    k = len(both.projection.structure.parameters)
    theta = np.array([[*[0.8, 0.6, 0.1][:k], 0.5, 1.5, 0.9], [*[-0.02] * k, 1.0, 0.6, 0.9]])
    one, other = ours.evaluate(theta, features), theirs.evaluate(theta, features)
    assert np.isfinite(one.loglik).all()
    for name in ("loglik", "score", "expected", "average"):
        mine, same = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(mine, same, rtol=1e-9, atol=1e-9, err_msg=name)
    L = np.array([[[1.0, 0.0]], [[0.5, -2.0]]])
    vectors = np.random.default_rng(1).normal(size=(2, 3, both.projection.structure.q))
    for call in (
        lambda of: of.beta(theta, features),
        lambda of: of.covariance(theta, features),
        lambda of: of.fixed_effects(theta, features)[1],
        lambda of: of.contrast_variance(theta, features, L[:, 0]),
        lambda of: of.random_effects(theta, features, None).blup,
        lambda of: of.random_effects(theta[:1], features[:1], "conditional").se,
        lambda of: of.random_effects(theta[:1], features[:1], "prediction").se,
        lambda of: of.apply_T(theta, vectors),
        lambda of: of.contrast_moments(theta, L, adjustment=True).variance,
        lambda of: of.contrast_moments(theta, L, adjustment=True).gradient,
        lambda of: of.contrast_moments(theta, L, adjustment=True).adjustment,
        lambda of: of.is_definite(theta),
    ):
        np.testing.assert_allclose(call(ours), call(theirs), rtol=1e-8, atol=1e-10)
    X, Z = L[:, 0], vectors[0, :2]
    found = prediction_errors(both, theta, X, Z, np.zeros((2, theta.shape[1])))
    X = X @ both.projection.whitening
    for mine, same in zip(
        (found.variance, found.gradient), theirs.prediction_errors(theta, X, Z), strict=True
    ):
        np.testing.assert_allclose(mine, same, rtol=1e-8, atol=1e-10)
    for given in (False, True):
        mine = effect_errors(both, theta[:1], Z, given=given)
        same = (theirs.times_N(theta[:1], Z, given=given) * Z).sum(axis=2)
        np.testing.assert_allclose(mine, same, rtol=1e-8)
    mixed = theta.copy()
    mixed[0, k] = 0.0
    np.testing.assert_allclose(both.beta(mixed, features)[1], ours.beta(theta, features)[1])
    near, small = theta.copy(), 1e-9
    near[0, k] = small
    np.testing.assert_allclose(
        both.covariance(mixed, features), both.covariance(near, features), rtol=1e-6, atol=1e-8
    )


def fitted(groups, Y, fixed="~ x", method="REML", space="psd", g=6, x=None):
    """The fit of 24 samples in g levels, and what was warned of."""
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"x": rng.normal(size=24) if x is None else x})
    data["g"], data["b"] = [f"g{i % g}" for i in range(24)], "big"
    for label, rows in groups.items():
        data.loc[rows, "b"] = label
    names = [f"y{j}" for j in range(len(Y))]
    model = fm.MultiLMM.from_formula(fixed, "(1 | g)", data, pd.DataFrame(Y, names), sums_by="b")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = model.fit(method, residual_by="b", parameter_space=space)
    return result, " ".join(str(warning.message) for warning in caught)


def responses():
    rng = np.random.default_rng(3)
    effects = rng.normal(size=6)[np.arange(24) % 6]
    return np.array([effects + rng.normal(size=24), 3.0 * effects + 0.2 * rng.normal(size=24)])


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_two_samples_of_one_level_have_no_bound_under_maximum_likelihood(space):
    """X has two columns, which explain any two values, and the level gives them one variance."""
    result, said = fitted({"two": [0, 6]}, responses(), method="ML", space=space)
    assert "'Residual[two]' goes to zero" in said
    assert "Use REML" in said
    for page in (result.summary(), result.summary("y1")):
        assert "as 'Residual[two]' goes to zero" in " ".join(str(page).split())
    _, said = fitted({"two": [0, 6]}, responses(), space=space)
    assert "Residual[two]" not in said


@pytest.mark.parametrize("method", ["REML", "ML"])
@pytest.mark.parametrize("rows", [[0, 6], [0, 6, 12, 18, 1]])
def test_a_group_that_X_explains_is_named_with_the_feature(rows, method):
    x, Y = np.random.default_rng(8).normal(size=24), responses()
    x[[0, 6]] = 0.3
    Y[0, rows] = 1.0 + 2.0 * x[rows]
    result, said = fitted({"exact": rows}, Y, method=method, x=x)
    assert result.status.tolist()[0] == "perfect fit"
    assert result.status.tolist()[1] in ("converged", "boundary")
    assert "explain the samples of Residual[exact] exactly for 'y0'" in said
    assert "has no bound" in " ".join(str(result.summary("y0")).split())
    assert "has no bound" not in " ".join(str(result.summary("y1")).split())


@pytest.mark.parametrize("space", ["psd", "unconstrained"])
def test_two_identical_samples_of_two_levels_are_named(space):
    """Where the levels' variance is zero as well; a maximum elsewhere is one."""
    x, Y = np.random.default_rng(8).normal(size=24), responses()
    x[[0, 1]], Y[0, [0, 1]] = 0.3, 1.5
    result, said = fitted({"two": [0, 1]}, Y, space=space, x=x)
    assert "the samples of Residual[two] exactly for 'y0'" in said
    assert result.status.tolist()[1] in ("converged", "boundary")


def test_V_singular_at_the_boundary_gives_no_tests():
    """Two samples without variance fix the line through them, and REML has a maximum there."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=20), "b": ["two"] * 2 + ["big"] * 18})
    Y = rng.normal(size=(6, 20))
    Y[:, :2] *= 0.1
    model = fm.MultiLMM.from_formula("~ x", data=data, Y=Y, sums_by="b")
    with pytest.warns(fm.ConvergenceWarning, match="join it with another"):
        result = model.fit(residual_by="b", parameter_space="psd")
    zero = (result.theta["Residual[two]"] == 0.0).to_numpy()
    assert 0 < zero.sum() < 6
    assert (result.status[zero] == "indefinite").all()
    assert (result.status[~zero] == "converged").all()
    assert result.bse[zero].isna().all(axis=None)
    for df in ("satterthwaite", "kenward-roger", "residual", "normal"):
        assert np.isnan(result.t_test(df=df).pvalue.to_numpy()[zero]).all()
        assert np.isfinite(result.t_test(df=df).pvalue.to_numpy()[~zero]).all()
    line = np.array([np.polyfit(data["x"][:2], y[:2], 1)[::-1] for y in Y[zero]])
    np.testing.assert_allclose(result.params[zero], line, rtol=1e-8)


# ---- no search for more makes a verdict worse ------------------------------------------------


def end(status, loglik, expected=1.0, k=2):
    """An end of a search of one feature, at variances of zero but for the residual one."""
    at = Evaluation.empty(1, k)
    at.loglik[:], at.score[:], at.expected[:], at.average[:] = loglik, 0.0, 0.0, np.eye(k)
    at.expected[:, range(k), range(k)] = expected
    theta = np.zeros((1, k))
    theta[:, -1] = 1.0
    return Solution(theta, at, np.ones(1, dtype=int), np.array([status], dtype=np.int8))


class OfOne:
    """A likelihood of which a score is lost, or V is indefinite, at a residual variance below."""

    m, n_params, H = 1, 2, 1

    def __init__(self, lost=False, definite=True):
        self.lost, self.definite = lost, definite

    def lost_in_rounding(self, theta, _):
        return self.lost & (theta[:, -1] < 1.0)

    def is_definite(self, theta):
        return self.definite | (theta[:, -1] >= 1.0)


WORSE = {
    "unfinished": (OfOne(), Status.STALLED, 1.0),
    "no information": (OfOne(), Status.CONVERGED, -1.0),
    "lost in rounding": (OfOne(lost=True), Status.CONVERGED, 1.0),
    "indefinite": (OfOne(definite=False), Status.CONVERGED, 1.0),
}


@pytest.mark.parametrize("kind", WORSE)
@pytest.mark.parametrize("where", ["second start", "small groups", "own parameters"])
def test_a_maximum_is_not_given_up_for_a_worse_verdict(kind, where, monkeypatch):
    likelihood, status, expected = WORSE[kind]
    if kind == "indefinite" and where == "own parameters":
        pytest.skip("structures with own parameters are positive semi-definite")
    before, again = end(Status.BOUNDARY, -10.0), end(status, -5.0, expected)
    again.theta[:, -1] = 0.5
    better = end(Status.CONVERGED, -5.0)
    features, rows = np.array([0]), np.array([0])

    def tried(other):
        first = Solution(
            before.theta.copy(),
            before.evaluation.take(rows),
            *(np.array(part) for part in (before.n_iter, before.status)),
        )
        if where == "second start":
            monkeypatch.setattr(restart, "maximise_in_stages", lambda *_, **__: other)
            space = Unconstrained()
            restart.searched_again(
                likelihood, space, (), first, features, np.ones((1, 2)), max_iter=5
            )
        elif where == "small groups":
            found = np.flatnonzero(fitting._takes_over(likelihood, first, other, features))
            fitting._put(first, features[found], other, found)
        else:
            fitting_curves._improve(likelihood, first, other, rows)
        return first

    kept = tried(again)
    assert kept.status[0] == Status.BOUNDARY
    assert kept.evaluation.loglik[0] == -10.0
    assert tried(better).evaluation.loglik[0] == -5.0


def test_a_search_that_creeps_to_a_zero_variance_ends():
    """Levels of one sample each in a group of 32: steps towards zero took all that were allowed."""
    rng = np.random.default_rng(0)
    s = np.repeat([0, 1, 2], 32)
    level = np.where(s == 0, np.arange(96), rng.integers(0, 12, 96) + 1000)
    data = pd.DataFrame({"s": np.array(list("uvw"))[s], "level": level.astype(str)})
    data["x"] = rng.normal(size=96)
    Y = np.array([0.3, 1.0, 1.4])[s] * rng.normal(size=(12, 96))
    Y += rng.normal(size=(12, 2000))[:, level]
    model = fm.MultiLMM.from_formula("~ x + (1 | level)", data=data, Y=Y, sums_by="s")
    result = model.fit(residual_by="s", parameter_space="psd")
    assert result.n_iter.max() > 500  # one crept
    assert set(result.status) == {"converged", "boundary"}
