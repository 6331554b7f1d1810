"""Statistics of sites, batches and blocks: joined by label, and taken apart again."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from test_summary_stats import arrays, assert_same, assert_same_fit, far_off

import flashmm as fm
from flashmm.exceptions import InputError
from flashmm.stats.summary_stats import SummaryStats

N = 120
FEATURES = ["ISG15", "IFI6", "CD3D", "CD8A"]


def cohort(seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples of ten donors at three sites, and four features of them."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(10), N // 10)
    data = pd.DataFrame(
        {
            "donor": [f"d{i}" for i in donor],
            "site": np.array(["north"] * 5 + ["south"] * 3 + ["west"] * 2)[donor],
            "age": rng.normal(50, 10, N),
            "trt": pd.Categorical(rng.choice(["A", "B"], N)),
        },
        index=[f"s{i}" for i in range(N)],
    )
    Y = rng.normal(size=(4, 10))[:, donor] + 0.02 * data["age"].to_numpy() + rng.normal(size=(4, N))
    return data, pd.DataFrame(Y, FEATURES, data.index)


def statistics(data: pd.DataFrame, Y: pd.DataFrame, formula: str = "~ age + trt + (1 | donor)"):
    return fm.MultiLMM.from_formula(formula, None, data, Y[data.index]).stats


def by_site(data: pd.DataFrame, Y: pd.DataFrame, formula: str = "~ age + trt + (1 | donor)"):
    return {site: statistics(part, Y, formula) for site, part in data.groupby("site")}


@pytest.mark.parametrize(
    "formula",
    [
        "~ age + trt + (1 | donor)",
        "~ age + trt + (1 + age | donor)",
        "~ age + trt + (1 | site/donor)",
        "~ age + diag(1 + age | donor) + (1 | trt)",
    ],
)
def test_sites_with_donors_of_their_own_add_up(formula):
    data, Y = cohort()
    whole = statistics(data, Y, formula)
    sites = by_site(data, Y, formula)
    assert_same(sum(sites.values()), whole)
    other_way = sites["west"] + sites["north"] + sites["south"]
    assert sorted(other_way.structure.column_names) == sorted(whole.structure.column_names)
    if formula.endswith("(1 | donor)"):
        assert_same_fit(other_way, whole, 1e-7)


def test_flashmm_formulas_add_up_too():
    data, Y = cohort()

    def one(part):
        return fm.MultiLMM.from_formula("~ age + trt", "~ 0 + donor", part, Y[part.index]).stats

    assert_same(sum(one(part) for _, part in data.groupby("site")), one(data))


def test_order_of_coefficients_and_features_does_not_matter():
    data, Y = cohort()
    north, south = data[data["site"] == "north"], data[data["site"] != "north"]
    whole = statistics(data, Y)
    turned = statistics(south, Y.iloc[::-1], "~ trt + age + (1 | donor)")
    assert turned.coef_names != whole.coef_names
    assert_same(statistics(north, Y) + turned, whole)


def test_donors_at_several_sites_are_the_same_donors():
    data, Y = cohort()
    odd = np.arange(N) % 2 == 1
    assert_same(statistics(data[odd], Y) + statistics(data[~odd], Y), statistics(data, Y))


def test_features_are_intersected_on_request():
    data, Y = cohort()
    sites = by_site(data, Y)
    fewer = sites["south"].take(["CD8A", "ISG15"])
    with pytest.raises(InputError, match=r"only on the left: 'IFI6', 'CD3D'.*features='intersect'"):
        sites["north"] + fewer
    joined = sites["north"].add(fewer, features="intersect")
    assert_same(joined, (sites["north"] + sites["south"]).take(["ISG15", "CD8A"]))


def test_a_site_that_lacks_a_level_of_a_factor_says_what_to_do():
    data, Y = cohort()
    odd = np.arange(N) % 2 == 1
    data["batch"] = np.where((data["site"] == "north") & odd, "x", "y")
    formula = "~ batch + (1 | donor)"
    message = r"'batch' has one level .*\('y'\).*C\(batch, levels=\['a', 'b'\]\)"
    with pytest.raises(InputError, match=message):
        sum(by_site(data, Y, formula).values())
    three = np.where(odd, "x", np.where(np.arange(N) % 4 == 0, "y", "z"))
    data["three"] = np.where((data["site"] != "north") & (three == "y"), "z", three)
    message = r"only on the left: 'three\[T.y\]'; only on the right: none. .* levels=\['a', 'b'\]"
    with pytest.raises(InputError, match=message):
        sum(by_site(data, Y, "~ three + (1 | donor)").values())
    named = "~ C(batch, levels=['x', 'y']) + (1 | donor)"
    assert_same(sum(by_site(data, Y, named).values()), statistics(data, Y, named))
    assert_same_fit(sum(by_site(data, Y, named).values()), statistics(data, Y, named), 1e-7)


def test_terms_must_agree():
    data, Y = cohort()
    with pytest.raises(InputError, match=r"different variance components: 'donor', .*'site'"):
        statistics(data, Y) + statistics(data, Y, "~ age + trt + (1 | site)")
    with pytest.raises(InputError, match="different variance components"):
        statistics(data, Y) + statistics(data, Y, "~ age + trt + (1 + age | donor)")


# ---- taking out --------------------------------------------------------------------------


def test_a_batch_that_is_taken_out_leaves_the_others():
    data, Y = cohort()
    sites = by_site(data, Y)
    whole = sum(sites.values())
    without = whole - sites["south"]
    assert_same(without, sites["north"] + sites["west"], rtol=1e-11)
    assert_same_fit(without, sites["north"] + sites["west"], 1e-7)
    assert_same(without + sites["south"] - sites["west"], sites["north"] + sites["south"], 1e-11)


def test_only_what_was_added_can_be_taken_out():
    data, Y = cohort()
    sites = by_site(data, Y)
    with pytest.raises(InputError, match="Cannot take 120 samples out of 60: nothing would be"):
        sites["north"] - sum(sites.values())
    with pytest.raises(InputError, match=r"have other levels: 'donor\[d5\]'"):
        sites["north"] - sites["south"]
    with pytest.raises(InputError, match="lack features: 'IFI6'"):
        sum(sites.values()) - sites["south"].take(["ISG15", "CD3D", "CD8A"])
    with pytest.raises(TypeError):
        sites["north"] - 1


def test_shifted_sums_survive_taking_out():
    Y, far, _, X, Z = far_off()
    far = np.vstack([Y, far])
    first, second = slice(0, 36), slice(36, 60)
    whole = SummaryStats.from_arrays(far, X, Z)
    part, rest = (SummaryStats.from_arrays(far[:, s], X[s], Z[s]) for s in (first, second))
    assert whole.shift is not None
    left = whole - part
    np.testing.assert_array_equal(left.shift.features, rest.shift.features)
    assert_same_fit(left, rest, 1e-5)
    assert_same_fit(left + part, whole, 1e-6)


def test_shifted_sums_survive_new_levels_and_another_order():
    Y, far, _, X, _ = far_off()
    far = np.vstack([Y, far])
    names = [f"f{i}" for i in range(len(far))]
    group = np.arange(60) % 6
    halves = [np.flatnonzero(group < 4), np.flatnonzero(group >= 3)[10:]]

    def part(rows, columns=(0, 1, 2), order=slice(None)):
        levels = np.unique(group[rows])
        indicator = (group[rows][:, None] == levels).astype(float)
        return SummaryStats.from_arrays(
            pd.DataFrame(far[:, rows], names).iloc[order],
            pd.DataFrame(X[rows][:, columns], columns=[f"x{i}" for i in columns]),
            pd.DataFrame(indicator, columns=[f"g{level}" for level in levels]),
        )

    rows = np.unique(np.concatenate([halves[0], halves[1][group[halves[1]] > 3]]))
    second = halves[1][group[halves[1]] > 3]
    joined = part(halves[0]) + part(second, (2, 0, 1), slice(None, None, -1))
    assert joined.shift is not None
    assert_same_fit(joined, part(rows), 1e-6)


# ---- blocks ------------------------------------------------------------------------------


def test_update_adds_a_block():
    Y, X, Z = arrays()
    whole = SummaryStats.from_arrays(Y, X, Z, feature_names=list("abcd"), components=[4, 2])
    first = SummaryStats.from_arrays(
        Y[:, :20], X[:20], Z[:20], feature_names=list("abcd"), components=[4, 2]
    )
    before = first.yy.copy()
    updated = first.update(Y[:, 20:50], X[20:50], Z[20:50]).update(Y[:, 50:], X[50:], Z[50:])
    assert_same(updated, whole)
    np.testing.assert_array_equal(first.yy, before)
    labelled = pd.DataFrame(Y[::-1, 20:], list("dcba"))
    assert_same(first.update(labelled, X[20:], Z[20:]), whole)
