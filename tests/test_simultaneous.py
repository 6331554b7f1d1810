"""Several contrasts at once: against emmeans, by identities, by their error rates."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from references import REFERENCE
from scipy import stats

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.inference.max_t import draw_directions, max_tests
from flashmm.inference.simultaneous import number_of_means
from flashmm.inference.studentized_range import range_quantile, range_tail
from flashmm.inference.two_stage import two_stage

FOLDER = REFERENCE / "multiplicity"
KNOWN = json.loads((FOLDER / "multiplicity.json").read_text("utf-8"))
CASES = json.loads((FOLDER / "contrasts.json").read_text("utf-8"))
MVT = {"mvt": 2e-3, "dunnett_mvt": 2e-3}


@pytest.fixture(scope="module")
def cake():
    data = pd.read_csv(FOLDER / "cake.csv", dtype={"replicate": str, "temp": str})
    y = data["angle"].to_numpy(float)[None]
    return {
        fixed: fm.MultiLMM.from_formula(fixed, "(1 | recipe:replicate)", data, y).fit(
            parameter_space="psd", epsilon=1e-9
        )
        for fixed in ("~ recipe + temp", "~ recipe * temp")
    }


def differences(k):
    """All pairwise differences of k means."""
    rows = [np.eye(k)[i] - np.eye(k)[j] for i in range(k) for j in range(i + 1, k)]
    return np.array(rows)


@pytest.mark.parametrize("name", ["tukey", "tukey_kr", "mvt", "scheffe", "sidak", "dunnett_mvt"])
def test_equal_to_emmeans(cake, name):
    """Deterministic ones differ by 2e-8 at most; the error of mvt is on both sides."""
    family = "trt.vs.ctrl" if name == "dunnett_mvt" else "pairwise"
    df = "kenward-roger" if name.endswith("kr") else "satterthwaite"
    tests = cake["~ recipe + temp"].marginal_means("temp", contrast=family, df=df)
    case = KNOWN[name]
    found = tests.simultaneous(name.split("_")[0]).isel(feature=0)
    assert found["contrast"].to_numpy().tolist() == [
        c.replace("temp", "") for c in case["contrast"]
    ]
    assert_allclose(found["p"], case["p.value"], rtol=0, atol=MVT.get(name, 1e-6))
    atol = 4e-3 if name in MVT else 1e-6
    assert_allclose(found["lower"], case["lower.CL"], rtol=0, atol=atol)
    assert_allclose(found["upper"], case["upper.CL"], rtol=0, atol=atol)
    assert found.attrs["method"] == name.split("_")[0]


@pytest.mark.parametrize("name", ["tukey", "scheffe", "sidak greater"])
def test_groups_are_families(cake, name):
    """Within each level of `by`, as emmeans adjusts; emmeans' one-sided Sidak has such limits."""
    side = "greater" if "greater" in name else "two-sided"
    tests = cake["~ recipe * temp"].marginal_means(
        "recipe", by="temp", contrast="pairwise", alternative=side
    )
    case = CASES[f"{name} by temp"]
    labels = [text.replace(" ; ", " | temp=") for text in case["label"]]
    found = tests.simultaneous(name.split()[0]).isel(feature=0).sel(contrast=labels)
    assert_allclose(found["p"], case["p"], rtol=0, atol=1e-6)
    assert_allclose(found["lower"], case["lower"], rtol=1e-5)
    if side == "greater":
        assert np.isposinf(found["upper"]).all()
    else:
        assert_allclose(found["upper"], case["upper"], rtol=1e-5)


def test_one_sided_single_step_equals_emmeans(cake):
    means = cake["~ recipe * temp"].marginal_means
    case = CASES["mvt greater"]
    up = means("temp", contrast="trt.vs.ctrl", alternative="greater").simultaneous(rng=3)
    assert_allclose(up["p"][0], case["p"], rtol=0, atol=2e-3)
    assert_allclose(up["lower"][0], case["lower"], rtol=0, atol=4e-3)
    # The same effects turned around, and the same points.
    turned = {f"{a}": [1.0 if i == 0 else -float(i == j) for i in range(6)] for j, a in
              zip(range(1, 6), "bcdef", strict=True)}  # fmt: skip
    down = means("temp", contrast=turned, alternative="less").simultaneous(rng=3)
    assert_allclose(down["p"], up["p"], rtol=1e-9)
    assert_allclose(down["upper"], -up["lower"], rtol=1e-9)


