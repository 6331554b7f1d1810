"""More of what people write first: of tests, statistics, pictures, AnnData, matrices, counts."""

from __future__ import annotations

import pickle
import re
import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import flashmm as fm

N = 60


@cache
def things() -> SimpleNamespace:
    rng = np.random.default_rng(0)
    d = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "t": np.tile(["A", "B", "C"], 20),
            "g": np.repeat([f"g{i}" for i in range(10)], 6),
        },
        index=[f"s{i}" for i in range(N)],
    )
    Y = pd.DataFrame(rng.normal(size=(3, N)), index=["A1", "B1", "C1"], columns=d.index)
    model = fm.MultiLMM.from_formula("~ x + t + (1 | g)", data=d, Y=Y, sums_by="g")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        r = model.fit(parameter_space="psd")
        found = r.influence()
    build = fm.MultiLMM
    return SimpleNamespace(
        d=d, Y=Y, X=np.column_stack([np.ones(N), d["x"]]), Z=pd.get_dummies(d["g"]).to_numpy(float),
        m=model, r=r, one=r["A1"], t=r.t_test("x"), f=r.f_test("t"), i=found, s=model.stats,
        F=build.from_formula, A=build.from_arrays, boot=r.bootstrap(2, rng=1),
    )  # fmt: skip


@cache
def anndata():
    found = pytest.importorskip("anndata")
    s = things()
    return found.AnnData(s.Y.T.to_numpy(), obs=s.d, var=pd.DataFrame(index=s.Y.index))


def from_anndata(*given, **options):
    return fm.MultiLMM.from_anndata(*given, **options)


@cache
def voom():
    counts = np.random.default_rng(1).poisson(20, (5, N))
    return fm.voom(counts, "~ x", None, things().d)


