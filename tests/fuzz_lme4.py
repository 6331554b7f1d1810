"""Random designs and formulas beside lme4, by hand: ``pytest -n 0 -s tests/fuzz_lme4.py``.

Of each design: no public method raises anything but `InputError` or lets another package's warning
through, and under a good verdict no log-likelihood is lower than lme4's by more than 1e-4.
``FUZZ_FIRST`` and ``FUZZ_DESIGNS`` choose the designs, 0 and 200 unless set; a design is its
number. Designs that are refused are skipped: ``-rs`` says why. ``-n 0 -s`` shows the counts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import flashmm as fm
from flashmm.exceptions import (
    ConvergenceWarning,
    FormulaWarning,
    InputError,
    PrecisionWarning,
    RankWarning,
)

FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
DESIGNS = range(FIRST, FIRST + int(os.environ.get("FUZZ_DESIGNS", "200")))
LOWER = 1e-4
GOOD = ("converged", "boundary")
OWN = (ConvergenceWarning, PrecisionWarning, RankWarning, FormulaWarning)
FEATURES = ("plain", "strong", "none", "large")

FIXED = (
    "x",
    "w",
    "f",
    "b",
    "x:w",
    "f:x",
    "I(x**2)",
    "log(k)",
    "np.sqrt(k)",
    "exp(w)",
    "poly(x, 2)",
)
# Each term, and the effects it holds: terms that share one are not drawn together.
RANDOM = {
    "(1 | g)": {"1 g"},
    "(x | g)": {"1 g", "x g"},
    "(x || g)": {"1 g", "x g"},
    "(0 + x | g)": {"x g"},
    "(1 + x + w | g)": {"1 g", "x g", "w g"},
    "(1 | g / s)": {"1 g", "1 s"},
    "(1 | h)": {"1 h"},
    "(w | h)": {"1 h", "w h"},
    "(1 | g:h)": {"1 g:h"},
    "(0 + f | g)": {"1 g"},
    "(1 | s)": {"1 s"},
    "(0 + w | s)": {"w s"},
    "(x || h)": {"1 h", "x h"},
    "(1 | k)": {"1 k"},
}

LME4 = r"""
suppressMessages({library(lme4); library(jsonlite)})
args <- commandArgs(TRUE)
jobs <- fromJSON(file.path(args[1], "jobs.json"), simplifyVector = FALSE)
ignore <- function(optimizer, settings) lmerControl(
  optimizer = optimizer, optCtrl = settings, calc.derivs = FALSE,
  check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore", check.nobs.vs.rankZ = "ignore",
  check.nlev.gtr.1 = "ignore", check.conv.singular = "ignore")
controls <- list(
  ignore("nloptwrap", list(xtol_abs = 1e-9, ftol_abs = 1e-10, maxeval = 5000)),
  ignore("bobyqa", list(rhoend = 1e-9, maxfun = 20000)))
