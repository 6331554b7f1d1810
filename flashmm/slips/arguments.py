"""Arguments of other packages whose cure depends on the function that they were passed to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["BY_POSITION", "MORE", "OF_FUNCTION"]

_FEATURES = "They are called `features`: names, a mask or a slice."
_AXES = "Pictures take Axes, and return them: "
_DRAWS = "The number of draws is called `n`, the first argument."
_FORMULA = "It is called `fixed`, and may hold the random effects: '~ x + (1 | g)'."

# By function, then by argument.
OF_FUNCTION: Mapping[str, Mapping[str, str]] = {
    "influence": dict.fromkeys(
        ("group", "groups", "cluster", "obs"),
        "It is called `by`: groups of samples that the model was built with, sums_by=...",
    ),
    "summary": dict.fromkeys(
        ("features", "genes", "gene", "name"), "It is called `feature`: one name."
    ),
    "from_anndata": {
        **dict.fromkeys(("formula", "design", "model"), _FORMULA),
        **dict.fromkeys(
            ("groupby", "groups", "group", "sample_key", "sample_col", "batch_key", "donor_key",
             "condition_key", "replicate", "patient_key"),
            "Columns of obs are named in the formula, groups as random effects: "
            "'~ condition + (1 | donor)'.",
        ),
        **dict.fromkeys(
            ("use_highly_variable", "hvg", "highly_variable", "use_hvg"),
            "Write mask_var='highly_variable', a boolean column of var.",
        ),
        **dict.fromkeys(
            ("gene_symbols", "gene_symbol", "var_key"),
            "Features are called by var_names: set adata.var_names = adata.var['symbol'] before.",
        ),
        "key_added": "Results go into AnnData by result.to_anndata(adata, key_added=...).",
        **dict.fromkeys(("backed", "chunk_size"), "Pass the path of the file instead of adata."),
        "copy": "Nothing is changed in adata.",
        "inplace": "Nothing is changed in adata: results go there by result.to_anndata(adata).",
    },
    "t_test": {
        **dict.fromkeys(
            ("adjust", "adjust_method", "p_adjust"),
            "P-values are adjusted afterwards: tests.adjusted('bh') over features, "
            "tests.simultaneous('tukey') over contrasts.",
        ),
        **dict.fromkeys(
            ("level", "conf_level", "infer"),
            "Limits are a method of what it returns: .conf_int(alpha=0.05).",
        ),
        **dict.fromkeys(("type", "transform", "regrid"), "Estimates are on the scale of Y."),
        **dict.fromkeys(("ref", "base"), "`reference` is an argument of marginal_means."),
        "specs": "Means are marginal_means('factor'); of slopes it is called `by`.",
        **dict.fromkeys(("var", "trend"), "Slopes are marginal_slopes(variable)."),
        "method": "P-values are adjusted by tests.adjusted('bh'); differences of means are "
        "marginal_means('factor', contrast='pairwise').",
        **dict.fromkeys(
            ("cov_reduce", "cov_keep", "nesting"),
            "Numbers are held by `at`, of marginal_means: at={'x': [0, 1]}.",
        ),
    },
    "marginal_slopes": {"var": "It is called `variable`.", "specs": "It is called `by`."},
    "drop1": {
        "scope": "All terms that no other contains are tested; others are f_test(term).",
        "k": "AIC counts two for each parameter.",
    },
    "from_formula": {
        **dict.fromkeys(
            ("contrasts", "coding"), "Coding stands in the formula: C(t, contr.sum)."
        ),
        **dict.fromkeys(("formula", "design", "model"), _FORMULA),
        "offset": "Offsets stand in the formula: '~ x + offset(o)'.",
        **dict.fromkeys(
            ("correlation", "cor"),
            "Correlated effects stand in the formula: (x | g), (x || g), cs(0 + f | g).",
        ),
        **dict.fromkeys(
            ("vars", "variance"), "Residual variances by group: sums_by='g', and "
            "fit(residual_by='g')."
        ),
    },
    "from_arrays": {
        **dict.fromkeys(
            ("groups", "group", "g"),
            "Pass indicator columns of the groups as Z: pandas.get_dummies(groups).",
        ),
        **dict.fromkeys(("y", "endog", "counts"), "It is called `Y`, features x samples."),
        "exog": "It is called `X`, samples x coefficients.",
        "exog_re": "It is called `Z`, samples x random effects.",
        "names": "Names are `feature_names` and `coef_names`.",
    },
    "voom": {
        **dict.fromkeys(("formula", "design", "model"), _FORMULA),
        "plot": "Draw it afterwards: fm.voom(...).plot().",
        **dict.fromkeys(("obs", "metadata", "colData"), "It is called `data`."),
    },
    "anova": {
        **dict.fromkeys(
            ("other", "model", "refit"), "Two fits are compared by compare_lr_test(other)."
        ),
        "test": "Tests are F tests; likelihood ratios are drop1(test='LRT').",
    },
    "compare_lr_test": dict.fromkeys(
        ("restricted", "model", "null", "reduced", "full"), "It is called `other`, a smaller fit."
    ),
    "conf_int": {
        **dict.fromkeys(("parm", "which", "params", "cols"), "They are called `coefs`."),
        "type": "It is called `method`.",
    },
    "fit": {
        **dict.fromkeys(
            ("bounded", "boundary", "nobound", "constrained", "nonneg"),
            "Variances that may not be negative: parameter_space='psd'; that may: 'unconstrained'.",
        ),
        **dict.fromkeys(
            ("full_output", "skip_hessian", "do_cg", "niter_sa", "free", "fe_pen", "cov_pen"),
            "Leave it out: there is nothing of the kind here.",
        ),
        **dict.fromkeys(("data", "Y", "y"), "The data belong to the model: from_formula(...)."),
    },
    "blup": dict.fromkeys(
        ("condVar", "cond_var", "postVar"), "It is called `se`: se='conditional'."
    ),
    "bootstrap": dict.fromkeys(
        ("R", "B", "nsim", "n_boot", "reps", "n_bootstrap", "n_samples", "nboot", "size"), _DRAWS
    ),
    "bootstrap_test": dict.fromkeys(
        ("R", "B", "nsim", "n_boot", "reps", "n_bootstrap", "n_samples", "nboot", "size"),
        "The number of draws is called `n`.",
    ),
    "draw": dict.fromkeys(("size", "nsim", "n_draws", "reps", "n_samples"), _DRAWS),
    "to_anndata": dict.fromkeys(("key", "name", "uns_key"), "It is called `key_added`."),
    "top_table": {
        **dict.fromkeys(
            ("p_value", "pval", "pval_cutoff", "fdr", "threshold"),
            "It is called `alpha`: the largest adjusted p-value that is listed.",
        ),
        **dict.fromkeys(
            ("lfc", "treat", "margin"), "Test against it first: t_test(contrast, margin=1)."
        ),
        **dict.fromkeys(
            ("top", "top_n", "head", "size"), "It is called `n`: a number, None for all."
        ),
        **dict.fromkeys(("genelist", "genes", "features"), "Choose them before: result[names]."),
    },
    "predict": {
        "type": "Predictions are on the scale of Y.",
        "params": "Predictions are of the fit.",
        **dict.fromkeys(("se_fit", "std"), "It is called `se`: se=True."),
    },
    "power": dict.fromkeys(
        ("effect", "effect_size", "delta", "es", "n", "nobs", "sample_size"),
        "Power is of a design and its parameters: power(design, theta, beta, contrast); see "
        "help(flashmm.power).",
    ),
    "wald_test": dict.fromkeys(("scalar",), "Leave it out: statistics are numbers here."),
}  # fmt: skip

# Wherever they were passed.
MORE: dict[str, Callable[[Any], str]] = {
    "figsize": lambda v: f"{_AXES}ax=plt.subplots(figsize={v!r})[1].",
    "fig": lambda _: f"{_AXES}ax=fig.add_subplot().",
    "axes": lambda _: f"{_AXES}it is called `ax`.",
    **dict.fromkeys(
        ("save", "savefig", "filename", "path"),
        lambda v: f"{_AXES}ax.figure.savefig({v if isinstance(v, str) else 'volcano.png'!r}).",
    ),
    "show": lambda _: f"{_AXES}plt.show() shows them.",
    "title": lambda v: f"{_AXES}ax.set_title({v!r}).",
    **dict.fromkeys(
        ("n_labels", "top", "top_n", "labels", "annotate", "highlight"),
        lambda v: f"A picture names features by label={v!r}, a number or names.",
    ),
    **dict.fromkeys(("contrasts", "con", "linfct"), lambda _: "It is called `contrast`."),
    "use_t": lambda _: "It is called `df`: df='normal' for z tests.",
    "cov_p": lambda _: "It is called `cov`: 'model', 'CR2', ...",
    "genes": lambda _: _FEATURES,
    "names": lambda _: _FEATURES,
    "fdr": lambda v: f"It is called `alpha`: alpha={v!r}.",
    "cutoff": lambda v: f"It is called `alpha`: alpha={v!r}.",
    "param": lambda v: f"It is called `params`: params={v!r}.",
    "kind": lambda _: "Pictures are methods: plot.volcano(...).",
}

# What too many arguments by position may have meant.
BY_POSITION: Mapping[str, str] = {
    "anova": "Two fits are compared by compare_lr_test(other).",
    "variance_components": "Features are features='GENE', or result['GENE'].",
    "fit": "The data belong to the model.",
}
