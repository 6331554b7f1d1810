"""Dates, periods and durations as times of ar1 and exp: fits equal those of numbers."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose

import flashmm as fm
from flashmm.exceptions import InputError, MissingSamplesWarning
from flashmm.formulas.recipe_text import recipe_from_text, recipe_to_text

GROUPS, DAYS = 12, np.array([0, 7, 14, 28])
WEEKS = pd.Timestamp("2024-03-19") + pd.to_timedelta(DAYS, unit="D")


def table(times, kind=None):
    """Two samples of every group at every time, two missing; ``n`` counts the times."""
    at = np.delete(np.tile(np.arange(len(times)).repeat(2), GROUPS), [3, 11])
    g = np.delete(np.arange(GROUPS).repeat(2 * len(times)), [3, 11])
    when = pd.Series(times, dtype=kind).take(at).reset_index(drop=True)
    return pd.DataFrame({"g": [f"g{i:02}" for i in g], "n": at, "when": when})


def responses(data):
    rng = np.random.default_rng(5)
    effects = rng.normal(size=(2, GROUPS, 5)).cumsum(axis=2)
    g = data["g"].str[1:].astype(int)
    return effects[:, g, data["n"]] + rng.normal(size=(2, len(data)))


def fit(formula, data):
    model = fm.MultiLMM.from_formula(formula, data=data, Y=responses(data))
    return model.fit(parameter_space="psd")


def zoned_days(zone):
    """Mornings on both sides of the night when clocks change, in a zone."""
    return (WEEKS + pd.Timedelta(8, "h")).tz_localize(zone)


MONTHS = pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-03-31", "2024-05-31"])
HOURS = pd.to_timedelta([0, 6, 12, 24], unit="h")
# Times, the same as numbers for ar1, the unit of its steps, and for exp.
KINDS = {
    "dates": (WEEKS, DAYS, "steps of 7 days", DAYS, "days"),
    "date objects": ([t.date() for t in WEEKS], DAYS, "steps of 7 days", DAYS, "days"),
    "clocks that change": (zoned_days("Europe/Berlin"), DAYS, "steps of 7 days", DAYS, "days"),
    "month ends": (MONTHS, [0, 1, 2, 4], "steps of 1 month", [0, 29, 60, 121], "days"),
    "periods": (MONTHS.to_period("M"), [0, 1, 2, 4], "steps of 1 month", [0, 1, 2, 4], "months"),
    "quarters": (
        *(pd.PeriodIndex(["2024Q1", "2024Q3", "2025Q1", "2026Q1"], freq="Q"), [0, 1, 2, 4]),
        *("steps of 2 quarters", [0, 2, 4, 8], "quarters"),
    ),
    "durations": (HOURS, [0, 1, 2, 4], "steps of 6 hours", [0, 0.25, 0.5, 1.0], "days"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_fits_are_those_of_numbers(kind):
    times, steps, step, places, unit = KINDS[kind]
    data = table(times, object if "objects" in kind else None)
    for formula, numbers, told in (
        ("~ ar1(when | g)", steps, step),
        ("~ exp(when | g)", places, unit),
    ):
        result = fit(formula, data)
        plain = fit(formula, data.assign(when=np.asarray(numbers)[data["n"]]))
        assert_allclose(result.llf, plain.llf, rtol=1e-12)
        assert_allclose(result.blup(), plain.blup(), rtol=1e-9, atol=1e-12)
        found, expected = result.random_parameters(), plain.random_parameters()
        assert_allclose(found["estimate"], expected["estimate"], rtol=1e-9)
        assert found["unit"].to_numpy().tolist() == ["", told, ""]
        assert told in str(result.sel(0).summary())
        assert "unit" not in expected.coords


def test_pages_tell_units_and_infinite_ranges():
    """Quantiles between two infinite ranges were a warning."""
    result = fit("~ exp(when | g)", table(WEEKS))
    assert np.isinf(result.random_parameters()["estimate"].to_numpy()[:, 1]).any()
    page = str(result.summary())
    assert "The range of g is in days." in page
    assert "inf" in page


def test_labels_of_effects():
    def effects(times):
        model = fm.MultiLMM.from_formula(
            "~ ar1(when | g)", data=(data := table(times)), Y=responses(data)
        )
        return [effect[5:-1] for effect in model.stats.structure.terms[0].effects[:2]]

    assert effects(WEEKS) == ["2024-03-19", "2024-03-26"]
    assert effects(zoned_days("Europe/Berlin")) == ["2024-03-19 08:00:00", "2024-03-26 08:00:00"]
    assert effects(MONTHS.to_period("M")) == ["2024-01", "2024-02"]
    assert effects(HOURS) == ["0 days", "0 days 06:00:00"]


def test_an_hour_that_clocks_show_twice():
    times = pd.date_range("2024-10-26 23:00", periods=5, freq="h", tz="UTC").tz_convert(
        "Europe/Rome"
    )
    result = fit("~ ar1(when | g)", table(times))
    assert result.random_parameters()["unit"].to_numpy()[1] == "steps of 1 hour"
    assert_allclose(result.llf, fit("~ ar1(n | g)", table(times)).llf)


def test_new_data():
    data = table(zoned_days("Europe/Berlin"))
    data["clock"] = data["when"].dt.tz_localize(None)
    result, naive = fit("~ ar1(when | g)", data), fit("~ ar1(clock | g)", data)
    rows = data.iloc[[0, 2, 9, 30]]
    expected = result.predict(rows, level="conditional").to_numpy()
    assert_allclose(expected, result.fittedvalues(data).to_numpy()[:, [0, 2, 9, 30]])
    for when in (
        rows["when"].dt.tz_convert("America/Lima"),
        rows["clock"],
        rows["clock"].dt.strftime("%Y-%m-%d %H:%M"),
        rows["when"].astype(object),
        rows["when"].astype("category"),
    ):
        for same in (result, naive):
            found = rows.assign(when=when, clock=when if same is naive else rows["clock"])
            if same is naive and getattr(when.dtype, "tz", None) is not None:
                with pytest.raises(InputError, match="without a zone when the model was built"):
                    same.predict(found, level="conditional")
            elif same is result or when.dtype.kind != "O" or isinstance(when.iloc[0], str):
                values = same.predict(found, level="conditional")
                assert_allclose(values, expected)
    for wrong, match in (
        (
            rows["n"],
            "held dates or times when the model was built; in the new data its type is int",
        ),
        (rows["when"].astype(str) + "?", "text that is no date"),
        (rows["when"].dt.tz_localize(None).dt.to_period("D"), "held dates or times"),
        (pd.Series(pd.NaT, rows.index), "is missing in rows"),
    ):
        with pytest.raises(InputError, match=match):
            result.predict(rows.assign(when=wrong), level="conditional")


@pytest.mark.parametrize("column", ["when", "n"])
def test_times_that_the_model_does_not_know(column):
    """A group of the model has no effect there; a new one, or an average one, its variance."""
    data = table(WEEKS)
    result = fit(f"~ ar1({column} | g)", data)
    new = data.head(2).assign(when=pd.Timestamp("2025-01-01"), n=99)
    with pytest.raises(InputError, match="that the model was not built on; it has the effects"):
        result.predict(new, level="conditional")
    wide = result.predict(new, level="population", interval="prediction")
    usual = result.predict(data.head(2), level="population", interval="prediction")
    assert_allclose(wide["upper"], usual["upper"])
    stranger = {"level": "conditional", "allow_new_levels": True, "interval": "prediction"}
    assert_allclose(
        result.predict(new.assign(g="new"), **stranger)["upper"],
        result.predict(data.head(2).assign(g="new"), **stranger)["upper"],
    )


def test_files(tmp_path):
    data = table(zoned_days("Europe/Berlin"))
    result = fit("~ C(n) + exp(when | g)", data)
    result.save(tmp_path / "times.nc")
    again = fm.load(tmp_path / "times.nc")
    rows = data.iloc[[1, 5]].assign(when=data["when"].iloc[[1, 5]].dt.tz_convert("UTC"))
    assert_allclose(
        again.predict(rows, level="conditional"), result.predict(rows, level="conditional")
    )
    assert again.random_parameters()["unit"].to_numpy()[1] == "days"
    text = recipe_to_text(result.fitted.recipe)
    assert recipe_to_text(recipe_from_text(text)) == text
    for change, match in (
        (("Europe/Berlin", "dateutil//etc/passwd"), "time zone"),
        (("Europe/Berlin", "Nowhere/Never"), "time zone"),
        (('"date"', '"text"'), "times of no column"),
        (('"when", "Eu', '"", "Eu'), "times of no column"),
    ):
        changed = text.replace(*change)
        assert json.loads(changed) != json.loads(text)
        with pytest.raises(InputError, match=match):
            recipe_from_text(changed)


def test_statistics_of_parts_add_up():
    data, Y = table(WEEKS), responses(table(WEEKS))
    half = np.arange(len(data)) < 40

    def stats(rows, times=None):
        part = data[rows] if times is None else data[rows].assign(when=times)
        return fm.MultiLMM.from_formula("~ exp(when | g)", data=part, Y=Y[:, rows]).stats

    total = fm.MultiLMM.from_summary_stats(stats(half) + stats(~half)).fit(parameter_space="psd")
    assert_allclose(total.llf, fit("~ exp(when | g)", data).llf)
    with pytest.raises(InputError, match="different variance components"):
        stats(half) + stats(~half, data["when"][~half].dt.to_period("W"))


@pytest.mark.parametrize(
    ("times", "match"),
    [
        (pd.to_datetime(["2024-01-01", "2024-01-03", "2024-01-06"]), "'2 days', '3 days', are no"),
        (pd.to_datetime(["2024-01-01", "2024-03-01", "2024-06-01"]), "'2 months', '3 months'"),
        (pd.PeriodIndex(["2024-01", "2024-03", "2024-06"], freq="M"), "'2 months', '3 months'"),
        (pd.to_timedelta([0, 2, 5], unit="min"), "'2 minutes', '3 minutes'"),
        (WEEKS[[0, 0, 0]], "has one value, 2024-03-19"),
        (WEEKS.strftime("%Y-%m-%d"), r"pd.to_datetime\(data\['when'\]\)"),
        ([datetime.time(8), datetime.time(9), datetime.time(10)], "must hold whole numbers, dates"),
    ],
)
def test_what_ar1_refuses(times, match):
    with pytest.raises(InputError, match=match):
        fit("~ ar1(when | g)", table(times))


def test_missing_dates():
    data = table(WEEKS)
    Y = responses(data)
    data.loc[[4, 8], "when"] = pd.NaT
    with pytest.raises(InputError, match="2 in 'when'"):
        fm.MultiLMM.from_formula("~ ar1(when | g)", data=data, Y=Y)
    with pytest.warns(MissingSamplesWarning, match="2 of 94"):
        model = fm.MultiLMM.from_formula("~ ar1(when | g)", data=data, Y=Y, missing="drop")
    kept = data["when"].notna()
    data["days"] = DAYS[data["n"]]
    plain = fm.MultiLMM.from_formula("~ ar1(days | g)", data=data[kept], Y=Y[:, kept])
    assert model.n_dropped == 2
    result = model.fit(parameter_space="psd")
    assert_allclose(result.llf, plain.fit(parameter_space="psd").llf)
    assert np.isnan(result.fittedvalues(data).to_numpy()).sum() == 4


def test_beside_the_dates_themselves():
    """Formulas of fixed effects go on seeing dates; a column may have the name of the text."""
    data = table(WEEKS).assign(when_text=1.0)
    data["first"], data["days"] = WEEKS[0], DAYS[data["n"]]
    found = fit("~ I((when - first).dt.days ** 2) + when_text:n + ar1(when | g)", data)
    plain = fit("~ I(days ** 2) + n + ar1(days | g)", data)
    assert_allclose(found.llf, plain.llf, rtol=1e-9)
    assert_allclose(
        fit("~ C(when) + ar1(when | g)", data).llf, fit("~ C(n) + ar1(days | g)", data).llf
    )
    assert fit("~ ar1(when | g) + (1 | when)", data).converged.all()


def test_tables_of_other_libraries_and_anndata():
    data = table(WEEKS)
    Y = responses(data)
    expected = fit("~ exp(when | g)", data).llf
    polars = pytest.importorskip("polars")
    for kind in (polars.Date, polars.Datetime("ms")):
        frame = polars.DataFrame(
            {"g": data["g"].tolist(), "when": data["when"].tolist()}
        ).with_columns(polars.col("when").cast(kind))
        model = fm.MultiLMM.from_formula("~ exp(when | g)", data=frame, Y=Y)
        assert_allclose(model.fit(parameter_space="psd").llf, expected)
    tidy = data.assign(first=Y[0], second=Y[1])
    model = fm.MultiLMM.from_formula("first + second ~ exp(when | g)", data=tidy)
    assert_allclose(model.fit(parameter_space="psd").llf, expected)
    anndata = pytest.importorskip("anndata")
    cells = anndata.AnnData(Y.T, obs=data.set_axis(data.index.astype(str)))
    model = fm.MultiLMM.from_anndata(cells, "~ exp(when | g)")
    assert_allclose(model.fit(parameter_space="psd").llf, expected)


def test_arrow_tables():
    pytest.importorskip("pyarrow")
    data = table(WEEKS)
    expected = fit("~ exp(when | g)", data).llf
    for kind in ("timestamp[us][pyarrow]", "date32[day][pyarrow]"):
        assert_allclose(fit("~ exp(when | g)", data.astype({"when": kind})).llf, expected)
