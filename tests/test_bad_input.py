"""Wrong input raises an InputError that names the culprit."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import flashmm as fm
from flashmm.exceptions import FlashMMError, InputError, listing, nearest

N = 48


def data(**columns) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.normal(50.0, 10.0, size=N),
            "batch": np.repeat(["A", "B"], N // 2),
            "donor": np.repeat([f"d{i}" for i in range(8)], N // 8),
            "trt": np.tile(["u", "v", "w"], N // 3),
        },
        index=[f"s{i}" for i in range(N)],
    )
    return frame.assign(**columns)


def responses() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    donor = np.repeat(np.arange(8), N // 8)
    Y = rng.normal(size=(4, N)) + 2.0 * rng.normal(size=(4, 8))[:, donor]
    return pd.DataFrame(Y, index=list("wxyz"), columns=[f"s{i}" for i in range(N)])


def fit(fixed="~ age", random="(1 | donor)", frame=None, Y=None, **options):
    building = {name: options.pop(name) for name in ("transform", "missing") if name in options}
    model = fm.MultiLMM.from_formula(
        fixed,
        random,
        data() if frame is None else frame,
        responses() if Y is None else Y,
        **building,
    )
    return model.fit(**options)


def refused(message: str):
    return pytest.raises(InputError, match=re.escape(message))


def test_the_ordinary_problem_is_fine():
    assert fit().converged.all()
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, FlashMMError)


# ---- variables and values ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fixed", "random", "message"),
    [
        (
            "~ agee",
            "(1 | donor)",
            "uses 'agee', which is not a column of `data`. Did you mean 'age'?",
        ),
        (
            "~ age",
            "(1 | doner)",
            "uses 'doner', which is not a column of `data`. Did you mean 'donor'?",
        ),
        (
            "~ age",
            "~ 0 + doner",
            "uses 'doner', which is not a column of `data`. Did you mean 'donor'?",
        ),
        (
            "~ age",
            "(ag | donor)",
            "uses 'ag', which is not a column of `data`. Did you mean 'age'?",
        ),
    ],
)
def test_a_variable_that_data_lacks(fixed, random, message):
    with refused(message):
        fit(fixed, random)


@pytest.mark.parametrize("column", ["age", "trt", "donor"])
def test_a_missing_value_in_data(column):
    frame = data()
    frame.loc["s7", column] = np.nan
    with refused(f"1 in '{column}' (first rows 's7')"):
        fit("~ age + trt", frame=frame)
    with pytest.warns(fm.MissingSamplesWarning, match="1 of 48 samples"):
        results = fit("~ age + trt", frame=frame, missing="drop")
    assert results.nobs == N - 1


def test_a_missing_value_in_a_column_that_is_not_used_is_no_matter():
    frame = data(unused=np.nan)
    assert fit(frame=frame).nobs == N


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_value_in_data(value):
    frame = data()
    frame.loc["s7", "age"] = value
    with refused("Column 'age' of `data` is infinite in rows 's7'"):
        fit(frame=frame)


def test_all_samples_missing():
    Y = responses()
    Y.iloc[0] = np.nan
    with refused("All 48 samples have a missing value"):
        fit(Y=Y, missing="drop")


def test_values_of_y():
    Y = responses()
    Y.loc["x", "s5"] = np.nan
    with refused("Y has a missing value: feature 'x', sample 's5'"):
        fit(Y=Y)
    Y.loc["x", "s5"] = np.inf
    with refused("Y is infinite: feature 'x', sample 's5'"):
        fit(Y=Y)
    with refused("turns -2 into a value that is not finite: feature 'w', sample 's0'"):
        fit(Y=responses() * 0 - 2, transform="log2p1")
    with refused("Y is transposed"):
        fit(Y=responses().T)
    with refused("Y must be numeric"):
        fit(Y=responses().astype("string"))


# ---- the fixed effects -------------------------------------------------------------------


def test_rank_names_the_column_and_what_it_combines_from():
    with refused(
        "`fixed` has rank 8 but 9 columns: 'batch[T.B]' is a linear combination of 'donor[T.d4]', "
        "'donor[T.d5]', 'donor[T.d6]', 'donor[T.d7]'. Change the formula, or build the model with "
        'rank="drop": such columns are then left out,'
    ):
        fit("~ donor + batch", "(1 | trt)")
    with refused("`fixed` has rank 2 but 3 columns: 'months' is a linear combination of 'age'."):
        fit("~ age + months", frame=data(months=12 * data()["age"]))
    with refused("'total' is a linear combination of 'age', 'b'."):
        frame = data(b=np.random.default_rng(5).normal(size=N))
        fit("~ age + b + total", frame=frame.assign(total=frame["age"] - 2 * frame["b"]))
    with refused("'one' is a linear combination of 'Intercept'."):
        fit("~ age + one", frame=data(one=3.0))


def test_rank_counts_every_column_too_many():
    frame = data(a2=2 * data()["age"], a3=3 * data()["age"], one=1.0)
    with refused(
        "`fixed` has rank 2 but 5 columns: 'a2' is a linear combination of 'age'; 'a3' is a linear "
        "combination of 'age'; 'one' is a linear combination of 'Intercept'."
    ):
        fit("~ age + a2 + a3 + one", frame=frame)


def test_an_empty_cell_of_the_design():
    frame = data()
    frame["other"] = np.where((frame["batch"] == "B"), "p", np.tile(["p", "q"], N // 2))
    with refused("'batch[T.B]:other[T.q]' is zero in every sample (an empty cell of the design)"):
        fit("~ batch * other", frame=frame)


def test_a_column_of_zeros():
    X = np.column_stack([np.ones(N), np.zeros(N)])
    with refused("`fixed` has rank 1 but 2 columns: 'x2' is zero in every sample"):
        fm.MultiLMM.from_arrays(responses(), X, np.eye(8)[np.arange(N) % 8]).fit()


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_columns_of_very_different_size_are_not_rank_deficient(method):
    rng = np.random.default_rng(2)
    X = np.column_stack([np.ones(N), rng.normal(size=N), rng.normal(size=N)])
    Z = np.eye(8)[np.repeat(np.arange(8), N // 8)]
    scale = np.array([1.0, 1e8, 1e-8])
    plain = fm.MultiLMM.from_arrays(responses(), X, Z).fit(method)
    scaled = fm.MultiLMM.from_arrays(responses(), X * scale, Z).fit(method)
    np.testing.assert_allclose(scaled.theta, plain.theta, rtol=1e-8)
    np.testing.assert_allclose(scaled.params * scale, plain.params, rtol=1e-8)
    np.testing.assert_allclose(scaled.bse * scale, plain.bse, rtol=1e-8)
    change = np.log(scale).sum() if method == "REML" else 0.0  # -1/2 log|X'V^-1X|
    np.testing.assert_allclose(scaled.llf, plain.llf - change, rtol=1e-9)


def test_a_column_far_from_zero_is_not_rank_deficient():
    frame = data(year=2000.0 + data()["age"] / 10)
    assert fit("~ year", frame=frame).converged.all()


def test_fewer_samples_than_coefficients():
    few = [0, 7, 14, 21, 28]
    with refused("There are 5 samples for 6 fixed effects"):
        fit("~ batch * trt", frame=data().iloc[few], Y=responses().iloc[:, few])
    X = np.random.default_rng(0).normal(size=(4, 4))
    with refused("There are 4 samples for 4 fixed effects; a fit needs more samples"):
        fm.MultiLMM.from_arrays(np.ones((2, 4)), X, np.ones((4, 1))).fit()


# ---- the random effects ------------------------------------------------------------------


def test_a_component_in_the_span_of_the_fixed_effects():
    with refused("The random effect 'donor' lies in the span of the fixed effects"):
        fit("~ donor")
    with refused("The random effect 'batch' lies in the span of the fixed effects"):
        fit("~ donor + age", "(1 | batch) + (1 | trt)")
    with refused("The random effect 'one' lies in the span of the fixed effects"):
        fit(random="(1 | one)", frame=data(one="a"))


def test_one_observation_per_level():
    frame = data(cell=[f"c{i}" for i in range(N)])
    with refused("The variance components 'cell', 'Residual' cannot be told apart"):
        fit(random="(1 | cell)", frame=frame)
    with refused("'cell', 'Residual' cannot be told apart"):
        fit(random="(1 | donor) + (1 | cell)", frame=frame)


def test_the_same_component_twice():
    with refused("the same effect more than once: 'Intercept of donor'"):
        fit(random="(1 | donor) + (1 | donor)")
    frame = data(person=data()["donor"].str.upper())
    with refused("The variance components 'donor', 'person' cannot be told apart"):
        fit(random="(1 | donor) + (1 | person)", frame=frame)
    Z = np.eye(8)[np.arange(N) % 8]
    with refused("The variance components 'Z1', 'Z2' cannot be told apart"):
        fm.MultiLMM.from_arrays(
            responses(), np.ones((N, 1)), np.hstack([Z, Z]), components=[8, 8]
        ).fit()


def test_a_component_of_zeros():
    Z = np.hstack([np.eye(8)[np.arange(N) % 8], np.zeros((N, 2))])
    with refused("The random effect 'empty' is zero in every sample"):
        fm.MultiLMM.from_arrays(
            responses(), np.ones((N, 1)), Z, components={"donor": 8, "empty": 2}
        ).fit()


# ---- names and shapes --------------------------------------------------------------------


def test_duplicate_names():
    with refused("Duplicate feature names: 'x'"):
        fit(Y=responses().set_axis(["w", "x", "x", "z"]))
    Z = np.eye(8)[np.arange(N) % 8]
    X = np.column_stack([np.ones(N), data()["age"]])
    with refused("Duplicate coefficient names: 'a'"):
        fm.MultiLMM.from_arrays(responses(), X, Z, coef_names=["a", "a"])
    with refused("Duplicate coefficient names: 'a'"):
        fm.MultiLMM.from_arrays(responses(), pd.DataFrame(X, columns=["a", "a"]), Z)
    with refused("Duplicate feature names: 'f'"):
        fm.MultiLMM.from_arrays(responses(), X, Z, feature_names=["f", "f", "g", "h"])
    stats = fm.MultiLMM.from_arrays(responses(), X, Z).stats
    with refused("Duplicate feature names: 'f'"):
        fm.MultiLMM.from_summary_stats(stats, feature_names=["f", "f", "g", "h"])
    with refused("There are 1 coefficient names for 2 coefficients"):
        fm.MultiLMM.from_summary_stats(stats, coef_names=["a"])
    with refused("sizes [3, 4], which must be positive and sum to the 8 columns of Z"):
        fm.MultiLMM.from_summary_stats(stats, components=[3, 4])
    with refused("has the name 'Residual', which is that of the residual variance"):
        fm.MultiLMM.from_summary_stats(stats, components={"Z1": 3, "Residual": 5})


@pytest.mark.parametrize(
    ("X", "Z", "options", "message"),
    [
        (np.ones((5, 1)), np.ones((N, 2)), {}, "X has 5 rows (samples), but Z has 48"),
        (
            np.ones((N, 1)),
            sp.csr_array(np.ones((5, 2))),
            {},
            "X has 48 rows (samples), but Z has 5",
        ),
        (np.ones((5, 1)), np.ones((5, 2)), {}, "Y has 48 samples (columns), but the design has 5"),
        (np.ones((4, 1)), np.ones((4, 2)), {}, "looks transposed"),
        (np.ones((N, 1)), np.ones((N, 3)), {"components": [1, 1]}, "sizes [1, 1]"),
        (np.ones((N, 1)), np.ones((N, 3)), {"components": [3, 0]}, "sizes [3, 0]"),
        (np.ones((N, 1)), np.ones((N, 3)), {"components": {"a": 4}}, "sizes [4]"),
        (np.ones((N, 1)), np.ones((N, 3)), {"components": [1.5, 1.5]}, "must be whole numbers"),
        (np.ones((N, 1)), np.ones((N, 3)), {"components": "ab"}, "must be whole numbers"),
    ],
)
def test_shapes_of_arrays(X, Z, options, message):
    with refused(message):
        fm.MultiLMM.from_arrays(responses(), X, Z, **options).fit()


# ---- options -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "reml"}, "Unknown method='reml'. Did you mean 'REML'"),
        ({"method": "MLE"}, "Unknown method='MLE'. Did you mean 'ML'"),
        ({"method": None}, "Unknown method=None"),
        ({"solver": "fisher"}, "Unknown solver='fisher'. Did you mean 'fisher_scoring'"),
        ({"solver": 3}, "int lacks 'init', 'step', 'terminate'"),
        ({"parameter_space": "PSD"}, "Unknown parameter_space='PSD'. Did you mean 'psd'"),
        ({"parameter_space": "unconstraint"}, "Did you mean 'unconstrained'"),
        ({"engine": "spectrum"}, "Unknown engine='spectrum'. Did you mean 'spectral'"),
        ({"transform": "log2"}, "Unknown transform 'log2'. Did you mean 'log2p1'"),
        ({"missing": "drops"}, "Unknown missing='drops'. Did you mean 'drop'"),
        ({"max_iter": 0}, "`max_iter` must be a positive integer, not 0"),
        ({"max_iter": 2.5}, "`max_iter` must be a positive integer, not 2.5"),
        ({"max_iter": True}, "`max_iter` must be a positive integer, not True"),
        ({"max_iter": "many"}, "`max_iter` must be a positive integer, not 'many'"),
        ({"epsilon": 0}, "`epsilon` must be between 0 and 1"),
        ({"epsilon": -1e-5}, "`epsilon` must be between 0 and 1"),
        ({"epsilon": np.nan}, "`epsilon` must be between 0 and 1"),
        ({"epsilon": np.inf}, "`epsilon` must be between 0 and 1"),
        ({"memory": np.nan}, "`memory` must be a positive number"),
        ({"epsilon": "small"}, "`epsilon` must be"),
        ({"memory": 0}, "`memory` must be"),
        ({"memory": "1GB"}, "`memory` must be"),
        ({"theta0": [1.0]}, "`theta0` has shape (1,); it must have 2 values"),
        ({"theta0": np.ones((2, 2))}, "`theta0` has shape (2, 2)"),
        ({"theta0": "zero"}, "`theta0` must be numbers"),
        ({"theta0": [np.nan, 1.0]}, "theta0"),
    ],
)
def test_options(options, message):
    with refused(message):
        fit(**options)


def test_names_of_contrasts_and_features():
    results = fit("~ age + trt")
    with refused("unknown coefficient 'trt[T.x]'. Did you mean 'trt[T.w]', 'trt[T.v]'"):
        results.t_test("trt[T.x]")
    with refused("Unknown alternative 'both'"):
        results.t_test("age", alternative="both")
    with refused("Unknown df='residuals'. Did you mean 'residual'"):
        results.t_test("age", df="residuals")
    with refused("Unknown feature: 'ww'. Did you mean 'w'"):
        results.sel("ww")
    with refused("Unknown contrast 'agee'. Did you mean 'age'"):
        results.t_test().top_table("agee")


# ---- the phrasing ------------------------------------------------------------------------


def test_listing_and_nearest():
    assert listing(["a", 2]) == "'a', '2'"
    assert listing(range(7)) == "'0', '1', '2', '3', '4', ... (7 in all)"
    assert nearest("isg15", ["ISG15", "IFI6"]) == "Did you mean 'ISG15'?"
    assert nearest("xyz", ["a", "b"]) == "Available: 'a', 'b'."


def test_a_covariance_of_effects_that_no_level_has_both_of_is_refused():
    rng = np.random.default_rng(4)
    donor = np.repeat([f"d{i}" for i in range(8)], 6)
    cells = pd.DataFrame({"donor": donor, "arm": np.where(donor < "d4", "a", "b")})
    Y = rng.normal(size=(2, len(cells)))
    with refused("nothing about the covariance 'donor[arm[a],arm[b]]': no level of 'donor'"):
        fm.MultiLMM.from_formula("~ arm + (0 + arm | donor)", None, cells, Y).fit()
    apart = fm.MultiLMM.from_formula("~ arm + diag(0 + arm | donor)", None, cells, Y)
    assert apart.fit(parameter_space="psd").converged.all()


# ---- containers that are of another shape than they should be -----------------------------


def _blocks():
    Y = responses().abs().to_numpy()
    names = list(data().index)
    return [(names[:20], Y[:, :20]), (names[20:], Y[:, 20:])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": _blocks()}, "`weights`"),
        ({"weights": [[1.0, 2.0], [3.0]]}, "`weights` must be a rectangular array"),
        ({"weights": -responses().abs()}, "for feature 'w', sample 's0'"),
        ({"feature_covariates": responses()}, "`feature_covariates` must be a dict"),
        ({"feature_covariates": responses().to_numpy()}, "`feature_covariates` must be a dict"),
        ({"feature_covariates": [responses()]}, "`feature_covariates` must be a dict"),
        ({"feature_covariates": {1: responses()}}, "`feature_covariates` has the key 1"),
        ({"context": [1]}, "`context` must be a dict"),
        ({"context": {1: 2}}, "`context` has the key 1"),
    ],
)
def test_containers_of_another_kind_are_refused(options, message):
    with refused(message):
        fm.MultiLMM.from_formula("~ age", "(1 | donor)", data(), responses(), **options)


@pytest.mark.parametrize("at", [["age"], 3, {"age": [[1.0], [2.0, 3.0]]}, {1: 2.0}])
def test_at_of_another_kind_is_refused(at):
    with pytest.raises(InputError, match=r"`at`|'age'"):
        fit("~ age * trt").marginal_means("trt", at=at)
    with refused("`context` must be a dict"):
        fit("~ age * trt").predict(data(), context=[1])


ODD = [3, 1.5, np.nan, [1.0], ["a", "b"], {"a": 1}, np.zeros(3), pd.Series([1.0, 2.0]), object()]
ODD += [slice(0, 2), [[1.0], [2.0, 3.0]], np.ones(4) * 1j, b"x"]
ASKED = {
    "specs": lambda r, odd: r.marginal_means(odd),
    "by": lambda r, odd: r.marginal_means("trt", by=odd),
    "weights": lambda r, odd: r.marginal_means("trt", weights=odd),
    "contrast": lambda r, odd: r.marginal_means("trt", contrast=odd),
    "alternative": lambda r, odd: r.t_test("age", alternative=odd),
    "df": lambda r, odd: r.t_test("age", df=odd),
    "level": lambda r, odd: r.predict(data(), level=odd),
    "interval": lambda r, odd: r.predict(data(), interval=odd),
    "se": lambda r, odd: r.blup(odd),
    "method": lambda r, odd: r.conf_int_theta(method=odd),
    "trend": lambda r, odd: r.moderate(trend=odd),
    "trend of ratios": lambda r, odd: r.learn_ratio_prior(trend=odd),
    "column_means": lambda r, odd: r.variance_fractions(column_means=odd),
    "components": lambda r, odd: r.variance_test(odd),
    "sort_by": lambda r, odd: r.top_table("age", sort_by=odd),
    "style": lambda r, odd: r.top_table("age", style=odd),
    "adjust": lambda r, odd: r.top_table("age", adjust=odd),
    "n": lambda r, odd: r.top_table("age", n=-1 if isinstance(odd, int) else odd),
    "statsmodels": lambda r, odd: r.sel("w").to_statsmodels(odd, data()),
    "fit": lambda _, odd: fit(method=odd),
    "space": lambda _, odd: fit(parameter_space=odd),
    "engine": lambda _, odd: fit(engine=odd),
    "add": lambda r, odd: r.stats.add(odd),
    "random": lambda _, odd: _model().drop(random=[odd]),
    "fixed": lambda _, odd: _model().drop(fixed=["q" if isinstance(odd, int) else odd]),
}


def _model():
    return fm.MultiLMM.from_formula("~ age * trt", "(1 | donor)", data(), responses())


@pytest.fixture(scope="module")
def fitted():
    return fit("~ age * trt")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: type(odd).__name__)
def test_what_an_option_cannot_be_is_refused(fitted, asked, odd):
    with pytest.raises(InputError):
        ASKED[asked](fitted, odd)


def test_statistics_of_two_kinds_are_not_joined():
    gaps = responses()
    gaps.iloc[0, 3] = np.nan
    one = fm.MultiLMM.from_formula("~ age", "(1 | donor)", data(), responses()).stats
    two = fm.MultiLMM.from_formula("~ age", "(1 | donor)", data(), gaps, missing="feature").stats
    for left, right in ((one, two), (two, one)):
        with refused("can be joined with statistics of their kind"):
            left.add(right)
