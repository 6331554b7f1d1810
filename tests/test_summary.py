"""Summary pages: what they say, how wide and long they are, and that HTML is escaped."""

from __future__ import annotations

import html.parser
import re

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.results.summary import MAX_ROWS, WIDTH, SummaryPage, Table

N = 80


def samples() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "trt": np.tile(["A", "B"], N // 2),
            "g": np.repeat(list("abcdefgh"), N // 8),
        }
    )


def responses(m: int = 6, effect: float = 3.0) -> pd.DataFrame:
    data, rng = samples(), np.random.default_rng(1)
    donor = pd.factorize(data["g"])[0]
    Y = rng.normal(size=(m, N)) + rng.normal(size=(m, 8))[:, donor]
    Y += rng.normal(size=(m, 8))[:, donor] * data["x"].to_numpy()
    signs = np.where(np.arange(m) % 3 == 0, -1.0, 1.0)[:, None]
    Y += effect * signs * (data["trt"] == "B").to_numpy()
    return pd.DataFrame(Y, index=["ISG15", *(f"g{i}" for i in range(1, m))])


def fit(fixed="~ x + trt", random="(1 + x | g)", Y=None, **options) -> fm.MultiLMMResults:
    options = {"parameter_space": "psd", **options}
    Y = responses() if Y is None else Y
    return fm.MultiLMM.from_formula(fixed, random, samples(), Y).fit(**options)


def row(page: object, label: str) -> list[str]:
    """The cells of the line that starts with a label."""
    line = next(line for line in str(page).splitlines() if line.startswith(label))
    return re.split(r"\s{2,}", line.strip())


def heads(page: object, first: str) -> list[str]:
    """The column heads of the table whose first head is given."""
    return next(line.split() for line in str(page).splitlines() if line.strip().startswith(first))


# ---- the page on a fit -------------------------------------------------------------------


def test_the_page_on_a_fit_says_what_was_fitted():
    results = fit()
    text = str(results.summary())
    lines = text.splitlines()
    assert lines[0].strip() == "Linear mixed models, one design"
    assert "Fixed:   ~ x + trt" in lines
    assert "Random:  (1 + x | g)" in lines
    for label, value in {
        "Samples (n)": 80,
        "Features (m)": 6,
        "Fixed effects (p)": 3,
        "Random effects (q)": 16,
        "Groups": 8,
        "Method": "REML",
        "Parameter space": "psd",
        "Solver": "fisher_scoring",
        "Iterations, most": results.n_iter.max(),
        "Iterations, median": f"{results.n_iter.median():g}",
    }.items():
        assert re.search(rf"{re.escape(label)}: +{value}( |$)", text, re.MULTILINE), label
    assert results.summary().as_text() == text == repr(results.summary())
    assert results._repr_html_() == results.summary()._repr_html_()


def test_quantiles_of_the_variance_parameters():
    results = fit()
    expected = np.quantile(results.theta["g[x]"], [0, 0.25, 0.5, 0.75, 1.0])
    cells = row(results.summary(), "g[x]")
    np.testing.assert_allclose([float(cell) for cell in cells[1:]], expected, rtol=1e-3)


def test_counts_of_coefficients_that_pass():
    results = fit()
    adjusted = results.to_frame()["p_adjusted"].unstack()["trt[T.B]"] < 0.05
    up = adjusted & (results.params["trt[T.B]"] > 0)
    assert adjusted.sum() == 6  # the effect is made large
    assert up.sum() == 4
    cells = row(results.summary(), "trt[T.B]")
    assert cells[3:] == ["6", "4", "2"]
    assert float(cells[1]) == pytest.approx(results.params["trt[T.B]"].median(), rel=1e-3)
    assert float(cells[2]) == pytest.approx(results.bse["trt[T.B]"].median(), rel=1e-3)


def test_verdicts_are_counted_and_explained():
    Y = responses()
    Y.iloc[1], Y.iloc[2] = 0.0, 5.0
    with pytest.warns(fm.ConvergenceWarning):
        results = fit(Y=Y)
    text = str(results.summary())
    assert re.search(r"^zero variance +2  X explains the feature exactly", text, re.MULTILINE)
    good = int(results.converged.sum())
    assert good == 4
    assert "over the 4 converged features" in text
    # the zeros of features without variance are no estimates: they do not enter the quantiles
    cells = row(text, "Residual")
    assert float(cells[1]) == pytest.approx(
        results.theta["Residual"][results.converged].min(), rel=1e-3
    )