one <- function(job, data, feature, control) {
  formula <- as.formula(paste(feature, job$formula))
  fit <- suppressWarnings(suppressMessages(
    lmer(formula, data, REML = job$method == "REML", control = control)))
  list(llf = as.numeric(logLik(fit)), p = length(fixef(fit)), theta = unname(getME(fit, "theta")))
}
for (job in jobs) {
  data <- read.csv(file.path(args[1], job$file), stringsAsFactors = TRUE)
  found <- lapply(job$features, function(feature) {
    fits <- lapply(controls, function(control)
      tryCatch(one(job, data, feature, control), error = function(e) NULL))
    fits <- Filter(Negate(is.null), fits)
    if (length(fits)) fits[[which.max(sapply(fits, `[[`, "llf"))]] else NULL
  })
  cat(toJSON(found, digits = NA, auto_unbox = TRUE, null = "null"), "\n", sep = "")
  flush(stdout())
}
"""


@dataclass(frozen=True)
class Design:
    """A table, formulas and features, all from one number."""

    number: int

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([20261128, self.number])

    @cached_property
    def data(self) -> pd.DataFrame:
        rng = self.rng
        n, groups = int(rng.integers(25, 110)), int(rng.integers(3, 14))
        share = rng.dirichlet(np.full(groups, float(rng.choice([0.7, 5.0, 50.0]))))
        g = rng.choice(groups, size=n, p=share)
        s = rng.integers(0, rng.integers(2, 4), size=n)
        return pd.DataFrame(
            {
                "x": rng.normal(size=n),
                "w": rng.uniform(-1.0, 1.0, size=n),
                "k": rng.integers(1, 7, size=n),
                "b": rng.random(n) < 0.4,
                "f": rng.choice(["f1", "f2", "f3"][: int(rng.integers(2, 4))], size=n),
                "g": [f"g{i}" for i in g],
                "s": [f"g{i}s{j}" for i, j in zip(g, s, strict=True)],
                "h": [f"h{i}" for i in rng.integers(0, rng.integers(2, 9), size=n)],
            },
            index=[f"sample {i}" for i in range(n)],
        )

    @cached_property
    def formulas(self) -> tuple[str, str, str]:
        """Right sides of the fixed and random parts, and the method."""
        _ = self.data  # which draws first
        rng = self.rng
        fixed = list(rng.choice(FIXED, size=int(rng.integers(0, 4)), replace=False))
        start = "0 + f" if "f" in fixed and "b" not in fixed and rng.random() < 0.3 else "1"
        random, held = list[str](), set[str]()
        wanted = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
        for term in rng.permutation(list(RANDOM)):
            if len(random) < wanted and held.isdisjoint(RANDOM[term]):
                random.append(str(term))
                held |= RANDOM[term]
        method = str(rng.choice(["REML", "ML"]))
        return (
            " + ".join([start, *(t for t in fixed if t not in start)]),
            " + ".join(random),
            method,
        )

    @cached_property
    def Y(self) -> pd.DataFrame:
        _ = self.formulas
        rng, data = self.rng, self.data
        n = len(data)
        rows = []
        for size in (0.7, 4.0, 0.0, 1.0):
            y = rng.normal(size=n) + 0.5 * data["x"]
            for name in ("g", "h", "s"):
                level = pd.factorize(data[name])[0]
                intercept, slope = size * rng.normal(size=(2, level.max() + 1)) * rng.random((2, 1))
                y = y + intercept[level] + slope[level] * data["x"]
            rows.append(np.asarray(y))
        rows[3] = 1e4 + 1e3 * rows[3]
        return pd.DataFrame(np.stack(rows), index=list(FEATURES), columns=data.index)

    def for_r(self, folder: Path) -> dict[str, Any]:
        """Write the table, and say what lme4 is to fit."""
        fixed, random, method = self.formulas
        file = f"{self.number}.csv"
        self.data.assign(**self.Y.T).to_csv(folder / file, index=False, float_format="%.17g")
        formula = f"~ {fixed} + {random}".replace("**", "^").replace("np.", "")
        return {"file": file, "formula": formula, "method": method, "features": list(FEATURES)}


@pytest.fixture(scope="module")
def lme4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], list[Any]]]:
    """lme4's fits of a design, of each feature the better of two optimisers' or None.

    One R process fits all designs, one line of output each, while the tests run.
    """
    folder = tmp_path_factory.mktemp("lme4")
    jobs = [Design(number).for_r(folder) for number in DESIGNS]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "fits.R").write_text(LME4)
    rscript = shutil.which("Rscript")
    assert rscript is not None
    found: list[list[Any]] = []
    with subprocess.Popen(
        [rscript, "--vanilla", folder / "fits.R", folder], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None

        def fits(number: int) -> list[Any]:
            while len(found) <= number - FIRST:
                found.append(json.loads(next(process.stdout)))
            return found[number - FIRST]

        yield fits
        process.terminate()


def calls(design: Design, r: fm.MultiLMMResults) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Public methods by name: tests of the fixed effects, and tables."""
    data = design.data
    coefs = r.ds["coef"].to_numpy().tolist()
    last, others = coefs[-1], {**dict.fromkeys(coefs, 0.0), coefs[0]: 1.0, coefs[-1]: -1.0}
    for attribute in (
        "params",
        "bse",
        "tvalues",
        "theta",
        "bse_theta",
        "score",
        "llf",
        "aic",
        "bic",
    ):
        yield attribute, lambda a=attribute: getattr(r, a)
    yield "status", lambda: (r.status, r.converged, r.nobs, r.df_resid, r.n_iter, repr(r))
    yield "pvalues", lambda: r.pvalues
    yield "random_effects", lambda: r.random_effects
    yield "_repr_html_", r._repr_html_
    for df in ("satterthwaite", "kenward-roger", "residual", "integrated"):
        yield f"t_test {df}", lambda df=df: r.t_test(last, df=df).to_frame()
        yield f"t_test of all {df}", lambda df=df: r.t_test(df=df).conf_int()
        yield f"f_test {df}", lambda df=df: r.f_test(coefs, df=df).to_frame()
        yield f"anova {df}", lambda df=df: r.anova(df=df).to_frame()
        if df != "kenward-roger":
            yield (
                f"predict {df}",
                lambda df=df: r.predict(data.iloc[:4], se=True, interval="prediction", df=df),
            )
    yield (
        "t_test of a dict",
        lambda: r.t_test({"a": f"{coefs[0]} - {last}"} if len(coefs) > 1 else last),
    )
    yield "t_test of a frame", lambda: r.t_test(pd.DataFrame([others])[coefs])
    yield "wald_test", lambda: r.wald_test(coefs)
    yield "conf_int", r.conf_int
    yield "cov_params", r.cov_params
    yield "top_table", lambda: r.top_table(last)
    yield "moderate", r.moderate
    for side in ("greater", "less"):
        yield f"t_test {side}", lambda side=side: r.t_test(last, alternative=side).to_frame()
    yield "t_test, moderated", lambda: r.t_test(last, moderated=True).to_frame()
    yield "f_test, moderated", lambda: r.f_test(coefs, moderated=True).to_frame()
    yield "anova, moderated", lambda: r.anova(moderated=True).to_frame()
    yield "learn_ratio_prior", r.learn_ratio_prior
    yield "posterior_variances", r.posterior_variances
    yield "fim", r.fim
    yield "to_frame", r.to_frame
    for factor in ("f", "b"):
        if factor in design.formulas[0].replace("f:x", "f"):
            yield (
                f"marginal_means {factor}",
                lambda factor=factor: r.marginal_means(factor).to_frame(),
            )
            for contrast in ("pairwise", "trt.vs.ctrl", "consec", "eff"):
                yield (
                    f"marginal_means {factor} {contrast}",
                    lambda factor=factor, contrast=contrast: r.marginal_means(
                        factor, contrast=contrast, weights="proportional"
                    ).to_frame(),
                )


