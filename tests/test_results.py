"""The results API: every promised name, its labels, and agreement between the ways to ask."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats as distributions
from small_fit import COEFS, FEATURES, LEVELS, PARAMS, N, model, responses, samples

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.storage.schema import RESULTS, check_dataset, describe


@pytest.fixture(scope="module")
def results() -> fm.MultiLMMResults:
    return model().fit(parameter_space="psd")


# ---- names, labels, shapes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("params", COEFS),
        ("bse", COEFS),
        ("tvalues", COEFS),
        ("pvalues", COEFS),
        ("theta", PARAMS),
        ("bse_theta", PARAMS),
        ("score", PARAMS),
    ],
)
def test_tables_are_labelled(results, name, columns):
    table = getattr(results, name)
    assert isinstance(table, pd.DataFrame)
    assert table.index.tolist() == FEATURES
    assert table.index.name == "feature"
    assert table.columns.tolist() == columns
    assert np.isfinite(table.to_numpy()).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llf", "f"),
        ("aic", "f"),
        ("bic", "f"),
        ("n_iter", "i"),
        ("status", "O"),
        ("converged", "b"),
    ],
)
def test_series_are_labelled(results, name, kind):
    series = getattr(results, name)
    assert isinstance(series, pd.Series)
    assert series.index.tolist() == FEATURES
    assert series.name == name
    assert np.asarray(series).dtype.kind == kind or series.dtype == "str"


def test_scalars(results):
    assert results.nobs == N
    assert results.df_resid == N - 3
    assert results.method == "REML"
    assert set(results.status) <= {"converged", "boundary"}
    assert results.converged.all()


def test_the_dataset_conforms_to_the_schema(results):
    check_dataset(results.ds)
    assert dict(results.ds.sizes) == {"feature": 12, "coef": 3, "param": 5}
    assert results.ds["param"].to_numpy().tolist() == PARAMS
    assert set(results.ds.data_vars) == set(RESULTS)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda ds: ds.drop_vars("beta"), "'beta' is missing"),
        (lambda ds: ds.transpose("coef", "feature", "param"), "'beta' has dims"),
        (lambda ds: ds.assign(status=ds["status"].astype(float)), "'status' has dtype float64"),
        (lambda ds: ds.assign_attrs(flag={}), "attr 'flag'"),
    ],
)
def test_the_schema_notices_what_does_not_conform(results, break_it, message):
    with pytest.raises(AssertionError, match=message):
        check_dataset(break_it(results.ds))


def test_the_schema_describes_every_variable():
    text = describe()
    assert all(f"| `{name}` |" in text for name in RESULTS)


def test_array_results_carry_their_labels(results):
    cov, fim, limits = results.cov_params(), results.fim(), results.conf_int()
    assert cov.dims == ("feature", "coef", "coef_")
    assert fim["FIM_theta"].dims == ("feature", "param", "param_")
    assert fim["FIM_beta"].dims == ("feature", "coef", "coef_")
    assert limits.dims == ("feature", "coef", "bound")
    assert limits["bound"].to_numpy().tolist() == ["lower", "upper"]
    assert cov["coef_"].to_numpy().tolist() == COEFS
    blup = results.blup(se="conditional")
    assert blup["blup"].dims == ("feature", "level")
    assert blup["level"].to_numpy()[:2].tolist() == ["donor[d0]", "donor[d0]:age"]
    assert blup["effect"].to_numpy()[:2].tolist() == ["Intercept", "age"]
    assert set(blup["group"].to_numpy()) == {"donor", "batch"}
    effects = results.random_effects
    assert list(effects) == ["donor", "batch"]
    assert effects["donor"].sizes == {"feature": 12, "group_level": 8, "effect": 2}
    assert effects["batch"]["group_level"].to_numpy().tolist() == list("uvwx")
    np.testing.assert_array_equal(
        effects["donor"].sel(feature="gene 3", group_level="d5", effect="age"),
        blup["blup"].sel(feature="gene 3", level="donor[d5]:age"),
    )


@pytest.mark.parametrize("pick", [["gene 7", "gene 2"], [7, 2], [-5, -10]])
def test_a_choice_of_features_is_a_part_of_the_whole(results, pick):
    expected = ["gene 7", "gene 2"]
    # Batches of another size take sums in another order: equal to rounding.
    close = {"rtol": 1e-10, "atol": 1e-12}
    for method in (results.cov_params, results.fim, lambda f=None: results.blup(features=f)):
        part = method(pick)
        assert part["feature"].to_numpy().tolist() == expected
        xr.testing.assert_allclose(part, method().sel(feature=expected), **close)
    part = results.t_test("age", features=pick).ds
    xr.testing.assert_allclose(part, results.t_test("age").ds.sel(feature=expected), **close)


def test_a_small_memory_budget_changes_nothing(results):
    frugal = model().fit(parameter_space="psd", memory=1)
    close = {"rtol": 1e-8, "atol": 1e-10}
    for name in ("beta", "se_beta", "theta", "se_theta", "loglik"):
        np.testing.assert_allclose(frugal.ds[name], results.ds[name], **close)
    xr.testing.assert_allclose(frugal.blup(se=True), results.blup(se=True), **close)
    xr.testing.assert_allclose(frugal.cov_params(), results.cov_params(), **close)


# ---- agreement ---------------------------------------------------------------------------


def test_covariances_are_symmetric_and_give_the_standard_errors(results):
    cov = results.cov_params().to_numpy()
    np.testing.assert_allclose(cov, np.swapaxes(cov, 1, 2), rtol=1e-12)
    np.testing.assert_allclose(np.sqrt(np.diagonal(cov, axis1=1, axis2=2)), results.bse, rtol=1e-9)
    fim = results.fim()
    np.testing.assert_allclose(fim["FIM_beta"].to_numpy() @ cov, [np.eye(3)] * 12, atol=1e-8)
    F = fim["FIM_theta"].to_numpy()
    np.testing.assert_allclose(F, np.swapaxes(F, 1, 2), rtol=1e-10)
    np.testing.assert_allclose(
        np.sqrt(np.diagonal(np.linalg.inv(F), axis1=1, axis2=2)), results.bse_theta, rtol=1e-6
    )


def test_each_coefficient_tested_is_the_coefficient_table(results):
    test = results.t_test()
    assert test.df_method == "satterthwaite"
    for mine, theirs in (
        ("effect", "params"),
        ("sd", "bse"),
        ("tvalue", "tvalues"),
        ("pvalue", "pvalues"),
    ):
        np.testing.assert_allclose(getattr(test, mine), getattr(results, theirs), rtol=1e-9)
    np.testing.assert_allclose(results.tvalues, results.params / results.bse, rtol=1e-14)
    for df, table in (("satterthwaite", test), ("residual", results.t_test(df="residual"))):
        np.testing.assert_allclose(
            table.pvalue, 2 * distributions.t.sf(np.abs(results.tvalues), table.df), rtol=1e-9
        )
        np.testing.assert_allclose(table.conf_int(), results.conf_int(df=df), rtol=1e-9)
    np.testing.assert_array_equal(table.df, N - 3)


def test_contrasts_are_linear_and_alternatives_share_out_the_tail(results):
    test = results.t_test("2 * age - trt[T.B]")
    weights = np.array([0.0, 2.0, -1.0])
    np.testing.assert_allclose(test.effect.iloc[:, 0], results.params @ weights, rtol=1e-10)
    variance = results.cov_params().to_numpy() @ weights @ weights
    np.testing.assert_allclose(test.sd.iloc[:, 0], np.sqrt(variance), rtol=1e-9)
    greater, less = (
        results.t_test(weights, alternative=side).pvalue for side in ("greater", "less")
    )
    np.testing.assert_allclose(greater + less, 1.0, rtol=1e-12)
    np.testing.assert_allclose(2 * np.minimum(greater, less), test.pvalue, rtol=1e-9)
    shifted = results.t_test("age = 0.5")
    np.testing.assert_allclose(shifted.effect, results.t_test("age").effect)
    np.testing.assert_allclose(
        shifted.tvalue.iloc[:, 0], (results.params["age"] - 0.5) / results.bse["age"], rtol=1e-9
    )


@pytest.mark.parametrize("alpha", [0.05, 0.32])
def test_confidence_limits(results, alpha):
    limits = results.conf_int(alpha, df="residual")
    half = distributions.t.ppf(1 - alpha / 2, N - 3) * results.bse
    np.testing.assert_allclose(limits.sel(bound="lower"), results.params - half, rtol=1e-10)
    np.testing.assert_allclose(limits.sel(bound="upper"), results.params + half, rtol=1e-10)
    with pytest.raises(InputError, match="`alpha` must lie between 0 and 1, not 5"):
        results.conf_int(5)


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_information_criteria(method):
    results = model().fit(method, parameter_space="psd")
    k = 3 + 5  # coefficients and variance parameters, as lme4 counts
    np.testing.assert_allclose(results.aic, -2 * results.llf + 2 * k)
    np.testing.assert_allclose(results.bic, -2 * results.llf + np.log(N) * k)


def test_p_values_far_in_the_tail_are_not_zero():
    data, rng = samples(), np.random.default_rng(2)
    donor = pd.factorize(data["donor"])[0]
    x = data["age"].to_numpy()
    Y = rng.normal(size=(3, 8))[:, donor] + rng.normal(size=(3, N)) * 1e-2
    Y += np.array([[1.0], [-2.0], [5.0]]) * x
    results = model("(1 | donor)", Y).fit()
    p = results.pvalues["age"].to_numpy()
    t = results.tvalues["age"].to_numpy()
    df = results.t_test("age").df.to_numpy()[:, 0]
    assert (p > 0).all()
    assert (p < 1e-150).all()
    np.testing.assert_allclose(
        np.log(p), np.log(2) + distributions.t.logsf(np.abs(t), df), rtol=1e-10
    )
    one_sided = results.t_test("age", alternative="greater").pvalue.to_numpy()[:, 0]
    np.testing.assert_allclose(one_sided[[0, 2]], p[[0, 2]] / 2, rtol=1e-12)
    assert one_sided[1] == 1.0
    less = results.t_test("age", alternative="less").pvalue.to_numpy()[:, 0]
    np.testing.assert_allclose(less[1], p[1] / 2, rtol=1e-12)


# ---- tables ------------------------------------------------------------------------------


def test_the_long_table_holds_every_test(results):
    table = results.to_frame()
    assert table.index.names == ["feature", "coef"]
    assert table.columns.tolist()[-2:] == ["p_adjusted", "status"]
    assert len(table) == 12 * 3
    np.testing.assert_allclose(table["estimate"].unstack().loc[FEATURES, COEFS], results.params)
    np.testing.assert_allclose(
        table["p"].unstack().loc[FEATURES, COEFS], results.pvalues, rtol=1e-9
    )
    for coef in COEFS:
        p = results.pvalues[coef].to_numpy()
        expected = distributions.false_discovery_control(p)
        np.testing.assert_allclose(
            table["p_adjusted"].unstack()[coef].loc[FEATURES], expected, rtol=1e-9
        )
    none = results.to_frame("none")
    np.testing.assert_array_equal(none["p_adjusted"], none["p"])


def made_up(t, estimate=None) -> fm.TTestResults:
    """Tests of one contrast with given t statistics and standard errors of one."""
    t = np.asarray(t, dtype=float)
    estimate = t if estimate is None else np.asarray(estimate)
    p = 2 * distributions.norm.sf(np.abs(t))
    names = ("estimate", "se", "t", "df", "p")
    columns = (estimate, np.ones_like(t), t, np.full_like(t, 1e9), p)
    ds = xr.Dataset(
        {
            name: (("feature", "contrast"), c[:, None])
            for name, c in zip(names, columns, strict=True)
        },
        coords={"feature": [f"g{i}" for i in range(t.size)], "contrast": ["c"]},
    )
    return fm.TTestResults(
        ds.assign(value=("contrast", [0.0])), alternative="two-sided", df_method="residual"
    )


def test_top_table_puts_nan_last_and_orders_underflowing_p_values_by_t():
    test = made_up([1.0, np.nan, -60.0, 80.0, 3.0, -45.0])
    assert (test.pvalue.to_numpy()[[2, 3, 5], 0] == 0.0).all()
    table = test.top_table(n=None)
    assert table.index.tolist() == ["g3", "g2", "g5", "g4", "g0", "g1"]
    assert np.isnan(table["p_adjusted"].iloc[-1])
    assert np.isfinite(table["p_adjusted"].iloc[:-1]).all()  # NaN is no test
    assert test.top_table(n=2).index.tolist() == ["g3", "g2"]
    assert test.top_table(alpha=0.05, n=None).index.tolist() == ["g3", "g2", "g5", "g4"]
    assert test.top_table(0, n=1).index.tolist() == ["g3"]


def test_top_table_sorts_by_size():
    test = made_up([1.0, -4.0, np.nan, 2.0], estimate=[-9.0, 1.0, np.nan, 2.0])
    assert test.top_table(sort_by="t").index.tolist() == ["g1", "g3", "g0", "g2"]
    assert test.top_table(sort_by="estimate").index.tolist() == ["g0", "g3", "g1", "g2"]
    with pytest.raises(InputError, match=r"Unknown sort_by='effects'. Did you mean 'effect'"):
        test.top_table(sort_by="effects")


def test_top_table_of_results_is_that_of_the_test(results):
    expected = results.t_test("age", alternative="less").top_table(n=3, adjust="holm")
    table = results.top_table("age", alternative="less", n=3, adjust="holm")
    pd.testing.assert_frame_equal(table, expected)


def test_contrast_tables_are_labelled(results):
    test = results.t_test({"slope": "age", "effect": "trt[T.B]"})
    assert test.contrasts == ["slope", "effect"]
    assert test.pvalue.columns.tolist() == ["slope", "effect"]
    assert test.adjusted("bonferroni").shape == (12, 2)
    np.testing.assert_allclose(test.adjusted("bonferroni"), np.minimum(1, 12 * test.pvalue))
    assert test.to_frame().index.names == ["feature", "contrast"]
    assert repr(test).startswith("t tests: 12 features x 2 contrasts, two-sided, df=satterthwaite")
    with pytest.raises(InputError, match="There are 2 contrasts; say which"):
        test.top_table()
    with pytest.raises(InputError, match=r"Unknown contrast 'slopes'. Did you mean 'slope'"):
        test.top_table("slopes")
    with pytest.raises(InputError, match="Contrast 2 is out of range"):
        test.top_table(2)
    pd.testing.assert_frame_equal(test.top_table("effect"), test.top_table(1))


def test_contrast_matrix_is_accepted(results):
    matrix = fm.contrast_matrix({"BvsA": "(trt[T.B] + age)/2"}, COEFS)
    expected = (results.params["trt[T.B]"] + results.params["age"]) / 2
    np.testing.assert_allclose(results.t_test(matrix).effect["BvsA"], expected, rtol=1e-12)


# ---- one feature -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_one_feature_agrees_with_the_tables(method):
    results = model().fit(method, parameter_space="psd")
    one = results.sel("gene 3")
    assert one.name == "gene 3"
    for mine, theirs in (
        ("fe_params", "params"),
        ("bse_fe", "bse"),
        ("theta", "theta"),
        ("bse_theta", "bse_theta"),
    ):
        pd.testing.assert_series_equal(
            getattr(one, mine), getattr(results, theirs).loc["gene 3"], check_names=False
        )
    for name in ("llf", "aic", "bic", "status", "converged", "n_iter"):
        assert getattr(one, name) == getattr(results, name)["gene 3"]
    assert (one.nobs, one.df_resid, one.method) == (N, N - 3, method)
    theta = one.theta
    assert one.scale == theta["Residual"]
    assert one.params.index.tolist() == [*COEFS, *PARAMS[:-1]]
    np.testing.assert_allclose(one.params.iloc[3:], theta.iloc[:-1] / one.scale)
    pd.testing.assert_series_equal(
        one.pvalues[COEFS], results.pvalues.loc["gene 3"], check_names=False
    )
    pd.testing.assert_series_equal(
        one.tvalues[COEFS], results.tvalues.loc["gene 3"], check_names=False
    )
    limits = one.conf_int(0.1)
    assert limits.index.tolist() == one.params.index.tolist()
    np.testing.assert_allclose(limits.loc[COEFS], results.conf_int(0.1).sel(feature="gene 3"))
    cov = one.cov_params()
    assert cov.shape == (7, 7)
    np.testing.assert_allclose(cov, cov.T)
    np.testing.assert_allclose(np.sqrt(np.diag(cov)), one.bse)
    np.testing.assert_allclose(cov.loc[COEFS, COEFS], results.cov_params(["gene 3"])[0], rtol=1e-10)
    D = one.cov_re
    assert D.index.tolist() == D.columns.tolist() == ["donor[Intercept]", "donor[age]", "batch"]
    donor = [[theta.iloc[0], theta.iloc[2]], [theta.iloc[2], theta.iloc[1]]]
    np.testing.assert_allclose(D.iloc[:2, :2], donor)
    np.testing.assert_allclose(D.iloc[2], [0.0, 0.0, theta["batch"]])
    effects = one.ranef()["donor"]
    assert effects.index.tolist() == LEVELS
    np.testing.assert_allclose(
        effects, results.random_effects["donor"].sel(feature="gene 3"), rtol=1e-8
    )
    assert one.t_test("age").pvalue.shape == (1, 1)
    assert one.ds["beta"].dims == ("coef",)
    assert repr(one) == f"<FeatureResults: 'gene 3', {one.status}>"


def test_standard_errors_of_variance_ratios_follow_the_delta_method():
    results = model("(1 | donor)").fit()
    one = results.sel("gene 3")
    W = np.linalg.inv(results.fim(["gene 3"])["FIM_theta"].to_numpy()[0])
    a, s = one.theta
    expected = np.sqrt(W[0, 0] / s**2 - 2 * a * W[0, 1] / s**3 + a**2 * W[1, 1] / s**4)
    assert one.bse["donor"] == pytest.approx(expected, rel=1e-8)


def test_a_feature_by_position_or_unknown(results):
    assert results.sel(3).name == "gene 3"
    assert results.sel(-1).name == "gene 11"
    with pytest.raises(InputError, match=r"Unknown feature: 'gene3'. Did you mean 'gene 3'"):
        results.sel("gene3")
    with pytest.raises(InputError, match="out of range: there are 12 features"):
        results.sel(12)


def test_integer_names_are_names(results):
    Y = responses().set_axis([10 * i for i in range(12)])
    numbered = model(Y=Y).fit(parameter_space="psd")
    assert numbered.sel(30).llf == pytest.approx(results.sel("gene 3").llf)
    with pytest.raises(InputError, match="Unknown feature: '3'"):
        numbered.sel(3)


# ---- options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.t_test("agee"), "unknown coefficient 'agee'. Did you mean 'age'"),
        (lambda r: r.t_test("age - age"), "zero"),
        (lambda r: r.t_test(np.ones(4)), "4"),
        (lambda r: r.t_test("age", alternative="bigger"), "Unknown alternative 'bigger'"),
        (
            lambda r: r.t_test("age", df="residuals"),
            "Unknown df='residuals'. Did you mean 'residual'",
        ),
        (
            lambda r: r.t_test("age", features="gen 1"),
            "Unknown feature: 'gen 1'. Did you mean 'gene 1'",
        ),
        (lambda r: r.summary("gen 1"), "Unknown feature: 'gen 1'. Did you mean 'gene 1'"),
        (lambda r: r.blup(se="cond"), "Unknown se='cond'. Did you mean 'conditional'"),
        (lambda r: r.to_frame("bhh"), "unknown p-value adjustment 'bhh'. Did you mean 'bh'"),
    ],
)
def test_unknown_names_and_options_are_named(results, call, message):
    with pytest.raises(InputError, match=message):
        call(results)


def test_spellings_of_se(results):
    conditional = results.blup(se="conditional")
    xr.testing.assert_identical(results.blup(se=True), conditional)
    xr.testing.assert_allclose(results.blup(se=False), conditional["blup"], rtol=1e-12)
    assert isinstance(results.blup(), xr.DataArray)
    prediction = results.blup(se="prediction")["se"]
    assert (prediction >= conditional["se"] * (1 - 1e-9)).all()  # beta has to be estimated too
