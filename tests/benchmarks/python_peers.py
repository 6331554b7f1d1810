"""Python peers, run as ``python -m tests.benchmarks.python_peers NAME FOLDER FEATURES OUT``."""

from __future__ import annotations

import csv
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .exchange import read_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Answer:
    """One feature: seconds, log-likelihood, whether it converged, theta and degrees of freedom."""

    seconds: float
    loglik: float
    converged: bool
    theta: Sequence[float]
    df: Sequence[float] = ()


Answers = tuple[list[Answer], float]  # and the seconds of what is done once


@dataclass(frozen=True)
class Prepared:
    """A model that lme-python prepared, and its data."""

    model: Any
    frame: Any
    Y: FloatArray
    terms: list[str]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> Prepared:
        """Read the data in ``folder`` and prepare the model."""
        import lme_python as package  # noqa: PLC0415  (optional)
        import polars  # noqa: PLC0415

        X, Y = read_matrix(folder, "X"), read_matrix(folder, "Y")
        codes = read_matrix(folder, "codes").astype(int)
        terms = (folder / "terms.txt").read_text().split()
        columns: dict[str, Any] = {f"x{j + 1}": X[:, j] for j in range(X.shape[1])}
        columns |= {name: [f"l{c}" for c in codes[:, i]] for i, name in enumerate(terms)}
        frame = polars.DataFrame({"y": Y[0], **columns})
        formula = (folder / "formula.txt").read_text().strip()
        start = time.perf_counter()
        model = package.prepare_lmer(formula, frame)
        seconds = time.perf_counter() - start
        model.fit(y=Y[0])
        return cls(model, frame, Y, terms, seconds)

    def theta(self, fit: Any) -> list[float]:
        """Variances, then covariances, of each term; the residual variance last."""
        theta = []
        for term in (*self.terms, "Residual"):
            own = [row[1:4] for row in fit.var_corr or [] if row[0] == term]
            theta += [value for first, second, value in own if first == second]
            theta += [value for first, second, value in own if first != second]
        return theta


def lme_python(folder: Path, features: int) -> Answers:
    """prepare_lmer once, then fit(y=...) for each feature."""
    prepared = Prepared.read(folder)
    rows = []
    for y in prepared.Y[:features]:
        start = time.perf_counter()
        fit = prepared.model.fit(y=y)
        seconds = time.perf_counter() - start
        theta = prepared.theta(fit)
        rows.append(Answer(seconds, fit.log_likelihood, bool(fit.converged), theta))
    return rows, prepared.seconds


def satterthwaite(folder: Path, features: int) -> Answers:
    """with_satterthwaite of each feature; its fit is not timed."""
    import polars  # noqa: PLC0415  (optional)

    prepared = Prepared.read(folder)
    rows = []
    for y in prepared.Y[:features]:
        own = prepared.frame.with_columns(y=polars.Series(y))
        fit = prepared.model.fit(y=y)
        start = time.perf_counter()
        tested = fit.with_satterthwaite(own) or fit
        seconds = time.perf_counter() - start
        theta, df = prepared.theta(fit), tested.satterthwaite_dfs
        rows.append(Answer(seconds, fit.log_likelihood, bool(fit.converged), theta, df))
    return rows, prepared.seconds


def statsmodels(folder: Path, features: int) -> Answers:
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
        rows.append(Answer(seconds, fit.llf, bool(fit.converged), theta))
    return rows, 0.0


def flash_mm(folder: Path, features: int) -> Answers:
    """The Python package of FLASHMM's authors, lmm on the statistics of all features at once."""
    package: Any = import_module("flash_mm")  # optional
    sums = {name: read_matrix(folder, name) for name in ("XX", "XY", "ZX", "ZY", "ZZ", "yy")}
    n, *sizes = read_matrix(folder, "sizes")[0].astype(int).tolist()

    def fit(count: int) -> Any:
        return package.lmm(
            sums["XX"], sums["XY"][:, :count], sums["ZX"], sums["ZY"][:, :count], sums["ZZ"],
            Ynorm=sums["yy"][0, :count], n=n, d=sizes,
        )  # fmt: skip

    fit(min(2, features))
    start = time.perf_counter()
    found = fit(features)
    seconds = (time.perf_counter() - start) / features
    # Its REML log-likelihood has 1/2 log|X'X| more, as FLASHMM's has.
    loglik = found["logLik"].to_numpy() - np.linalg.slogdet(sums["XX"])[1] / 2
    stopped = np.abs(found["dlogL"].to_numpy()).max(axis=0) <= 1e-5
    theta = found["theta"].to_numpy().T
    answers = zip(loglik, stopped, theta, strict=True)
    return [Answer(seconds, value, bool(end), list(row)) for value, end, row in answers], 0.0


RUNNERS: dict[str, Callable[[Path, int], Answers]] = {
    "lme-python": lme_python,
    "lme-python, Satterthwaite": satterthwaite,
    "statsmodels": statsmodels,
    "FLASH-MM": flash_mm,
}


def main(arguments: list[str]) -> None:
    """Run a peer and write its table."""
    name, folder, features, out = arguments
    rows, setup = RUNNERS[name](Path(folder), int(features))
    header = ["seconds", "setup", "loglik", "converged"]
    header += [f"theta{i + 1}" for i in range(len(rows[0].theta))]
    header += [f"df{i + 1}" for i in range(len(rows[0].df))]
    with Path(out).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            known = [row.seconds, setup, row.loglik, int(row.converged), *row.theta, *row.df]
            writer.writerow([repr(float(value)) for value in known])


if __name__ == "__main__":
    main(sys.argv[1:])
