"""First calls of users of statsmodels, R and scverse who have read the README, a third time."""

from __future__ import annotations

import re
import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import flashmm as fm

N = 60
R = "~ x + t + (1 | g)"


@cache
def things() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    d = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "y": rng.normal(size=N),
            "t": np.tile(["A", "B", "C"], 20),
            "g": np.repeat([f"g{i}" for i in range(10)], 6),
            "age": rng.integers(20, 60, N),
        },
        index=[f"s{i}" for i in range(N)],
    )
    Y = pd.DataFrame(rng.normal(size=(3, N)), index=["A1", "B1", "C1"], columns=d.index)
    m = fm.MultiLMM.from_formula(R, data=d, Y=Y, sums_by="g")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        r = m.fit(parameter_space="psd")
    return SimpleNamespace(
        d=d, Y=Y, m=m, r=r, one=r["A1"], t=r.t_test("x"), f=r.f_test("t"), s=m.stats,
        F=lambda *a, **k: fm.MultiLMM.from_formula(*a, **{"data": d, "Y": Y, **k}),
    )  # fmt: skip


@cache
def anndata():
    found = pytest.importorskip("anndata")
    s = things()
    return found.AnnData(s.Y.T.to_numpy(), obs=s.d, var=pd.DataFrame(index=s.Y.index))


def from_anndata(*given, **options):
    return fm.MultiLMM.from_anndata(*given, **options)


def means(s, **options):
    return s.r.marginal_means("t", **options)