def smaller(design: Design) -> fm.MultiLMMResults:
    """The same fixed effects, with the first random term alone."""
    fixed, random, method = design.formulas
    first = random.split(") + ")[0].rstrip(")") + ")"
    model = fm.MultiLMM.from_formula(f"~ {fixed}", first, design.data, design.Y, rank="drop")
    return model.fit(method, parameter_space="psd")


def more_calls(
    design: Design, r: fm.MultiLMMResults, folder: Path
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Those of random effects, samples, files and single features."""
    data, Y, name = design.data, design.Y, FEATURES[design.number % len(FEATURES)]
    last, new = r.ds["coef"].to_numpy().tolist()[-1], data.iloc[:5].assign(g="another")
    yield "variance_components", r.variance_components
    if design.number % 3 == 0:
        yield "variance_test", r.variance_test
    yield "icc", r.icc
    yield "variance_fractions", r.variance_fractions
    yield "conf_int_theta wald", lambda: r.conf_int_theta(method="wald")
    yield "blup", r.blup
    yield "blup conditional", lambda: r.blup(se="conditional")
    yield "blup prediction", lambda: r.blup(se="prediction")
    yield "predict population", lambda: r.predict(data, level="population", se=True)
    yield (
        "predict new",
        lambda: r.predict(new, allow_new_levels=True, se=True, interval="prediction"),
    )
    yield "fittedvalues", lambda: r.fittedvalues(data)
    yield "resid", lambda: r.resid(Y, data)
    yield "summary", lambda: str(r.summary())
    yield "draw", lambda: r.draw(2, rng=1)
    if design.number % 10 == 3:
        yield (
            "save, load",
            lambda: (r.save(folder / "r.nc"), fm.MultiLMMResults.load(folder / "r.nc").summary()),
        )
    if design.number % 10 == 4:
        yield "bootstrap", lambda: r.bootstrap(n=2, rng=1)
    if design.number % 20 == 15:
        yield "bootstrap_test", lambda: r.bootstrap_test(last, n=2, rng=1)
    one = r.sel(name)
    public = [a for a in dir(type(one)) if not a.startswith("_")]
    for attribute in public:
        if isinstance(getattr(type(one), attribute), property):
            yield f"sel.{attribute}", lambda a=attribute: getattr(one, a)
    yield "sel.summary", lambda: str(one.summary())
    yield "sel.ranef", one.ranef
    yield "sel.cov_params", one.cov_params
    yield "sel.t_test", lambda: one.t_test(last)
    yield "sel.to_statsmodels", lambda: one.to_statsmodels(Y, data)
    yield "to_anndata", lambda: r.to_anndata(ad.AnnData(Y.T, data.copy()), copy=True)
    yield "compare_lr_test", lambda: r.compare_lr_test(smaller(design))
    yield "sel.resid", lambda: one.resid(Y, data)
    yield "sel.fittedvalues", lambda: one.fittedvalues(data)
    if design.number % 20 == 10:
        yield "conf_int_theta profile", lambda: r.conf_int_theta(method="profile", features=[name])


def judged(call: Callable[[], Any]) -> tuple[str | None, bool]:
    """What is wrong with a call, and whether it was refused.

    Wrong is an exception that is no InputError, or a warning that is not the package's own.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    except InputError:
        return None, True
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}", False
    foreign = [w for w in caught if not issubclass(w.category, OWN)]
    return (f"{foreign[0].category.__name__}: {foreign[0].message}" if foreign else None), False