def test_points_are_reproducible(cake):
    tests = cake["~ recipe + temp"].marginal_means("temp", contrast="pairwise")
    always = [tests.simultaneous("mvt")["p"] for _ in range(2)]
    seeded = [tests.simultaneous("mvt", rng=5)["p"] for _ in range(2)]
    assert (always[0] == always[1]).all()
    assert (seeded[0] == seeded[1]).all()
    assert (always[0] != seeded[0]).any()
    assert_allclose(always[0], seeded[0], atol=4e-3)


# ---- the numbers ------------------------------------------------------------------------------


def test_studentized_range():
    """Beside scipy, which integrates value by value; of two means it is Student's t."""
    q, df = np.array([0.3, 2.0, 4.0, 9.0]), np.array([2.5, 8.0, 40.0, 1.0])
    for k in (3, 10):
        assert_allclose(range_tail(q, k, df), stats.studentized_range.sf(q, k, df), rtol=1e-6)
    assert_allclose(range_tail(q, 2, df), 2 * stats.t.sf(q / np.sqrt(2), df), rtol=2e-9)
    far = np.array([0.01, 3.0, 60.0, 400.0])
    for d in (1.0, 30.0, 5e3, 1e8):
        right = 2 * stats.t.sf(far / np.sqrt(2), d)
        assert_allclose(range_tail(far, 2, np.full(4, d)), right, rtol=1e-6, atol=1e-300)
    assert range_tail(np.array([0.0, np.inf]), 4, np.array([3.0, np.inf])).tolist() == [1.0, 0.0]
    some = np.array([3.0, 220.0, np.inf, np.nan])
    at = range_quantile(0.05, 6, some)
    assert_allclose(range_tail(at, 6, some)[:3], 0.05, rtol=1e-8)
    assert np.isnan(at[3])


@pytest.mark.parametrize(("k", "df"), [(3, 4.0), (6, 30.0), (8, np.inf)])
def test_largest_t_of_all_pairs_is_the_studentized_range(k, df):
    """Far into the tail too: relative errors of 1 % at probabilities of 1e-15."""
    rows = differences(k)
    c = len(rows)
    basis = np.linalg.svd(rows, full_matrices=False)
    roots = (basis[0] * basis[1])[None, :, : k - 1]
    t, freedom = np.linspace(0.5, 8.0, c)[None], np.full((1, c), df)
    found = max_tests(roots, t, freedom, 0.05, draw_directions(k - 1, np.random.default_rng(2), c))
    right = range_tail(np.sqrt(2.0) * t, k, freedom)
    assert_allclose(found.p, right, rtol=0, atol=2e-3)
    assert_allclose(found.p[right < 1e-3], right[right < 1e-3], rtol=0.03)
    critical = range_quantile(0.05, k, freedom) / np.sqrt(2.0)
    assert_allclose(found.critical, critical, rtol=3e-3)


def test_critical_values_and_p_values_agree_where_df_differ():
    rng = np.random.default_rng(1)
    roots, df = rng.normal(size=(7, 4, 3)) + 1.0, rng.uniform(4, 40, size=(7, 4))
    df[3, 1] = np.nan
    roots[5] = np.nan
    points = draw_directions(3, rng, 4)
    for two_sided in (True, False):
        first = max_tests(roots, np.ones((7, 4)), df, 0.1, points, two_sided=two_sided)
        again = max_tests(roots, first.critical, df, 0.1, points, two_sided=two_sided)
        lost = np.isnan(df) | np.isnan(roots).any(axis=(1, 2))[:, None]
        assert (np.isnan(again.p) == lost).all()
        assert_allclose(again.p[~lost], 0.1, rtol=0.01)


