"""What attributes of other packages are called here, by the object that is asked for them."""

from __future__ import annotations

__all__ = [
    "BOOTSTRAP",
    "FEATURE",
    "INFLUENCE",
    "MODELS",
    "PICTURES",
    "RESULTS",
    "STATS",
    "TESTS",
    "VOOM",
]

_TABLE = "tests print their table; summary_frame(), to_frame() and top_table() are DataFrames"

# Of tests, F tests too: a cure that an object does not have is not offered (see `answers`).
TESTS: dict[str, str] = {
    **dict.fromkeys(
        ("pvalues", "pval", "pvals", "p_values", "p", "P_Value"), "p-values are `pvalue`"
    ),
    **dict.fromkeys(("tvalues", "tstat", "t", "zvalue"), "t statistics are `tvalue`"),
    **dict.fromkeys(("F", "fstat", "F_value", "f"), "F statistics are `fvalue`"),
    **dict.fromkeys(
        ("params", "logFC", "log2FoldChange", "logfoldchanges", "coef", "estimate", "estimates",
         "effects", "beta"),
        "estimates are `effect`",
    ),
    **dict.fromkeys(("bse", "se", "std_err", "stderr"), "standard errors are `sd`"),
    **dict.fromkeys(
        ("padj", "qvalue", "qvalues", "fdr", "FDR", "pvals_adj", "p_adjusted", "p_adjust"),
        "adjusted p-values are `adjusted()`, and a column of to_frame()",
    ),
    **dict.fromkeys(("summary", "print", "table", "results", "head", "tail", "show"), _TABLE),
    **dict.fromkeys(("adjust", "multipletests", "p_adjusted_"), "it is `adjusted(method)`"),
    **dict.fromkeys(("sel", "get", "xs"), "one feature's tests are tests['GENE']"),
    **dict.fromkeys(
        ("to_anndata", "write"), "results go into AnnData: result.to_anndata(adata, tests=tests)"
    ),
    **dict.fromkeys(
        ("cld", "multcomp", "glht"),
        "p-values adjusted over contrasts are `simultaneous('tukey')`, of pairs of means say",
    ),
    **dict.fromkeys(("rank", "ranks"), "a ranking is `top_table(contrast, n=None)`"),
    **dict.fromkeys(("B", "lods", "zscore", "z"), "the statistics are `tvalue`, and `pvalue`"),
    **dict.fromkeys(
        ("sort_values", "query", "loc", "iloc", "values"),
        "sort and select in a DataFrame: `to_frame()` or top_table(sort_by=...)",
    ),
    **dict.fromkeys(
        ("significant", "hits", "reject", "rejected", "decideTests", "decide_tests"),
        "hits are rows of `top_table(alpha=0.05)`, or adjusted() <= 0.05",
    ),
    **dict.fromkeys(
        ("pairs", "contrast"),
        "differences of means are asked for with the means: marginal_means(specs, "
        "contrast='pairwise')",
    ),
    **dict.fromkeys(
        ("to_csv", "to_excel", "to_dataframe", "to_pandas"), "tables are `to_frame()`, a DataFrame"
    ),
    **dict.fromkeys(
        ("conf_int", "confint"), "limits are `conf_int(alpha)`, of single contrasts: t_test"
    ),
    "features": "names of features are `feature_names`",
}  # fmt: skip

# Of one feature.
FEATURE: dict[str, str] = {
    "features": "it is one: its name is `name`",
    **dict.fromkeys(
        ("top_table", "topTable"), "one feature has no ranking: see `t_test`(contrast), `summary()`"
    ),
    "fit": "it is fitted: see `summary()`",
}

# Of results.
RESULTS: dict[str, str] = {
    **dict.fromkeys(
        ("loc", "iloc", "xs"),
        "features are chosen by result['GENE'], result[['A', 'B']] or `sel`; of tables by "
        "result.params.loc[...]",
    ),
    **dict.fromkeys(("keys", "index", "columns"), "names of features are `feature_names`"),
    **dict.fromkeys(
        ("items", "values"), "iterate over the results themselves: for feature in result"
    ),
    "shape": "it is len(result) features; coefficients are the columns of `params`",
    "summary2": "it is `summary()`",
    "df_model": "coefficients are the columns of `params`; see `df_resid` for n - p",
    "bse_re": "standard errors of variances are `bse_theta`",
    "get_influence": "it is `influence()`, of a model built with sums_by=",
    **dict.fromkeys(("rsquared", "r2", "R2", "r_squared_glmm"), "it is `r_squared()`"),
    **dict.fromkeys(
        ("refit", "update"),
        "a fit is not changed: build the model with another formula or Y, or model.drop(...), and "
        "fit that",
    ),
    "step": "models are compared by `drop1()`, `ranova()` and compare_lr_test(other)",
    **dict.fromkeys(
        ("rank_genes_groups", "rank_genes_groups_df", "add_to_anndata", "write"),
        "results go into AnnData by `to_anndata(adata)`, to a file by save(path)",
    ),
    **dict.fromkeys(
        ("obs", "X", "Y", "uns", "layers", "obsm", "varm", "data"),
        "results hold no samples, but the sums of them, `stats`; into AnnData they go by "
        "to_anndata(adata)",
    ),
    "var": "names of features are `feature_names`, their tables glance() and to_frame()",
    **dict.fromkeys(("n_vars", "n_features", "n_genes", "m"), "there are len(result) features"),
    **dict.fromkeys(("n_obs", "n_samples", "n"), "numbers of samples are `nobs`"),
    "copy": "nothing changes results: no copy is needed",
    **dict.fromkeys(("head", "tail"), "tables are `to_frame()`, `tidy()` and top_table(contrast)"),
    **dict.fromkeys(
        ("plotMA", "plotMD", "plotSA", "plotVarPart", "plotPercentBars", "plotQQ"),
        "pictures are methods of `plot`: result.plot.ma(contrast), fractions(), trend(), ...",
    ),
    **dict.fromkeys(
        ("plot_volcano", "volcano", "volcano_plot", "plot_residual", "qqplot", "hist"),
        "pictures are methods of `plot`: result.plot.volcano(contrast), ...",
    ),
}