# Each call, and what its message says; None where it works as meant.
CALLS = {
    # sums, products and elements of what has none
    "stats + 1": (lambda s: s.s + 1, "Statistics and 1 .* added by"),
    "stats + None": (lambda s: s.s + None, "Statistics and None"),
    "1 + stats": (lambda s: 1 + s.s, "Statistics and 1"),
    "stats - 1": (lambda s: s.s - 1, "Statistics and 1"),
    "stats * 2": (lambda s: s.s * 2, "Statistics and 2"),
    "2 * stats": (lambda s: 2 * s.s, "Statistics and 2"),
    "stats + model": (lambda s: s.s + s.m, "Statistics and a MultiLMM"),
    "sum of stats": (lambda s: sum([s.s, s.s]), None),
    "model + model": (lambda s: s.m + s.m, r"from_summary_stats\(a\.stats \+ b\.stats\)"),
    "model - 1": (lambda s: s.m - 1, "Models and 1"),
    "result + result": (lambda s: s.r + s.r, "compare_lr_test"),
    "result - result": (lambda s: s.r - s.r, "compare_lr_test"),
    "element of a model": (lambda s: s.m["A1"], r"model\.fit\(\)\['GENE'\]"),
    "coefficient of results": (lambda s: s.r["x"], r"result\.params\['x'\]"),
    "contrast of tests": (lambda s: s.t["x"], r"tests\.pvalue\['x'\]"),
    "term of F tests": (lambda s: s.f["t"], r"tests\.pvalue\['t'\]"),
    "feature and coefficient": (lambda s: s.r["A1", "x"], "Unknown feature: 'x'"),
    "position": (lambda s: s.r[0], None),
    "last": (lambda s: s.r[-1], None),
    "beyond": (lambda s: s.r[7], "out of range"),
    "slice": (lambda s: s.r[:2], None),
    "mask": (lambda s: s.r[s.r.llf < 0], None),
    "as a dict": (lambda s: dict(s.r), None),
    # modules and classes
    "simulate": (lambda _: fm.simulate(), r"simulate\.rnaseq"),
    "simulate of sizes": (lambda _: fm.simulate(n_genes=10), r"simulate\.rnaseq"),
    "datasets": (lambda _: fm.datasets("sleepstudy"), r"datasets\.sleepstudy\(\)"),
    "plots": (lambda s: fm.plots(s.r), r"result\.plot\.volcano"),
    "solvers": (lambda _: fm.solvers(), "FisherScoring"),
    "load_dataset": (lambda _: fm.datasets.load_sleepstudy(), r"sleepstudy\(\)"),
    "stats of a formula": (
        lambda s: fm.SummaryStats.from_formula(R, s.d, s.Y), r"MultiLMM\.from_formula",
    ),
    "stats of AnnData": (lambda _: fm.SummaryStats.from_anndata, r"MultiLMM\.from_anndata"),
    "stats of numpy": (lambda _: fm.SummaryStats.from_numpy, "from_arrays"),
    "read stats": (lambda _: fm.SummaryStats.read, r"load\(path\)"),
    "model of a frame": (lambda _: fm.MultiLMM.from_dataframe, "from_formula"),
    "model of a file": (lambda _: fm.MultiLMM.from_h5ad, "from_anndata"),
    "loaded model": (lambda _: fm.MultiLMM.load, r"flashmm\.load"),
    "read results": (lambda _: fm.MultiLMMResults.read, r"flashmm\.load"),
    "misspelt constructor": (lambda _: fm.MultiLMM.from_formulas, "Did you mean 'from_formula'"),
    # functions of other packages
    "fixef": (lambda s: fm.fixef(s.r), "`params`"),
    "ranef": (lambda s: fm.ranef(s.r), "`random_effects`"),
    "VarCorr": (lambda s: fm.VarCorr(s.r), r"`variance_components|`theta`"),
    "lmerControl": (lambda _: fm.lmerControl(), "`max_iter`"),
    "KRmodcomp": (lambda s: s.r.KRmodcomp(s.r), "df='kenward-roger'"),
    "PBmodcomp": (lambda s: s.r.PBmodcomp(s.r), "`bootstrap_test`"),
    "bootMer": (lambda s: s.r.bootMer(), "`bootstrap_test`"),
    "score_test": (lambda s: s.r.score_test(), "compare_lr_test"),
    "get_prediction": (lambda s: s.r.get_prediction(s.d), "`predict`"),
    "eBayes": (lambda s: fm.eBayes(s.r), r"`moderate\(\)`"),
    "topTable": (lambda s: fm.topTable(s.r, coef="x"), "`top_table"),
    "makeContrastsDream": (lambda s: fm.makeContrastsDream(R, s.d), "contrast_matrix"),
    "voomWithDreamWeights": (lambda s: fm.voomWithDreamWeights(s.Y), r"flashmm\.voom"),
    "fitExtractVarPartModel": (lambda _: fm.fitExtractVarPartModel, r"variance_fractions\(\)"),
    "duplicateCorrelation": (lambda s: fm.duplicateCorrelation(s.Y), r"\(1 \| block\)"),
    "arrayWeights": (lambda s: fm.arrayWeights(s.Y), "weights=w"),
    "pseudobulk": (lambda _: fm.pseudobulk(None), r"\(1 \| sample\)"),
    "version": (lambda _: fm.version, "__version__"),
    "citation": (lambda _: fm.citation(), r"flashmm\.cite\(\)"),
    "varPart": (lambda s: s.r.varPart, r"variance_fractions\(\)"),
    "plotMA": (lambda s: s.r.plotMA("x"), r"result\.plot\.ma"),
    "percent_bars": (lambda s: s.r.plot.percent_bars(), "`fractions`"),
    "decideTests": (lambda s: s.t.decideTests(), r"top_table\(alpha=0\.05\)"),
    "lods": (lambda s: s.t.B, "`tvalue`"),
    "rank": (lambda s: s.t.rank(), r"top_table\(contrast, n=None\)"),
    "cld": (lambda s: s.t.cld(), r"simultaneous\('tukey'\)"),
    "tests in AnnData": (lambda s: s.t.to_anndata(None), r"result\.to_anndata"),
    "sel of tests": (lambda s: s.t.sel("A1"), r"tests\['GENE'\]"),
    "adjust": (lambda s: s.t.adjust("bh"), r"adjusted\(method\)"),
    "obs": (lambda s: s.r.obs, "hold no samples"),
    "X": (lambda s: s.r.X, "hold no samples"),
    "var": (lambda s: s.r.var, "feature_names"),
    "n_vars": (lambda s: s.r.n_vars, r"len\(result\)"),
    "n_obs": (lambda s: s.r.n_obs, "`nobs`"),
    "copy": (lambda s: s.r.copy(), "no copy is needed"),
    "head": (lambda s: s.r.head(), r"to_frame\(\)"),
    # starting values
    "theta0 outside": (
        lambda s: s.m.fit(theta0=[-1, 1], parameter_space="psd"), "outside the psd space",
    ),
    "theta0 outside, named": (
        lambda s: s.m.fit(theta0={"g": -1.0, "Residual": 1.0}, parameter_space="psd"),
        "no variance below zero",
    ),
    "theta0 without residual": (lambda s: s.m.fit(theta0=[1, -1]), "not positive definite"),
    "theta0 of zeros": (lambda s: s.m.fit(theta0=[0, 0]), "not positive definite"),
    "theta0 by name": (lambda s: s.m.fit(theta0={"g": 1.0, "Residual": 1.0}), None),
    "theta0 too short": (lambda s: s.m.fit(theta0=[1]), "must have 2 values"),
    "theta0 of text": (lambda s: s.m.fit(theta0="ml"), "must be numbers"),
    "theta0 of NaN": (lambda s: s.m.fit(theta0=[np.nan, 1]), "must be finite"),
    # means and slopes
    "adjust of means": (
        lambda s: means(s, contrast="pairwise", adjust="tukey"), r"simultaneous\('tukey'\)",
    ),
    "level of means": (lambda s: means(s, level=0.9), r"conf_int\(alpha"),
    "type of means": (lambda s: means(s, type="response"), "scale of Y"),
    "ref of means": (lambda s: means(s, contrast="trt.vs.ctrl", ref="B"), "`reference`"),
    "contrast as text": (lambda s: means(s, contrast=["A - B"]), "a dict of label to weights"),
    "means by a list": (lambda s: s.r.marginal_means(["t"]), None),
    "means at numbers": (lambda s: means(s, at={"x": [0, 1]}), None),
    "means at what is not there": (lambda s: means(s, at={"z": 0}), "`at` names 'z'"),
    "formula of means": (lambda s: s.r.marginal_means("~ t | x"), "is a formula"),
    "means by a group": (lambda s: means(s, by="g"), "not a column of the fixed formula"),
    "contrast of means": (lambda s: means(s).contrast("pairwise"), "contrast='pairwise'"),
    "var of slopes": (lambda s: s.r.marginal_slopes(var="x"), "called `variable`"),
    "specs of slopes": (lambda s: s.r.marginal_slopes("x", specs="t"), "`by`"),
    "slope of a factor": (lambda s: s.r.marginal_slopes("t"), "`marginal_means`"),
    # formulas
    "contrasts of R": (lambda s: s.F(R, contrasts={"t": "contr.sum"}), r"C\(t, contr\.sum\)"),
    "contr.sum": (lambda s: s.F("~ C(t, contr.sum) + (1 | g)"), None),
    "Treatment": (lambda s: s.F("~ C(t, Treatment(reference='B')) + (1 | g)"), None),
    "poly": (lambda s: s.F("~ poly(x, 2) + (1 | g)"), None),
    "power of a sum": (lambda s: s.F("~ (x + t)^2 + (1 | g)"), None),
    "without an intercept": (lambda s: s.F("~ t - 1 + (1 | g)"), None),
    "np.log": (lambda s: s.F("~ np.log(age) + (1 | g)"), None),
    "log of negative": (lambda s: s.F("~ log(x) + (1 | g)"), "not finite in rows"),
    "sqrt": (lambda s: s.F("~ sqrt(age) + (1 | g)"), r"np\.sqrt"),
    "d$x": (lambda s: s.F("~ d$x + (1 | g)"), r"Unknown operator '\$'"),
    "bar around": (lambda s: s.F("~ x + (g | 1)"), "the group in"),
    "bar without brackets": (lambda s: s.F("~ x + 1 | g"), r"\(effects \| group\)"),
    "random of nlme": (lambda s: s.F("~ x", random="~ 1 | g"), r"\(effects \| group\)"),
    "random of nlme, a dict": (lambda s: s.F("~ x", random={"g": "~ 1"}), r"\(1 \| group\)"),
    "other case": (lambda s: s.F("~ X + (1 | g)"), "Did you mean 'x'"),
    "not closed": (lambda s: s.F("~ x + (1 | g"), "bracket"),
    "dot": (lambda s: s.F("~ . + (1 | g)"), "name the columns"),
    # Y and data
    "Y transposed": (lambda s: s.F("~ x", Y=s.Y.T), r"Pass Y\.T"),
    "array transposed": (lambda s: s.F("~ x", Y=s.Y.to_numpy().T), r"Pass Y\.T"),
    "Y of text": (lambda s: s.F("~ x", Y=s.Y.astype(str)), "must be numeric"),
    "Y with holes": (lambda s: s.F("~ x", Y=s.Y.where(s.Y > -2)), "missing='feature'"),
    "data by path": (lambda s: s.F("~ x", data="samples.csv"), "must be a table"),
    "data of lists": (lambda s: s.F("~ x", data=[1, 2]), "must be a table"),
    "one column": (lambda s: s.F("~ t", Y=None, feature_columns="y"), None),
    "sums of a dict": (lambda _: fm.MultiLMM.from_summary_stats({"n": 3}), "lacks 'XX'"),
    # AnnData
    "gene_symbols": (lambda _: from_anndata(anndata(), R, gene_symbols="symbol"), "var_names"),
    "key_added": (lambda _: from_anndata(anndata(), R, key_added="de"), r"result\.to_anndata"),
    "layer X": (lambda _: from_anndata(anndata(), R, layer="X"), "no layer 'X'"),
    "a list": (lambda _: from_anndata([anndata()], R), "must be an AnnData"),
    "no file": (lambda _: from_anndata("nosuch.h5ad", R), "no file"),
    "a csv": (lambda _: from_anndata("cells.csv", R), "neither an .h5ad"),
    "no such gene": (lambda _: from_anndata(anndata(), R, features="nosuch"), "Available: 'A1'"),
    "random column": (lambda _: from_anndata(anndata(), "~ x", random="g"), r"\(1 \| g\)"),
    "to_anndata contrast": (lambda s: s.r.to_anndata(anndata(), contrast="x"), "'tests'"),
    # tests and tables
    "equations": (lambda s: s.r.t_test("x = 0, t[T.B] = 0"), None),
    "a number": (lambda s: s.r.t_test(1), "cannot read a contrast"),
    "short vector": (lambda s: s.r.t_test([0, 1]), "there are 4 coefficients"),
    "HC3": (lambda s: s.r.t_test("x", cov="HC3"), "Did you mean 'CR3'"),
    "df of a number": (lambda s: s.r.t_test("x", df=10), "'kenward-roger'"),
    "moderated by name": (lambda s: s.r.t_test("x", moderated="eBayes"), "`moderate` returns"),
    "all rows": (lambda s: s.r.top_table("x", n="all"), "None for all"),
    "sorted as limma": (lambda s: s.r.top_table("x", sort_by="logFC"), "'effect'"),
    "drop1 scope": (lambda s: s.r.drop1(scope="x"), "f_test"),
    "boot limits": (lambda s: s.r.conf_int(method="boot"), "'profile'"),
    "model as other": (lambda s: s.r.compare_lr_test(s.m), "results of a fit"),
    "no picture": (lambda s: s.r.plot(), "Say which picture"),
    "volcano of what": (lambda s: s.r.plot.volcano(), "say which"),
    "saved as pickle": (lambda s: s.r.save("x.pickle"), r"\.nc"),
    "no results file": (lambda _: fm.load("x.nc"), "no file"),
    "number less a result": (lambda s: 1 - s.r, "compare_lr_test"),
    "numpy number and a result": (lambda s: np.float64(1) + s.r, "compare_lr_test"),
    "two models": (lambda s: s.m * 2, "model.drop"),
    "adjusted by method": (lambda s: s.r.t_test("x", method="bh"), "tests.adjusted"),
    "picture by a list": (lambda s: s.r.plot.predictions("A1", "x", s.d, by=["t"]), "one column"),
    "ragged labels": (
        lambda s: s.r.check_residuals(s.Y, s.d, by=[[1]] * 30 + [[1, 2]] * 30),
        "one label for each",
    ),
    "prior of a number": (
        lambda s: s.r.t_test("x", df="integrated", prior=fm.RatioPrior(3)),
        "does not hold",
    ),
    "p above one": (lambda _: fm.adjust_pvalues([2.0]), "outside"),
}  # fmt: skip


