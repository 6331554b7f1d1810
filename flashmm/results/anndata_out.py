"""Estimates written into an AnnData object, beside the genes that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flashmm.arrays.labels import find_labels
from flashmm.arrays.types import FloatArray, IntArray
from flashmm.exceptions import InputError, listing, warn
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.results.contrast_results import TTestResults
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import t_test

__all__ = ["to_anndata"]

NOT_FITTED = "not fitted"


def to_anndata(
    fitted: FittedModel,
    adata: Any,
    key_added: str = "flashmm",
    *,
    tests: TTestResults | None = None,
    df: str = DEFAULT_DF,
    copy: bool = False,
) -> Any:
    """Write the estimates into an AnnData object; see `MultiLMMResults.to_anndata`."""
    _check_key(key_added)
    positions = _matched(adata, fitted.names)
    main = t_test(fitted, fitted.positions(), df=df)
    p = main.pvalue.to_numpy()
    arrays = {
        "params": fitted.ds["beta"].to_numpy(),
        "bse": fitted.ds["se_beta"].to_numpy(),
        "pvalues": p,
        "pvalues_adjusted": adjust_pvalues(p),
        "theta": fitted.ds["theta"].to_numpy(),
        "bse_theta": fitted.ds["se_theta"].to_numpy(),
    }
    names: dict[str, Any] = {"coef": fitted.coefs, "param": fitted.params}
    if tests is not None:
        arrays |= _test_arrays(fitted, tests)
        names["contrast"] = np.array(tests.contrasts)
    target = adata.copy() if copy else adata
    _clear(target, key_added)
    for name, values in arrays.items():
        target.varm[f"{key_added}_{name}"] = _by_gene(values, positions, np.nan)
    target.var[f"{key_added}_status"] = pd.Categorical(
        _by_gene(fitted.verdicts, positions, NOT_FITTED)
    )
    target.var[f"{key_added}_loglik"] = _by_gene(fitted.ds["loglik"].to_numpy(), positions, np.nan)
    target.var[f"{key_added}_n_iter"] = _by_gene(fitted.ds["n_iter"].to_numpy(), positions, -1)
    target.uns[key_added] = {
        **{name: np.array([str(label) for label in labels]) for name, labels in names.items()},
        "options": _storable(asdict(fitted.options)),
        "df": main.df_method,
    }
    return target if copy else None


def _test_arrays(fitted: FittedModel, tests: TTestResults) -> dict[str, FloatArray]:
    if tests.statistic != "t":
        raise InputError("`tests` must come from `t_test`: joint tests have no estimates.")
    features = pd.Index(tests.ds["feature"].to_numpy())
    same = features.is_unique and features.size == fitted.names.size
    order = find_labels(features, fitted.names) if same else np.full(1, -1)
    if (order < 0).any():
        raise InputError(
            "`tests` must hold the features of these results, all of them; it comes from another "
            "fit, or from `t_test(features=...)`."
        )
    arrays = {f"tests_{name}": tests.ds[name].to_numpy() for name in tests.columns}
    arrays["tests_p_adjusted"] = tests.adjusted().to_numpy()
    return {name: values[order] for name, values in arrays.items()}


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not key:
        raise InputError(f"`key_added` must be some text, not {key!r}.")
    if "/" in key:
        raise InputError(f"`key_added` must not contain '/', which .h5ad files refuse: {key!r}.")


def _matched(adata: Any, features: NDArray[Any]) -> IntArray:
    """Position of each gene of ``adata`` among the features; -1 where it is none of them."""
    if not all(hasattr(adata, name) for name in ("var_names", "var", "varm", "uns")):
        raise InputError(f"`adata` must be an AnnData object, not {type(adata).__name__}.")
    genes = pd.Index([str(name) for name in adata.var_names], dtype=object)
    if not genes.is_unique:
        repeated = genes[genes.duplicated()].unique()
        raise InputError(
            f"The names of the genes of `adata` repeat: {listing(repeated)}. Call "
            "adata.var_names_make_unique() before the fit."
        )
    absent = features[find_labels(genes, features) < 0]
    if absent.size == features.size:
        raise InputError(
            f"None of the {features.size} features ({listing(features, 3)}) is among the genes of "
            f"`adata` ({listing(genes, 3)}). Are its var_names those that were fitted?"
        )
    if absent.size:
        warn(
            f"{absent.size} of {features.size} features are not among the genes of `adata` and "
            f"are left out: {listing(absent, 3)}.",
            UserWarning,
        )
    return find_labels(features, genes)


def _by_gene(values: NDArray[Any], positions: IntArray, missing: Any) -> NDArray[Any]:
    """Rows of features as rows of genes."""
    rows = values[np.maximum(positions, 0)]
    rows[positions < 0] = missing
    return rows


def _clear(adata: Any, key: str) -> None:
    """Take out what an earlier call wrote under the same key."""
    own = ("params", "bse", "pvalues", "pvalues_adjusted", "theta", "bse_theta")
    for name in list(adata.varm):
        if name.startswith(f"{key}_tests_") or name in {f"{key}_{part}" for part in own}:
            del adata.varm[name]


def _storable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without None, which .h5ad files refuse."""
    return {name: value for name, value in options.items() if value is not None}
