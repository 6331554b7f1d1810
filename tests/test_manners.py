"""Results as containers of features, and the tables that they give."""

from __future__ import annotations

import pickle
from functools import cache

import numpy as np
import pandas as pd
import pytest
import small_fit

import flashmm as fm


@cache
def result():
    return small_fit.model().fit(parameter_space="psd")


@cache
def own_rows():
    Y = small_fit.responses()
    Y.iloc[3, :5] = np.nan
    return fm.MultiLMM.from_formula(
        "~ age + trt", "(1 | donor)", small_fit.samples(), Y, missing="feature"
    ).fit(parameter_space="psd")


@pytest.mark.parametrize("made", [result, own_rows])
def test_features_of_results(made):
    fit = made()
    names = small_fit.FEATURES
    assert len(fit) == 12
    assert list(fit) == names == fit.feature_names.tolist()
    assert "gene 3" in fit
    assert "gene" not in fit
    assert 3 not in fit
    assert fit["gene 3"].llf == fit.sel("gene 3").llf == fit.llf["gene 3"]
    assert fit[-1].name == "gene 11"
    chosen = ["gene 3", "gene 0"]
    mask = pd.Series([name in chosen for name in names], index=names)
    for asked in (chosen, np.array(chosen), pd.Index(chosen), tuple(chosen)):
        some = fit[asked]
        assert list(some) == chosen
        pd.testing.assert_frame_equal(some.params, fit.params.loc[chosen])
        pd.testing.assert_series_equal(some.status, fit.status.loc[chosen])
    assert list(fit[mask[::-1]]) == sorted(chosen)
    assert list(fit[2:4]) == names[2:4]
    tests, right = fit[chosen].t_test("age"), fit.t_test("age", features=chosen)
    pd.testing.assert_frame_equal(tests.to_frame(), right.to_frame())
    assert fit[chosen]["gene 0"].llf == fit.llf["gene 0"]
    again = pickle.loads(pickle.dumps(fit[chosen]))
    pd.testing.assert_frame_equal(again.params, fit.params.loc[chosen])
    with pytest.raises(fm.InputError, match=r"'gene 30'.*Did you mean"):
        fit["gene 30"]
    with pytest.raises(fm.InputError, match="Unknown feature"):
        fit[["gene 3", "nobody"]]


def test_some_features_predict_and_are_saved(tmp_path):
    fit, chosen = result(), ["gene 3", "gene 0"]
    some, data = fit[chosen], small_fit.samples()
    np.testing.assert_array_equal(
        some.predict(data), fit.predict(data).sel(feature=chosen).to_numpy()
    )
    some.save(tmp_path / "some.nc")
    again = fm.load(tmp_path / "some.nc")
    assert isinstance(again, fm.MultiLMMResults)
    pd.testing.assert_frame_equal(again.params, some.params, check_dtype=False)
    np.testing.assert_allclose(again.t_test("age").pvalue, some.t_test("age").pvalue)
    fit.stats.save(tmp_path / "stats.nc")
    assert isinstance(fm.load(str(tmp_path / "stats.nc")), fm.SummaryStats)
    own_rows().stats.save(tmp_path / "own.nc")
    assert isinstance(fm.load(tmp_path / "own.nc"), fm.PatternedStats)
    with pytest.raises(fm.InputError, match="no file"):
        fm.load(tmp_path / "absent.nc")
    small_fit.samples().reset_index().to_xarray().drop_vars(["trt", "donor", "batch", "index"]
        ).to_netcdf(tmp_path / "other.nc", engine="scipy")  # fmt: skip
    with pytest.raises(fm.InputError, match="nothing that flashmm saved"):
        fm.load(tmp_path / "other.nc")