def test_there_are_many():
    assert len(CALLS) >= 120


@pytest.mark.parametrize("name", CALLS)
def test_a_first_call_is_answered(name):
    call, message = CALLS[name]
    if "picture" in name or "volcano" in name or name in ("plotMA", "percent_bars", "plots"):
        pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        if message is None:
            call(things())
            return
        with pytest.raises((fm.InputError, AttributeError), match=message) as caught:
            call(things())
    internal = (
        r"ModelData|Methods\b|FeatureTests|Plots\b|AnsweringClass|Deferred|unexpected keyword|"
        r"object has no attribute|not subscriptable|unsupported operand"
    )
    assert not re.search(internal, str(caught.value))


def test_a_level_is_not_taken_for_a_random_term():
    effects = things().r.random_effects
    assert effects["g"].sel(group_level="g0").dims == ("feature", "effect")
    assert effects.get("g0") is None
    with pytest.raises(KeyError, match="those are 'g'"):
        effects["g0"]


def test_starting_values_of_features_fall_back_one_by_one():
    """What another fit found may lie outside the space: of some features, not of all."""
    s = things()
    start = s.r.theta.copy()
    start.iloc[0] = [-0.5, 1.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        again = s.m.fit(parameter_space="psd", theta0=start)
        np.testing.assert_allclose(again.llf, s.r.llf, rtol=1e-8)
