"""What the summary pages say: of a whole fit, and of one feature."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmm.arrays.types import BoolArray, FloatArray
from flashmm.designs.design import CovarianceStructure
from flashmm.exceptions import listing
from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.results.explained_groups import explained_groups
from flashmm.results.fitted import FitOptions, FittedModel
from flashmm.results.own_parameters import own_estimates, unit_notes
from flashmm.results.pages import WIDTH, SummaryPage, Table
from flashmm.results.structured import common_parameters, shown_parameters
from flashmm.results.trust import doubt
from flashmm.solvers.verdict_texts import MEANINGS, Status
from flashmm.stats.own_rows import PatternedStats
from flashmm.stats.summary_stats import SummaryStats

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["design_page", "feature_page", "model_page"]

DF_TEXT = {
    "residual": "residual (n - p)",
    "normal": "none (normal)",
    "satterthwaite": "Satterthwaite's",
    "kenward-roger": "Kenward and Roger's",
    "integrated": "integrated",
}
# Stands for infinity where quantiles are interpolated.
_ENDLESS = 1e300
# Residual variances that a note names.
_SHOWN = 6
MAX_ROWS = 60
MAX_LABEL = 44


def _number(value: float) -> str:
    """Four significant digits, trailing zeros kept so that columns line up."""
    if np.isnan(value):
        return "NaN"
    return "0" if value == 0.0 else f"{value:#.4g}".rstrip(".")


def _df(value: float) -> str:
    return "NaN" if np.isnan(value) else f"{value:.1f}"


def _t_value(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else _number(value)


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    if value == 0.0:
        return "<1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _label(name: object) -> str:
    text = str(name)
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 3]}..."


def _head(items: list[tuple[str, Any]], formulas: list[tuple[str, str]]) -> list[Table]:
    """Formulas on lines of their own, then label-value pairs, two to a line."""
    cells = [[f"{label}:", str(value)] for label, value in items]
    half = (len(cells) + 1) // 2
    right = [*cells[half:], *([["", ""]] * (2 * half - len(cells)))]
    pairs = [[*left, *other] for left, other in zip(cells[:half], right, strict=True)]
    indent = max((len(label) for label, _ in formulas), default=0) + 3
    lines = [
        [line]
        for label, text in formulas
        for line in textwrap.wrap(
            f"{label}:".ljust(indent) + text,
            WIDTH,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]
    above = [Table(lines, align="l", rule=False)] if lines else []
    return [*above, Table(pairs, align="llll")]


def _formulas(options: FitOptions) -> list[tuple[str, str]]:
    return [("Fixed", options.fixed), ("Random", options.random or "none")] if options.fixed else []


def _truncated(rows: list[list[str]], what: str, where: str) -> tuple[list[list[str]], list[str]]:
    if len(rows) <= MAX_ROWS:
        return rows, []
    return rows[:MAX_ROWS], [f"{len(rows) - MAX_ROWS} more {what} not shown; see {where}."]


def _sample_count(fitted: FittedModel) -> Any:
    nobs = fitted.nobs
    return nobs if isinstance(nobs, int) else f"{nobs.min()} to {nobs.max()}"


def model_page(fitted: FittedModel, pvalues: FloatArray) -> SummaryPage:
    """The page on a whole fit; p-values of its coefficients, shape (m, p)."""
    stats, options = fitted.stats, fitted.options
    status, n_iter = fitted.ds["status"].to_numpy(), fitted.ds["n_iter"].to_numpy()
    good = fitted.converged
    head: list[tuple[str, Any]] = [
        ("Samples (n)", _sample_count(fitted)),
        ("Features (m)", stats.m),
        ("Fixed effects (p)", stats.p),
        ("Random effects (q)", stats.q),
        ("Groups", _group_counts(stats.structure)),
        ("Method", options.method),
        ("Parameter space", options.parameter_space),
        ("Solver", options.solver),
        ("Engine", options.engine),
        ("Iterations, median", f"{np.median(n_iter[good]):g}" if good.any() else "-"),
        ("Iterations, most", f"{n_iter.max()}" if stats.m else "-"),
    ]
    if options.n_dropped:
        head.append(("Samples dropped", options.n_dropped))
    verdicts = [
        [verdict.label, str(int((status == verdict).sum())), MEANINGS[verdict]]
        for verdict in Status
        if (status == verdict).any()
    ]
    components, notes = _truncated(
        _component_rows(fitted, good), "variance parameters", "results.theta"
    )
    coefficients, more = _truncated(
        _coefficient_rows(fitted, pvalues, good), "coefficients", "results.to_frame()"
    )
    notes += more
    notes.append(
        f"Quantiles and medians are over the {int(good.sum())} converged features. Tests of single "
        f"coefficients on {DF_TEXT[DEFAULT_DF]} degrees of freedom; up and down are the "
        "signs of the coefficients that pass a false discovery rate of 5%, controlled over "
        "features (Benjamini-Hochberg) for each coefficient."
    )
    if lacking := without_samples(fitted):
        notes.append(lacking)
    notes += _known_variances(fitted) + unit_notes(stats.structure) + _left_out(fitted)
    notes += [reason for reason in (explained_groups(fitted), doubt(fitted)) if reason]
    return SummaryPage(
        "Linear mixed models, one design",
        [
            *_head(head, _formulas(options)),
            Table(verdicts, None, "How the features ended", align="lrl"),
            Table(
                components,
                ["", "min", "25%", "median", "75%", "max"],
                "Variance parameters, quantiles over features",
            ),
            Table(
                coefficients,
                ["", "median coef.", "median std.err.", "FDR < 5%", "up", "down"],
                "Fixed effects",
            ),
        ],
        notes,
    )


def design_page(
    stats: SummaryStats | PatternedStats, fixed: str, random: str, n_dropped: int
) -> SummaryPage:
    """The page on a model that was not fitted yet."""
    head: list[tuple[str, Any]] = [
        ("Samples (n)", stats.n),
        ("Features (m)", stats.m),
        ("Fixed effects (p)", stats.p),
        ("Random effects (q)", stats.q),
        ("Groups", _group_counts(stats.structure)),
    ]
    if n_dropped:
        head.append(("Samples dropped", n_dropped))
    formulas = [("Fixed", fixed), ("Random", random or "none")] if fixed else []
    coefs, notes = _truncated([[_label(name)] for name in stats.coef_names], "names", "stats")
    params, more = _truncated(
        [[_label(name)] for name in stats.structure.param_names], "names", "stats"
    )
    return SummaryPage(
        "Linear mixed models, one design, not fitted yet",
        [
            *_head(head, formulas),
            Table(coefs, None, "Fixed effects"),
            Table(params, None, "Variance parameters"),
        ],
        [*notes, *more, *unit_notes(stats.structure), "model.fit() fits it."],
    )


def _quantiles(values: FloatArray, at: list[float]) -> FloatArray:
    """Quantiles of each column without its NaN, shape (columns, len(at)); NaN where empty.

    A range may be infinite, between which nothing can be interpolated.
    """
    result = np.full((values.shape[1], len(at)), np.nan)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        result[known] = np.nanquantile(np.minimum(values[:, known], _ENDLESS), at, axis=0).T
    return np.where(result > 0.01 * _ENDLESS, np.inf, result)


def _component_rows(fitted: FittedModel, good: BoolArray) -> list[list[str]]:
    names, values = shown_parameters(fitted.stats.structure, fitted.ds["theta"].to_numpy()[good])
    quantiles = _quantiles(values, [0, 0.25, 0.5, 0.75, 1.0])
    return [
        [_label(name), *(_number(value) for value in row)]
        for name, row in zip(names, quantiles, strict=True)
    ]


def _coefficient_rows(fitted: FittedModel, pvalues: FloatArray, good: BoolArray) -> list[list[str]]:
    found = adjust_pvalues(pvalues, "bh") < 0.05  # False for NaN
    beta = fitted.ds["beta"].to_numpy()
    median = _quantiles(beta[good], [0.5])[:, 0]
    median_error = _quantiles(fitted.ds["se_beta"].to_numpy()[good], [0.5])[:, 0]
    counts = [found.sum(axis=0), (found & (beta > 0)).sum(axis=0), (found & (beta < 0)).sum(axis=0)]
    return [
        [_label(name), _number(median[j]), _number(median_error[j]), *(str(c[j]) for c in counts)]
        for j, name in enumerate(fitted.coefs)
    ]


def feature_page(fitted: FittedModel, position: int, fixed: pd.DataFrame) -> SummaryPage:
    """The page on one feature, laid out as statsmodels' MixedLM prints it.

    ``fixed`` holds its coefficients: estimate, standard error, df, t, p and limits, in this order.
    """
    one, stats, options = fitted.ds.isel(feature=position), fitted.stats, fitted.options
    verdict = Status(int(one["status"]))
    head: list[tuple[str, Any]] = [
        ("Model", "MixedLM"),
        ("Dependent Variable", _label(one["feature"].item())),
        ("No. Observations", fitted.nobs),
        ("No. Groups", _group_counts(stats.structure)),
        ("Method", options.method),
        ("Scale", "by group" if options.residual_by else _number(float(one["theta"][-1]))),
        ("Log-Likelihood", f"{float(one['loglik']):.4f}"),
        ("Converged", "Yes" if fitted.converged[position] else "No"),
        ("Verdict", verdict.label),
        ("Iterations", int(one["n_iter"])),
    ]
    forms = [_number, _number, _df, _t_value, _p_value, _number, _number]
    rows = [
        [_label(name), *(form(value) for form, value in zip(forms, values, strict=True))]
        for name, values in zip(fixed.index, fixed.to_numpy(), strict=True)
    ]
    coefficients, notes = _truncated(rows, "coefficients", "results.sel(...).fe_params")
    variances, more = _truncated(
        _variance_rows(one["theta"].to_numpy(), one["se_theta"].to_numpy(), stats.structure)
        if not stats.structure.turned and stats.structure.curved is None
        else _with_common(fitted, position),
        "parameters",
        "results.sel(...).theta",
    )
    notes += more
    width = 5 if any(row[4] for row in variances) else 4  # no correlations, no column
    scale = (
        "Residual variances are by group."
        if options.residual_by
        else "Scale is the residual variance."
    )
    scale = "" if options.known_residual else f" {scale}"
    notes.append(f"t tests on {DF_TEXT[DEFAULT_DF]} degrees of freedom.{scale}")
    if verdict != Status.CONVERGED:
        notes.append(f"{verdict.label}: {MEANINGS[verdict]}.")
    if reason := explained_groups(fitted, position):
        notes.append(reason)
    if fitted.absent is not None and fitted.absent[position].any():
        lost = np.array(stats.structure.residuals)[fitted.absent[position]]
        notes.append(f"It has no samples of the groups of {listing(lost)}: these are NaN.")
    notes += _known_variances(fitted) + unit_notes(stats.structure) + _left_out(fitted)
    if verdict.is_converged and (reason := doubt(fitted, position=position)):
        notes.append(reason)
    return SummaryPage(
        "Mixed Linear Model Regression Results",
        [
            *_head(head, _formulas(options)),
            Table(coefficients, ["", "Coef.", "Std.Err.", "df", "t", "P>|t|", "[0.025", "0.975]"]),
            Table(
                [row[:width] for row in variances],
                ["", "Estimate", "Std.Err.", "Std.Dev.", "Corr."][:width],
                "Variance parameters",
            ),
        ],
        notes,
    )


def without_samples(fitted: FittedModel) -> str:
    """Residual variances of groups that features have no samples of, counted; or nothing."""
    if fitted.absent is None:
        return ""
    # A feature without any sample lacks no group in particular.
    counts = (fitted.absent & ~fitted.absent.all(axis=1, keepdims=True)).sum(axis=0)
    if not counts.any():
        return ""
    residuals = fitted.stats.structure.residuals
    shown = [f"{n!r} for {c}" for n, c in zip(residuals, counts.tolist(), strict=True) if c]
    more = f", and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return (
        "Residual variances of groups that a feature has no samples of are NaN: "
        f"{', '.join(shown[:_SHOWN])} of {fitted.stats.m} features{more}."
    )


def _known_variances(fitted: FittedModel) -> list[str]:
    """Notes on a known residual variance and known covariances between the levels of terms."""
    notes = []
    if fitted.options.known_residual:
        notes.append("The residual variance is known, not estimated: over a sample's weight.")
    shown = [
        f"{term.name} ({len(term.levels)} levels, mean diagonal {term.root.mean_diagonal:.4g})"
        for term in fitted.stats.structure.terms
        if term.root is not None
    ]
    if shown:
        notes.append(f"Known covariance between the levels of {', '.join(shown)}.")
    return notes


def _left_out(fitted: FittedModel) -> list[str]:
    """A note on columns of X that were left out because of its rank."""
    aliased = fitted.stats.aliased
    if aliased is None:
        return []
    return [
        f"Left out of X, on whose other columns they depend: {listing(aliased.dropped_names)}. "
        "Coefficients without tests are not estimable: their values depend on what was left out."
    ]


def _variance_rows(
    theta: FloatArray, errors: FloatArray, structure: CovarianceStructure
) -> list[list[str]]:
    """Variances with their square roots, covariances with their correlations."""
    variance_of = {
        (p.term, p.row): theta[i] for i, p in enumerate(structure.parameters) if p.is_variance
    }
    rows = []
    for i, name in enumerate(structure.param_names):
        parameter = structure.parameters[i] if i < len(structure.parameters) else None
        deviation, correlation = "", ""
        if parameter is None or parameter.is_variance:
            deviation = _number(np.sqrt(theta[i])) if theta[i] >= 0 else "-"
        else:
            ends = (parameter.row, parameter.column)
            ends = (-1, -1) if parameter.row < -2 else ends  # all effects have one variance
            pair = [variance_of[parameter.term, j] for j in ends]
            correlation = f"{theta[i] / np.prod(np.sqrt(pair)):.3f}" if min(pair) > 0 else "-"
        kind = "Var" if parameter is None or parameter.is_variance else "Cov"
        rows.append(
            [
                f"{_label(name)} {kind}",
                _number(theta[i]),
                _number(errors[i]),
                deviation,
                correlation,
            ]
        )
    return rows


def _with_common(fitted: FittedModel, position: int) -> list[list[str]]:
    """The same where terms have other parameters: those of their structures."""
    structure = fitted.stats.structure
    theta = fitted.ds["theta"].to_numpy()[[position]]
    rows = _variance_rows(theta[0], fitted.ds["se_theta"].to_numpy()[position], structure)
    covariance = fitted.on_request.theta_covariance(np.array([position]))[0]
    for at in common_parameters(structure):
        places = [at.mean, at.deviation]
        block = covariance[np.ix_(places, places)]
        v, c = at.variance(theta)[0], at.covariance(theta)[0]
        errors = [
            np.sqrt(max(weights @ block @ weights, 0.0)) / at.s
            for weights in (np.array([1.0, at.s - 1.0]), np.array([1.0, -1.0]))
        ]
        deviation, correlation = (f"{_number(np.sqrt(v))}", f"{c / v:.3f}") if v > 0 else ("-", "-")
        name = _label(at.name)
        rows[at.mean] = [f"{name} Var", _number(v), _number(errors[0]), deviation, ""]
        rows[at.deviation] = [f"{name} Cov", _number(c), _number(errors[1]), "", correlation]
    return rows if structure.curved is None else _with_own(fitted, position, rows)


def _with_own(fitted: FittedModel, position: int, rows: list[list[str]]) -> list[list[str]]:
    """Rows with own parameters in the place of the theta of structures with few of them."""
    structure = fitted.stats.structure
    assert structure.curved is not None
    found = list(own_estimates(fitted, np.array([position]), 0.05))
    result: list[list[str]] = []
    parts = zip([*structure.terms, None], structure.curved.parts(), strict=True)
    for term, (curve, linear, _) in parts:
        if curve is None or term is None:
            result += rows[linear]
            continue
        variances = iter(rows[linear])
        for own in found:
            value, error = own.values[0, :2]
            if own.term == term.name and own.kind == "sd":
                result.append(next(variances))
            elif own.term == term.name:
                correlation = own.kind == "correlation"
                shown = f"{value:.3f}" if correlation else _number(value)
                kind = "Corr" if correlation else "Range"
                name = own.name.rpartition("[")[0]
                result.append([f"{_label(name)} {kind}", shown, _number(error), "", ""])
    return result


def _group_counts(structure: CovarianceStructure) -> str:
    terms = structure.terms
    if len(terms) == 1:
        return str(len(terms[0].levels))
    return _label(", ".join(f"{term.name} {len(term.levels)}" for term in terms))
