"""What arguments, attributes and functions of other packages are called here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashmm.slips.arguments import MORE, OF_FUNCTION

__all__ = [
    "ATTRIBUTES",
    "CONSTRUCTORS",
    "FORMULA_WORDS",
    "FUNCTIONS",
    "PACKAGE",
    "UNFITTED",
    "argument_cure",
    "known",
]

# Arguments, by name: the cure, of the value that was passed.
_ARGUMENTS: dict[str, Callable[[Any], str]] = {
    "groups": lambda v: (
        "Random effects stand in the formula: "
        f"'~ ... + (1 | {v if isinstance(v, str) else 'g'})' for a random intercept of each group, "
        "g a column of `data`."
    ),
    "group": lambda v: argument_cure("groups", v),
    "cluster_var": lambda v: argument_cure("groups", v),
    "re_formula": lambda v: (
        f"Random slopes stand in the formula: '(1 + {_bare(v)} | g)', or '({_bare(v)} || g)' "
        "without correlations."
    ),
    "exog_re": lambda _: (
        "Pass the random-effects design as Z to from_arrays, or bars in a formula."
    ),
    "vc_formula": lambda _: (
        "Variance components are bars, '(1 | a) + (1 | b)', or `random`, a list or dict of "
        "formulas: random={'a': '~ 0 + a'}."
    ),
    "formula": lambda v: (
        f"It is called `fixed`, and may hold the random effects: from_formula({str(v)!r}, ...)."
    ),
    "endog": lambda _: "It is called `Y`, features x samples.",
    "exog": lambda _: "It is called `X` in from_arrays; from_formula makes it of `data`.",
    "y": lambda _: "It is called `Y`, features x samples; or name columns before `~`.",
    "obs": lambda _: "It is called `data`.",
    "reml": lambda v: f"Write fit(method={_criterion(v)!r}); REML is the default.",
    "REML": lambda v: argument_cure("reml", v),
    "ddf": lambda v: f"It is called `df`: df={str(v).lower()!r}.",
    "ddf_method": lambda v: argument_cure("ddf", v),
    "df_method": lambda v: argument_cure("ddf", v),
    "lmer_df": lambda v: argument_cure("ddf", v),
    "family": lambda _: (
        "Models are linear, of normal errors. Counts: transform='log2p1', or flashmm.voom for "
        "weights."
    ),
    "subset": lambda _: "Pass the rows that you want as `data` and the columns of Y with them.",
    "na_action": lambda _: "It is called `missing`: 'raise', 'drop' or 'feature'.",
    "na_rm": lambda _: "It is called `missing`: 'raise', 'drop' or 'feature'.",
    "dropna": lambda _: "It is called `missing`: missing='drop' leaves samples out.",
    "use_raw": lambda _: "Pass adata.raw.to_adata() to use its raw values.",
    "layers": lambda v: f"It is called `layer`: layer={v!r}.",
    "genes": lambda _: "They are called `features`: names, a mask or a slice.",
    "gene": lambda _: "They are called `features`: names, a mask or a slice.",
    "feature": lambda _: "It is called `features`: names, a mask or a slice.",
    "var_names": lambda _: "They are called `features`: names, a mask or a slice.",
    "obs_key": lambda _: "Columns of obs are named in the formula.",
    "mod": lambda v: f"It is called `modality`: modality={v!r}.",
    "table": lambda v: f"It is called `modality`: modality={v!r}.",
    "mod_key": lambda v: f"It is called `modality`: modality={v!r}.",
    "control": lambda _: "fit takes `max_iter`, `epsilon` and `solver` by themselves.",
    "maxiter": lambda v: f"It is called `max_iter`: max_iter={v!r}.",
    "max_iterations": lambda v: f"It is called `max_iter`: max_iter={v!r}.",
    "niter": lambda v: f"It is called `max_iter`: max_iter={v!r}.",
    "tol": lambda v: f"It is called `epsilon`: epsilon={v!r}, of a score over its standard error.",
    "gtol": lambda v: argument_cure("tol", v),
    "ftol": lambda v: argument_cure("tol", v),
    "start_params": lambda _: "It is called `theta0`: variances, the residual last.",
    "start": lambda _: "It is called `theta0`: variances, the residual last.",
    "optimizer": lambda _: "It is called `solver`: 'fisher_scoring', 'newton_raphson', ...",
    "verbose": lambda _: "Set the level of the logger 'flashmm' to INFO.",
    "disp": lambda _: "Set the level of the logger 'flashmm' to INFO.",
    "cores": lambda v: f"It is called `n_jobs`: n_jobs={v!r}.",
    "n_cores": lambda v: f"It is called `n_jobs`: n_jobs={v!r}.",
    "ncores": lambda v: f"It is called `n_jobs`: n_jobs={v!r}.",
    "n_threads": lambda v: f"It is called `n_jobs`: n_jobs={v!r}.",
    "nthreads": lambda v: f"It is called `n_jobs`: n_jobs={v!r}.",
    "BPPARAM": lambda _: "Threads are `n_jobs`.",
    "d": lambda _: "Sizes of variance components are `components`.",
    "number": lambda v: f"It is called `n`: n={v!r}, None for all.",
    "n_top": lambda v: f"It is called `n`: n={v!r}, None for all.",
    "adjust_method": lambda v: f"It is called `adjust`: adjust={str(v).lower()!r}.",
    "p_adjust": lambda v: f"It is called `adjust`: adjust={str(v).lower()!r}.",
    "sort": lambda v: f"It is called `sort_by`: sort_by={v!r}.",
    "coef": lambda v: f"It is called `contrast`: {v!r} as the first argument.",
    "coefficient": lambda v: f"It is called `contrast`: {v!r} as the first argument.",
    "hypothesis": lambda v: f"It is called `contrast`: {v!r} as the first argument.",
    "r_matrix": lambda _: "It is called `contrast`: the first argument.",
    "L": lambda _: "It is called `contrast`: the first argument.",
    "side": lambda v: f"It is called `alternative`: alternative={v!r}.",
    "tail": lambda v: f"It is called `alternative`: alternative={v!r}.",
    "lfc": lambda v: f"It is called `margin`: margin={v!r}.",
    "level": lambda v: (
        f"It is called `alpha`, one minus the coverage: alpha={_rest(v)}."
        if isinstance(v, float)
        else ""
    ),
    "conf_level": lambda v: argument_cure("level", v),
    "conf_int": lambda _: "Limits are the method conf_int(alpha).",
    "robust": lambda _: "Cluster-robust tests are cov='CR2', of a model with `sums_by`.",
    "cov_type": lambda v: f"It is called `cov`: 'CR2', say; cov_type was {v!r}.",
    "cov_kwds": lambda _: "Clusters are `cluster`.",
    "re_form": lambda _: (
        "Random effects are in by default; level='population' leaves them out, and random= "
        "chooses some."
    ),
    "exog_new": lambda _: "It is called `newdata`.",
    "typ": lambda v: f"It is called `type`: type={v!r}.",
    "test_type": lambda v: f"It is called `type`: type={v!r}.",
    "specs_by": lambda _: "It is called `by`.",
    "pairwise": lambda _: "Write contrast='pairwise'.",
    "newdata": lambda _: "It is called `data` here.",
    "data": lambda _: "It is called `newdata` here.",
    "seed": lambda v: f"It is called `rng`: rng={v!r}.",
    "random_state": lambda v: f"It is called `rng`: rng={v!r}.",
    "nsim": lambda v: f"The number of draws is the first argument: {v!r}.",
    "alpha": lambda _: "Limits are a method of what it returns: .conf_int(alpha).",
}

# Attributes of results and models, by name.
ATTRIBUTES: dict[str, str] = {
    **dict.fromkeys(
        ("fixef", "coefficients", "fixed_effects", "beta", "coef_", "betas", "estimates"),
        "fixed effects are `params`",
    ),
    "fe_params": "fixed effects are `params`; `fe_params` is of one feature, result['GENE']",
    **dict.fromkeys(("bse_fe", "se", "std_err", "stderr"), "standard errors are `bse`"),
    **dict.fromkeys(
        ("ranef", "random_effects_", "re"), "random effects are `random_effects`, or blup(se=...)"
    ),
    **dict.fromkeys(
        ("VarCorr", "cov_re", "sigma", "vcomp", "variances", "variance"),
        "variances are `theta`, and `variance_components()` with standard deviations and "
        "correlations",
    ),
    "scale": "residual variances are `theta['Residual']`",
    **dict.fromkeys(("loglik", "logLik", "loglike", "loglikelihood"), "log-likelihoods are `llf`"),
    "AIC": "it is `aic`",
    "BIC": "it is `bic`",
    **dict.fromkeys(("vcov", "cov"), "covariances of the fixed effects are `cov_params()`"),
    **dict.fromkeys(("confint", "conf_interval"), "limits are `conf_int(alpha)`"),
    **dict.fromkeys(("pvalue", "p_values", "pval"), "p-values are `pvalues`"),
    **dict.fromkeys(("tvalue", "zvalues", "t"), "t values are `tvalues`"),
    **dict.fromkeys(
        ("residuals", "resid_pearson"), "residuals are `resid(Y, data)`: results hold no samples"
    ),
    "fitted_values": "they are `fittedvalues(data)`",
    **dict.fromkeys(("topTable", "toptable", "topTags"), "it is `top_table(contrast)`"),
    **dict.fromkeys(
        ("emmeans", "lsmeans", "ls_means", "ggpredict"), "they are `marginal_means(specs)`"
    ),
    **dict.fromkeys(("emtrends", "slopes"), "they are `marginal_slopes(variable, by=...)`"),
    **dict.fromkeys(
        ("wald_test_terms", "Anova", "anova_lm", "joint_tests"), "tests of terms are `anova()`"
    ),
    **dict.fromkeys(("contest", "contrast", "glht", "contrasts_fit"), "it is `t_test(contrast)`"),
    "linearHypothesis": "it is `f_test(contrasts)`",
    **dict.fromkeys(("lrtest", "lr_test"), "it is `compare_lr_test(other)`"),
    "rand": "tests of random terms are `ranova()`",
    **dict.fromkeys(
        ("KRmodcomp", "SATmodcomp", "get_Lb_ddf", "get_ddf_Lb", "vcovAdj"),
        "tests by Kenward and Roger are `f_test`(contrast, df='kenward-roger'), and anova(df=...)",
    ),
    **dict.fromkeys(("PBmodcomp", "bootMer"), "it is `bootstrap_test`(...), or bootstrap(n)"),
    "score_test": "tests are `t_test`, `f_test`, and compare_lr_test(other)",
    **dict.fromkeys(
        ("get_prediction", "get_forecast", "predictInterval"), "it is `predict`(data, interval=...)"
    ),
    **dict.fromkeys(
        ("varPart", "extractVarPart", "calcVarPart", "variance_partition", "vpc"),
        "shares of the variance are `variance_fractions()`",
    ),
    **dict.fromkeys(("eBayes", "ebayes", "treat"), "see `moderate()` and t_test(moderated=True)"),
    "simulate": "it is `draw(n)`",
    **dict.fromkeys(("random_effects_cov", "condVar"), "use blup(se='conditional')"),
    "isSingular": "see `status`: 'boundary' is a singular fit",
    **dict.fromkeys(
        ("to_csv", "to_dataframe", "to_pandas", "as_dataframe"),
        "tables are `tidy()` and `to_frame()`, DataFrames with `to_csv`",
    ),
    **dict.fromkeys(("remove_data", "model"), "results hold no samples and no model: see `stats`"),
    "normalized_cov_params": "see `cov_params()`",
    "profile_re": "use conf_int_theta(method='profile')",
    "ngrps": "see `summary()`",
    "features": "names of features are `feature_names`",
    "genes": "names of features are `feature_names`",
    "var_names": "names of features are `feature_names`",
    "p_adjusted": "use adjusted(), or the column of to_frame()",
    "table": "use to_frame() or top_table()",
    "results": "use to_frame() or top_table()",
}

# Classes that are not made of what people pass first.
CONSTRUCTORS: dict[str, str] = {
    "MultiLMM": (
        "MultiLMM(...) takes summary statistics. Of a formula and data make a model with "
        "MultiLMM.from_formula('~ x + (1 | g)', data=data, Y=Y); of AnnData, matrices or sums with "
        "from_anndata, from_arrays, from_summary_stats."
    ),
    "MultiLMMResults": "Results are made by model.fit(), or read by flashmm.load(path).",
    "FeatureResults": "One feature of a fit is result['GENE'].",
}

_OF_MODELS = "it is a constructor of models, MultiLMM.{name}(...), and model.stats holds the sums"

# Asked of a class.
CLASSES: dict[str, dict[str, str]] = {
    "SummaryStats": {
        **dict.fromkeys(("from_formula", "from_anndata"), _OF_MODELS),
        "from_summary_stats": "it is a constructor of models: MultiLMM.from_summary_stats(stats)",
        **dict.fromkeys(("read", "open"), "it is SummaryStats.load(path)"),
        **dict.fromkeys(
            ("from_matrices", "from_data", "from_numpy"),
            "it is MultiLMM.from_arrays(Y, X, Z), and model.stats",
        ),
    },
    "MultiLMM": {
        **dict.fromkeys(
            ("from_dataframe", "from_data", "from_frame", "from_pandas"),
            "it is MultiLMM.from_formula('~ x + (1 | g)', data=data, Y=Y)",
        ),
        **dict.fromkeys(("from_matrix", "from_numpy", "from_matrices"), "it is from_arrays"),
        **dict.fromkeys(
            ("from_h5ad", "from_adata", "from_zarr", "read_h5ad"),
            "it is MultiLMM.from_anndata(adata or path, '~ x + (1 | g)')",
        ),
        **dict.fromkeys(("from_stats", "from_sums"), "it is from_summary_stats"),
        **dict.fromkeys(("load", "read"), "results are read by flashmm.load(path)"),
    },
    "MultiLMMResults": {
        **dict.fromkeys(("read", "open", "from_file"), "it is flashmm.load(path)"),
    },
}

# What a model lacks before it is fitted.
UNFITTED = "fit first: result = model.fit()"

# Functions of R and other packages in formulas.
FUNCTIONS: dict[str, str] = {
    "factor": "Write C(x) to take each value of x as a level.",
    "as.factor": "Write C(x) to take each value of x as a level.",
    "as_factor": "Write C(x) to take each value of x as a level.",
    "ordered": "Make the column an ordered pandas Categorical.",
    "as.numeric": "Convert the column of `data` to numbers, or write {x.astype(float)}.",
    "as.integer": "Convert the column of `data` to whole numbers.",
    "as.character": "Convert the column of `data` to text.",
    "as.logical": "Convert the column of `data` to booleans.",
    "ns": "A natural spline is cr(x, df=3), a B-spline bs(x, df=3).",
    "rcs": "A natural spline is cr(x, df=3), a B-spline bs(x, df=3).",
    "s": "Smooths are no terms here: a natural spline is cr(x, df=3), a B-spline bs(x, df=3).",
    "te": "Smooths are no terms here: a natural spline is cr(x, df=3).",
    "lo": "Smooths are no terms here: a natural spline is cr(x, df=3).",
    "relevel": "Write C(x, contr.treatment('B')) for the reference level 'B'.",
    "fct_relevel": "Write C(x, contr.treatment('B')) for the reference level 'B'.",
    "interaction": "Write a:b for the combinations of a and b.",
    "ifelse": "Write I(x > 0), or store the values as a column of `data`.",
    "cut": "Store the classes as a column of `data`: pandas.cut(data['x'], ...).",
    "re": "Random effects are bars: (1 | g).",
    "random": "Random effects are bars: (1 | g).",
    "Error": "Random effects are bars: (1 | g).",
    "Relevel": "Write C(x, contr.treatment('B')) for the reference level 'B'.",
    "Categorical": "Write C(x).",
    "cbind": "Responses stand before ~: 'a + b ~ x'. To the right write a + b.",
    "weights": "Weights are the argument `weights`.",
    "lag": "Store the values as a column of `data`.",
}

# Words of R in formulas.
FORMULA_WORDS: dict[str, str] = {
    "TRUE": "Write True.",
    "FALSE": "Write False.",
    "T": "Write True.",
    "F": "Write False.",
    "NULL": "Write None.",
    "NA": "Write np.nan.",
}

# Functions of other packages, asked of this one.
PACKAGE: dict[str, str] = {
    **dict.fromkeys(
        ("lmer", "lme", "lmm", "lmmfit", "mixedlm", "MixedLM", "dream", "glmer", "lm", "fit"),
        "write MultiLMM.from_formula('~ x + (1 | g)', data=data, Y=Y).fit()",
    ),
    **dict.fromkeys(
        ("from_formula", "from_anndata", "from_arrays", "from_summary_stats"),
        "it is a constructor of MultiLMM: MultiLMM.{name}(...)",
    ),
    **dict.fromkeys(("read", "read_results", "open"), "it is flashmm.load(path)"),
    **dict.fromkeys(("melt", "pivot"), "a long table is read by flashmm.from_long(table)"),
    **dict.fromkeys(("p_adjust", "multipletests", "fdr"), "it is flashmm.adjust_pvalues"),
    **dict.fromkeys(("makeContrasts", "contrasts"), "it is flashmm.contrast_matrix"),
    "anova": "it is a method of results: result.anova(), result.compare_lr_test(other)",
    "emmeans": "it is a method of results: result.marginal_means(specs)",
    **dict.fromkeys(
        ("read_h5ad", "read_anndata", "read_zarr"),
        "files are read by MultiLMM.from_anndata('cells.h5ad', '~ x + (1 | g)')",
    ),
    **dict.fromkeys(("save", "write"), "it is a method: result.save(path)"),
    **dict.fromkeys(
        ("pl", "plot", "plotting", "volcano", "volcano_plot"),
        "pictures are result.plot.volcano(contrast), ..., and functions in flashmm.plots",
    ),
    **dict.fromkeys(("tl", "pp", "tools", "get"), "write MultiLMM.from_anndata(adata, '~ ...')"),
    **dict.fromkeys(
        ("lmerControl", "lmeControl", "control"),
        "fit takes `max_iter`, `epsilon` and `solver` by themselves",
    ),
    **dict.fromkeys(("makeContrastsDream", "contrast", "L"), "it is flashmm.contrast_matrix"),
    **dict.fromkeys(
        ("voomWithDreamWeights", "voomLmFit", "voomWithQualityWeights"), "it is flashmm.voom"
    ),
    **dict.fromkeys(
        ("fitExtractVarPartModel", "fitVarPartModel", "calcVarPart", "plotVarPart"),
        "fit a model, and ask result.variance_fractions()",
    ),
    **dict.fromkeys(
        ("duplicateCorrelation", "blocks", "dupcor"),
        "blocks are random effects, '(1 | block)', with a variance for each feature",
    ),
    "arrayWeights": "weights of samples are from_formula(..., weights=w), or known from elsewhere",
    **dict.fromkeys(
        ("pseudobulk", "get_pseudobulk", "aggregate"),
        "cells are fitted as they are, with a random effect for each sample: '~ x + (1 | sample)'",
    ),
    **dict.fromkeys(
        ("version", "show_versions", "print_versions", "versions"), "it is flashmm.__version__"
    ),
    "citation": "it is flashmm.cite()",
    **dict.fromkeys(("Results", "LMMResults"), "it is flashmm.MultiLMMResults"),
    **dict.fromkeys(("Model", "LMM", "MultiLmm", "Lmm"), "it is flashmm.MultiLMM"),
    **dict.fromkeys(
        ("de", "DE", "test", "differential_expression", "rank_genes_groups"),
        "fit a model, and test contrasts: result.t_test(contrast).top_table()",
    ),
    **dict.fromkeys(("TMM", "calcNormFactors"), "see flashmm.voom(norm_factors='TMM')"),
}


def _bare(formula: Any) -> str:
    return str(formula).replace("~", "").strip() or "x"


def _rest(level: float) -> str:
    return f"{1.0 - level:.4g}"


def _criterion(value: Any) -> str:
    return "REML" if value else "ML"


def argument_cure(name: str, value: Any, function: str = "", names: Sequence[str] = ()) -> str:
    """What to write in place of an argument that there is none of; empty where it is not known.

    Parameters
    ----------
    name, value
        The argument.
    function, names
        What it was passed to, and the arguments of that: one that it does not have is no cure.
    """
    if own := OF_FUNCTION.get(function, {}).get(name):
        return own
    for table in (_ARGUMENTS, MORE):
        if name in table:
            cure = table[name](value)
            called = re.search(r"called `(\w+)`(?! in\b)", cure)
            if called is None or not names or called[1] in names:
                return cure
    return ""


def known(table: Mapping[str, str], name: str) -> str:
    """A cure of a table, with the name put in; empty where it is not known."""
    return table.get(name, "").replace("{name}", name)