def test_one_sided_tails_below_zero():
    rng = np.random.default_rng(4)
    root = rng.normal(size=(3, 3))
    t = np.array([[-1.5, -0.3, 0.4]])
    found = max_tests(root[None], t, np.full((1, 3), 6.0), 0.05,
                      draw_directions(3, rng, 3), two_sided=False)  # fmt: skip
    sample = rng.normal(size=(200_000, 3)) @ (root / np.linalg.norm(root, axis=1)[:, None]).T
    sample /= np.sqrt(rng.chisquare(6, size=200_000) / 6.0)[:, None]
    drawn = (sample.max(axis=1)[:, None] >= t).mean(axis=0)
    assert_allclose(found.p[0], drawn, atol=5e-3)


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_pairwise_differences_are_known_in_any_coding(k):
    rng = np.random.default_rng(k)
    rows = differences(k)
    c = len(rows)
    signs = rng.choice([-1.0, 1.0], size=(c, 1))
    for coding in (np.eye(k), np.eye(k)[:, 1:], rng.normal(size=(k, 5))):
        turned = (signs * rows)[rng.permutation(c)] @ coding
        assert number_of_means(turned) == k
        if c > 1:
            assert number_of_means(turned[1:]) is None
            assert number_of_means(turned + 0.1 * rng.normal(size=turned.shape)) is None


# ---- through the results ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbalanced():
    """30 features, three groups; one without a fit, one without samples of a group."""
    rng = np.random.default_rng(8)
    data = pd.DataFrame({"g": np.repeat(list("abcdefghijkl"), 4)})
    data["trt"] = np.repeat(list("AABBCCABCABC"), 4)
    data["x"] = rng.normal(size=48)
    Y = rng.normal(size=(30, 48)) + np.repeat(rng.normal(size=(30, 12)), 4, axis=1)
    Y += 4.0 * (data["trt"] == "C").to_numpy() * (np.arange(30) < 8)[:, None]
    Y = pd.DataFrame(Y, index=[f"gene{i}" for i in range(30)])
    Y.iloc[9] = 1.0
    return data, Y


@pytest.fixture(scope="module")
def result(unbalanced):
    data, Y = unbalanced
    with pytest.warns(fm.ConvergenceWarning):
        return fm.MultiLMM.from_formula("~ trt + x", "(1 | g)", data, Y).fit(parameter_space="psd")


PAIRS = ["trt[T.B]", "trt[T.C]", "trt[T.B] - trt[T.C]"]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"df": "residual"}, {"df": "kenward-roger"}, {"moderated": True}, {"df": "integrated"},
    ],
)  # fmt: skip
def test_every_df_has_simultaneous_tests(result, options):
    tests = result.t_test(PAIRS, **options)
    raw = tests.pvalue.to_numpy()
    known = np.isfinite(raw)
    assert not known[9].any()
    found = {name: tests.simultaneous(name) for name in ("tukey", "mvt", "scheffe", "sidak")}
    for table in found.values():
        p = table["p"].to_numpy()
        assert (np.isnan(p) == ~known).all()
        assert (p[known] >= raw[known] * (1 - 1e-9)).all()
        assert (p[known] <= np.minimum(3 * raw, 1)[known] + 1e-9).all() or table is found["scheffe"]
        # A limit passes zero where the p-value passes alpha.
        away = np.abs(p - 0.05) > 2e-3
        outside = (table["lower"] > 0) | (table["upper"] < 0)
        assert (outside.to_numpy() == (p < 0.05))[known & away].all()
    # In nearly balanced designs the three agree, and none is far from the other.
    assert_allclose(found["tukey"]["p"].to_numpy()[known], found["mvt"]["p"].to_numpy()[known],
                    atol=0.01)  # fmt: skip
    alone = result.t_test(PAIRS, features=["gene3"], **options).simultaneous("mvt")
    if "moderated" not in options:
        assert_allclose(alone["p"][0], found["mvt"]["p"][3], rtol=1e-6)


