"""Loaders of the reference data in tests/reference and of the cells in flashmm/datasets.

Sources, versions and units are in tests/reference/README.md and `flashmm.datasets`. Row
and column labels are R's, unchanged. Every call reads afresh, so a test may alter what
it gets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

REFERENCE = Path(__file__).parent / "reference"
KANG = Path(__file__).parents[1] / "flashmm" / "datasets" / "files" / "kang"

Lme4Data = Literal["sleepstudy", "penicillin", "pastes", "dyestuff", "dyestuff2"]
SimulatedFit = Literal["1comp_reml", "1comp_ml", "2comp_reml", "2comp_ml"]
Alternative = Literal["two.sided", "greater", "less"]

# Read as text: some of these hold digits ("308", "3") that must not become numbers.
FACTORS = (
    *("Subject", "plate", "sample", "batch", "cask", "Batch"),
    *("Individual", "Tissue"),
    *("sam", "cls", "trt", "location"),
    *("cluster_id", "sample_id", "group_id", "cluster"),
)


class Lme4Case(TypedDict):
    """One model fitted by lme4; keys as in lme4.json, tables as data frames.

    ``dataset`` names the data, ``response`` its column and ``right_side`` is the formula
    without the response. ``coef`` and ``vcov`` are labelled by R's terms. ``varcomp`` is R's
    ``as.data.frame(VarCorr(fit))``: grp, var1, var2, vcov, sdcor. ``ranef`` has grpvar,
    term, grp, condval, condsd. ``anova_kr`` is None for ML fits; the anova tables are empty
    where the intercept is the only fixed effect. ``grad_ok`` is the gradient check stored
    with the fit: small when lme4 got to its optimum.
    """

    name: str
    dataset: Lme4Data
    formula: str
    response: str
    right_side: str
    method: Literal["REML", "ML"]
    nobs: int
    logLik: float
    AIC: float
    BIC: float
    logdetXX: float
    grad_ok: float
    coef: pd.DataFrame
    vcov: pd.DataFrame
    varcomp: pd.DataFrame
    ranef: pd.DataFrame
    anova_satterthwaite: pd.DataFrame
    anova_kr: pd.DataFrame | None


class FlashmmFit(TypedDict):
    """One fit by FLASHMM of m features with p coefficients and K components.

    ``coef``, ``se``, ``t``, ``p``: m x p. ``theta``, ``setheta``, ``dlogL``: m x (K + 1),
    columns var1, ..., varK and, last, var0, the residual. ``logLik``, ``niter``: m.
    """

    coef: pd.DataFrame
    se: pd.DataFrame
    t: pd.DataFrame
    p: pd.DataFrame
    theta: pd.DataFrame
    setheta: pd.DataFrame
    dlogL: pd.DataFrame
    logLik: pd.Series[float]
    niter: pd.Series[int]


class Matrices(TypedDict):
    """Matrices of three genes from FLASHMM's two-component REML fit.

    ``features`` names the genes. Each array is genes x rows x columns: ``FIM_theta`` 3 x 3 x 3
    (var1, var2, var0), ``FIM_beta`` and ``cov_beta`` 3 x 9 x 9, in the coefficients' order.
    """

    features: list[str]
    FIM_theta: NDArray[np.float64]
    FIM_beta: NDArray[np.float64]
    cov_beta: NDArray[np.float64]


class Varpart(NamedTuple):
    """samples (100, indexed by ID), expression (200 x 100), reference (200, by feature)."""

    samples: pd.DataFrame
    expression: pd.DataFrame
    reference: pd.DataFrame


class Simulated(NamedTuple):
    """cells (3,000, indexed by cell), counts (60 genes x 3,000 cells)."""

    cells: pd.DataFrame
    counts: pd.DataFrame


class Kang(NamedTuple):
    """cells (1,556, indexed by cell), counts (1,267 genes x 1,556 cells, CSR), genes."""

    cells: pd.DataFrame
    counts: sp.csr_array[Any, tuple[int, int]]
    genes: list[str]


class LmmTest(TypedDict):
    """FLASHMM's contrast tests: ``coef``, ``t`` and ``p``, each 60 genes x (BvsA, c1v2)."""

    coef: pd.DataFrame
    t: pd.DataFrame
    p: pd.DataFrame


def _read(path: Path, index: str | int | None = None) -> pd.DataFrame:
    table = pd.read_csv(path, dtype=dict.fromkeys(FACTORS, str))
    if index is None:
        return table
    column = table.columns[index] if isinstance(index, int) else index
    return table.set_index(column).rename_axis(index=None)


def _columns(table: pd.DataFrame, prefix: str) -> pd.DataFrame:
    chosen = table.loc[:, table.columns.str.startswith(prefix)]
    return chosen.rename(columns=lambda name: name.removeprefix(prefix))


def _flashmm(path: Path) -> FlashmmFit:
    table = _read(path, 0)
    parts = ("coef", "se", "t", "p", "theta", "setheta", "dlogL")
    frames = {part: _columns(table, f"{part}_") for part in parts}
    return cast("FlashmmFit", {**frames, "logLik": table["logLik"], "niter": table["niter"]})


def _lme4_json() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((REFERENCE / "lme4" / "lme4.json").read_text("utf-8"))
    return loaded


def _anova(rows: list[dict[str, Any]]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).drop(columns="_row").set_index("term").rename_axis(index=None)


def lme4_cases() -> list[str]:
    """Names of the models in lme4.json, as ``"sleepstudy_correlated_reml"``."""
    return list(_lme4_json())


