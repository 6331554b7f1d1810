"""What people who know other packages write first: it works as meant, or names the cure."""

from __future__ import annotations

import ast
import re
import warnings
from functools import cache
from pathlib import Path
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
            "y": rng.normal(size=N),
            "x": rng.normal(size=N),
            "t": np.tile(["A", "B", "C"], 20),
            "g": np.repeat([f"g{i}" for i in range(10)], 6),
        },
        index=[f"s{i}" for i in range(N)],
    )
    Y = pd.DataFrame(rng.normal(size=(3, N)), index=["A1", "B1", "C1"], columns=d.index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fm.ConvergenceWarning)
        m = fm.MultiLMM.from_formula("~ x + t + (1 | g)", data=d, Y=Y)
        r = m.fit(parameter_space="psd")
    return SimpleNamespace(d=d, Y=Y, F=fm.MultiLMM.from_formula, m=m, r=r)


@cache
def anndata():
    found = pytest.importorskip("anndata")
    s = things()
    return found.AnnData(s.Y.T.to_numpy(), obs=s.d, var=pd.DataFrame(index=s.Y.index))


# Each call, and what its message says; None where it works as meant. `s` is what `things` makes.
CALLS = {
    "left side": (lambda s: s.F("y ~ x + (1 | g)", data=s.d), None),
    "Y is a column": (lambda s: s.F("~ x + (1 | g)", data=s.d, Y="y"), None),
    "Y is a dict": (lambda s: s.F("~ x + (1 | g)", data=s.d, Y={"a": s.d["y"]}), None),
    "groups": (lambda s: s.F("~ x", groups="g", data=s.d, Y=s.Y), r"\(1 \| g\)"),
    "groups column": (lambda s: s.F("~ x", groups=s.d["g"], data=s.d, Y=s.Y), r"\(1 \| g\)"),
    "re_formula": (lambda s: s.F("~ x", re_formula="~x", data=s.d, Y=s.Y), r"\(1 \+ x \| g\)"),
    "vc_formula": (lambda s: s.F("~ x", vc_formula={}, data=s.d, Y=s.Y), r"\(1 \| a\)"),
    "formula": (lambda s: s.F(formula="~ x", data=s.d, Y=s.Y), "called `fixed`"),
    "from_formula reml": (lambda s: s.F("~ x", data=s.d, Y=s.Y, reml=False), "method='ML'"),
    "from_formula REML": (lambda s: s.F("~ x", data=s.d, Y=s.Y, REML=True), "method='REML'"),
    "fit reml": (lambda s: s.m.fit(reml=False), "method='ML'"),
    "fit REML": (lambda s: s.m.fit(REML=True), "method='REML'"),
    "fit method": (lambda s: s.m.fit("reml"), "Did you mean 'REML'"),
    "fit maxiter": (lambda s: s.m.fit(maxiter=5), "max_iter=5"),
    "fit tol": (lambda s: s.m.fit(tol=1e-3), "epsilon=0.001"),
    "fit start_params": (lambda s: s.m.fit(start_params=[1]), "theta0"),
    "fit verbose": (lambda s: s.m.fit(verbose=True), "logger"),
    "fit cores": (lambda s: s.m.fit(cores=2), "n_jobs=2"),
    "fit optimiser": (lambda s: s.m.fit(solver="bfgs"), "Unknown solver"),
    "ddf": (lambda s: s.r.t_test("x", ddf="Kenward-Roger"), "df='kenward-roger'"),
    "df as lmerTest": (lambda s: s.r.t_test("x", df="Satterthwaite"), None),
    "anova ddf": (lambda s: s.r.anova(ddf="Satterthwaite"), "df='satterthwaite'"),
    "anova typ": (lambda s: s.r.anova(typ=2), "type=2"),
    "constructor": (lambda s: fm.MultiLMM("~ x + (1 | g)", s.d), "MultiLMM.from_formula"),
    "constructor, one": (lambda _: fm.MultiLMM("~ x + (1 | g)"), "MultiLMM.from_formula"),
    "constructor, none": (lambda _: fm.MultiLMM(), "MultiLMM.from_formula"),
    "constructor, tables": (lambda s: fm.MultiLMM(s.Y, s.d, "~ x"), "MultiLMM.from_formula"),
    "factor": (lambda s: s.F("~ factor(t) + (1 | g)", data=s.d, Y=s.Y), r"C\(x\)"),
    "as.factor": (lambda s: s.F("~ as.factor(t) + (1 | g)", data=s.d, Y=s.Y), r"C\(x\)"),
    "as.factor random": (lambda s: s.F("~ x", "(1|as.factor(g))", s.d, s.Y), r"C\(x\)"),
    "ns": (lambda s: s.F("~ ns(x, 3) + (1 | g)", data=s.d, Y=s.Y), r"cr\(x, df=3\)"),
    "s": (lambda s: s.F("~ s(x) + (1 | g)", data=s.d, Y=s.Y), r"cr\(x, df=3\)"),
    "relevel": (lambda s: s.F("~ relevel(t, 'B')", data=s.d, Y=s.Y), r"contr\.treatment"),
    "TRUE": (lambda s: s.F("~ poly(x, 2, raw=TRUE)", data=s.d, Y=s.Y), "Write True"),
    "swapped": (lambda s: s.F("~ x + (1 | g)", data=s.Y, Y=s.d), "are swapped"),
    "swapped array": (lambda s: s.F("~ x", data=s.Y.to_numpy(), Y=s.d), "swapped"),
    "by position": (lambda s: s.F("~ x + (1 | g)", None, s.Y, s.d), "are swapped"),
    "no random": (lambda s: s.F("~ x + (1 | g)", s.d, s.Y), "needs `data`|needs `Y`|`random`"),
    "no Y": (lambda s: s.F("~ x + (1 | g)", data=s.d), "y ~ x"),
    "no data": (lambda s: s.F("~ x + (1 | g)", Y=s.Y), "needs `data`"),
    "nothing": (lambda s: s.F(), "'fixed'"),
    "family": (lambda s: s.F("~ x", data=s.d, Y=s.Y, family="poisson"), "voom"),
    "subset": (lambda s: s.F("~ x", data=s.d, Y=s.Y, subset=s.d["x"] > 0), "rows that you want"),
    "na_action": (lambda s: s.F("~ x", data=s.d, Y=s.Y, na_action="omit"), "`missing`"),
    "two-sided": (lambda s: s.F("y ~ x", data=s.d, Y=s.Y), "pass one of them"),
    "bars alone": (lambda s: s.F("~ x", "1 | g", s.d, s.Y), r"\(effects \| group\)"),
    "random column": (lambda s: s.F("~ x", "g", s.d, s.Y), r"\(1 \| g\)"),
    "unknown option": (lambda s: s.F("~ x", data=s.d, Y=s.Y, wieghts=1), "'weights'"),
    "f_test of a term": (lambda s: s.r.f_test("t"), None),
    "joint tests": (lambda s: s.r.f_test({"t": ["t[T.B]", "t[T.C]"], "x": "x"}), None),
    "t_test of a term": (lambda s: s.r.t_test("t"), r"f_test\('t'\)"),
    "t_test alpha": (lambda s: s.r.t_test("x", alpha=0.1), r"conf_int\(alpha\)"),
    "t_test side": (lambda s: s.r.t_test("x", side="less"), "alternative='less'"),
    "top_table number": (lambda s: s.r.top_table("x", number=5), "n=5"),
    "top_table adjust_method": (lambda s: s.r.top_table("x", adjust_method="BH"), "adjust='bh'"),
    "top_table coef": (lambda s: s.r.top_table(coef="x"), "contrast"),
    "top_table of nothing": (lambda s: s.r.top_table(), "'contrast'"),
    "conf_int level": (lambda s: s.r.conf_int(level=0.9), r"alpha=0\.1"),
    "predict data": (lambda s: s.r.predict(data=s.d), "newdata"),
    "predict re_form": (lambda s: s.r.predict(s.d, re_form=None), "level='population'"),
    "predict exog": (lambda s: s.r.predict(exog=s.d), "from_arrays|Did you mean|Available"),
    "means of a formula": (lambda s: s.r.marginal_means("pairwise ~ t"), "contrast='pairwise'"),
    "ranova by position": (lambda s: s.r.ranova(True), "'reduce_terms'"),
    "draw seed": (lambda s: s.r.draw(2, seed=1), "rng=1"),
    "one feature ddf": (lambda s: s.r["A1"].t_test("x", ddf="normal"), "df='normal'"),
    "one feature resid": (lambda s: s.r["A1"].resid(s.Y, s.d, newdata=1), "`data`"),
    "sel of nothing": (lambda s: s.r.sel(), "'feature'"),
    "sel of several": (lambda s: s.r.sel(["A1", "B1"]), None),
    "save nowhere": (lambda s: s.r.save(), "'path'"),
    "stats": (lambda _: fm.SummaryStats(XX=1), "needs"),
    "adjust_pvalues": (lambda _: fm.adjust_pvalues([0.1], how="bh"), "'method'"),
    "voom": (lambda s: fm.voom(s.Y), "'fixed'"),
    "power": (lambda _: fm.power(), "'theta'"),
    "fixef": (lambda s: s.r.fixef, "`params`"),
    "ranef": (lambda s: s.r.ranef(), "`random_effects`"),
    "VarCorr": (lambda s: s.r.VarCorr(), r"variance_components\(\)"),
    "loglik": (lambda s: s.r.logLik(), "`llf`"),
    "AIC": (lambda s: s.r.AIC, "`aic`"),
    "vcov": (lambda s: s.r.vcov(), r"cov_params\(\)"),
    "confint": (lambda s: s.r.confint(), r"conf_int\(alpha\)"),
    "residuals": (lambda s: s.r.residuals, r"resid\(Y, data\)"),
    "emmeans": (lambda s: s.r.emmeans("t"), "marginal_means"),
    "topTable": (lambda s: s.r.topTable("x"), "top_table"),
    "to_csv": (lambda s: s.r.to_csv("x.csv"), r"tidy\(\)"),
    "misspelt": (lambda s: s.r.parmas, "'params'"),
    "one feature": (lambda s: s.r["A1"].fixef, "`params`"),
    "tests": (lambda s: s.r.t_test("x").p_adjusted, r"adjusted\(\)"),
    "unfitted params": (lambda s: s.m.params, r"model\.fit\(\)"),
    "unfitted summary": (lambda s: s.m.summary(), r"model\.fit\(\)"),
    "lmer": (lambda s: fm.lmer("y ~ x", s.d), "MultiLMM.from_formula"),
    "from_formula of the package": (lambda _: fm.from_formula, r"MultiLMM\.from_formula"),
    "transposed AnnData": (
        lambda _: fm.MultiLMM.from_anndata(anndata().T, "~ x + (1 | g)"), r"adata\.T",
    ),
    "no layers": (
        lambda _: fm.MultiLMM.from_anndata(anndata(), "~ x", layer="counts"), "There are none",
    ),
    "layers": (lambda _: fm.MultiLMM.from_anndata(anndata(), "~ x", layers="a"), "layer='a'"),
    "genes of AnnData": (
        lambda _: fm.MultiLMM.from_anndata(anndata(), "~ x + (1 | g)", features=["C1"]), None,
    ),
    "AnnData with a left side": (
        lambda _: fm.MultiLMM.from_anndata(anndata(), "A1 ~ x + (1 | g)"), "features=",
    ),
    "AnnData as data": (lambda s: s.F("~ x", data=anndata()), "from_anndata"),
    "DataFrame as AnnData": (lambda s: fm.MultiLMM.from_anndata(s.d, "~ x"), "must be an AnnData"),
}  # fmt: skip