@dataclass
class Count:
    """What was run, over all designs."""

    drawn: int = 0
    refused: int = 0
    fits: int = 0
    compared: int = 0
    not_compared: Counter[str] = field(default_factory=Counter)
    lower: int = 0
    higher: int = 0
    called: int = 0
    calls_refused: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def __str__(self) -> str:
        return (
            f"{self.drawn} designs drawn, {self.refused} refused; {self.fits} fits of a feature, "
            f"{self.compared} compared with lme4's: {self.lower} lower and {self.higher} higher by "
            f"more than {LOWER}, and not {dict(self.not_compared)}; {self.called} calls, "
            f"{self.wrong} wrong; InputError: "
            f"{dict(self.calls_refused.most_common())}"
        )


def fitted(
    design: Design, count: Count, spaces: tuple[str, ...]
) -> Iterator[tuple[str, fm.MultiLMMResults]]:
    """The fit in each space; none of a design that is refused."""
    fixed, random, method = design.formulas
    try:
        model = fm.MultiLMM.from_formula(f"~ {fixed}", random, design.data, design.Y, rank="drop")
    except InputError as refusal:
        count.refused += 1
        pytest.skip(f"{fixed} | {random}: {str(refusal)[:120]}")
    for space in spaces:
        yield space, model.fit(method, parameter_space=space)


def findings(design: Design, theirs: list[Any], folder: Path, count: Count) -> Iterator[str]:
    """What is not as it should be.

    The psd space has its turn with every design, the other, whose fits of small designs take up to
    a hundred times as long, with every eighth; the calls are made on the last fit.
    """
    fits: dict[str, fm.MultiLMMResults] = {}
    spaces = ("psd", "unconstrained")[: 1 + (design.number % 8 == 7)]
    wrong, _ = judged(lambda: fits.update(fitted(design, count, spaces)))
    if wrong is not None:
        count.wrong += 1
        yield f"fit: {wrong}"
    for space, result in fits.items():
        for name, lme4s in zip(FEATURES, theirs, strict=True):
            count.fits += 1
            if lme4s is None or lme4s["p"] != result.stats.p:
                count.not_compared["lme4 failed" if lme4s is None else "other columns"] += 1
                continue
            if result.status[name] not in GOOD:
                count.not_compared[f"{space}, {result.status[name]}"] += 1
                continue
            behind = lme4s["llf"] - result.llf[name]
            count.compared += 1
            count.higher += space == "psd" and behind < -LOWER
            if behind > LOWER:
                count.lower += 1
                verdict = f"{space} {name} {result.status[name]}"
                yield f"{verdict}: {behind:.3g} below lme4's {lme4s['llf']:.6f}"
    if not fits:
        return
    for name, call in chain(calls(design, result), more_calls(design, result, folder)):
        count.called += 1
        wrong, refused = judged(call)
        if refused:
            count.calls_refused[name] += 1
        if wrong is not None:
            count.wrong += 1
            yield f"{space} {name}: {wrong}"


@pytest.fixture(scope="module")
def count() -> Iterator[Count]:
    """Written to standard output at the end; ``-s`` shows it."""
    count = Count()
    yield count
    print(f"\n{count}")


@pytest.mark.live_r
@pytest.mark.parametrize("number", DESIGNS)
def test_design(number, lme4, count, tmp_path):
    design = Design(number)
    count.drawn += 1
    found = list[str]()
    for finding in findings(design, lme4(number), tmp_path, count):
        print(f"{number}: {finding}", flush=True)
        found.append(finding)
    assert not found, "\n".join([" | ".join(design.formulas), *found])
