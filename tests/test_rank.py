"""Columns of X that depend on others: refused, or left out with what is not estimable as NaN."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import references

import flashmm as fm
from flashmm.exceptions import InputError, RankWarning
from flashmm.formulas.build import build_design
from flashmm.formulas.estimable_terms import estimable_hypotheses
from flashmm.formulas.fixed_terms import type3_hypotheses

CODINGS = [
    "~ a * b",
    "~ b * a",
    "~ 0 + a * b",
    "~ a + b + a:b",
    "~ C(a, contr.sum) * C(b, contr.sum)",
    "~ C(a, contr.helmert) * C(b, contr.poly)",
    "~ C(a, levels=['r', 'q', 'p']) * C(b, levels=['l', 'k'])",
]


def model(fixed: str, data: pd.DataFrame | None = None, rank: str = "drop", **options):
    data = references.empty_cell() if data is None else data
    Y = np.stack([data["y"], 3.0 - 2.0 * data["y"] + data["x"]])
    return fm.MultiLMM.from_formula(fixed, "(1 | id)", data, Y, rank=rank, **options)


def fit(fixed: str, data: pd.DataFrame | None = None, **options):
    with pytest.warns(RankWarning):
        made = model(fixed, data, **options)
    return made.fit(parameter_space="psd")


def by_label(tests) -> pd.DataFrame:
    return tests.to_frame().loc[0]


@pytest.mark.parametrize("fixed", CODINGS)
def test_means_equal_emmeans_whatever_the_coding(fixed):
    expected, result = references.formulas()["empty"], fit(fixed)
    cells = by_label(result.marginal_means(["b", "a"]))  # emmeans: the first varies fastest
    order = [f"b={b}, a={a}" for b in "kl" for a in "pqr"]
    for tests, labels, known in (
        (cells, order, expected["cells"]),
        (by_label(result.marginal_means("a")), ["a=p", "a=q", "a=r"], expected["means_a"]),
        (by_label(result.marginal_means("b")), ["b=k", "b=l"], expected["means_b"]),
    ):
        table = tests.loc[labels]
        right = {key: np.array(value, dtype=float) for key, value in known.items()}
        np.testing.assert_allclose(table["estimate"], right["mean"], rtol=1e-6)
        np.testing.assert_allclose(table["se"], right["se"], rtol=1e-5)
        np.testing.assert_allclose(table["df"], right["df"], rtol=1e-4)
        np.testing.assert_allclose(table["p"], right["p"], rtol=1e-4)
        gone = np.isnan(right["mean"])
        assert (table["status"] == "not estimable").tolist() == gone.tolist()
    contrast = result.marginal_means("b", contrast="pairwise")
    assert not contrast.estimable["k - l"]
    assert np.isnan(contrast.ds[["estimate", "se", "t", "df", "p"]].to_array()).all()
    assert np.isnan(contrast.conf_int()).all()
    inner = by_label(result.marginal_means("b", by="a", contrast="pairwise"))
    assert inner["p"].isna().tolist() == [False, False, True]
    np.testing.assert_allclose(
        inner["estimate"].iloc[0], cells["estimate"]["b=k, a=p"] - cells["estimate"]["b=l, a=p"]
    )


@pytest.mark.parametrize("fixed", CODINGS)
def test_terms_keep_their_tests(fixed):
    expected = references.formulas()["empty"]["anova"]
    table = fit(fixed).anova()
    order = {0: "a", 1: "b", 2: "a:b"} if fixed != "~ b * a" else {0: "b", 1: "a", 2: "a:b"}
    right = {
        term: (F, df)
        for term, F, df in zip(expected["terms"], expected["F"], expected["df"], strict=True)
    }
    for position, term in order.items():
        F, df = right[term]
        assert table.df_num.iloc[0, position] == df
        np.testing.assert_allclose(table.fvalue.iloc[0, position], F, rtol=1e-5)
    reference = fit("~ a * b").anova()
    np.testing.assert_allclose(
        np.sort(table.df_denom.iloc[0]), np.sort(reference.df_denom.iloc[0]), rtol=1e-6
    )


def test_the_fit_is_lme4s():
    expected, result = references.formulas()["empty"], fit("~ a * b")
    np.testing.assert_allclose(result.llf.iloc[0], expected["llf"][0], rtol=1e-10)
    np.testing.assert_allclose(result.llf.iloc[0], -128.63223530, atol=1e-7)
    assert list(result.params.columns) == [
        "Intercept",
        "a[T.q]",
        "a[T.r]",
        "b[T.l]",
        "a[T.q]:b[T.l]",
    ]
    np.testing.assert_allclose(result.params.iloc[0], expected["beta"], rtol=1e-6)
    np.testing.assert_allclose(result.bse.iloc[0], expected["se"], rtol=1e-5)


@pytest.mark.parametrize("fixed", CODINGS)
def test_predictions(fixed):
    result, reference = fit(fixed), fit("~ a * b")
    data = references.empty_cell()
    new = pd.DataFrame({"a": list("pqrr"), "b": list("lkkl"), "id": "i1"})
    for options in ({}, {"level": "conditional"}, {"interval": "prediction"}):
        one, two = result.predict(new, **options), reference.predict(new, **options)
        if options.get("interval"):
            assert np.isnan(one.sel(sample=3).to_array()).all()
            one, two = one["upper"], two["upper"]
        np.testing.assert_allclose(one, two, rtol=1e-6)
        assert np.isnan(one).any("feature").to_numpy().tolist() == [False, False, False, True]
        assert one["estimable"].to_numpy().tolist() == [True, True, True, False]
    fitted = result.fittedvalues(data)
    assert np.isfinite(fitted).all()
    np.testing.assert_allclose(fitted, reference.fittedvalues(data), rtol=1e-6, atol=1e-8)


def test_contrasts_by_name_vector_and_column():
    result = fit("~ C(a, contr.sum) * C(b, contr.sum)")
    names = list(result.params.columns)
    (dropped,) = result.stats.aliased.dropped_names
    every = result.t_test()
    assert every.contrasts == names
    assert not every.estimable.any()  # each coefficient is about means over the empty cell too
    assert result.pvalues.isna().all(axis=None)
    one = "C(a, contr.sum)[S.p]"
    assert not result.t_test(one).estimable.any()
    assert not result.t_test(dropped).estimable.any()
    # The mean of cell p, k: 1, 1, 0, 1, 1, 0 over all six columns.
    whole = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    order = [*result.stats.aliased.names]
    assert order[4] == "C(a, contr.sum)[S.p]:C(b, contr.sum)[S.k]"
    mean = fit("~ a * b").marginal_means(["a", "b"]).effect["a=p, b=k"]
    np.testing.assert_allclose(result.t_test(whole).effect.iloc[:, 0], mean, rtol=1e-7)
    named = " + ".join(f"`{name}`" for name, w in zip(order, whole, strict=True) if w)
    np.testing.assert_allclose(result.t_test(named).effect.iloc[:, 0], mean, rtol=1e-7)
    treated = fit("~ a * b")
    assert treated.t_test().estimable.all()
    assert not treated.t_test("a[T.r]:b[T.l]").estimable.any()
    assert not treated.t_test("ar:bl - aq:bl").estimable.any()
    assert treated.t_test([0, 1, 0, 0, 0]).estimable.all()  # as many as there are coefficients
    assert not treated.t_test([0, 0, 0, 0, 0, 1.0]).estimable.any()


def test_joint_tests():
    result, other = fit("~ a * b"), fit("~ C(a, contr.sum) * C(b, contr.sum)")
    np.testing.assert_allclose(result.f_test().fvalue, other.f_test().fvalue, rtol=1e-6)
    joint = result.f_test(["aq", "aq:bl"])
    assert joint.estimable.all()
    assert np.isfinite(joint.fvalue).all(axis=None)
    joint = result.f_test(["aq", "ar:bl"])
    assert not joint.estimable.any()
    assert joint.pvalue.isna().all(axis=None)
    assert result.wald_test(["aq", "ar:bl"]).pvalue.isna().all(axis=None)
    with pytest.raises(InputError, match="not estimable"):
        result.bootstrap_test("ar:bl", n=10)


def test_the_default_refuses_with_advice_that_is_right():
    with pytest.raises(InputError, match=r"'a\[T\.r\]:b\[T\.l\]' is zero.*rank=\"drop\""):
        model("~ a * b", rank="raise").fit()
    with pytest.raises(InputError, match=r"Unknown rank='dorp'.*'drop'"):
        model("~ a * b", rank="dorp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model("~ a + b").stats.aliased is None  # nothing to drop, nothing to say


def test_one_warning_names_what_was_left_out():
    with pytest.warns(RankWarning) as caught:
        model("~ x * a * b")
    (only,) = caught
    assert "'a[T.r]:b[T.l]', 'x:a[T.r]:b[T.l]'" in str(only.message)
    assert only.filename == __file__


def test_saved_results_and_statistics_keep_the_note(tmp_path):
    result = fit("~ C(a, contr.sum) * b")
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    for one, two in (
        (again.marginal_means("b"), result.marginal_means("b")),
        (again.t_test(), result.t_test()),
    ):
        pd.testing.assert_frame_equal(one.to_frame(), two.to_frame())
    result.stats.save(tmp_path / "stats.nc")
    stats = fm.SummaryStats.load(tmp_path / "stats.nc")
    model = fm.MultiLMM.from_summary_stats(stats)
    pd.testing.assert_frame_equal(
        model.fit(parameter_space="psd").t_test().to_frame(), result.t_test().to_frame()
    )


def test_features_that_lack_samples_know_it_too():
    data = references.empty_cell()
    Y = np.stack([data["y"], data["y"] + data["x"], data["y"]])
    Y[0, :3] = np.nan
    with pytest.warns(RankWarning):
        made = fm.MultiLMM.from_formula(
            "~ a * b", "(1 | id)", data, Y, rank="drop", missing="feature"
        )
    result = made.fit(parameter_space="psd")
    means = result.marginal_means(["a", "b"])
    assert means.estimable.tolist() == [True] * 5 + [False]
    assert means.effect.notna().sum(axis=1).tolist() == [5, 5, 5]
    full = fit("~ a * b").marginal_means(["a", "b"]).effect.iloc[0]
    np.testing.assert_allclose(means.effect.iloc[2], full, rtol=1e-6)


def test_models_of_matrices():
    data = references.empty_cell()
    design = build_design("~ C(a, contr.sum) * b", "(1 | id)", data).design
    X = pd.DataFrame(design.X, columns=design.coef_names)
    Z, Y = design.Z, data["y"].to_numpy()[None]
    with pytest.raises(InputError, match="rank 5 but 6"):
        fm.MultiLMM.from_arrays(Y, X, Z).fit()
    reference = fit("~ C(a, contr.sum) * b")
    stats = fm.SummaryStats.from_arrays(Y, X, Z)
    for make in (
        lambda: fm.MultiLMM.from_arrays(Y, X, Z, rank="drop"),
        lambda: fm.MultiLMM.from_summary_stats(stats, rank="drop"),
    ):
        with pytest.warns(RankWarning):
            result = make().fit(parameter_space="psd")
        np.testing.assert_allclose(result.llf.iloc[0], reference.llf.iloc[0], rtol=1e-9)
        assert result.t_test().estimable.tolist() == reference.t_test().estimable.tolist()
        assert result.anova().estimable.tolist() == reference.t_test().estimable.tolist()[1:]
        assert np.isfinite(result.predict(X=X)).all()
        cell = pd.DataFrame([[1.0, -1, -1, 1, -1, -1]], columns=X.columns)  # a = r, b = l
        assert np.isnan(result.predict(X=cell)).all()
        assert np.isfinite(result.predict(X=cell[list(result.params.columns)])).all()


def test_dependences_with_weights_of_any_size():
    data = references.empty_cell().assign(year=lambda d: 2000.0 + 5 * (d.a == "q"))
    result = fit("~ year + a + b", data)
    assert result.stats.aliased.dropped_names == ("a[T.q]",)
    means = result.marginal_means("a", at={"year": 2000.0})
    assert means.estimable.tolist() == [True, False, True]  # q is seen in 2005 alone
    assert result.marginal_means("a", at={"year": 2005.0}).estimable.tolist() == [
        False,
        True,
        False,
    ]
    assert result.t_test("b[T.l]").estimable.all()
    assert not result.t_test("year").estimable.any()
    table = result.anova()
    assert table.df_num.iloc[0].tolist() == [0.0, 1.0, 1.0]
    assert table.estimable.tolist() == [False, True, True]
    assert np.isnan(table.fvalue["year"]).all()


def test_smaller_models_keep_or_lose_the_note():
    with pytest.warns(RankWarning):
        whole = model("~ x + C(a, contr.sum) * b")
    one = whole.drop(fixed="x")
    assert one.stats.aliased.dropped_names == whole.stats.aliased.dropped_names
    known = one.fit(parameter_space="psd").t_test().estimable
    assert known.to_dict() == fit("~ C(a, contr.sum) * b").t_test().estimable.to_dict()
    additive = whole.drop(fixed="C(a, contr.sum):b")
    assert additive.stats.aliased is None
    assert additive.fit(parameter_space="psd").t_test().estimable.all()
    random = whole.keep(features=[1])
    assert random.stats.aliased is whole.stats.aliased


def test_statistics_that_left_out_other_columns_are_not_joined():
    data = references.empty_cell()
    halves = [data.iloc[::2], data.iloc[1::2]]
    with pytest.warns(RankWarning):
        stats = [model("~ a * b", half).stats for half in halves]
    total = stats[0] + stats[1]
    assert total.aliased.dropped_names == ("a[T.r]:b[T.l]",)
    full = model("~ a + b").stats
    with pytest.raises(InputError, match=r"coefficients"):
        stats[0] + full
    bare = stats[1].noting(None)
    with pytest.raises(InputError, match="left out different columns"):
        stats[0] + bare


@pytest.mark.parametrize(
    "fixed",
    ["~ a * b", "~ x * a * b", "~ a + b + x", "~ x + a:x", "~ poly(x, 2) * b"],
)
def test_in_complete_designs_the_hypotheses_are_the_usual_ones(fixed):
    data = references.empty_cell()
    data = pd.concat([data, data.assign(b="l"), data.assign(b="k")], ignore_index=True)
    spec = build_design(fixed, "(1 | id)", data).design.recipe.fixed.spec
    usual = type3_hypotheses(spec)
    found = estimable_hypotheses(spec, np.zeros((len(spec.column_names), 0)))
    assert list(found) == list(usual)
    for term, L in found.items():
        both = np.concatenate([L, usual[term]])
        rank = np.linalg.matrix_rank(usual[term])
        assert L.shape[0] == rank
        assert np.linalg.matrix_rank(both, tol=1e-8) == rank


def test_the_hypotheses_are_those_of_the_rows_of_x():
    """Against the row space of X with a column per level, built from the samples."""
    data = references.empty_cell()
    data["c"] = np.where(np.arange(len(data)) % 3 == 0, "u", "v")
    data = data[~((data.a == "q") & (data.c == "u") & (data.b == "l"))].reset_index(drop=True)
    with pytest.warns(RankWarning):
        made = model("~ a * b * c", data)
    aliased, spec = made.stats.aliased, made.recipe.fixed.spec
    found = estimable_hypotheses(spec, aliased.null_space)
    factors = {"a": "pqr", "b": "kl", "c": "uv"}
    terms = [(), ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]

    def dummies(table: pd.DataFrame, term: tuple[str, ...]) -> np.ndarray:
        columns = np.ones((len(table), 1))
        for f in term:
            own = np.array([table[f] == level for level in factors[f]], dtype=float).T
            columns = np.einsum("ni,nj->nij", columns, own).reshape(len(table), -1)
        return columns

    blocks = [dummies(data, term) for term in terms]
    X = np.hstack(blocks)
    owner = np.repeat(np.arange(len(terms)), [block.shape[1] for block in blocks])
    _, sizes, right = np.linalg.svd(np.unique(X, axis=0), full_matrices=False)
    rows = right[sizes > 1e-8]

    def belonging(term: tuple[str, ...]) -> np.ndarray:
        outside = [not set(term) <= set(other) for other in terms]
        u, s, _ = np.linalg.svd(rows[:, np.array(outside)[owner]])
        rank = int((s > 1e-8).sum())
        return u[:, rank:].T @ rows

    X_coded = made.recipe.fixed_rows(data)
    for term in terms[1:]:
        own = belonging(term)
        above = [belonging(other) for other in terms if set(other) > set(term)]
        if above:
            stacked = np.concatenate(above)
            _, s, basis = np.linalg.svd(stacked, full_matrices=False)
            basis = basis[s > 1e-8]
            own = own - own @ basis.T @ basis
        L = found[":".join(term)]
        # The same functions of the means of the samples: l = w X for the w of least length.
        means = own @ np.linalg.pinv(X)
        coded = L @ np.linalg.pinv(X_coded)
        rank = np.linalg.matrix_rank(means, tol=1e-8)
        assert L.shape[0] == rank
        assert np.linalg.matrix_rank(np.concatenate([means, coded]), tol=1e-8) == rank


def test_an_intercept_alone_has_an_empty_table():
    for made in (model("~ 1", rank="raise"), model("~ x", rank="raise").drop(fixed="x")):
        table = made.fit(parameter_space="psd").anova()
        assert table.contrasts == []
        assert table.to_frame().empty
        assert table.pvalue.shape == (2, 0)
        assert table.adjusted().shape == (2, 0)
        with pytest.raises(InputError, match="no hypothesis"):
            table.top_table()


def test_near_dependences_have_no_hole_in_the_message():
    rng = np.random.default_rng(0)
    data = references.empty_cell()
    for scale in (1e-7, 1e-9, 1e-12, 1e-14):
        close = data.assign(z=data.x + scale * rng.normal(size=len(data)), w=data.x * 1.0)
        with pytest.raises(InputError, match=r"rank") as error:
            model("~ x + z + w", close, rank="raise").fit()
        assert "combination of ;" not in str(error.value)
        assert "combination of ." not in str(error.value)


def test_tests_that_integrate_over_the_ratios_know_it_too():
    data = references.empty_cell()
    rng = np.random.default_rng(1)
    ids = pd.Categorical(data["id"]).codes
    Y = rng.normal(size=(40, len(data))) + rng.normal(size=(40, 11))[:, ids] * 0.5
    with pytest.warns(RankWarning):
        made = fm.MultiLMM.from_formula("~ a * b", "(1 | id)", data, Y, rank="drop")
    result = made.fit(parameter_space="psd")
    means = result.marginal_means(["a", "b"], df="integrated")
    assert means.effect.isna().any().tolist() == [False] * 5 + [True]
    assert np.isnan(means.conf_int().sel(contrast="a=r, b=l")).all()
    assert np.isfinite(means.conf_int().sel(contrast="a=p, b=l")).all()
    table = result.anova(df="integrated")
    assert table.df_num.iloc[0].tolist() == [2.0, 1.0, 1.0]
    assert np.isfinite(table.pvalue).all(axis=None)
    new = pd.DataFrame({"a": ["p", "r"], "b": ["l", "l"], "id": "i1"})
    found = result.predict(new, df="integrated", interval="confidence")
    assert np.isnan(found.isel(sample=1).to_array()).all()
    assert np.isfinite(found.isel(sample=0).to_array()).all()


def test_an_empty_table_of_every_kind_of_test():
    result = model("~ 1", rank="raise").fit(parameter_space="psd")
    for options in ({"df": "integrated"}, {"df": "kenward-roger"}, {"moderated": True}):
        assert result.anova(**options).to_frame().empty


def test_summaries_say_what_was_left_out():
    result = fit("~ C(a, contr.sum) * b")
    for page in (result.summary(), result.sel(0).summary()):
        text = " ".join(str(page).split())
        assert "Left out of X, on whose other columns they depend: 'C(a, contr.sum)[S.q]:b" in text
    assert "Left out" not in str(model("~ a + b", rank="raise").fit().summary())


def test_covariates_of_each_feature_stay():
    data = references.empty_cell()
    rng = np.random.default_rng(5)
    Y = np.stack([data["y"], data["x"]])
    dose = rng.integers(0, 3, size=Y.shape).astype(float)
    with pytest.warns(RankWarning):
        made = fm.MultiLMM.from_formula(
            "~ a * b + dose", "(1 | id)", data, Y, rank="drop", feature_covariates={"dose": dose}
        )
    assert made.stats.aliased.dropped_names == ("a[T.r]:b[T.l]",)
    result = made.fit(parameter_space="psd")
    for j in range(2):
        alone = fit("~ a * b + dose", data.assign(dose=dose[j], y=Y[j]))
        np.testing.assert_allclose(result.params.iloc[j], alone.params.iloc[0], rtol=1e-8)
    assert result.anova().df_num.iloc[0].tolist() == [2.0, 1.0, 1.0, 1.0]
