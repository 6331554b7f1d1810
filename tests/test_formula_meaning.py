"""Formulas that would mean something else to users of R: as R, or refused."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import references
from formulaic import Formula

import flashmm as fm
from flashmm.exceptions import FormulaWarning, InputError
from flashmm.formulas.build import build_design
from flashmm.inference.names import r_name, resolve_names


def samples(n: int = 48) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    return pd.DataFrame(
        {
            "k": rng.integers(1, 9, n),
            "z": rng.normal(size=n),
            "treated": rng.random(n) < 0.5,
            "cell": np.tile(list("pqr"), n // 3),
            "my k": rng.integers(1, 4, n),
            "g": np.repeat(list("abcdefgh"), n // 8),
        }
    )


def build(fixed: object, random: object = "(1 | g)", data: pd.DataFrame | None = None, **k: object):
    return build_design(fixed, random, samples() if data is None else data, **k).design


def fit(fixed: str, random: object = "(1 | g)", data: pd.DataFrame | None = None, **options):
    data = samples() if data is None else data
    Y = np.random.default_rng(5).normal(size=(2, len(data))) + 3.0 * data["z"].to_numpy()
    return fm.MultiLMM.from_formula(fixed, random, data, Y, **options).fit(parameter_space="psd")


# --- Numbers outside calls -------------------------------------------------------------------


@pytest.mark.parametrize("written", ["2:z", "z:2", "0:z", "2.5:cell", "z + 3:k", "2 * z", "z / 2"])
def test_numbers_that_scale_a_term_are_refused(written):
    """formulaic doubles the column under its old name: the coefficient of ``2:z`` was half."""
    with pytest.raises(InputError, match="stands outside a call"):
        build(f"~ {written}")
    with pytest.raises(InputError, match="stands outside a call"):
        build("~ 1", f"(0 + {written} | g)")


def test_numbers_that_scale_no_term_stay():
    with pytest.raises(InputError, match="scales a column"):
        build(Formula("~ 2:z"))
    for written, names in (("1:z", 2), ("(z + k)^2", 4), ("z**2 - 1", 1), ("1 + z - 1", 1)):
        assert len(build(f"~ {written}").coef_names) == names


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("log(k, 2)", "takes one argument"),
        ("I(np.log(k + 1, 10))", "takes one argument"),
        ("log(k, base=2)", "takes one argument"),
        ("max(k)", "one value for all samples"),
        ("I(5)", "one value for all samples"),
        ("k.mean()", "one value for all samples"),
    ],
)
def test_calls_that_say_why_they_cannot_be_computed(written, message):
    with pytest.raises(InputError, match=message):
        build(f"~ {written}")
    assert build("~ log(k, 2)", context={"log": lambda x, b: np.log(x) / np.log(b)}).X.shape[1] == 2


# --- ^ and other operators inside calls ------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("I(k^2)", lambda d: d.k**2.0),
        ("I( k ^ 2 )", lambda d: d.k**2.0),
        ("{k^2}", lambda d: d.k**2.0),
        ("log(k^8)", lambda d: 8 * np.log(d.k)),
        ("I((-k)^2)", lambda d: d.k**2.0),
        ("I(-k^2)", lambda d: -(d.k**2.0)),
        ("I(2 * k^2 + 1)", lambda d: 2.0 * d.k**2 + 1),
        ("I(k^-1)", lambda d: 1 / d.k),
        ("I(`my k`^2)", lambda d: d["my k"] ** 2.0),
        ("I((k * 1000)^20)", lambda d: (1000.0 * d.k) ** 20),
        ("I(k**25)", lambda d: d.k**25.0),
        ("np.sqrt(k^2 + `my k`^2)", lambda d: np.hypot(d.k, d["my k"])),
    ],
)
def test_a_caret_inside_a_call_is_a_power(written, value):
    data = samples()
    expected = value(data).to_numpy()
    np.testing.assert_allclose(build(f"~ {written}", data=data).X[:, 1], expected, rtol=1e-12)
    scale = np.abs(expected).max()
    for random in (f"(0 + {written} | g)", f"diag(0 + {written} | g)", f"~ 0 + {written}"):
        Z = build("~ 1", random, data).Z.toarray()
        np.testing.assert_allclose(Z.sum(axis=1) / scale, expected / scale, rtol=1e-12)


def test_quoted_text_keeps_its_carets():
    data = samples().assign(**{"a^b": 2.0 * samples().z})
    np.testing.assert_array_equal(build("~ I(`a^b`)", data=data).X[:, 1], data["a^b"])
    design = build("~ f(cell, 'p^q')", data=data, context={"f": lambda x, text: x + text})
    assert design.coef_names[1] == "f(cell, 'p^q')[T.qp^q]"


def test_a_caret_in_a_parsed_formula_is_refused():
    with pytest.raises(InputError, match=r"Write \*\* for a power"):
        build(Formula("~ I(k^2)"))
    with pytest.raises(InputError, match=r"Write \*\* for a power"):
        build("~ 1", Formula("0 + I(k^2)"))


def test_powers_are_found_by_the_names_of_r():
    result = fit("~ z + I(k^2)")
    names = list(result.params.columns)
    assert names == ["Intercept", "z", "I(k ** 2)"]
    expected = result.t_test("I(k ** 2)").ds["p"].to_numpy()
    for name in ("I(k^2)", "I(k**2)", "I(k ^ 2)"):
        np.testing.assert_array_equal(result.t_test(name).ds["p"], expected)
    assert r_name("I(k ** 2)") == "I(k^2)"
    model = fm.MultiLMM.from_formula("~ z + I(k^2)", "(1|g)", samples(), np.ones((1, 48)))
    assert model.drop(fixed="I(k^2)").stats.coef_names == ("Intercept", "z")


@pytest.mark.parametrize(
    "written",
    [
        "I(k %% 2)",
        "I(k %in% z)",
        "I(k %/% 2)",
        "I(k %k% z)",
        "I(k & 3)",
        "I(k | 1)",
        "I(z > 0 & k > 2)",
        "I((z > 0) & k)",
        "I(~k)",
        "I(~treated)",
        "I(!treated)",
        "I(treated && treated)",
        "I(treated || treated)",
        "I(k << 1)",
        "I(k >> 1)",
        "I(k in z)",
        "{k & 3}",
        "log(1 + (k | 1))",
    ],
)
def test_operators_without_a_meaning_inside_calls_are_refused(written):
    with pytest.raises(InputError):
        build(f"~ {written}")
    with pytest.raises(InputError):
        build("~ z", f"(0 + {written} | g)")
    with pytest.raises(InputError):
        build(f"~ z + offset({written})")


def test_conditions_are_joined():
    data = samples()
    both = (data.z > 0) & (data.k > 4)
    for written in ("I((z > 0) & (k > 4))", "I((z > 0) & (k > 4) & (k < 99))"):
        np.testing.assert_array_equal(build(f"~ {written}").X[:, 1], both)
    either = data.treated | (data.z > 0)
    np.testing.assert_array_equal(build("~ I(treated | (z > 0))").X[:, 1], either)
    np.testing.assert_array_equal(
        build("~ I(np.isin(k, [1, 2]) & treated)").X[:, 1], data.k.isin([1, 2]) & data.treated
    )


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("I(big * big)", lambda b: b * b),
        ("I(big * big * big)", lambda b: b * b * b),
        ("np.multiply(big, big)", lambda b: b * b),
        ("np.power(big, 3)", lambda b: b**3),
        ("np.square(big)", lambda b: b * b),
        ("pow(big, 3)", lambda b: b**3),
        ("{big * big}", lambda b: b * b),
        ("I((1 + big) * big)", lambda b: (1 + b) * b),
        ("I(unsigned - 9)", lambda b: b / 1e9 - 9),
    ],
)
def test_whole_numbers_do_not_wrap_around(written, value):
    data = samples()
    data["big"] = data.k * 10**9
    data["unsigned"] = data.k.astype("uint64")
    expected = value(data.big.to_numpy(dtype=float))
    np.testing.assert_allclose(build(f"~ {written}", data=data).X[:, 1], expected, rtol=1e-12)
    Z = build("~ 1", f"(0 + {written} | g)", data).Z.toarray()
    np.testing.assert_allclose(Z.sum(axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("written", ["I(big * big)", "np.power(big, 3)", "scale(big * k * big)"])
def test_saved_results_do_not_wrap_around(written, tmp_path):
    data = samples()
    data["big"] = data.k * 10**9
    result = fit(f"~ {written}", data=data)
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    np.testing.assert_array_equal(again.predict(data), result.predict(data))


def test_whole_numbers_stay_whole_where_they_are_levels():
    assert build("~ C(k * 2)").coef_names[1] == "C(k * 2)[T.4]"
    assert build("~ I((k * 2).astype(str))").coef_names[1] == "I((k * 2).astype(str))[T.12]"


@pytest.mark.parametrize(
    "written",
    [
        "I(treated + other)",
        "I(treated * other)",
        "I(treated - other)",
        "I(-treated)",
        "I((z > 0) + (k > 2))",
        "I((z > 0) + treated + (k > 2))",
        "I(`my flag` + treated)",
        "I(Q('my flag') + treated)",
        "I(I(treated) + other)",
        "I(np.isin(k, [1]) + np.isin(k, [2]))",
        "np.add(treated, other)",
        "np.multiply(treated, other)",
        "I(flag + treated)",
        "log(1 + ((z > 0) + (k > 2)))",
    ],
)
def test_arithmetic_between_conditions_is_refused(written):
    # R counts; numpy's + between booleans is `or`, its * is `and`, and pandas' - is `not`.
    data = samples().assign(other=samples().z > 0.3)
    data["my flag"] = (data.k > 3).astype("boolean")
    context = {"flag": np.array(data.k > 3)}
    for fixed, random in ((f"~ {written}", "(1 | g)"), ("~ z", f"(0 + {written} | g)")):
        with pytest.raises(InputError, match=r"between conditions.*\* 1"):
            build(fixed, random, data, context=context)


def test_conditions_beside_numbers_count():
    data = samples()
    count = (data.z > 0).astype(int) + (data.k > 4)
    for written in (
        "I((z > 0) * 1 + (k > 4))",
        "I((z > 0) + 1 * (k > 4))",
        "I(0 + (z > 0) + (k > 4))",
    ):
        np.testing.assert_array_equal(build(f"~ {written}").X[:, 1], count)
    np.testing.assert_array_equal(build("~ I(1 - treated)").X[:, 1], 1 - data.treated)


@pytest.mark.parametrize("random", ["(1 | g)", "(k %in% cell | g)"])
def test_in_between_terms_is_refused(random):
    # R reads k %in% cell as cell:k; elsewhere it is cell + cell:k.
    fixed = "~ k %in% cell" if random == "(1 | g)" else "~ 1"
    with pytest.raises(InputError, match=r"%in%.*b:a.*b / a"):
        build(fixed, random)


# --- Booleans --------------------------------------------------------------------------------


BOOLEANS = {
    "bool": lambda v: v,
    "boolean": lambda v: v.astype("boolean"),
    "object": lambda v: v.astype(object),
    "numpy objects": lambda v: pd.Series([np.bool_(x) for x in v], dtype=object),
    "category": lambda v: v.astype("category"),
    "sparse": lambda v: pd.Series(pd.arrays.SparseArray(v)),
    "arrow": lambda v: v.astype("bool[pyarrow]"),
}


def as_boolean(kind: str, values: pd.Series) -> pd.Series:
    if kind == "arrow":
        pytest.importorskip("pyarrow")
    return BOOLEANS[kind](values)


@pytest.mark.parametrize("kind", BOOLEANS)
def test_a_boolean_is_a_factor(kind):
    data = samples()
    text = data.assign(treated=data.treated.map({True: "yes", False: "no"}))
    data["treated"] = as_boolean(kind, data.treated)
    design = build("~ treated * z", data=data)
    assert design.coef_names == ("Intercept", "treated[T.True]", "z", "treated[T.True]:z")
    for fixed, random in (
        ("~ 0 + cell:treated", "(1 | g)"),
        ("~ 0 + treated:z", "(1 | g)"),
        ("~ z", "(treated | g)"),
        ("~ z", "(0 + treated | g)"),
        ("~ z", "diag(treated | g)"),
        ("~ z", "~ 0 + treated:g"),
        ("~ z", "(1 | treated:g)"),
    ):
        ours, theirs = build(fixed, random, data), build(fixed, random, text)
        assert len(ours.coef_names) == len(theirs.coef_names)
        np.testing.assert_array_equal(ours.X, theirs.X)
        np.testing.assert_array_equal(ours.Z.toarray(), theirs.Z.toarray())
    assert build("~ 0 + cell:treated", data=data).coef_names[:2] == (
        "cell[p]:treated[False]",
        "cell[q]:treated[False]",
    )
    assert build("~ 1", "~ 0 + treated", data).structure.terms[0].levels == ("False", "True")
    with pytest.raises(InputError, match=r"diag\(0 \+ treated \| g\)"):
        build("~ 1", "(treated || g)", data)


@pytest.mark.parametrize("kind", BOOLEANS)
@pytest.mark.parametrize("given", BOOLEANS)
def test_new_data_may_hold_one_value_of_a_boolean(kind, given):
    data = samples()
    data["treated"] = as_boolean(kind, data.treated)
    result = fit("~ cell * treated + z", data=data)
    new = samples().assign(z=0.25)
    beta = result.params
    for value in (True, False):
        column = as_boolean(given, pd.Series([value] * len(new)))
        got = result.predict(new.assign(treated=column)).to_numpy()
        row = beta["Intercept"] + 0.25 * beta["z"] + value * beta["treated[T.True]"]
        np.testing.assert_allclose(got[:, 0], row, rtol=1e-12)  # cell p


def test_conditions_are_factors_too():
    design = build("~ 0 + cell:I(z > 0)")
    assert design.coef_names[0] == "cell[p]:I(z > 0)[False]"
    assert len(design.coef_names) == 6
    assert build("~ np.greater(z, 0)").coef_names[1] == "np.greater(z, 0)[T.True]"
    context = {"flag": np.array(samples().z > 0)}
    assert build("~ flag", context=context).coef_names[1] == "flag[T.True]"
    assert build("~ I(treated * 1)").coef_names[1] == "I(treated * 1)"  # a number, as in R
    means = fit("~ I(z > 0) + treated").marginal_means("treated")
    assert means.contrasts == ["treated=False", "treated=True"]


def test_a_boolean_with_gaps_is_a_factor_of_the_rest():
    data = samples()
    for column in (data.treated.astype("boolean"), data.treated.astype(object)):
        gaps = data.assign(treated=column)
        gaps.loc[:4, "treated"] = None
        with pytest.raises(InputError, match="5 in 'treated'"):
            build("~ treated", data=gaps)
        design = build("~ treated", data=gaps, missing="drop")
        assert design.coef_names == ("Intercept", "treated[T.True]")
        np.testing.assert_array_equal(design.X[:, 1], data.treated[5:])


def test_the_names_of_r_for_booleans():
    names = ("Intercept", "treated[T.True]", "z:treated[T.True]", "cell[p]:treated[False]")
    asked = ["treatedTRUE", "treatedTrue", "treated[TRUE]", "z:treatedTRUE", "cellp:treatedFALSE"]
    assert resolve_names(asked, names) == [1, 1, 1, 2, 3]
    assert r_name("z:treated[T.True]") == "z:treatedTRUE"
    result = fit("~ treated * z")
    one = result.t_test("treatedTRUE + z:treatedTRUE").ds["estimate"]
    params = result.params
    np.testing.assert_allclose(one[:, 0], params["treated[T.True]"] + params["treated[T.True]:z"])
    means = result.marginal_means("treated", contrast="pairwise", at={"z": 0.0})
    np.testing.assert_allclose(means.ds["estimate"][:, 0], -params["treated[T.True]"])


@pytest.mark.parametrize(
    "values",
    [[True, 1, 2], [True, False, 2.5], [1, 2, np.True_], [False, 0, True]],
)
def test_booleans_beside_numbers_are_refused(values):
    column = pd.Series(values * 16, dtype=object)
    for data in (
        samples().assign(mixed=column),
        samples().assign(mixed=pd.Categorical([1, 2, 3] * 16).rename_categories([True, 2, 3.5])),
    ):
        with pytest.raises(InputError, match=r"'mixed' .*mixes booleans with numbers"):
            build("~ mixed", data=data)
        with pytest.raises(InputError, match=r"'mixed' .*mixes booleans with numbers"):
            build("~ 1", "(1 | mixed)", data)


def test_many_samples_make_the_same_columns_of_booleans(monkeypatch):
    data = pd.concat([samples()] * 3, ignore_index=True)
    one = build("~ cell:treated + I(z > 0) + I(k^2)", "(treated | g)", data)
    monkeypatch.setattr("flashmm.formulas.rows_in_chunks.many", lambda _: True)
    two = build("~ cell:treated + I(z > 0) + I(k^2)", "(treated | g)", data)
    assert one.coef_names == two.coef_names
    np.testing.assert_array_equal(one.X, two.X)
    np.testing.assert_array_equal(one.Z.toarray(), two.Z.toarray())


def test_saved_results_keep_booleans_and_powers(tmp_path):
    result = fit("~ 0 + cell:treated + I(k^2)")
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    new = samples().assign(treated=True)
    np.testing.assert_array_equal(again.predict(new), result.predict(new))
    one, two = (r.marginal_means("treated", by="cell").ds["estimate"] for r in (again, result))
    np.testing.assert_array_equal(one, two)


# --- Random formulas with an intercept -------------------------------------------------------


@pytest.mark.parametrize(
    "random",
    [
        "~ g",
        "g",
        "~ 1 + g",
        ["~ 0 + cell", "~ g"],
        {"people": "~ g"},
        Formula("~ g"),
        "~ g:cell",
        "~ C(k)",
    ],
)
def test_a_random_formula_with_an_intercept_is_refused(random):
    with pytest.raises(InputError, match=r"ambiguous.*\(1 \| .*~ 0 \+ "):
        build("~ z", random)


@pytest.mark.parametrize("random", ["~ 0 + g + cell", "~ g + cell - 1", "~ 0 + g + g:cell"])
def test_a_random_formula_that_leaves_a_level_out_is_refused(random):
    with pytest.raises(InputError, match="'cell' would lose its first level"):
        build("~ z", random)


@pytest.mark.parametrize("random", ["~ 1", Formula("~ 1")])
def test_a_random_formula_of_an_intercept_alone_is_refused(random):
    with pytest.raises(InputError, match="no random effects"):
        build("~ z", random)


def test_random_formulas_that_mean_what_they_say():
    for random in ("~ 0 + g", "~ g - 1", "~ -1 + g", Formula("0 + g")):
        assert build("~ z", random).structure.terms[0].levels == tuple("abcdefgh")
    assert build("~ z", "~ 0 + g + z").structure.q == 9


# --- Factors with one level, ordered factors -------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"cell": "p"},
        {"cell": pd.Categorical(["p"] * 48, categories=["p", "q"])},
        {"cell": True},
    ],
)
@pytest.mark.parametrize(
    ("fixed", "random"),
    [
        ("~ cell", "(1 | g)"),
        ("~ z * cell", "(1 | g)"),
        ("~ 0 + z + cell:z", "(1 | g)"),
        ("~ 0 + treated + cell", "(1 | g)"),
        ("~ C(cell)", "(1 | g)"),
        ("~ z", "(cell | g)"),
        ("~ z", "diag(1 + cell | g)"),
    ],
)
def test_a_factor_with_one_level_is_refused(change, fixed, random):
    with pytest.raises(InputError, match=r"cell\)?' has one level"):
        build(fixed, random, samples().assign(**change))


def test_a_factor_that_gaps_leave_with_one_level_is_refused():
    data = samples()
    data.loc[data.cell != "p", "z"] = np.nan
    with pytest.raises(InputError, match="'cell' has one level"):
        build("~ cell + z", data=data, missing="drop")
    design = build("~ 0 + cell + z", data=data, missing="drop")  # a column of its own
    assert design.coef_names == ("cell[p]", "z")


def test_an_ordered_factor_warns_of_its_coding():
    data = samples().assign(
        cell=pd.Categorical(samples().cell, categories=list("qpr"), ordered=True)
    )
    for fixed, random in (
        ("~ cell", "(1|g)"),
        ("~ C(cell)", "(1|g)"),
        ("~ 1", "(cell|g)"),
        ("~ I(cell)", "(1|g)"),
        ("~ Q('cell')", "(1|g)"),
    ):
        with pytest.warns(FormulaWarning, match=r"'cell' is ordered.*C\(cell, contr\.poly\)"):
            build(fixed, random, data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build("~ 0 + cell", data=data).coef_names == ("cell[q]", "cell[p]", "cell[r]")
        assert build("~ C(cell, contr.treatment)", data=data).X.shape == (48, 3)
        linear = build("~ C(cell, contr.poly)", data=data)
        build("~ 1", "(1 | cell)", data)
    order = {"q": -np.sqrt(0.5), "p": 0.0, "r": np.sqrt(0.5)}
    np.testing.assert_allclose(linear.X[:, 1], [order[c] for c in data.cell], atol=1e-12)


# --- Labels of features ----------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_missing_feature_names_are_refused(missing):
    Y, data = np.random.default_rng(0).normal(size=(3, 48)), samples()
    labels = pd.Index(["a", missing, "c"], dtype=object)
    message = "Missing feature names: .* at position 1"
    for given, options in (
        (pd.DataFrame(Y, index=labels), {}),
        (Y, {"feature_names": list(labels)}),
        (pd.DataFrame(Y.T, columns=labels), {"rows": "samples"}),
    ):
        with pytest.raises(InputError, match=message):
            fm.MultiLMM.from_formula("~ z", "(1|g)", data, given, **options)
    with pytest.raises(InputError, match=message):
        fm.MultiLMM.from_arrays(pd.DataFrame(Y, index=labels), np.ones((48, 1)), np.eye(48)[:, :6])
    stats = fm.SummaryStats.from_arrays(Y, np.ones((48, 1)), np.eye(48)[:, :6])
    with pytest.raises(InputError, match=message):
        fm.MultiLMM.from_summary_stats(stats, feature_names=list(labels))


def test_missing_float_and_column_names_are_refused():
    Y = np.random.default_rng(0).normal(size=(2, 48))
    with pytest.raises(InputError, match="Missing feature names"):
        fm.MultiLMM.from_formula("~ z", "(1|g)", samples(), pd.DataFrame(Y, index=[1.0, np.nan]))
    several = pd.MultiIndex.from_tuples([("a", "x"), ("b", None)])
    with pytest.raises(InputError, match="Missing feature names"):
        fm.MultiLMM.from_formula("~ z", "(1|g)", samples(), pd.DataFrame(Y, index=several))
    X = pd.DataFrame({"one": 1.0, None: samples().z})
    with pytest.raises(InputError, match="Missing coefficient names"):
        fm.MultiLMM.from_arrays(Y, X, np.eye(48)[:, :6])
    Z = pd.DataFrame(np.eye(48)[:, :2], columns=["a", np.nan])
    with pytest.raises(InputError, match="Missing column of Z names"):
        fm.MultiLMM.from_arrays(Y, np.ones((48, 1)), Z)


# --- Values of lme4 --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "fixed"),
    [
        ("power", "~ age + I(age^2)"),
        ("boolean", "~ age * female"),
        ("cells", "~ 0 + C(age):female"),
    ],
)
def test_fits_equal_lme4(case, fixed):
    expected = references.formulas()[case]
    data = references.orthodont()
    result = fm.MultiLMM.from_formula(
        fixed, "(1 | Subject)", data, data["distance"].to_numpy()
    ).fit(parameter_space="psd")
    names = [name.replace("factor(", "C(") for name in expected["names"]]
    order = resolve_names(names, list(result.params.columns))
    np.testing.assert_allclose(result.params.to_numpy()[0, order], expected["beta"], rtol=1e-6)
    np.testing.assert_allclose(result.bse.to_numpy()[0, order], expected["se"], rtol=1e-5)
    np.testing.assert_allclose(result.theta.to_numpy()[0], expected["variances"], rtol=1e-5)
    np.testing.assert_allclose(result.llf.iloc[0], expected["llf"][0], rtol=1e-9)


def test_products_of_whole_numbers_do_not_wrap_around():
    data = samples().assign(big=10**7 * samples().k)
    expected = data.big.astype(float) ** 2 * data["my k"] * 10**7
    data["other"] = 10**7 * data["my k"]
    data["third"] = data.big
    X = build("~ big:other:third", data=data).X
    np.testing.assert_allclose(X[:, 1], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("I(k*k*k*k*k*k*k*k*k*k*k*k)", lambda k: k**12),
        ("np.power(k, 11)", lambda k: k**11),
        ("I(k.pow(11))", lambda k: k**11),
        ("log(np.power(k, 11))", lambda k: 11 * np.log(k)),
        ("I(np.square(np.square(np.square(np.square(k)))) / 2)", lambda k: k**16 / 2),
        ("poly(np.power(k, 11), 1, raw=True)", lambda k: k**11),
    ],
)
@pytest.mark.parametrize("dtype", ["int8", "int64", "UInt8"])
def test_calls_of_whole_numbers_do_not_wrap_around(written, value, dtype, tmp_path):
    data = samples().assign(k=(samples().k * 11).astype(dtype))
    X = build(f"~ {written}", data=data).X
    np.testing.assert_allclose(X[:, 1], value(data.k.to_numpy(dtype=float)), rtol=1e-12)
    if ".pow" not in written:  # files hold no methods
        result = fit(f"~ {written}", data=data)
        result.save(tmp_path / "fit.nc")
        loaded = fm.MultiLMMResults.load(tmp_path / "fit.nc")
        np.testing.assert_array_equal(loaded.predict(data), result.predict(data))


def test_whole_numbers_stay_whole_where_floats_would_be_others():
    data = samples()
    names = build("~ 0 + k.astype(str)", data=data).coef_names
    assert names[0] == "k.astype(str)[1]"
    table = np.arange(10.0) ** 2
    X = build("~ table[k]", data=data, context={"table": table}).X
    np.testing.assert_array_equal(X[:, 1], data.k**2)
    data["k"] += 10**17
    np.testing.assert_array_equal(build("~ I(k % 7)", data=data).X[:, 1], data.k % 7)


@pytest.mark.parametrize("name", ["True", "None", "False", "__debug__"])
def test_a_column_called_as_a_word_of_python_is_not_that_word(name):
    data = samples().assign(**{name: 2.0 * samples().z})
    assert build(f"~ `{name}`", data=data).coef_names == ("Intercept", name)
    with pytest.raises(InputError, match=f"'{name}' is a word of Python.*Rename"):
        build(f"~ I(`{name}` * k)", data=data)


@pytest.mark.parametrize(
    "call",
    ["I(k.__xor__(2))", "k.__pow__(2)", "{k.__add__(1)}", "np.add(k, k.__xor__(1))"],
)
def test_special_methods_of_python_are_refused(call):
    """`k.__xor__(2)` is what `k^2` may not mean."""
    with pytest.raises(InputError, match=r"__ in .* is no method for columns; write the operator"):
        build(f"~ {call}", data=samples())


@pytest.mark.parametrize("name", ["1", "."])
def test_columns_whose_names_mean_something_else(name):
    """`1` in backticks was the intercept: the column was left out without a word."""
    data = samples().assign(**{name: samples().z})
    for fixed, random in ((f"~ `{name}`", "(1 | g)"), ("~ k", f"(`{name}` | g)")):
        with pytest.raises(InputError, match=r"column named '[1.]' is read as .* Rename it"):
            build(fixed, random, data)
    np.testing.assert_array_equal(build(f"~ Q('{name}')", data=data).X[:, 1], data.z)


@pytest.mark.parametrize(
    "call", ["I(k > 1 and z > 0)", "I(not treated)", "I(1 < k < 3)", "I(z if k else 1)"]
)
def test_questions_to_a_whole_column_say_how_to_ask_each_sample(call):
    with pytest.raises(InputError, match="asks one question of a whole column"):
        build(f"~ {call}")


def test_numbers_of_every_kind_in_object_columns_are_numbers():
    """Fractions, and decimals beside floats, were levels."""
    k = samples().k
    thirds = [Fraction(int(value), 3) for value in k]
    mixed = [Decimal(int(value)) if value % 2 else float(value) for value in k]
    data = samples().assign(u=pd.Series(thirds, dtype=object), v=pd.Series(mixed, dtype=object))
    np.testing.assert_allclose(build("~ u + v", data=data).X[:, 1:], np.column_stack([k / 3, k]))
    data["v"] = pd.Series([complex(value, 1) for value in k], dtype=object)
    with pytest.raises(InputError, match="complex"):
        build("~ v", data=data)


def test_a_group_that_is_called_as_the_residual_variance_is():
    with pytest.raises(InputError, match="name 'Residual', which is that of the residual"):
        build("~ k", "(1 | Residual)", samples().assign(Residual=samples().g))


def test_anndata_keeps_booleans():
    anndata = pytest.importorskip("anndata")
    obs = samples().set_index(pd.Index([f"c{i}" for i in range(48)]))
    adata = anndata.AnnData(np.random.default_rng(0).normal(size=(48, 3)), obs=obs)
    model = fm.MultiLMM.from_anndata(adata, "~ treated + I(k^2) + offset(z)", "(1 | g)")
    assert model.stats.coef_names == ("Intercept", "treated[T.True]", "I(k ** 2)")


def test_warnings_point_at_the_callers_line_and_come_once():
    data = samples().assign(cell=pd.Categorical(samples().cell, ordered=True))
    data.loc[3, "z"] = np.nan
    Y = np.random.default_rng(0).normal(size=(2, 48))
    with pytest.warns() as caught:
        fm.MultiLMM.from_formula("~ cell + z", "(1 | g)", data, Y, missing="drop")
    assert [w.category for w in caught] == [FormulaWarning, fm.MissingSamplesWarning]
    assert caught[0].filename == __file__
