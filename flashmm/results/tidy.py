"""Plain tables of a fit under the names of broom: tidy, glance, augment; and a workbook of them."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
import pandas as pd

from flashmm.arrays.labels import as_pandas
from flashmm.arrays.types import IntArray
from flashmm.exceptions import InputError, check_option
from flashmm.formulas.sample_table import check_data
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.results import predictions
from flashmm.results.fitted import FittedModel
from flashmm.results.fixed_effects import t_test
from flashmm.results.variance_components import conf_int_theta
from flashmm.slips.answers import answered

__all__ = ["augment", "glance", "one_sample_table", "subset", "tidy", "to_excel"]

# Rows that a sheet of Excel can hold, its header among them.
_SHEET = 1_048_576
_EFFECTS = ("all", "fixed", "ran_pars")


def subset(fitted: FittedModel, positions: IntArray) -> FittedModel:
    """The fitted models of some features, in the order asked for; nothing is fitted again."""
    ds = fitted.ds.isel(feature=positions)
    return FittedModel(ds, fitted.stats.at(positions), fitted.options, recipe=fitted.recipe)


@answered
def tidy(
    fitted: FittedModel,
    positions: IntArray,
    *,
    df: str = DEFAULT_DF,
    alpha: float = 0.05,
    effects: str = "all",
) -> pd.DataFrame:
    """One row per feature and parameter; see `MultiLMMResults.tidy`."""
    check_option("effects", effects, _EFFECTS)
    tests, structure = t_test(fitted, positions, None, df=df), fitted.stats.structure
    limits = tests.conf_int(alpha).to_numpy()
    fixed = {
        "estimate": tests.ds["estimate"].to_numpy(),
        "std_error": tests.ds["se"].to_numpy(),
        "statistic": tests.ds["t"].to_numpy(),
        "df": tests.ds["df"].to_numpy(),
        "p_value": tests.ds["p"].to_numpy(),
        "conf_low": limits[..., 0],
        "conf_high": limits[..., 1],
    }
    theta = fitted.values("theta", positions)
    bounds = conf_int_theta(fitted, positions, alpha).to_numpy()
    unknown = np.full(theta.shape, np.nan)
    variances = {
        "estimate": theta,
        "std_error": fitted.values("se_theta", positions),
        "statistic": unknown,
        "df": unknown,
        "p_value": unknown,
        "conf_low": bounds[..., 0],
        "conf_high": bounds[..., 1],
    }
    groups = [structure.terms[parameter.term].group for parameter in structure.parameters]
    labels = [("fixed", "", name) for name in tests.contrasts]
    labels += [
        ("ran_pars", group, str(name))
        for group, name in zip(
            groups + ["Residual"] * len(structure.residuals), fitted.params, strict=True
        )
    ]
    use = np.array([effects in ("all", effect) for effect, _, _ in labels], dtype=bool)
    effect, group, term = (np.array(part, dtype=object)[use] for part in zip(*labels, strict=True))
    m, k = positions.size, int(use.sum())
    columns = {
        name: np.concatenate([fixed[name], variances[name]], axis=1)[:, use].ravel()
        for name in fixed
    }
    return pd.DataFrame(
        {
            "feature": fitted.features[positions].repeat(k),
            "effect": np.tile(effect, m),
            "group": np.tile(group, m),
            "term": np.tile(term, m),
            **columns,
        }
    )


def glance(fitted: FittedModel, positions: IntArray) -> pd.DataFrame:
    """One row per feature; see `MultiLMMResults.glance`."""
    llf = fitted.values("loglik", positions)
    residual = fitted.values("theta", positions)[:, -1]
    nobs = np.broadcast_to(np.asarray(fitted.nobs), fitted.names.size)[positions]
    k = fitted.n_estimated_of(positions)
    with np.errstate(invalid="ignore"):
        sigma = np.sqrt(np.where(residual >= 0, residual, np.nan))
    if fitted.options.residual_by:  # there is no one
        sigma = np.full(sigma.shape, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):  # a feature without a value
        log_nobs = np.log(nobs)
    return pd.DataFrame(
        {
            "nobs": nobs,
            "sigma": sigma,
            "loglik": llf,
            "aic": -2.0 * llf + 2.0 * k,
            "bic": -2.0 * llf + log_nobs * k,
            "df_resid": nobs - fitted.stats.p,
            "n_iter": fitted.ds["n_iter"].to_numpy()[positions],
            "converged": fitted.converged[positions],
            "status": fitted.verdicts[positions],
        },
        index=fitted.features[positions],
    )


def augment(
    fitted: FittedModel, positions: IntArray, Y: Any, data: Any, options: Mapping[str, Any]
) -> pd.DataFrame:
    """One row per feature and sample; see `MultiLMMResults.augment`."""
    transform = {"transform": options["transform"]} if "transform" in options else {}
    rows = {name: value for name, value in options.items() if name != "transform"}
    within = predictions.fittedvalues(fitted, positions, data, level="conditional", **rows)
    fixed = predictions.fittedvalues(fitted, positions, data, level="population", **rows)
    residuals = predictions.resid(fitted, positions, Y, data, **transform, **rows)
    m, n = within.shape
    return pd.DataFrame(
        {
            "feature": pd.Index(within["feature"].to_numpy()).repeat(n),
            "sample": np.tile(within["sample"].to_numpy(), m),
            "y": (within.to_numpy() + residuals.to_numpy()).ravel(),
            "fixed": fixed.to_numpy().ravel(),
            "fitted": within.to_numpy().ravel(),
            "resid": residuals.to_numpy().ravel(),
        }
    )


def one_sample_table(table: pd.DataFrame, data: Any) -> pd.DataFrame:
    """What `augment` says of one feature, beside the columns of the samples' table."""
    found = table.drop(columns="feature").set_index("sample")
    if data is None:
        return found
    own = check_data(data)
    others = own[[column for column in own.columns if column not in found.columns]]
    return pd.concat([found.set_axis(own.index), others], axis=1)