def test_tests_print_their_table_and_are_containers():
    fit = result()
    tests, joint = fit.t_test(["age", "trtB"]), fit.f_test({"all": ["age", "trtB"]})
    for one in (tests, joint):
        text, page = repr(one), one._repr_html_()
        assert text == str(one)
        assert "gene 0" in text
        assert "gene 0" in page
        assert "12 features" in text.splitlines()[0]
        assert "Results" not in text
        assert len(one) == 12
        assert list(one) == small_fit.FEATURES == one.feature_names.tolist()
        assert "gene 1" in one
        pd.testing.assert_frame_equal(one.summary_frame(), one.to_frame())
        pd.testing.assert_frame_equal(one["gene 4"], one.to_frame().loc["gene 4"])
        assert one[["gene 4", "gene 2"]].index.unique(0).tolist() == ["gene 4", "gene 2"]
    wide = tests.to_frame(layout="wide")
    assert wide.shape == (12, 2 * tests.to_frame().shape[1])
    for name in ("age", "trtB"):
        pd.testing.assert_frame_equal(
            wide[name], tests.to_frame().xs(name, level="contrast"), check_names=False
        )
    whole = fit.to_frame(layout="wide")
    assert whole.columns.names == ["coef", "quantity"]
    np.testing.assert_array_equal(whole["age"]["p"], fit.pvalues["age"])
    with pytest.raises(fm.InputError, match="layout"):
        fit.to_frame(layout="broad")


def test_a_model_shows_its_page():
    model = small_fit.model()
    assert "not fitted yet" in str(model)
    assert "donor[Intercept,age]" in str(model)
    assert "<table>" in model._repr_html_()
    assert repr(model).startswith("<MultiLMM: ")
    assert model.feature_names.tolist() == small_fit.FEATURES


@pytest.mark.parametrize("made", [result, own_rows])
def test_tidy_and_glance(made):
    fit = made()
    table = fit.tidy(df="residual", alpha=0.1)
    k = len(fit.params.columns) + len(fit.theta.columns)
    assert len(table) == 12 * k
    one = table[table["feature"] == "gene 5"].set_index("term")
    np.testing.assert_array_equal(one.loc[fit.params.columns, "estimate"], fit.params.loc["gene 5"])
    np.testing.assert_array_equal(one.loc[fit.theta.columns, "estimate"], fit.theta.loc["gene 5"])
    np.testing.assert_array_equal(
        one.loc[fit.params.columns, "p_value"], fit.t_test(df="residual").pvalue.loc["gene 5"]
    )
    limits = fit.conf_int(0.1, df="residual").sel(feature="gene 5").to_numpy()
    np.testing.assert_array_equal(one.loc[fit.params.columns, ["conf_low", "conf_high"]], limits)
    assert one.loc["Residual", "group"] == "Residual"
    own = fit["gene 5"].tidy(df="residual", alpha=0.1)
    pd.testing.assert_frame_equal(own, table[table["feature"] == "gene 5"].reset_index(drop=True))
    assert set(fit.tidy(effects="fixed")["effect"]) == {"fixed"}
    with pytest.raises(fm.InputError, match="effects"):
        fit.tidy(effects="random")
    glance = fit.glance()
    for name, right in (("loglik", fit.llf), ("aic", fit.aic), ("bic", fit.bic)):
        np.testing.assert_allclose(glance[name], right)
    np.testing.assert_array_equal(glance["nobs"], np.broadcast_to(fit.nobs, 12))
    np.testing.assert_allclose(glance["sigma"] ** 2, fit.theta["Residual"])
    for name in ("gene 3", "gene 4"):  # one of them has samples of its own
        alone = fit[name].glance()
        pd.testing.assert_frame_equal(alone, glance.loc[[name]], check_dtype=False)


@pytest.mark.parametrize("made", [result, own_rows])
def test_augment(made):
    fit, data, Y = made(), small_fit.samples(), small_fit.responses()
    if made is own_rows:
        Y.iloc[3, :5] = np.nan
    chosen = ["gene 3", "gene 0"]
    table = fit.augment(Y, data, features=chosen)
    assert table["feature"].unique().tolist() == chosen
    values = table.pivot(index="feature", columns="sample", values="y").loc[chosen, data.index]
    np.testing.assert_allclose(values, Y.loc[chosen])
    np.testing.assert_allclose(table["fitted"] + table["resid"], table["y"])
    fixed = fit.fittedvalues(data, level="population", features=chosen)
    np.testing.assert_array_equal(table["fixed"], fixed.to_numpy().ravel())
    one = fit["gene 3"].augment(Y, data)
    assert one.columns.tolist() == ["y", "fixed", "fitted", "resid", *data.columns]
    np.testing.assert_allclose(one["resid"], table["resid"][: len(data)], atol=1e-12)
    # Y as columns of the samples' table.
    wide = data.join(Y.T)
    pd.testing.assert_frame_equal(fit.augment(data=wide, features=chosen), table)
    np.testing.assert_array_equal(fit.resid(data=wide), fit.resid(Y, data))
    np.testing.assert_allclose(fit["gene 3"].resid(data=wide), one["resid"], atol=1e-12)
    with pytest.raises(fm.InputError, match="Pass `Y`"):
        fit.augment(data=data)
    with pytest.raises(fm.InputError, match="Pass"):
        fit.resid()