def lme4_case(name: str) -> Lme4Case:
    """One model: estimates, standard errors, degrees of freedom, random effects."""
    raw = _lme4_json()[name]
    response, right_side = raw["formula"].split(" ~ ", 1)
    coef = pd.DataFrame(raw["coef"]).drop(columns="_row").set_index("term").rename_axis(index=None)
    return {
        "name": name,
        "dataset": cast("Lme4Data", name.split("_", maxsplit=1)[0]),
        "formula": raw["formula"],
        "response": response,
        "right_side": f"~ {right_side}",
        "method": raw["method"],
        "nobs": raw["nobs"],
        "logLik": raw["logLik"],
        "AIC": raw["AIC"],
        "BIC": raw["BIC"],
        "logdetXX": raw["logdetXX"],
        "grad_ok": raw["grad_ok"],
        "coef": coef,
        "vcov": pd.DataFrame(raw["vcov"], index=coef.index, columns=coef.index),
        "varcomp": pd.DataFrame(raw["varcomp"]),
        "ranef": pd.DataFrame(raw["ranef"]),
        "anova_satterthwaite": _anova(raw["anova_satterthwaite"]),
        "anova_kr": _anova(raw["anova_kr"]) if "anova_kr" in raw else None,
    }


def lme4_data(dataset: Lme4Data) -> pd.DataFrame:
    """One of lme4's data sets, factors as text."""
    return _read(REFERENCE / "lme4" / f"{dataset}.csv")


def varpart() -> Varpart:
    """The varPart data and lme4's REML fits of each feature."""
    folder = REFERENCE / "varpart"
    return Varpart(
        samples=_read(folder / "samples.csv", "ID"),
        expression=_read(folder / "expression.csv.gz", "feature"),
        reference=_read(folder / "lme4_reml.csv.gz", "feature"),
    )


def simulated() -> Simulated:
    """FLASHMM's simulated cells and their counts."""
    folder = REFERENCE / "simulated"
    return Simulated(
        cells=_read(folder / "cells.csv.gz", "cell"),
        counts=_read(folder / "counts.csv.gz", "gene"),
    )


def simulated_de_genes() -> pd.DataFrame:
    """The differentially expressed genes of `simulated`: gene, beta, cluster."""
    return _read(REFERENCE / "simulated" / "de_genes.csv")


def simulated_fit(name: SimulatedFit) -> FlashmmFit:
    """One of FLASHMM's four fits of `simulated`."""
    return _flashmm(REFERENCE / "simulated" / f"flashmm_{name}.csv.gz")


def simulated_blup(name: Literal["1comp_reml", "2comp_reml"]) -> pd.DataFrame:
    """Random effects of a REML fit, genes x levels: samA1, ..., then locationA, ..."""
    return _read(REFERENCE / "simulated" / f"flashmm_{name}_blup.csv.gz", 0)


def simulated_matrices() -> Matrices:
    """Information matrices and cov(beta) of three genes, from the fit "2comp_reml"."""
    path = REFERENCE / "simulated" / "flashmm_2comp_reml_matrices.json"
    raw = json.loads(path.read_text("utf-8"))

    def genes_first(key: str) -> NDArray[np.float64]:
        # R wrote row, column, gene.
        return np.moveaxis(np.asarray(raw[key], dtype=np.float64), -1, 0)

    return {
        "features": raw["features"],
        "FIM_theta": genes_first("FIM_theta"),
        "FIM_beta": genes_first("FIM_beta"),
        "cov_beta": genes_first("cov_beta"),
    }


def simulated_lmmtest(alternative: Alternative) -> LmmTest:
    """Contrast tests on the fit "1comp_reml"; see tests/reference/README.md."""
    table = _read(REFERENCE / "simulated" / f"lmmtest_{alternative}.csv", 0)

    def part(suffix: str) -> pd.DataFrame:
        names = {f"{contrast}_{suffix}": contrast for contrast in ("BvsA", "c1v2")}
        return table[list(names)].rename(columns=names)

    return {"coef": part("coef"), "t": part("t"), "p": part("p")}


def kang() -> Kang:
    """The cells of Kang et al. (2018), as `flashmm.datasets.kang` reads them."""
    return Kang(
        cells=_read(KANG / "cells.csv.gz", "cell"),
        counts=sp.csr_array(sp.load_npz(KANG / "counts.npz")),
        genes=(KANG / "genes.txt").read_text("utf-8").splitlines(),
    )


def kang_fit() -> FlashmmFit:
    """FLASHMM's REML fit of `kang`; not a reference where it did not converge."""
    return _flashmm(REFERENCE / "kang" / "flashmm_reml.csv.gz")


def formulas() -> dict[str, Any]:
    """Fits of lme4 by case: names, beta, se, llf, variances, anova, and marginal means."""
    return cast(
        "dict[str, Any]", json.loads((REFERENCE / "formulas" / "formulas.json").read_text())
    )


def orthodont() -> pd.DataFrame:
    """Distances of 27 children at four ages; ``female`` is boolean."""
    return pd.read_csv(REFERENCE / "formulas" / "orthodont.csv", dtype={"female": bool})


def structured(name: str) -> dict[str, Any]:
    """Fits of nlme: ``"nlme"`` by structure of the effects and method, or ``"orthodont_cs"``."""
    text = (REFERENCE / "structured" / f"{name}.json").read_text()
    return cast("dict[str, Any]", json.loads(text))


def structured_levels() -> pd.DataFrame:
    """y by x and f within the levels of g."""
    return pd.read_csv(REFERENCE / "structured" / "levels.csv")


def empty_cell() -> pd.DataFrame:
    """y by a, b, x and id, with no sample at a = r, b = l."""
    return pd.read_csv(REFERENCE / "formulas" / "empty_cell.csv")


def structured_places() -> pd.DataFrame:
    """Records at irregular places of groups, one each."""
    return pd.read_csv(REFERENCE / "structured" / "places.csv")