def to_excel(
    fitted: FittedModel, path: str | PathLike[str], tests: Mapping[str, Any], *, df: str
) -> None:
    """Write the tables of a fit to a workbook; see `MultiLMMResults.to_excel`."""
    everything = np.arange(fitted.names.size)
    sheets = {
        "Fixed effects": tidy(fitted, everything, df=df, effects="fixed").drop(
            columns=["effect", "group"]
        ),
        "Variances": tidy(fitted, everything, df=df, effects="ran_pars").drop(
            columns=["effect", "statistic", "df", "p_value"]
        ),
        "Fits": glance(fitted, everything).reset_index(),
    }
    for name, table in tests.items():
        frame = table.to_frame() if hasattr(table, "contrasts") else as_pandas(table)
        if not isinstance(frame, pd.DataFrame):
            raise InputError(f"`tests`[{name!r}] must be tests or a DataFrame.")
        sheets[_sheet_name(name, sheets)] = frame.reset_index()
    sheets["Options"] = pd.DataFrame(list(fitted.ds.attrs.items()), columns=["option", "value"])
    for name, table in sheets.items():
        if len(table) >= _SHEET:
            raise InputError(
                f"The sheet {name!r} would have {len(table)} rows; Excel holds {_SHEET - 1}. Write "
                "fewer features, result[[...]].to_excel(...), or result.tidy().to_csv(...)."
            )
    if not fspath(path).endswith((".xlsx", ".xlsm")):
        raise InputError(f"{fspath(path)!r} is no name of a workbook: end it in .xlsx.")
    try:
        with pd.ExcelWriter(path, engine="openpyxl") as writer:
            for name, table in sheets.items():
                table.to_excel(writer, sheet_name=name, index=False, na_rep="NaN")
                _as_text(writer.sheets[name])
    except ImportError:
        raise InputError(
            "Writing Excel needs openpyxl: pip install 'multilmm[excel]' (or 'pandas[excel]')."
        ) from None


def _as_text(sheet: Any) -> None:
    """Names that begin with = are text, no formulas of the workbook."""
    for row in sheet.iter_rows():
        for cell in row:
            if cell.data_type == "f":
                cell.data_type = "s"


def _sheet_name(name: Any, taken: Mapping[str, Any]) -> str:
    text = str(name)
    if not text or len(text) > 31 or any(letter in text for letter in "[]:*?/\\") or text in taken:
        raise InputError(
            f"{text!r} cannot be the name of a sheet: it must be new, of at most 31 characters, "
            "without [ ] : * ? / \\."
        )
    return text