def test_there_are_many():
    assert len(CALLS) >= 60


@pytest.mark.parametrize("name", CALLS)
def test_a_slip_is_answered(name):
    call, message = CALLS[name]
    if message is None:
        call(things())
        return
    with pytest.raises((fm.InputError, AttributeError), match=message) as caught:
        call(things())
    shown = str(caught.value)
    assert not re.search(r"ModelData|Methods\.|FeatureTests|Handling|unexpected keyword", shown)


def test_errors_inside_are_not_taken_for_slips():
    def transform(values, more):
        return values

    s = things()
    with pytest.raises((TypeError, fm.InputError), match=r"transform|more"):
        s.F("~ x + (1 | g)", data=s.d, Y=s.Y, transform=transform)
    assert not hasattr(things().r, "_hidden")
    assert not hasattr(things().r, "fixef")


def test_several_joint_tests_in_one_call():
    r = things().r
    found = r.f_test({"treatment": "t", "both": ["x", "t[T.B] - t[T.C]"], "age": "x"})
    assert found.contrasts == ["treatment", "both", "age"]
    for name, contrast in (
        ("treatment", ["t[T.B]", "t[T.C]"]),
        ("both", ["x", "t[T.B] - t[T.C]"]),
        ("age", "x"),
    ):
        alone = r.f_test(contrast)
        np.testing.assert_array_equal(found.pvalue[name], alone.pvalue.iloc[:, 0])
    # Single contrasts under names are one hypothesis, as ever.
    assert r.f_test({"a": "x", "b": "t[T.B]"}).contrasts == ["joint"]
    chi = r.wald_test({"treatment": "t", "both": ["x", "tB"]})
    np.testing.assert_array_equal(chi.pvalue["treatment"], r.wald_test("t").pvalue["t"])
    one = r["B1"].f_test({"treatment": "t", "both": ["x", "t[T.B] - t[T.C]"]})
    np.testing.assert_array_equal(one.pvalue["both"], found.pvalue.loc[["B1"], "both"])
    assert r.f_test("t").contrasts == ["t"]
    assert r.f_test(["t", "x"]).df_num.iloc[0, 0] == 3