def test_dropped_samples_are_mentioned():
    Y = responses()
    Y.iloc[0, :3] = np.nan
    with pytest.warns(fm.MissingSamplesWarning):
        model = fm.MultiLMM.from_formula("~ x", "(1 | g)", samples(), Y, missing="drop")
    assert re.search(r"Samples dropped: +3", str(model.fit().summary()))
    assert "dropped" not in str(fit().summary())


@pytest.mark.parametrize("bad", ["all", "none"])
def test_pages_of_no_estimates(bad):
    if bad == "all":
        with pytest.warns(fm.ConvergenceWarning):
            results = fit(Y=np.zeros((2, N)))
    else:
        results = fit(Y=np.zeros((0, N)))
    text = str(results.summary())
    assert row(text, "g[x]")[1:] == ["NaN"] * 5
    assert row(text, "x")[1:] == ["NaN", "NaN", "0", "0", "0"]


def test_pages_of_models_from_arrays_have_no_formulas():
    Z = pd.get_dummies(samples()["g"]).to_numpy(dtype=float)
    results = fm.MultiLMM.from_arrays(responses(), np.ones((N, 1)), Z, components=[4, 4]).fit("ML")
    text = str(results.summary())
    assert "Fixed:" not in text
    assert re.search(r"Groups: +Z1 4, Z2 4", text)
    assert "Fixed:" not in str(results.summary("ISG15"))


@pytest.mark.parametrize(("m", "p"), [(20_000, 3), (50, 200)])
def test_a_page_never_floods_the_screen(m, p):
    rng = np.random.default_rng(0)
    n = 210
    X = np.column_stack([np.ones(n), rng.normal(size=(n, p - 1))])
    Z = np.eye(3)[np.arange(n) % 3]
    one = rng.normal(size=(1, n))
    names = [f"a coefficient with a name that is very long indeed, number {i}" for i in range(p)]
    model = fm.MultiLMM.from_arrays(one, X, Z, coef_names=names)
    small = model.fit(parameter_space="psd")
    ds = small.ds.isel(feature=np.zeros(m, dtype=int)).assign_coords(feature=np.arange(m))
    stats = fm.SummaryStats(
        n=n, XX=model.stats.XX, XY=np.tile(model.stats.XY, m), ZX=model.stats.ZX,
        ZY=np.tile(model.stats.ZY, m), ZZ=model.stats.ZZ, yy=np.tile(model.stats.yy, m),
        coef_names=names,
    )  # fmt: skip
    results = fm.MultiLMMResults(ds, stats, small.options)
    for page in (results.summary(), results.summary(7)):
        lines = str(page).splitlines()
        assert len(lines) < 100
        assert max(map(len, lines)) <= 120
        assert (f"{p - MAX_ROWS} more coefficients not shown" in str(page)) == (p > MAX_ROWS)
        assert page._repr_html_().count("<tr>") < 100
    assert len(repr(results)) < 200
    assert len(results._repr_html_()) < 30_000


def test_long_formulas_are_wrapped():
    terms = " + ".join(f"I(x**{k})" for k in range(2, 9))
    text = str(fit(f"~ trt + {terms}", "(1 | g)", method="ML").summary())
    assert max(map(len, text.splitlines())) <= 100
    start = text.index("Fixed:")
    assert "I(x ** 8)" in text[start : text.index("Random:")] or "I(x**8)" in text[start:]


# ---- the page on a feature ---------------------------------------------------------------


def test_the_page_on_a_feature_reads_like_statsmodels():
    results = fit()
    page = results.summary("ISG15")
    text, one = str(page), results.sel("ISG15")
    assert text.splitlines()[0].strip() == "Mixed Linear Model Regression Results"
    for label, value in {
        "Model": "MixedLM",
        "Dependent Variable": "ISG15",
        "No. Observations": "80",
        "No. Groups": "8",
        "Method": "REML",
        "Log-Likelihood": f"{one.llf:.4f}",
        "Converged": "Yes",
    }.items():
        assert re.search(rf"{re.escape(label)}: +{re.escape(value)}( |$)", text, re.MULTILINE), (
            label
        )
    assert heads(text, "Coef.") == ["Coef.", "Std.Err.", "df", "t", "P>|t|", "[0.025", "0.975]"]
    for name in ("Intercept", "x", "trt[T.B]"):
        cells = [float(cell) for cell in row(text, name)[1:]]
        expected = [
            one.fe_params[name], one.bse_fe[name], one.df[name], one.tvalues[name],
            one.pvalues[name],
            *one.conf_int().loc[name],
        ]  # fmt: skip
        np.testing.assert_allclose(cells, expected, rtol=6e-2, atol=6e-4)
    assert "on Satterthwaite's degrees of freedom" in text
    assert str(one.summary()) == text
    assert one._repr_html_() == page._repr_html_()


