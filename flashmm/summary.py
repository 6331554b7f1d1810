"""Summary pages: plain tables that print as text and show as HTML in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.solvers.status import MEANINGS, Status

if TYPE_CHECKING:
    from flashmm.feature_results import FeatureResults
    from flashmm.results import MultiLMMResults

__all__ = ["SummaryPage", "feature_page", "model_page"]

WIDTH = 78
MAX_ROWS = 60


@dataclass(frozen=True)
class Table:
    """A table of text cells with an optional caption; no header means label-value pairs."""

    rows: list[list[str]]
    header: list[str] | None = None
    caption: str = ""


@dataclass(frozen=True)
class SummaryPage:
    """A titled sequence of tables and notes.

    Parameters
    ----------
    title
        Heading.
    tables
        Tables, in order.
    notes
        Lines below the tables.
    """

    title: str
    tables: list[Table]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max([WIDTH, *(len(line) for table in self.tables for line in _lines(table))])
        heads = [table for table in self.tables if table.header is None and not table.caption]
        parts = [self.title.center(width).rstrip(), "=" * width]
        for table in self.tables:
            if table.caption:
                parts.append(table.caption)
            parts += _lines(table)
            if table.header is not None or table.caption or table is heads[-1]:
                parts.append("-" * width)
        parts[-1] = "=" * width
        return "\n".join([*parts, *self.notes])

    def __repr__(self) -> str:
        return str(self)

    def as_text(self) -> str:
        """The page as plain text."""
        return str(self)

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(self.title)}</h4>"]
        for table in self.tables:
            parts.append("<table>")
            if table.caption:
                parts.append(f"<caption>{html.escape(table.caption)}</caption>")
            if table.header is not None:
                parts.append(_html_row(table.header, "th"))
            parts += [_html_row(row, "td") for row in table.rows]
            parts.append("</table>")
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def _html_row(cells: list[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _lines(table: Table) -> list[str]:
    """A table as aligned text; label-value pairs are left-aligned, columns right-aligned."""
    rows = table.rows if table.header is None else [table.header, *table.rows]
    if not rows:
        return []
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    pairs = table.header is None
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if pairs or j == 0 else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _number(value: float, digits: int = 4) -> str:
    if np.isnan(value):
        return "NaN"
    return f"{value:.{digits}g}"


def _p_value(value: float) -> str:
    if np.isnan(value):
        return "NaN"
    if value == 0.0:
        return "<1e-300"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def _pairs(items: list[tuple[str, Any]]) -> list[Table]:
    """Label-value pairs: long values on lines of their own, short ones two to a line."""
    cells = [[f"{label}:", str(value)] for label, value in items]
    short = [cell for cell in cells if len(cell[1]) <= 20]
    long = [cell for cell in cells if len(cell[1]) > 20]
    half = (len(short) + 1) // 2
    right = [*short[half:], *([["", ""]] * (2 * half - len(short)))]
    rows = [[*left, *other] for left, other in zip(short[:half], right, strict=True)]
    return [Table(block) for block in (long, rows) if block]


def _truncated(rows: list[list[str]], what: str) -> tuple[list[list[str]], list[str]]:
    if len(rows) <= MAX_ROWS:
        return rows, []
    return rows[:MAX_ROWS], [f"{len(rows) - MAX_ROWS} more {what} not shown."]


def model_page(results: MultiLMMResults) -> SummaryPage:
    """The page on a whole fit."""
    stats, options = results.stats, results.options
    head: list[tuple[str, Any]] = []
    if options.fixed:
        head += [("Fixed", options.fixed), ("Random", options.random)]
    head += [
        ("Samples (n)", stats.n),
        ("Features (m)", stats.m),
        ("Fixed effects (p)", stats.p),
        ("Random effects (q)", stats.q),
        ("Method", options.method),
        ("Solver", options.solver),
        ("Space", options.parameter_space),
        ("Iterations (max)", int(results.n_iter.max()) if stats.m else 0),
    ]
    if options.n_dropped:
        head.append(("Samples dropped", options.n_dropped))
    notes: list[str] = []
    status = results.ds["status"].to_numpy()
    verdicts = [
        [verdict.label, str(int((status == verdict).sum())), MEANINGS[verdict]]
        for verdict in Status
        if (status == verdict).any()
    ]
    components, more = _truncated(_component_rows(results), "variance parameters")
    notes += more
    coefficients, more = _truncated(_coefficient_rows(results), "coefficients")
    notes += more
    notes.append(
        f"Tests use the residual degrees of freedom, n - p = {results.df_resid}; FDR by "
        "Benjamini-Hochberg over features."
    )
    return SummaryPage(
        "Linear mixed models, one design",
        [
            *_pairs(head),
            Table(verdicts, None, "How the features ended"),
            Table(
                components,
                ["", "min", "25%", "median", "75%", "max"],
                "Variance parameters over features",
            ),
            Table(
                coefficients,
                ["", "median coef.", "median std.err.", "FDR < 5%", "up", "down"],
                "Fixed effects over features",
            ),
        ],
        notes,
    )


def _quantiles(values: pd.DataFrame) -> Any:
    if np.isfinite(values.to_numpy()).any(axis=0).all() and len(values):
        return np.nanquantile(values.to_numpy(), [0, 0.25, 0.5, 0.75, 1.0], axis=0).T
    return np.full((values.shape[1], 5), np.nan)


def _component_rows(results: MultiLMMResults) -> list[list[str]]:
    theta = results.theta
    return [
        [str(name), *(_number(value) for value in row)]
        for name, row in zip(theta.columns, _quantiles(theta), strict=True)
    ]


def _coefficient_rows(results: MultiLMMResults) -> list[list[str]]:
    params = results.params
    adjusted = adjust_pvalues(results.pvalues.to_numpy(), "bh")
    with np.errstate(invalid="ignore"):
        found = adjusted < 0.05
    beta = params.to_numpy()
    rows = []
    medians = _quantiles(params)[:, 2], _quantiles(results.bse)[:, 2]
    up, down = (found & (beta > 0)).sum(axis=0), (found & (beta < 0)).sum(axis=0)
    for j, name in enumerate(params.columns):
        rows.append(
            [
                str(name),
                _number(medians[0][j]),
                _number(medians[1][j]),
                str(int(found[:, j].sum())),
                str(int(up[j])),
                str(int(down[j])),
            ]
        )
    return rows


def feature_page(feature: FeatureResults) -> SummaryPage:
    """The page on one feature, laid out as statsmodels' MixedLM prints it."""
    results = feature._results
    head: list[tuple[str, Any]] = [
        ("Model", "MixedLM"),
        ("Dependent Variable", feature.name),
        ("No. Observations", feature.nobs),
        ("Method", feature.method),
        ("No. Groups", _group_counts(results)),
        ("Scale", f"{feature.scale:.4f}" if 1e-3 < feature.scale < 1e6 else _number(feature.scale)),
        ("Log-Likelihood", f"{feature.llf:.4f}"),
        ("Converged", "Yes" if feature.converged else "No"),
        ("Verdict", feature.status),
        ("Iterations", feature.n_iter),
    ]
    if results.options.fixed:
        head += [("Fixed", results.options.fixed), ("Random", results.options.random)]
    header = ["", "Coef.", "Std.Err.", "t", "P>|t|", "[0.025", "0.975]"]
    limits = feature.conf_int()
    p = results.stats.p
    t, pvalues = feature.fe_params / feature.bse_fe, feature.pvalues.iloc[:p]
    rows = []
    for j, name in enumerate(feature.fe_params.index):
        rows.append(
            [
                str(name),
                _number(feature.fe_params.iloc[j]),
                _number(feature.bse_fe.iloc[j]),
                _number(t.iloc[j]),
                _p_value(pvalues.iloc[j]),
                _number(limits.iloc[j, 0]),
                _number(limits.iloc[j, 1]),
            ]
        )
    coefficients, notes = _truncated(rows, "coefficients")
    variances = [
        [_variance_label(name), _number(value), _number(error)]
        for name, value, error in zip(
            feature.theta.index, feature.theta, feature.bse_theta, strict=True
        )
    ]
    notes.append(f"t tests on n - p = {feature.df_resid} degrees of freedom.")
    if feature.status != Status.CONVERGED.label:
        verdict = next(s for s in Status if s.label == feature.status)
        notes.append(f"{feature.status}: {MEANINGS[verdict]}.")
    return SummaryPage(
        "Mixed Linear Model Regression Results",
        [
            *_pairs(head),
            Table(coefficients, header),
            Table(variances, ["", "Estimate", "Std.Err."], "Variance parameters"),
        ],
        notes,
    )


def _variance_label(name: object) -> str:
    text = str(name)
    return f"{text} {'Cov' if '[' in text and ',' in text else 'Var'}"


def _group_counts(results: MultiLMMResults) -> str:
    terms = results.stats.structure.terms
    if len(terms) == 1:
        return str(len(terms[0].levels))
    return ", ".join(f"{term.name} {len(term.levels)}" for term in terms)