def test_genes_of_anndata_by_both_ways():
    adata = anndata().copy()
    adata.var["use"] = [True, True, False]
    build = fm.MultiLMM.from_anndata

    def names(**options):
        return build(adata, "~ x + (1 | g)", **options).feature_names.tolist()

    assert names(features=["C1", "A1"]) in (["C1", "A1"], ["A1", "C1"])
    assert names(features=["C1", "A1"], mask_var="use") == ["A1"]
    assert names(features=slice(1, 3)) == ["B1", "C1"]
    assert names(features=pd.Series([True, False], index=["B1", "A1"]).reindex(
        adata.var_names, fill_value=False)) == ["B1"]  # fmt: skip


def test_parts_of_mudata_and_spatialdata():
    """A modality has its own order of cells, and fewer of them than the whole."""
    s = things()
    rna = anndata()[::-1].copy()
    rna = rna[:50].copy()
    whole = s.d[["x", "g"]].assign(other=1)
    rna.obs = rna.obs[["t"]]
    # MuData itself has an X, of None, since 0.3.
    mudata = SimpleNamespace(mod={"rna": rna, "protein": anndata()}, obs=whole, X=None)
    model = fm.MultiLMM.from_anndata(mudata, "~ x + t + (1 | g)", modality="rna")
    data = s.d.loc[rna.obs_names]
    right = s.F("~ x + t + (1 | g)", data=data, Y=s.Y[data.index])
    np.testing.assert_allclose(model.stats.XY, right.stats.XY)
    assert list(rna.obs.columns) == ["t"]
    spatial = SimpleNamespace(tables={"table": anndata()})
    model = fm.MultiLMM.from_anndata(spatial, "~ x + t + (1 | g)")
    np.testing.assert_allclose(model.stats.XY, s.m.stats.XY)
    for given, message in (
        ({"modality": "atac"}, "no part 'atac'"),
        ({}, "2 parts"),
        ({"mod": "rna"}, "modality='rna'"),
    ):
        with pytest.raises(fm.InputError, match=message):
            fm.MultiLMM.from_anndata(mudata, "~ x", **given)
    with pytest.raises(fm.InputError, match="MuData or SpatialData"):
        fm.MultiLMM.from_anndata(anndata(), "~ x", modality="rna")
    mudata.obs = whole.iloc[:5]
    with pytest.raises(fm.InputError, match="lacks cells"):
        fm.MultiLMM.from_anndata(mudata, "~ x", modality="rna")