# Of models.
MODELS: dict[str, str] = {
    **dict.fromkeys(
        ("exog", "endog", "data", "X", "Y", "Z", "samples"),
        "models hold no samples, but the sums of them: see `stats`",
    ),
    "formula": "the formulas are print(model), and result.options.fixed and .random",
    "hessian": "observed information is result.fim(); see `score` and loglike",
    "features": "names of features are `feature_names`",
    **dict.fromkeys(("fit_regularized", "train"), "it is `fit()`"),
}

# Of summary statistics.
STATS: dict[str, str] = {
    **dict.fromkeys(("X", "Y", "Z", "y", "samples"), "statistics hold sums, `XX`, XY, ZZ, ... "),
    **dict.fromkeys(("nobs", "n_obs", "N", "n_samples"), "the number of samples is `n`"),
    **dict.fromkeys(("n_features", "n_genes"), "the number of features is `m`"),
    **dict.fromkeys(("features", "genes", "var_names"), "names of features are `feature_names`"),
    **dict.fromkeys(
        ("fit", "lmmfit"), "make a model of them: MultiLMM.from_summary_stats(stats).fit()"
    ),
    **dict.fromkeys(("sel", "loc", "iloc", "subset", "select"), "features are chosen by `take`"),
    **dict.fromkeys(("merge", "update", "combine", "append"), "samples are joined by +, or `add`"),
    "to_anndata": "results go into AnnData, not statistics",
}

# Of `result.plot` and the like.
PICTURES: dict[str, str] = {
    **dict.fromkeys(("hist", "histogram", "pvalue_histogram", "pvals"), "it is `pvalues`"),
    **dict.fromkeys(("qqplot", "qq_plot"), "it is `qq`"),
    **dict.fromkeys(("ranef", "random_effects", "blup"), "it is `caterpillar`"),
    **dict.fromkeys(("heatmap", "dotplot", "matrixplot"), "it is `dots`"),
    **dict.fromkeys(
        ("violin", "varpart", "variance_fractions", "percent_bars", "bars", "barplot"),
        "it is `fractions`",
    ),
    **dict.fromkeys(("resid", "residual", "diagnostics", "resid_plot"), "it is `residuals`"),
    **dict.fromkeys(("mean_difference", "md", "plotMD", "maplot", "ma_plot"), "it is `ma`"),
    **dict.fromkeys(("effects", "coef", "coefs", "coefficients", "coefplot"), "it is `forest`"),
    **dict.fromkeys(("fit", "predict", "interaction", "emmip", "effect"), "it is `predictions`"),
    **dict.fromkeys(("cooks", "cooks_distance", "cook"), "it is `influence`"),
    **dict.fromkeys(("variance_trend", "plotSA", "voom"), "it is `trend`"),
    **dict.fromkeys(("scatter", "variances"), "it is `theta`"),
    "volcano": "it needs many features: result.plot.volcano(contrast)",
}  # fmt: skip

# Of `result.influence()`.
INFLUENCE: dict[str, str] = {
    **dict.fromkeys(("dfbeta", "DFBETAS"), "they are `dfbetas`"),
    **dict.fromkeys(("cooks", "cook", "cooksd"), "they are `cooks_distance`"),
    **dict.fromkeys(("summary_frame", "summary_table", "table"), "it is `summary()`"),
    **dict.fromkeys(("plot_index", "plot_influence"), "it is `plot()`"),
    **dict.fromkeys(("names", "levels"), "they are `groups`"),
}

# Of `result.bootstrap()`.
BOOTSTRAP: dict[str, str] = {
    **dict.fromkeys(("ci", "confint", "conf_interval", "quantile"), "limits are `conf_int(alpha)`"),
    **dict.fromkeys(
        ("pvalue", "pvalues", "p_value"), "tests are of results: result.bootstrap_test(...)"
    ),
    **dict.fromkeys(("samples", "draws", "t"), "they are `replicates`"),
    **dict.fromkeys(("bse", "std"), "they are `se`"),
    **dict.fromkeys(("params", "t0"), "they are `estimate`"),
}

# Of `voom`.
VOOM: dict[str, str] = {
    **dict.fromkeys(("E", "Y", "logcpm", "log_cpm", "cpm", "expression"), "it is `log2cpm`"),
    **dict.fromkeys(("w", "W"), "they are `weights`"),
    **dict.fromkeys(
        ("fit", "design"), "pass its log2cpm and weights to from_formula(..., weights=...)"
    ),
}