def test_variances_come_with_deviations_and_correlations():
    results = fit(Y=responses().iloc[[1]])
    theta = results.theta.iloc[0]
    text = str(results.summary(0))
    assert heads(text, "Estimate") == ["Estimate", "Std.Err.", "Std.Dev.", "Corr."]
    cells = row(text, "g[x] Var")
    assert float(cells[1]) == pytest.approx(theta["g[x]"], rel=1e-3)
    assert float(cells[2]) == pytest.approx(results.bse_theta["g[x]"].iloc[0], rel=1e-3)
    assert float(cells[3]) == pytest.approx(np.sqrt(theta["g[x]"]), rel=1e-3)
    correlation = theta["g[Intercept,x]"] / np.sqrt(theta["g[Intercept]"] * theta["g[x]"])
    cells = row(text, "g[Intercept,x] Cov")
    assert float(cells[-1]) == pytest.approx(correlation, abs=6e-4)
    simple = str(fit(random="(1 | g)").summary(0))
    assert "Corr." not in simple


def test_negative_variances_have_no_deviation():
    rng = np.random.default_rng(2)
    Y = rng.normal(size=(20, N))
    Y -= np.repeat(Y.reshape(20, 8, 10).mean(axis=2), 10, axis=1) * 0.9  # groups too alike
    results = fit("~ 1", "(1 | g)", Y, parameter_space="unconstrained")
    assert (results.theta["g"] < 0).all()
    assert row(results.summary(0), "g Var")[3] == "-"


def test_verdicts_of_a_feature_are_explained():
    Y = responses()
    Y.iloc[1] = 4.0
    with pytest.warns(fm.ConvergenceWarning):
        results = fit(Y=Y)
    text = str(results.summary("g1"))
    assert re.search(r"Converged: +No", text)
    assert re.search(r"Verdict: +zero variance", text)
    assert "zero variance: X explains the feature exactly" in text
    assert "X explains" not in str(results.summary("ISG15"))


@pytest.mark.parametrize("p", [0.04, 0.0004, 1e-200, 0.0, np.nan])
def test_p_values_are_never_printed_as_zero(p):
    from flashmm.results.summary import _p_value  # noqa: PLC0415  (a private detail on purpose)

    expected = {0.04: "0.040", 0.0004: "4.0e-04", 1e-200: "1.0e-200", 0.0: "<1e-300"}
    assert _p_value(p) == expected.get(p, "NaN")


# ---- HTML --------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}"


def test_html_escapes_names_and_is_well_formed():
    data = samples().rename(columns={"g": "<i>group</i>"})
    data["trt"] = data["trt"].map({"A": "A", "B": "B<script>&"})
    Y = responses().rename(index={"ISG15": "<b>ISG15</b> & co"})
    results = fm.MultiLMM.from_formula("~ trt", "(1 | `<i>group</i>`)", data, Y).fit()
    for page in (results, results.summary(), results.summary(0), results.sel(0)):
        reader = Reader()
        reader.feed(page._repr_html_())
        assert not reader.open
        assert reader.tags == {"h4", "table", "caption", "tr", "th", "td", "p"}
        assert "trt[T.B<script>&]" in reader.text
        assert "<i>group</i>" in reader.text
    assert "<b>ISG15</b> & co" in reader.text


def test_html_holds_what_the_text_holds():
    results = fit()
    reader = Reader()
    reader.feed(results.summary()._repr_html_())
    words = set(re.findall(r"[\w.\[\]]+", str(results.summary())))
    assert words <= set(re.findall(r"[\w.\[\]]+", reader.text))


# ---- layout ------------------------------------------------------------------------------


def test_tables_are_aligned_and_ruled():
    page = SummaryPage(
        "Title",
        [
            Table([["a", "1"], ["long", "22"]], ["", "n"], "Counts"),
            Table([["k:", "v", "why"]], align="lrl"),
        ],
        ["A note that is far too long for one line. " * 3],
    )
    lines = str(page).splitlines()
    assert lines[0].strip() == "Title"
    assert lines[1] == "=" * WIDTH
    assert lines[2:6] == ["Counts", "       n", "a      1", "long  22"]
    assert lines[6] == "-" * WIDTH
    assert lines[7] == "k:  v  why"
    assert lines[8] == "=" * WIDTH
    assert all(len(line) <= WIDTH for line in lines)
    assert str(SummaryPage("Empty", [Table([])])).splitlines()[0].strip() == "Empty"