R = "~ x + (1 | g)"
# Each call, and what its message says; None where it works as meant.
CALLS = {
    # tests
    "pvalues": (lambda s: s.t.pvalues, "`pvalue`"),
    "pval": (lambda s: s.t.pval, "p-values are `pvalue`"),
    "tvalues": (lambda s: s.t.tvalues, "`tvalue`"),
    "tvalue of F tests": (lambda s: s.f.tvalue, "Did you mean 'pvalue', 'fvalue'"),
    "F": (lambda s: s.f.F, "`fvalue`"),
    "limits of F tests": (lambda s: s.f.conf_int(), "Available"),
    "logFC": (lambda s: s.t.logFC, "`effect`"),
    "bse of tests": (lambda s: s.t.bse, "`sd`"),
    "padj": (lambda s: s.t.padj, r"`adjusted\(\)`"),
    "summary of tests": (lambda s: s.t.summary(), "print their table"),
    "csv of tests": (lambda s: s.t.to_csv("a.csv"), r"`to_frame\(\)`"),
    "sort_values": (lambda s: s.t.sort_values("p"), r"`to_frame\(\)`"),
    "significant": (lambda s: s.t.significant(0.05), "top_table"),
    "pairs": (lambda s: s.r.marginal_means("t").pairs(), "contrast='pairwise'"),
    "== as in Python": (lambda s: s.r.t_test("x == 0"), None),
    "fdr as in R": (lambda s: s.r.top_table("x", adjust="fdr"), None),
    "use_t": (lambda s: s.r.t_test("x", use_t=True), "df='normal'"),
    "contrasts": (lambda s: s.r.t_test(contrasts="x"), "called `contrast`"),
    "lfc of a table": (lambda s: s.r.top_table("x", lfc=1), r"t_test\(contrast, margin=1\)"),
    "p_value of a table": (lambda s: s.r.top_table("x", p_value=0.05), "`alpha`"),
    # results
    "loc": (lambda s: s.r.loc["A1"], r"result\['GENE'\]"),
    "shape": (lambda s: s.r.shape, r"len\(result\)"),
    "rsquared": (lambda s: s.r.rsquared, r"r_squared\(\)"),
    "refit": (lambda s: s.r.refit(s.Y), r"model\.drop"),
    "get_influence": (lambda s: s.r.get_influence(), "sums_by"),
    "rank_genes_groups": (lambda s: s.r.rank_genes_groups(), "to_anndata"),
    "plot_volcano": (lambda s: s.r.plot_volcano("x"), r"result\.plot\.volcano"),
    "anova of two": (lambda s: s.r.anova(s.r), "compare_lr_test"),
    "anova test": (lambda s: s.r.anova(test="Chisq"), r"drop1\(test='LRT'\)"),
    "restricted": (lambda s: s.r.compare_lr_test(restricted=s.r), "`other`"),
    "parm": (lambda s: s.r.conf_int(parm="x"), "`coefs`"),
    "predict se_fit": (lambda s: s.r.predict(s.d, se_fit=True), "se=True"),
    "condVar": (lambda s: s.r.blup(condVar=True), "se='conditional'"),
    "summary features": (lambda s: s.r.summary(features=["A1"]), "`feature`"),
    "components by name": (lambda s: s.r.variance_components("A1"), "features='GENE'"),
    "bootstrap R": (lambda s: s.r.bootstrap(R=10), "called `n`"),
    "draw size": (lambda s: s.r.draw(size=2), "called `n`"),
    "influence groups": (lambda s: s.r.influence(groups="g"), "called `by`"),
    "to_anndata key": (lambda s: s.r.to_anndata(anndata(), key="de"), "`key_added`"),
    # one feature
    "element of one": (lambda s: s.one["x"], r"params\['x'\]"),
    "elements of one": (lambda s: list(s.one), "not iterable"),
    "table of one": (lambda s: s.one.top_table("x"), "no ranking"),
    "volcano of one": (lambda s: s.one.plot.volcano(), r"result\.plot\.volcano"),
    # models
    "fit with data": (lambda s: s.m.fit(s.Y), "must be one of 'REML', 'ML', not a DataFrame"),
    "bounded": (lambda s: s.m.fit(bounded=True), "parameter_space='psd'"),
    "exog of a model": (lambda s: s.m.exog, "`stats`"),
    "hessian": (lambda s: s.m.hessian, r"fim\(\)"),
    "offset": (lambda s: s.F(R, data=s.d, Y=s.Y, offset="x"), r"offset\(o\)"),
    "design of a formula": (lambda s: s.F(design=R, data=s.d, Y=s.Y), "called `fixed`"),
    # statistics
    "nobs of sums": (lambda s: s.s.nobs, "is `n`"),
    "X of sums": (lambda s: s.s.X, "XX"),
    "sel of sums": (lambda s: s.s.sel("A1"), "`take`"),
    "element of sums": (lambda s: s.s["A1"], r"take\(features\)"),
    "fit of sums": (lambda s: s.s.fit(), "from_summary_stats"),
    "from_design of arrays": (lambda s: fm.SummaryStats.from_design(s.X, s.Z), "from_arrays"),
    # influence, bootstrap, voom
    "dfbeta": (lambda s: s.i.dfbeta, "`dfbetas`"),
    "summary_frame": (lambda s: s.i.summary_frame(), r"`summary\(\)`"),
    "a group's influence": (lambda s: s.i["g0"], r"sel\(group="),
    "ci": (lambda s: s.boot.ci, r"conf_int\(alpha\)"),
    "E": (lambda _: voom().E, "`log2cpm`"),
    "voom plot": (lambda s: fm.voom(s.Y, R, None, s.d, plot=True), r"\.plot\(\)"),
    "voom formula": (lambda s: fm.voom(s.Y, formula=R, data=s.d), "called `fixed`"),
    # pictures
    "hist": (lambda s: s.r.plot.hist("x"), "`pvalues`"),
    "heatmap": (lambda s: s.r.plot.heatmap(), "`dots`"),
    "pictures of tests": (lambda s: s.t.plot.qqplot(), "`qq`"),
    "ranef": (lambda s: s.one.plot.ranef(), "`caterpillar`"),
    "caterpillar of none": (lambda s: s.r.plot.caterpillar(), "needs 'feature'"),
    "figsize": (lambda s: s.r.plot.volcano("x", figsize=(3, 3)), "ax=plt.subplots"),
    "save": (lambda s: s.r.plot.volcano("x", save="a.png"), "savefig"),
    "labels": (lambda s: s.r.plot.volcano("x", n_labels=3), "label=3"),
    "gene": (lambda s: s.r.plot.forest(gene="A1"), "`features`"),
    "of a fit": (lambda s: fm.plots.volcano(s.r), r"result\.plot\.volcano"),
    "no such picture": (lambda _: fm.plots.vulcano, "volcano"),
    # AnnData
    "groupby": (lambda _: from_anndata(anndata(), "~ x", groupby="g"), r"\(1 \| donor\)"),
    "design": (lambda _: from_anndata(anndata(), design=R), "called `fixed`"),
    "highly variable": (
        lambda _: from_anndata(anndata(), R, use_highly_variable=True), "mask_var=",
    ),
    "backed": (lambda _: from_anndata(anndata(), R, backed=True), "path"),
    "swapped": (lambda _: from_anndata(R, anndata()), "are swapped"),
    # matrices
    "groups": (lambda s: s.A(s.Y, s.X, groups=s.d["g"]), "get_dummies"),
    "exog": (lambda s: s.A(s.Y, exog=s.X), "called `X`"),
    "text as Z": (lambda s: s.A(s.Y, s.X, s.d["g"]), "get_dummies"),
    "two Z": (lambda s: s.A(s.Y, s.X, [s.Z, s.Z]), "hstack"),
    # the package
    "pl": (lambda _: fm.pl, r"result\.plot"),
    "t_test": (lambda _: fm.t_test, r"result\.t_test"),
    "read_h5ad": (lambda _: fm.read_h5ad, "from_anndata"),
    "Results": (lambda _: fm.Results, "MultiLMMResults"),
    "save of the package": (lambda _: fm.save, r"result\.save"),
    "misspelt": (lambda _: fm.MultLMM, "Did you mean 'MultiLMM'"),
    "power": (lambda _: fm.power(effect_size=0.5), "theta"),
}  # fmt: skip