def test_a_single_contrast_needs_no_adjustment(result):
    for options in ({}, {"df": "integrated"}, {"alternative": "less"}):
        tests = result.t_test("x", **options)
        for name in ("mvt", "sidak", "dunnett"):
            assert_allclose(tests.simultaneous(name)["p"], tests.pvalue, rtol=1e-6)
        limits = tests.simultaneous("mvt", alpha=0.1)
        both = tests.conf_int(0.2 if options.get("alternative") else 0.1)
        assert_allclose(limits["upper"], both.sel(bound="upper"), rtol=1e-6)


def test_rows_of_ones_own_and_loaded_results(unbalanced, result, tmp_path):
    data, Y = unbalanced
    lacking = Y.copy()
    lacking.iloc[3, :5] = np.nan
    own = fm.MultiLMM.from_formula(
        "~ trt + x", "(1 | g)", data, lacking.drop("gene9"), missing="feature"
    ).fit(parameter_space="psd")
    alone = fm.MultiLMM.from_formula("~ trt + x", "(1 | g)", data[5:], Y.iloc[[3], 5:]).fit(
        parameter_space="psd"
    )
    found = own.t_test(PAIRS).simultaneous("mvt")
    assert_allclose(found["p"][3], alone.t_test(PAIRS).simultaneous("mvt")["p"][0], rtol=1e-5)
    assert_allclose(found["p"][4], result.t_test(PAIRS).simultaneous("mvt")["p"][4], rtol=1e-5)
    result.save(tmp_path / "fit.nc")
    loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    assert_allclose(
        loaded.t_test(PAIRS).simultaneous("mvt")["p"], result.t_test(PAIRS).simultaneous()["p"]
    )
    one = result.sel("gene4").t_test(PAIRS).simultaneous("tukey")
    assert_allclose(one["p"][0], result.t_test(PAIRS).simultaneous("tukey")["p"][4])


def test_tests_and_results_that_made_some_can_be_pickled(result):
    tests = result.t_test(PAIRS)
    again = pickle.loads(pickle.dumps(tests))
    assert (again.simultaneous()["p"].equals(tests.simultaneous()["p"])) is True
    assert result.pvalues.shape == (30, 4)
    assert pickle.loads(pickle.dumps(result)).pvalues.equals(result.pvalues)


def test_dependent_contrasts_count_once(result):
    """x twice is x; Scheffe's rank and the largest t see what is really there."""
    once = result.t_test({"x": "x", "B": "trt[T.B]"})
    twice = result.t_test({"x": "x", "again": "2*x", "B": "trt[T.B]"})
    assert_allclose(
        twice.simultaneous("scheffe")["p"][:, [0, 2]], once.simultaneous("scheffe")["p"], rtol=1e-9
    )
    found = twice.simultaneous("mvt")["p"]
    assert_allclose(found[:, [0, 2]], once.simultaneous("mvt")["p"], atol=1e-3)
    assert_allclose(found[:, 0], found[:, 1], rtol=1e-9)


def test_what_is_not_estimable_does_not_count():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"a": np.repeat(list("pqr"), 16), "b": np.tile(list("kl"), 24)})
    data["g"] = np.tile(range(8), 6)
    data = data[~((data["a"] == "r") & (data["b"] == "l"))]
    with pytest.warns(fm.RankWarning):
        model = fm.MultiLMM.from_formula(
            "~ a * b", "(1 | g)", data, rng.normal(size=(2, len(data))), rank="drop"
        )
    tests = model.fit(parameter_space="psd").marginal_means(["a", "b"], contrast="pairwise")
    known = tests.estimable.to_numpy()
    assert 0 < known.sum() < known.size
    for name in ("tukey", "mvt", "scheffe", "sidak"):
        assert (np.isfinite(tests.simultaneous(name)["p"]) == known).all()
    # Ten differences of the five means that there are; Tukey counts six means, as emmeans does.
    sidak = tests.simultaneous("sidak")["p"].to_numpy()[:, known]
    assert_allclose(sidak, 1 - (1 - tests.pvalue.to_numpy()[:, known]) ** known.sum(), rtol=1e-9)