def test_pages_as_html_csv_and_latex():
    for page in (result().summary(), result().summary("gene 1")):
        assert page.as_html() == page._repr_html_()
        text = page.as_csv()
        assert text.splitlines()[0].strip('"') == page.title
        assert "Residual" in text
        latex = page.as_latex()
        assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") >= 3
        assert r"\textasciitilde{} age" in latex
        assert "%" not in latex.replace(r"\%", "")


def test_a_workbook(tmp_path):
    pytest.importorskip("openpyxl")
    fit = result()
    Y = small_fit.responses().rename(index={"gene 0": "=1+1"}).iloc[:2]
    odd = small_fit.model(Y=Y).fit()
    odd.to_excel(tmp_path / "odd.xlsx")
    assert pd.read_excel(tmp_path / "odd.xlsx", sheet_name="Fits")["feature"][0] == "=1+1"
    fit.to_excel(tmp_path / "fit.xlsx", tests={"age": fit.t_test("age")})
    sheets = pd.read_excel(tmp_path / "fit.xlsx", sheet_name=None)
    assert list(sheets) == ["Fixed effects", "Variances", "Fits", "age", "Options"]
    np.testing.assert_allclose(sheets["Fits"]["loglik"], fit.llf)
    np.testing.assert_allclose(sheets["age"]["p"], fit.t_test("age").pvalue["age"])
    for path, tests, message in (
        ("fit.csv", None, "xlsx"),
        ("fit.xlsx", {"a/b": fit.t_test("age")}, "sheet"),
        ("fit.xlsx", {"Fits": fit.t_test("age")}, "sheet"),
        ("fit.xlsx", {"a": 1}, "DataFrame"),
    ):
        with pytest.raises(fm.InputError, match=message):
            fit.to_excel(tmp_path / path, tests=tests)


def test_long_tables():
    Y = small_fit.responses().iloc[:3, :40]
    long = Y.rename_axis("gene").reset_index().melt("gene", var_name="cell", value_name="count")
    long = long.sample(frac=1.0, random_state=1)
    found = fm.from_long(long, "gene", "cell", "count")
    pd.testing.assert_frame_equal(found.loc[Y.index, Y.columns], Y, check_names=False)
    ordered = fm.from_long(long, "gene", "cell", "count", samples=[*Y.columns, "extra"], fill=0.0)
    assert ordered.columns.tolist() == [*Y.columns, "extra"]
    assert (ordered["extra"] == 0).all()
    some = fm.from_long(long.iloc[1:].astype({"gene": "category"}), "gene", "cell", "count")
    assert int(some.isna().to_numpy().sum()) == 1
    for table, options, message in (
        (pd.concat([long, long.iloc[:1]]), {}, "several values"),
        (long.rename(columns={"gene": "g"}), {}, "no column"),
        (long.assign(gene=None), {}, "missing"),
        (long.assign(count="a"), {}, "numeric"),
        (long, {"samples": Y.columns[:5]}, "lacks samples"),
        (long, {"samples": [*Y.columns, Y.columns[0]]}, "repeats"),
        ([1], {}, "row per value"),
    ):
        with pytest.raises(fm.InputError, match=message):
            fm.from_long(table, "gene", "cell", "count", **options)
    polars = pytest.importorskip("polars")
    other = polars.DataFrame({name: long[name].to_list() for name in long.columns})
    pd.testing.assert_frame_equal(fm.from_long(other, "gene", "cell", "count"), found)