def test_there_are_many():
    assert len(CALLS) >= 60


@pytest.mark.parametrize("name", CALLS)
def test_a_slip_is_answered(name):
    call, message = CALLS[name]
    if "volcano" in str(message) or name in ("figsize", "save", "gene", "heatmap", "labels"):
        pytest.importorskip("matplotlib")
    if message is None:
        call(things())
        return
    kinds = (fm.InputError, AttributeError, TypeError)
    with pytest.raises(kinds, match=message) as caught:
        call(things())
    assert not isinstance(caught.value, TypeError) or message == "not iterable"
    internal = r"ModelData|Methods\b|FeatureTests|Plots\b|ModDict|Deferred|unexpected keyword"
    assert not re.search(internal, str(caught.value)) or name == "elements of one"


def test_a_cure_names_nothing_that_is_not_there():
    """What an attribute's cure puts in backticks first is an attribute of the object."""
    from flashmm.slips import attributes  # noqa: PLC0415

    s = things()
    objects = {
        "TESTS": (s.t, s.f), "RESULTS": (s.r,), "FEATURE": (s.one,), "MODELS": (s.m, s.r),
        "STATS": (s.s,), "PICTURES": (s.r.plot, s.one.plot, s.t.plot), "INFLUENCE": (s.i,),
        "BOOTSTRAP": (s.boot,), "VOOM": (voom(),),
    }  # fmt: skip
    assert set(objects) == set(attributes.__all__)
    for table, owners in objects.items():
        for name, cure in getattr(attributes, table).items():
            named = re.search(r"`(\w+)", cure)
            if named:
                assert any(hasattr(owner, named[1]) for owner in owners), (table, name, cure)


def test_what_is_not_there_is_cheap_to_ask_for_and_can_be_pickled():
    s = things()
    assert getattr(s.s, "nobs", 7) == 7
    assert not hasattr(s.i, "_hidden")
    with pytest.raises(AttributeError) as caught:
        _ = s.s.nobs
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert caught.value.name == "nobs"