WRONG = {
    "method": (lambda r: r.t_test(PAIRS).simultaneous("tuckey"), "Did you mean 'tukey'"),
    "alpha": (lambda r: r.t_test(PAIRS).simultaneous(alpha=2), "`alpha`"),
    "rng": (lambda r: r.t_test(PAIRS).simultaneous(rng="seed"), "`rng`"),
    "not all pairs": (lambda r: r.t_test(PAIRS[:2]).simultaneous("tukey"), "all pairwise"),
    "not one control": (lambda r: r.t_test(PAIRS).simultaneous("dunnett"), "one control"),
    "no control": (
        lambda r: r.marginal_means("trt", contrast="eff").simultaneous("dunnett"),
        "one control",
    ),
    "one side": (
        lambda r: r.t_test(PAIRS, alternative="less").simultaneous("scheffe"),
        "two-sided.*mvt",
    ),
    "interval": (lambda r: r.t_test(PAIRS, margin=0.2).simultaneous("mvt"), "sidak"),
    "by hand": (
        lambda r: fm.TTestResults(
            r.t_test(PAIRS).ds, alternative="two-sided", df_method="residual"
        ).simultaneous("mvt"),
        "put together by hand",
    ),
    "screen": (
        lambda r: r.t_test(PAIRS).two_stage(r.anova(features=slice(0, 5))),
        "`screen` holds 2 hypotheses",
    ),
    "other features": (
        lambda r: r.t_test(PAIRS).two_stage(r.f_test(PAIRS, features=slice(0, 5))),
        "`screen` and the features do not match",
    ),
    "number": (lambda r: r.t_test(PAIRS).two_stage([0.1, 0.2]), "30 p-values"),
    "within": (lambda r: r.t_test(PAIRS).two_stage(r.f_test(PAIRS), within="bh"), "within='bh'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(result, name):
    call, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        call(result)


# ---- two stages -------------------------------------------------------------------------------


def test_two_stages_by_hand(result):
    screen, tests = result.f_test(PAIRS), result.t_test(PAIRS)
    found = tests.two_stage(screen, alpha=0.05)
    F = screen.pvalue["joint"]
    adjusted = fm.adjust_pvalues(F, "bh")
    passed = adjusted <= 0.05
    assert 0 < passed.sum() < 29
    assert (found["passed"] == passed).all()
    factor = np.isfinite(F).sum() / passed.sum()
    holm = np.minimum(fm.adjust_pvalues(tests.pvalue, "holm", axis=1) * factor, 1)
    assert_allclose(found["p"].to_numpy()[passed], holm[passed])
    assert np.isnan(found["p"].to_numpy()[~passed]).all()
    assert (found["rejected"] == (found["p"] <= 0.05)).all()
    mixed = F.iloc[::-1]
    assert_allclose(tests.two_stage(mixed)["p"], found["p"])
    assert found.attrs["n_screened"] == 29


def test_steps_within_a_feature():
    p = np.array([[0.01, 0.02, 0.5, np.nan], [0.04, np.nan, np.nan, np.nan]])
    screen = np.array([1e-4, 1e-3])
    assert_allclose(two_stage(screen, p, 0.1, "none").p, p)
    assert_allclose(two_stage(screen, p, 0.1, "holm").p[0, :3], [0.03, 0.04, 0.5])
    assert_allclose(two_stage(screen, p, 0.1, "shaffer").p[0, :3], [0.02, 0.04, 0.5])
    assert_allclose(two_stage(screen, p, 0.1, "shaffer").p[1, 0], 0.04)


def test_overall_false_discovery_rate():
    """Of normal test statistics: 300 sets of 200 features, a fifth of which have one effect."""
    rng = np.random.default_rng(6)
    rates = []
    for _ in range(300):
        mean = np.zeros((200, 3))
        mean[:40, 0] = 3.0
        z = rng.normal(size=mean.shape) + mean
        p = 2 * stats.norm.sf(np.abs(z))
        found = two_stage(stats.chi2.sf((z * z).sum(axis=1), 3), p, 0.1, "shaffer")
        false = (found.rejected & (mean == 0)).any(axis=1)
        false |= found.passed & (mean == 0).all(axis=1)
        rates.append(false.sum() / max(found.passed.sum(), 1))
    assert 0.06 < np.mean(rates) < 0.105  # standard error 0.003
