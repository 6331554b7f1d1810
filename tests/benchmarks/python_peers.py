"""Python peers, run as ``python -m tests.benchmarks.python_peers NAME FOLDER FEATURES OUT``."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .exchange import read_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


def lme_python(folder: Path, features: int) -> tuple[list[list[float]], float]:
    """prepare_lmer once, then fit(y=...) for each feature."""
    import lme_python as package  # noqa: PLC0415  (optional)
    import polars  # noqa: PLC0415

    X, Y = read_matrix(folder, "X"), read_matrix(folder, "Y")
    codes = read_matrix(folder, "codes").astype(int)
    terms = (folder / "terms.txt").read_text().split()
    columns: dict[str, Any] = {f"x{j + 1}": X[:, j] for j in range(X.shape[1])}
    columns |= {name: [f"l{c}" for c in codes[:, i]] for i, name in enumerate(terms)}
    frame = polars.DataFrame({"y": Y[0], **columns})
    start = time.perf_counter()
    prepared = package.prepare_lmer((folder / "formula.txt").read_text().strip(), frame)
    setup = time.perf_counter() - start
    prepared.fit(y=Y[0])
    rows = []
    for y in Y[:features]:
        start = time.perf_counter()
        fit = prepared.fit(y=y)
        seconds = time.perf_counter() - start
        theta = _in_our_order(fit.var_corr, terms)
        rows.append([seconds, fit.log_likelihood, float(fit.converged), *theta])
    return rows, setup


def _in_our_order(var_corr: list[tuple[Any, ...]], terms: list[str]) -> list[float]:
    """Variances, then covariances, of each term; the residual variance last."""
    theta = []
    for term in (*terms, "Residual"):
        own = [
            (first, second, value) for group, first, second, value, _ in var_corr if group == term
        ]
        theta += [value for first, second, value in own if first == second]
        theta += [value for first, second, value in own if first != second]
    return theta


def statsmodels(folder: Path, features: int) -> tuple[list[list[float]], float]:
    """A fresh MixedLM for each feature; one grouping factor."""
    from statsmodels.regression.mixed_linear_model import MixedLM  # noqa: PLC0415  (optional)

    X, Y = read_matrix(folder, "X"), read_matrix(folder, "Y")
    codes = read_matrix(folder, "codes").astype(int)
    assert codes.shape[1] == 1, "one grouping factor"
    slopes = "1 + x3" in (folder / "formula.txt").read_text()
    exog_re = np.column_stack([np.ones(len(X)), X[:, 2]]) if slopes else np.ones((len(X), 1))
    rows = []
    for y in Y[:features]:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = MixedLM(y, X, codes[:, 0], exog_re=exog_re).fit(reml=True)
        seconds = time.perf_counter() - start
        D = np.asarray(fit.cov_re)
        theta = [*np.diag(D), *D[np.triu_indices(len(D), 1)], fit.scale]
        rows.append([seconds, fit.llf, float(fit.converged), *theta])
    return rows, 0.0


def main(arguments: list[str]) -> None:
    """Run a peer and write its table."""
    name, folder, features, out = arguments
    run = {"lme-python": lme_python, "statsmodels": statsmodels}[name]
    rows, setup = run(Path(folder), int(features))
    table = np.array(rows)
    table = np.column_stack([table[:, :1], np.full(len(table), setup), table[:, 1:]])
    names = ["seconds", "setup", "loglik", "converged"]
    names += [f"theta{i + 1}" for i in range(table.shape[1] - 4)]
    np.savetxt(out, table, delimiter=",", header=",".join(names), comments="", fmt="%.17g")


if __name__ == "__main__":
    main(sys.argv[1:])