def test_mudata_itself():
    mudata = pytest.importorskip("mudata")
    s, whole = things(), anndata()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        object_ = mudata.MuData({"rna": whole[::-1].copy(), "protein": whole.copy()})
    model = fm.MultiLMM.from_anndata(object_, "~ x + t + (1 | g)", modality="rna")
    np.testing.assert_allclose(model.stats.XY, s.m.stats.XY)


def test_no_internal_class_is_named_in_a_message():
    """Of the texts of errors and warnings, wherever they are raised."""
    package = Path(fm.__file__).parent
    public = {*fm.__all__, *fm.solvers.__all__}
    sources = {path: path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    classes = {
        name for text in sources.values() for name in re.findall(r"^class (\w+)", text, re.M)
    }
    internal = sorted(name for name in classes - public if re.search(r"[a-z][A-Z]", name))
    assert "ModelData" in internal
    word = re.compile(rf"\b({'|'.join(internal)})\b")
    for path, source in sources.items():
        text_of_class = [line for line in source.splitlines() if word.search(line) and '"' in line]
        if not text_of_class:
            continue
        for node in ast.walk(ast.parse(source)):
            called = getattr(getattr(node, "func", None), "id", "")
            if not (isinstance(node, ast.Raise) or called in ("warn", "InputError")):
                continue
            for text in ast.walk(node):
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    assert not word.search(text.value), f"{path.name}:{text.lineno} {text.value}"
