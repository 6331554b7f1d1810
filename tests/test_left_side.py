"""Responses before ``~``, and tables of samples of any library."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from formulaic import Formula

import flashmm as fm

N = 60


def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    group = np.repeat([f"g{i}" for i in range(10)], 6)
    return pd.DataFrame(
        {
            "y": 5.0 + rng.normal(size=N),
            "my response": rng.normal(size=N),
            "count": rng.integers(1, 9, size=N),
            "x": rng.normal(size=N),
            "t": np.tile(["B", "A", "C"], 20),
            "g": group,
        },
        index=[f"s{i}" for i in range(N)],
    )


def fit(formula, data=None, **options):
    data = samples() if data is None else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return fm.MultiLMM.from_formula(formula, data=data, **options).fit(parameter_space="psd")


def same(one, other):
    pd.testing.assert_frame_equal(one.params, other.params)
    pd.testing.assert_frame_equal(one.theta, other.theta)


@pytest.mark.parametrize(
    ("left", "columns"),
    [
        ("y", ["y"]),
        ("y + count", ["y", "count"]),
        ("cbind(y, `my response`)", ["y", "my response"]),
        ("`my response` + y", ["my response", "y"]),
        (" y  ", ["y"]),
    ],
)
def test_the_left_side_names_the_responses(left, columns):
    data = samples()
    found = fit(f"{left} ~ x*t + (1 | g)")
    Y = data[columns].T.astype(float)
    same(found, fit("~ x*t + (1 | g)", Y=Y))
    assert found.params.index.tolist() == columns
    assert found.options.fixed.startswith("~")
    same(found, fit("~ x*t + (1 | g)", feature_columns=columns))
    same(found, fit("~ x*t + (1 | g)", feature_columns=pd.Index(columns)))
    same(found, fit("~ x*t + (1 | g)", Y=columns))
    if columns == ["y"]:
        same(found, fit("~ x*t + (1 | g)", Y="y"))
        same(found, fit("~ x*t + (1 | g)", feature_columns="y"))


def test_a_mask_of_columns_and_names_of_ones_own():
    data = samples()
    mask = data.columns.isin(["y", "count"])
    found = fit("~ x + (1 | g)", feature_columns=mask, feature_names=["one", "two"])
    assert found.params.index.tolist() == ["one", "two"]
    labelled = pd.Series(mask, index=data.columns)[::-1]  # by label
    assert fit("~ x + (1 | g)", feature_columns=labelled).params.index.tolist() == ["y", "count"]
    with pytest.raises(fm.InputError, match="mask of 2"):
        fit("~ x + (1 | g)", feature_columns=[True, False])


def test_functions_of_responses():
    data = samples()
    found = fit("log(y) + np.sqrt(count) ~ x + (1 | g)")
    Y = pd.DataFrame({"log(y)": np.log(data["y"]), "sqrt(count)": np.sqrt(data["count"])}).T
    same(found, fit("~ x + (1 | g)", Y=Y))
    with pytest.raises(fm.InputError, match="infinite"):
        fit("log(y) ~ x + (1 | g)", data.assign(y=0.0))


def test_a_formula_of_formulaic_and_random_apart():
    same(fit(Formula("y ~ x"), random="(1 | g)"), fit("y ~ x", random="(1 | g)"))
    same(fit("y ~ x", random="(1 | g)"), fit("y ~ x + (1 | g)"))


def test_missing_responses():
    data = samples()
    data.loc["s3", "y"] = np.nan
    with pytest.raises(fm.InputError, match="missing"):
        fit("y ~ x + (1 | g)", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.MissingSamplesWarning)
        dropped = fit("y + count ~ x + (1 | g)", data, missing="drop")
    same(dropped, fit("y + count ~ x + (1 | g)", data.drop(index="s3")))
    by_feature = fit("y + count ~ x + (1 | g)", data, missing="feature")
    assert by_feature.nobs.tolist() == [N - 1, N]
    nullable = fit("y + count ~ x + (1 | g)", data.astype({"y": "Float64"}), missing="feature")
    same(nullable, by_feature)


def test_repeated_labels_of_samples_do_not_matter():
    data = samples()
    data.index = ["a"] * N
    same(fit("y ~ x + (1 | g)", data), fit("y ~ x + (1 | g)"))


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("z ~ x", {}, "response 'z' is not a column"),
        ("Y ~ x", {}, "Did you mean 'y'"),
        ("t ~ x", {}, "must be numeric"),
        ("y + y ~ x", {}, "more than once"),
        ("y - count ~ x", {}, "joined by"),
        ("y*2 ~ x", {}, "joined by"),
        ("y ~ x ~ t", {}, "two-sided"),
        ("y ~ x", {"Y": np.zeros((1, N))}, "pass one of them"),
        ("y ~ x", {"feature_columns": ["y"]}, "keep one"),
        ("~ x", {"feature_columns": []}, "names no column"),
        ("~ x", {}, "y ~ x"),
        ("~ x", {"Y": ["y", "z"]}, "'z'"),
    ],
)
def test_what_cannot_be_read_is_named(formula, options, message):
    with pytest.raises(fm.InputError, match=message):
        fit(formula, random="(1 | g)", **options)


def test_one_feature_has_a_page_of_its_own():
    result = fit("y ~ x + (1 | g)")
    assert str(result.summary()) == str(result.summary("y"))
    assert "Dependent Variable" in str(result.summary())
    assert "How the features ended" in str(fit("y + count ~ x + (1 | g)").summary())


# ---- tables of other libraries -----------------------------------------------------------------


def foreign(kind, table):
    if kind == "pyarrow":
        pyarrow = pytest.importorskip("pyarrow")
        return pyarrow.table({name: table[name].to_list() for name in table.columns})
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({name: table[name].to_list() for name in table.columns})
    return frame.lazy() if kind == "lazy" else frame


@pytest.mark.parametrize("kind", ["polars", "lazy", "pyarrow"])
def test_tables_of_any_library(kind):
    data = samples().reset_index(drop=True)
    other = foreign(kind, data)
    one, two = fit("y + count ~ x*t + (1 | g)", data), fit("y + count ~ x*t + (1 | g)", other)
    same(one, two)
    new = foreign(kind, data.head(7))
    for call in (
        lambda result, table: result.predict(table),
        lambda result, table: result.fittedvalues(table),
        lambda result, table: result.resid(data[["y", "count"]].T.to_numpy()[:, :7], table),
    ):
        np.testing.assert_array_equal(call(two, new), call(one, data.head(7)))
    # Y itself, its names in a column of text.
    wide = data[["y", "count"]].T.astype(float)
    wide.columns = [f"s{i}" for i in range(N)]
    Y = foreign(kind, wide.reset_index(names="gene"))
    same(fit("~ x*t + (1 | g)", data, Y=Y), one)
    same(fit("~ x*t + (1 | g)", other, Y=foreign(kind, data[["y", "count"]]), rows="samples"), one)
    weights = np.random.default_rng(2).uniform(1, 2, N)
    given = foreign(kind, pd.DataFrame({"w": weights}))
    if kind != "lazy":
        same(fit("y ~ x", data, random="(1 | g)", weights=given["w"]),
             fit("y ~ x", data, random="(1 | g)", weights=weights))  # fmt: skip


def test_levels_and_types_of_polars():
    pl = pytest.importorskip("polars")
    data = samples()
    frame = pl.DataFrame(
        {
            "y": data["y"].to_list(),
            "g": data["g"].to_list(),
            "text": data["t"].to_list(),
            "enum": pl.Series(data["t"], dtype=pl.Enum(["C", "B", "A"])),
            "cat": pl.Series(data["t"], dtype=pl.Categorical),
            "small": pl.Series(np.arange(N) % 100 + 20, dtype=pl.Int8),
            "x": pl.Series([None, float("nan"), *data["x"].to_list()[2:]]),
            "whole": pl.Series([None, *range(1, N)], dtype=pl.Int16),
        }
    )

    def names(formula, table=frame, **options):
        return fit(f"y ~ {formula} + (1 | g)", table, **options).params.columns.tolist()[1:]

    assert names("text") == ["text[T.B]", "text[T.C]"]
    assert names("enum") == ["enum[T.B]", "enum[T.A]"]
    # Sorted, whatever the order of appearance: B comes first in the table.
    assert names("cat") == ["cat[T.B]", "cat[T.C]"]
    assert names("cat", frame.sort("cat", descending=True)) == ["cat[T.B]", "cat[T.C]"]
    squared = fit("y ~ I(small * small) + (1 | g)", frame)
    wide = data.assign(small=np.arange(N) % 100 + 20)
    same(squared, fit("y ~ I(small * small) + (1 | g)", wide))
    for column, absent in {"x": 2, "whole": 1}.items():
        with pytest.raises(fm.InputError, match=f"{absent} in '{column}'"):
            names(column)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fm.MissingSamplesWarning)
            assert fit(f"y ~ {column} + (1 | g)", frame, missing="drop").nobs == N - absent
