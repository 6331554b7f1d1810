"""Pictures: what is drawn, where, and what they say of features that failed.

Structure alone is tested: which numbers stand where, and which texts; nothing is compared pixel by
pixel. Every picture was looked at, and is on the page `gallery` of the documentation.
"""

from __future__ import annotations

import sys
import warnings
from io import BytesIO

import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.results.plots_of_fits import ResultPlots
from flashmm.results.plots_of_one_feature import FeaturePlots
from flashmm.results.plots_of_tests import TestPlots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

M, N = 40, 96


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.normal(40.0, 9.0, N),
            "trt": np.tile(["A", "B"], N // 2),
            "sex": pd.Categorical(np.repeat(["m", "f", "m"], N // 3), ["m", "f"]),
            "g": np.repeat([f"s{i:02d}" for i in range(12)], N // 12),
        },
        index=[f"r{i}" for i in range(N)],
    )


@pytest.fixture(scope="module")
def Y(data):
    rng = np.random.default_rng(1)
    effect = rng.normal(size=(M, 1)) * (data["trt"] == "B").to_numpy()
    groups = 0.6 * rng.normal(size=(M, 12)).repeat(N // 12, axis=1)
    values = 5.0 + effect + groups + rng.normal(size=(M, N))
    values[-1] *= 1e200  # its squares are no numbers
    return pd.DataFrame(values, index=[f"gene_{i}$" for i in range(M)], columns=data.index)


@pytest.fixture(scope="module")
def result(data, Y):
    model = fm.MultiLMM.from_formula("~ trt + age + sex + (1 | g)", data=data, Y=Y, sums_by="g")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model.fit(parameter_space="psd")


@pytest.fixture(scope="module")
def slopes(data, Y):
    model = fm.MultiLMM.from_formula("~ trt + (1 + trt | g)", data=data, Y=Y.iloc[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        return model.fit(parameter_space="psd")


def drawn(ax):
    """All marks of scatters, as they lie."""
    points = [np.ma.filled(c.get_offsets(), np.nan) for c in ax.collections if _is_scatter(c)]
    return np.concatenate([p for p in points if len(p)])


def _is_scatter(collection):
    return isinstance(collection, matplotlib.collections.PathCollection)


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(axis):
    return [label.get_text().replace(r"\$", "$") for label in axis.get_ticklabels()]


# ---- volcano and its kin ------------------------------------------------------------------------


def test_volcano_shows_every_feature_that_has_a_test():
    p = [0.5, 1e-3, np.nan, 0.2, 0.04]
    ax = fm.plots.volcano([1.0, -2.0, 3.0, np.nan, np.inf], p)
    found = drawn(ax)
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], [[-2, 3], [1, -np.log10(0.5)]])
    assert "3 without a test" in legend_of(ax)


@pytest.mark.parametrize("others", [[0.5, 1e-250], [], [1.0]])
def test_p_of_zero_stands_above_all_others(others):
    p = np.array([*others, 0.0, 0.0])
    ax = fm.plots.volcano(np.arange(p.size) + 1.0, p)
    found = drawn(ax)
    assert np.isfinite(found).all()
    assert len(found) == p.size
    heights = found[np.argsort(found[:, 0]), 1]
    assert (heights[-2:] > heights[: len(others)].max(initial=0.0)).all()
    assert heights.max() < ax.get_ylim()[1]
    assert "p = 0, too small for a number (2)" in legend_of(ax)


def test_verdicts_have_marks_of_their_own():
    status = ["converged", "boundary", "stalled", "boundary", "converged"]
    ax = fm.plots.volcano(np.arange(5.0), np.full(5, 0.5), status=status)
    assert legend_of(ax) == ["boundary (2)", "stalled (1)"]
    shapes = {len(c.get_paths()[0].vertices) for c in ax.collections if len(c.get_offsets())}
    assert len(shapes) == 3
    ax = fm.plots.theta([0.0, 1.0, 2.0], [1.0, 1.0, 1.0], status=status[:3])
    assert legend_of(ax) == ["converged (1)", "boundary (1)", "stalled (1)"]


@pytest.mark.parametrize("size", [(3.4, 2.6), (7, 5)])
def test_labels_overlap_neither_each_other_nor_the_legend_nor_the_edge(size):
    rng = np.random.default_rng(3)
    x = np.r_[rng.normal(0, 0.1, 30) + 2, rng.normal(size=500)]
    p = np.r_[np.zeros(5), np.full(25, 1e-9), rng.uniform(size=500)]
    names = [f"a_long_name_{i}$x$" for i in range(530)]
    figure, given = plt.subplots(figsize=size)
    ax = fm.plots.volcano(x, p, names=names, label=30, ax=given)
    assert ax is given
    figure.savefig(BytesIO(), dpi=170)
    figure.canvas.draw()
    written = [text for text in ax.texts if text.get_text()]
    assert len(written) >= 4
    assert all(text.get_text().replace(r"\$", "$") in names for text in written)
    boxes = [super(type(t), t).get_window_extent() for t in written]
    boxes.append(ax.get_legend().get_window_extent())
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert ax.bbox.x0 <= box.x0
        assert box.x1 <= ax.bbox.x1
        assert ax.bbox.y0 <= box.y0
        assert box.y1 <= ax.bbox.y1


def test_labels_are_those_asked_for(result, Y):
    names = list(Y.index[[7, 2]])
    ax = result.plot.volcano("trt[T.B]", label=names, df="residual")
    assert sorted(t.get_text().replace(r"\$", "$") for t in ax.texts) == sorted(names)
    tests = result.t_test("trt[T.B]", df="residual")
    at = {t.get_text().replace(r"\$", "$"): t.xy for t in ax.texts}
    for name in names:
        row = tests.top_table(n=None).loc[name]
        np.testing.assert_allclose(at[name], [row["estimate"], -np.log10(row["p"])])
    assert len(result.plot.volcano("trt[T.B]", label=0).texts) == 0
    hits = int((tests.adjusted()["trt[T.B]"] <= 1e-3).sum())
    chosen = result.plot.volcano("trt[T.B]", alpha=1e-3, label=100, df="residual").texts
    assert 0 < len(chosen) <= hits


def test_means_and_differences(result, Y):
    ax = result.plot.ma("trt[T.B]", label=0)
    tests = result.t_test("trt[T.B]")
    mean = Y.mean(axis=1)
    expected = np.column_stack([mean, tests.effect["trt[T.B]"]])[:-1]
    found = drawn(ax)
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], expected[np.argsort(expected[:, 1])])
    again = tests.plot.ma(mean[::-1], label=0)  # matched by label
    np.testing.assert_allclose(np.sort(drawn(again)), np.sort(found))
    some = result.plot.ma("trt[T.B]", features=Y.index[:5], label=0)
    np.testing.assert_allclose(np.sort(drawn(some)[:, 0]), np.sort(mean[:5]))
    with pytest.raises(fm.InputError, match="mean"):
        tests.plot.ma(mean.to_numpy()[1:])


def test_histogram_and_quantiles_count_every_p(result):
    ax = result.plot.pvalues("age", bins=8)
    assert sum(bar.get_height() for bar in ax.patches) == M - 1
    p = result.t_test("age").pvalue["age"].dropna()
    counts, _ = np.histogram(p, np.linspace(0, 1, 9))
    heights = np.zeros(8)
    for bar in ax.patches:
        heights[round(bar.get_x() * 8)] += bar.get_height()
    np.testing.assert_array_equal(heights, counts)
    found = drawn(result.plot.qq("age"))
    np.testing.assert_allclose(np.sort(found[:, 1]), np.sort(-np.log10(p)))
    ax = fm.plots.qq([0.0, 0.3, 0.7], status=["converged", "boundary", "converged"])
    assert legend_of(ax)[-1] == "boundary (1)"
    assert np.isfinite(drawn(ax)).all()
    # A joint test has p-values, and no estimates.
    joint = result.f_test(["age", "trt[T.B]"])
    assert len(drawn(joint.plot.qq())) == M - 1
    with pytest.raises(fm.InputError, match="volcano plot needs estimates"):
        joint.plot.volcano()
    with pytest.raises(fm.InputError, match="confidence limits"):
        joint.plot.forest()


def test_the_band_of_quantiles_is_that_of_order_statistics():
    ax = fm.plots.qq(np.linspace(0.01, 1, 50))
    band = next(c for c in ax.collections if not _is_scatter(c)).get_paths()[0].vertices
    # The smallest of 50 uniform numbers lies below q with probability 1 - (1 - q)^50.
    low, high = (1 - (1 - level) ** (1 / 50) for level in (0.025, 0.975))
    right = band[np.isclose(band[:, 0], -np.log10(0.5 / 50)), 1]
    np.testing.assert_allclose([right.min(), right.max()], [-np.log10(high), -np.log10(low)])


# ---- estimates with limits ----------------------------------------------------------------------


def test_forest_of_one_feature_and_of_many(result, Y):
    one = result.sel(Y.index[3])
    ax = one.plot.forest()
    assert ticks(ax.yaxis) == ["trt[T.B]", "age", "sex[T.f]"]
    np.testing.assert_allclose(drawn(ax)[:, 0], one.fe_params.iloc[1:])
    ax = result.plot.forest("trt[T.B]", features=Y.index[[9, 39, 4]])
    assert ticks(ax.yaxis) == list(Y.index[[9, 39, 4]])  # one of them without an estimate
    np.testing.assert_allclose(drawn(ax)[:, 0], result.params["trt[T.B]"].iloc[[9, 4]])
    np.testing.assert_allclose(drawn(ax)[:, 1], [0, 2])
    ends = [path.vertices[:, 0] for c in ax.collections[:-1] for path in c.get_paths()]
    limits = result.t_test("trt[T.B]").conf_int().to_numpy()[[9, 4], 0]
    np.testing.assert_allclose(ends, limits)
    ax = result.plot.forest(["age", "trt[T.B]"])
    assert legend_of(ax) == ["age", "trt[T.B]"]
    assert len(ticks(ax.yaxis)) == 20
    assert ticks(ax.yaxis)[0] in set(Y.index)


def test_forest_of_limits_without_end():
    ax = fm.plots.forest([0.5, 1.0], [-np.inf, np.nan], [1.0, np.nan], ["a", "b"])
    assert np.isfinite(ax.get_xlim()).all()
    with pytest.raises(fm.InputError, match="8 series"):
        fm.plots.forest(*np.zeros((3, 2, 8)), ["a", "b"])
    with pytest.raises(fm.InputError, match="2 names"):
        fm.plots.forest([0.0], [0.0], [0.0], ["a", "b"])


def test_caterpillar_is_the_sorted_prediction(result, slopes, Y):
    name = Y.index[0]
    ax = result.plot.caterpillar(name)
    found = result.blup("conditional", features=[name])
    value, error = found["blup"].to_numpy()[0], found["se"].to_numpy()[0]
    marks = drawn(ax)
    marks = marks[np.argsort(marks[:, 1])]
    np.testing.assert_allclose(marks[:, 0], np.sort(value))
    order = np.argsort(value)
    assert ticks(ax.yaxis) == list(found["group_level"].to_numpy()[order])
    lines = [c for c in ax.collections if not _is_scatter(c)]
    ends = np.array(sorted(tuple(p.vertices[:, 0]) for c in lines for p in c.get_paths()))
    half = 1.959963984540054 * error
    expected = np.array(sorted(zip(value - half, value + half, strict=True)))
    np.testing.assert_allclose(ends, expected)
    effect = slopes.plot.caterpillar(name, "g", effect="trt[T.B]")
    assert effect.get_xlabel().endswith("trt[T.B]")
    for wrong, message in (({"term": "h"}, "No term"), ({"effect": "age"}, "No effect")):
        with pytest.raises(fm.InputError, match=message):
            slopes.plot.caterpillar(name, **wrong)


def test_dots(result, Y):
    ax = result.plot.dots(features=Y.index[[5, 39, 6]])
    assert ticks(ax.xaxis) == ["trt[T.B]", "age", "sex[T.f]"]
    assert ticks(ax.yaxis) == list(Y.index[[5, 39, 6]])
    marks = ax.collections[0]
    estimates = result.params.iloc[[5, 6], 1:].to_numpy().ravel()
    np.testing.assert_allclose(marks.get_array(), estimates)
    assert marks.norm.vmin == -marks.norm.vmax  # white is zero
    assert len(ax.collections[1].get_offsets()) == 3  # crosses, where there is no test
    adjusted = result.t_test().adjusted().iloc[[5, 6], 1:].to_numpy().ravel()
    np.testing.assert_array_equal(np.argsort(marks.get_sizes()), np.argsort(-adjusted))


# ---- variances ----------------------------------------------------------------------------------


def test_shares_of_the_variance(result, Y):
    shares = result.variance_fractions()["estimate"].to_numpy()
    ax = result.plot.fractions(Y.index[[0, 39]])
    widths = [bar.get_width() for bar in ax.patches]
    np.testing.assert_allclose(widths[::2], shares[0])
    assert not any(widths[1::2])
    assert "no estimate" in [text.get_text() for text in ax.texts]
    assert ax.get_xlim() == (0.0, 1.0)  # with a label at zero
    ax = result.plot.fractions()
    medians = drawn(ax)[:, 1]
    np.testing.assert_allclose(medians, np.median(shares[:-1], axis=0))
    ax = result.plot.fractions(kind="violin", of="random")
    assert ticks(ax.xaxis) == ["g", "Residual"]
    with pytest.raises(fm.InputError, match="kind"):
        result.plot.fractions(kind="pie")


def test_a_constant_has_no_shares(data, Y):
    constant = Y.iloc[:2].copy()
    constant.iloc[1] = 3.0
    with pytest.warns(fm.ConvergenceWarning):
        fit = fm.MultiLMM.from_formula("~ trt + (1 | g)", data=data, Y=constant).fit()
    assert [text.get_text() for text in fit.plot.fractions().texts] == ["no estimate"]
    assert "zero variance (1)" in legend_of(fit.plot.theta())


def test_negative_shares_reach_to_the_other_side():
    shares = [[-0.2, 0.1, 1.1], [0.3, 0.2, 0.5]]
    ax = fm.plots.fractions(shares, ["a", "_b", "c"], features=["x", "y"], kind="bars")
    left = min(min(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    right = max(bar.get_x() + bar.get_width() for bar in ax.patches)
    np.testing.assert_allclose([left, right], [-0.2, 1.2])
    assert [text.strip() for text in legend_of(ax)] == ["a", "_b", "c"]


def test_pairs_of_variances_and_their_boundary(result, slopes):
    ax = result.plot.theta()
    found = drawn(ax)
    theta = result.theta.to_numpy()[:-1]
    np.testing.assert_allclose(found[np.argsort(found[:, 1])], theta[np.argsort(theta[:, 1])])
    boundary = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert [list(line.get_xdata()) for line in boundary] == [[0.0, 0.0]]
    assert ax.get_xlim()[0] < 0
    covariance = slopes.plot.theta("g[Intercept]", "g[Intercept,trt[T.B]]")
    assert covariance.get_ylabel().startswith("covariance")
    assert len([line for line in covariance.lines if line.get_linestyle() == "--"]) == 1
    assert slopes.plot.theta(log=True) is not None
    with pytest.raises(fm.InputError, match="No x"):
        result.plot.theta("h")


@pytest.mark.parametrize("param", ["g[Intercept]", "g[Intercept,trt[T.B]]"])
def test_the_profile_reaches_the_quantile_at_the_limits(slopes, Y, param):
    ax = slopes.sel(Y.index[1]).plot.profile(param, alpha=0.1)
    value, fall = ax.lines[0].get_data()
    limits = slopes.conf_int_theta(0.1, method="profile", params=param).to_numpy()[1, 0]
    quantile = 1.6448536269514722**2
    for limit in limits[limits != 0]:
        assert np.interp(limit, value, fall) == pytest.approx(quantile, rel=0.03)
    theta = slopes.theta[param].iloc[1]
    assert np.interp(theta, value, fall) < 0.2
    assert value[np.argmin(fall)] == pytest.approx(theta, abs=np.diff(value).max())


def test_trend_and_prior(result, Y):
    ax = result.plot.trend()
    found = drawn(ax)
    sd = np.sqrt(result.theta["Residual"].to_numpy()[:-1])
    np.testing.assert_allclose(np.sort(found[:, 1]), np.sort(sd))
    line = next(line for line in ax.lines if line.get_label() == "prior")
    assert len(line.get_xdata()) == M - 1
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y0 >= ax.bbox.y1 - 1  # above the points
    assert result.plot.ratio_prior().get_legend() is not None
    assert len(result.plot.influence("g").get_yticks()) == 12
    assert "hits" in result.plot.influence("g", "trt[T.B]", alpha=0.1).get_xlabel()


# ---- samples ------------------------------------------------------------------------------------


def test_predictions_over_the_data(result, data, Y):
    name = Y.index[2]
    ax = result.plot.predictions(name, "age", data, Y, points=4)
    line = ax.lines[0]
    new = pd.DataFrame({"age": line.get_xdata(), "trt": "A", "sex": "m"})
    expected = result.predict(new, features=[name], interval="confidence")
    np.testing.assert_allclose(line.get_ydata(), expected["prediction"].to_numpy()[0])
    np.testing.assert_allclose(drawn(ax), np.column_stack([data["age"], Y.loc[name]]))
    lines = result.plot.predictions(name, "age", data, by="trt", at={"sex": "f"}, points=4)
    assert legend_of(lines) == ["A", "B"]
    assert lines.get_legend().get_title().get_text() == "trt"
    new["sex"] = "f"
    np.testing.assert_allclose(lines.lines[0].get_ydata(), result.predict(new, features=[name])[0])


def test_predictions_by_a_factor_and_for_the_groups(result, data, Y):
    name = Y.index[2]
    ax = result.plot.predictions(name, "sex", data, Y)
    assert ticks(ax.xaxis) == ["m", "f"]  # in the order of the categories
    groups = result.plot.predictions(
        name, "age", data, by="g", level="conditional", interval=None, points=2
    )
    last = groups.lines[-1]
    own = data[data["g"] == "s11"]
    new = pd.DataFrame(
        {"age": last.get_xdata(), "trt": "A", "sex": own["sex"].mode()[0], "g": "s11"}
    )
    expected = result.predict(new, features=[name], level="conditional")
    np.testing.assert_allclose(last.get_ydata(), expected.to_numpy()[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"x": "agee"}, "'age'"),
        ({"x": "age", "by": "sexx"}, "'sex'"),
        ({"x": "age", "at": {"tr": "A"}}, "'trt'"),
        ({"x": "trt", "by": "age"}, "96 levels"),
        ({"x": "age", "points": 1}, "points"),
    ],
)
def test_predictions_that_cannot_be_drawn(result, data, call, message):
    with pytest.raises(fm.InputError, match=message):
        result.plot.predictions(0, data=data, **call)


# ---- who draws, and on what ---------------------------------------------------------------------


def every_picture(result, data, Y, feature):
    """All pictures that a fit has."""
    plot, one, tests = result.plot, result.sel(feature).plot, result.t_test()
    coef = tests.contrasts[1]
    return {
        "volcano": lambda ax: plot.volcano(coef, ax=ax),
        "ma": lambda ax: plot.ma(coef, ax=ax),
        "pvalues": lambda ax: plot.pvalues(coef, ax=ax),
        "qq": lambda ax: plot.qq(coef, ax=ax),
        "forest": lambda ax: plot.forest(ax=ax),
        "dots": lambda ax: plot.dots(ax=ax),
        "violin": lambda ax: plot.fractions(kind="violin", ax=ax),
        "bars": lambda ax: plot.fractions(kind="bars", ax=ax),
        "theta": lambda ax: plot.theta(ax=ax),
        "trend": lambda ax: plot.trend(ax=ax),
        "one forest": lambda ax: one.forest(ax=ax),
        "caterpillar": lambda ax: one.caterpillar(ax=ax),
        "fractions": lambda ax: one.fractions(ax=ax),
        "profile": lambda ax: one.profile(ax=ax),
        "predictions": lambda ax: one.predictions("age", data, Y, ax=ax),
    }


def test_every_picture_of_a_failed_feature_says_so(result, data, Y):
    for name, picture in every_picture(result, data, Y, Y.index[-1]).items():
        figure, given = plt.subplots()
        assert picture(given) is given, name
        if name in ("one forest", "caterpillar", "profile", "predictions"):
            assert any(text.get_text().startswith("no") for text in given.texts), name
        figure.draw_without_rendering()
        plt.close(figure)
    panels = result.sel(Y.index[-1]).plot.residuals(Y, data)
    assert panels[0, 0].texts[0].get_text() == "no residuals"


def test_without_matplotlib_every_picture_says_what_to_install(result, data, Y, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for picture in every_picture(result, data, Y, Y.index[0]).values():
        with pytest.raises(fm.InputError, match=r"multilmm\[plot\]"):
            picture(None)
    for picture in (
        lambda: result.plot_residuals(Y.index[0], Y, data),
        lambda: result.plot.residuals(Y.index[0], Y, data),
        result.ratio_prior.plot,
        result.influence("g").plot,
        lambda: fm.plots.voom_trend([1.0], [1.0], [1.0]),
    ):
        with pytest.raises(fm.InputError, match=r"multilmm\[plot\]"):
            picture()


def test_axes_that_are_none_are_refused(result, data, Y):
    _, two = plt.subplots(1, 2)
    for wrong in (two, "ax", plt):
        with pytest.raises(fm.InputError, match="one Axes"):
            result.plot.theta(ax=wrong)
    with pytest.raises(fm.InputError, match="4 Axes"):
        result.plot.residuals(Y.index[0], Y, data, axes=two)


def test_a_call_without_a_picture_names_the_pictures(result, Y):
    for plot, kind in (
        (result.plot, ResultPlots),
        (result.sel(Y.index[0]).plot, FeaturePlots),
        (result.t_test().plot, TestPlots),
    ):
        assert isinstance(plot, kind)
        with pytest.raises(fm.InputError, match=r"plot\.forest\(\.\.\.\)"):
            plot()
        assert "forest" in repr(plot)


def test_a_contrast_has_to_be_chosen(result):
    with pytest.raises(fm.InputError, match="say which"):
        result.plot.volcano()
    with pytest.raises(fm.InputError, match="Unknown contrast"):
        result.t_test().plot.forest(["agee"])
    with pytest.raises(fm.InputError, match="whole number of bars"):
        result.plot.pvalues("age", bins=0)


def test_pictures_of_a_file_of_statistics_and_of_least_squares(result, data, Y, tmp_path):
    result.save(tmp_path / "fit.nc")
    again = fm.MultiLMMResults.load(tmp_path / "fit.nc")
    expected = drawn(result.plot.volcano("age", label=0))
    np.testing.assert_allclose(drawn(again.plot.volcano("age", label=0)), expected)
    again.plot.predictions(Y.index[0], "age", data, Y)
    stats = fm.MultiLMM.from_summary_stats(result.stats.take(list(Y.index[:4]))).fit()
    stats.plot.theta()
    stats.plot.forest()
    with pytest.raises(fm.InputError, match="matrices"):
        stats.plot.predictions(Y.index[0], "age", data, Y)
    least = fm.MultiLMM.from_formula("~ trt", None, data, Y.iloc[:4]).fit()
    assert len(drawn(least.plot.volcano("trt[T.B]", label=0))) == 4
    assert least.plot.residuals(Y.index[0], Y.iloc[:4], data).shape == (2, 2)
    for refused in (least.plot.theta, lambda: least.plot.caterpillar(0)):
        with pytest.raises(fm.InputError, match="random effects"):
            refused()


def test_pictures_where_features_have_samples_of_their_own(data, Y):
    holes = Y.iloc[:6].copy()
    holes.iloc[0, :5] = np.nan
    holes.iloc[3, 7] = np.nan
    own = fm.MultiLMM.from_formula(
        "~ trt + age + (1 | g)", data=data, Y=holes, missing="feature"
    ).fit(parameter_space="psd")
    for picture in every_picture(own, data, holes, Y.index[0]).values():
        figure, given = plt.subplots()
        assert picture(given) is given
        plt.close(figure)
    ax = own.plot.predictions(Y.index[0], "age", data, holes)
    assert len(drawn(ax)) == N - 5
    own.plot.residuals(Y.index[0], holes, data)


def test_samples_of_the_table_itself_and_of_other_libraries(data, Y):
    polars = pytest.importorskip("polars")
    table = data.assign(y=Y.iloc[0], sex=data["sex"].astype(str)).reset_index(drop=True)
    one = fm.MultiLMM.from_formula("y ~ age + sex + (1 | g)", data=table).fit().sel("y")
    ax = one.plot.predictions("age", table, by="sex", points=3)
    assert len(drawn(ax)) == N
    assert one.plot.residuals(data=table).shape == (2, 2)
    for other in (polars.DataFrame(table.to_dict("list")), table.to_dict("list")):
        again = one.plot.predictions("age", other, by="sex", points=3)
        np.testing.assert_allclose(drawn(again), drawn(ax))
        np.testing.assert_allclose(again.lines[0].get_ydata(), ax.lines[0].get_ydata())
