"""Summary pages: plain tables that print as text and show as HTML in a notebook."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flashmm.inference.degrees_of_freedom import DEFAULT_DF
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.solvers.status import MEANINGS, Status

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flashmm.results import MultiLMMResults
    from flashmm.results.feature_results import FeatureResults

    FloatArray = NDArray[np.float64]

__all__ = ["SummaryPage", "Table", "feature_page", "model_page"]

WIDTH = 78
DF_TEXT = {
    "residual": "residual (n - p)",
    "satterthwaite": "Satterthwaite's",
    "kenward-roger": "Kenward and Roger's",
}
MAX_ROWS = 60
MAX_LABEL = 44


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Parameters
    ----------
    rows
        Cells, row by row.
    header
        Column heads, or None.
    caption
        A line above the table.
    align
        One letter per column, ``"l"`` or ``"r"``; by default the first column is on the left
        and the others are on the right.
    rule
        Whether a rule closes the table.
    """

    rows: list[list[str]]
    header: list[str] | None = None
    caption: str = ""
    align: str = ""
    rule: bool = True


@dataclass(frozen=True)
class SummaryPage:
    """A titled sequence of tables and notes.

    Parameters
    ----------
    title
        Heading.
    parts
        Tables of text, in order.
    notes
        Lines below the tables.
    """

    title: str
    parts: list[Table]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        blocks = [_lines(table) for table in self.parts]
        width = max([WIDTH, *(len(line) for block in blocks for line in block)])
        parts = [self.title.center(width).rstrip(), "=" * width]
        for table, lines in zip(self.parts, blocks, strict=True):
            parts += [table.caption] * bool(table.caption) + lines
            if table.rule:
                parts.append("-" * width)
        parts[-1] = "=" * width
        notes = [line for note in self.notes for line in textwrap.wrap(note, width)]
        return "\n".join([*parts, *notes])

    def __repr__(self) -> str:
        return str(self)

    @property
    def tables(self) -> list[pd.DataFrame]:
        """The ruled tables as DataFrames of text, as statsmodels' summaries have them."""
        return [_frame(table) for table in self.parts if table.rule]

    def as_text(self) -> str:
        """The page as plain text."""
        return str(self)

    def _repr_html_(self) -> str:
        parts = [f"<h4>{html.escape(self.title)}</h4>"]
        for table in self.parts:
            parts.append("<table>")
            if table.caption:
                parts.append(f"<caption>{html.escape(table.caption)}</caption>")
            if table.header is not None:
                parts.append(_html_row(table.header, "th"))
            parts += [_html_row(row, "td") for row in table.rows]
            parts.append("</table>")
        parts += [f"<p>{html.escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def _frame(table: Table) -> pd.DataFrame:
    if table.header is None:
        return pd.DataFrame(table.rows)
    index = [row[0] for row in table.rows]
    return pd.DataFrame([row[1:] for row in table.rows], index=index, columns=table.header[1:])


def _html_row(cells: list[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def _lines(table: Table) -> list[str]:
    """A table as aligned text."""
    rows = table.rows if table.header is None else [table.header, *table.rows]
    if not rows:
        return []
    align = table.align or "l" + "r" * (len(rows[0]) - 1)
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, align, strict=True)
        ).rstrip()
        for row in rows
    ]


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


def _formulas(results: MultiLMMResults) -> list[tuple[str, str]]:
    options = results.options
    return [("Fixed", options.fixed), ("Random", options.random)] if options.fixed else []


def _truncated(rows: list[list[str]], what: str, where: str) -> tuple[list[list[str]], list[str]]:
    if len(rows) <= MAX_ROWS:
        return rows, []
    return rows[:MAX_ROWS], [f"{len(rows) - MAX_ROWS} more {what} not shown; see {where}."]


def _sample_count(results: MultiLMMResults) -> Any:
    nobs = results.nobs
    return nobs if isinstance(nobs, int) else f"{nobs.min()} to {nobs.max()}"


def model_page(results: MultiLMMResults) -> SummaryPage:
    """The page on a whole fit."""
    stats, options = results.stats, results.options
    status = results.ds["status"].to_numpy()
    good = results.converged.to_numpy()
    head: list[tuple[str, Any]] = [
        ("Samples (n)", _sample_count(results)),
        ("Features (m)", stats.m),
        ("Fixed effects (p)", stats.p),
        ("Random effects (q)", stats.q),
        ("Groups", _group_counts(results)),
        ("Method", options.method),
        ("Parameter space", options.parameter_space),
        ("Solver", options.solver),
        ("Engine", options.engine),
        ("Iterations, median", f"{np.median(results.n_iter[good]):g}" if good.any() else "-"),
        ("Iterations, most", f"{results.n_iter.max()}" if stats.m else "-"),
    ]
    if options.n_dropped:
        head.append(("Samples dropped", options.n_dropped))
    verdicts = [
        [verdict.label, str(int((status == verdict).sum())), MEANINGS[verdict]]
        for verdict in Status
        if (status == verdict).any()
    ]
    components, notes = _truncated(
        _component_rows(results, good), "variance parameters", "results.theta"
    )
    coefficients, more = _truncated(
        _coefficient_rows(results, good), "coefficients", "results.to_frame()"
    )
    notes += more
    notes.append(
        f"Quantiles and medians are over the {int(good.sum())} converged features. Tests of single "
        f"coefficients on {DF_TEXT[DEFAULT_DF]} degrees of freedom; up and down are the "
        "signs of the coefficients that pass a false discovery rate of 5%, controlled over "
        "features (Benjamini-Hochberg) for each coefficient."
    )
    return SummaryPage(
        "Linear mixed models, one design",
        [
            *_head(head, _formulas(results)),
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


def _quantiles(values: FloatArray, at: list[float]) -> FloatArray:
    """Quantiles of each column without its NaN, shape (columns, len(at)); NaN where empty."""
    result = np.full((values.shape[1], len(at)), np.nan)
    known = np.isfinite(values).any(axis=0)
    if known.any():
        result[known] = np.nanquantile(values[:, known], at, axis=0).T
    return result


def _component_rows(results: MultiLMMResults, good: NDArray[np.bool_]) -> list[list[str]]:
    theta = results.theta
    quantiles = _quantiles(theta.to_numpy()[good], [0, 0.25, 0.5, 0.75, 1.0])
    return [
        [_label(name), *(_number(value) for value in row)]
        for name, row in zip(theta.columns, quantiles, strict=True)
    ]


def _coefficient_rows(results: MultiLMMResults, good: NDArray[np.bool_]) -> list[list[str]]:
    params = results.params
    adjusted = adjust_pvalues(results.pvalues.to_numpy(), "bh")
    found = adjusted < 0.05  # False for NaN
    beta = params.to_numpy()
    median = _quantiles(beta[good], [0.5])[:, 0]
    median_error = _quantiles(results.bse.to_numpy()[good], [0.5])[:, 0]
    counts = [found.sum(axis=0), (found & (beta > 0)).sum(axis=0), (found & (beta < 0)).sum(axis=0)]
    return [
        [_label(name), _number(median[j]), _number(median_error[j]), *(str(c[j]) for c in counts)]
        for j, name in enumerate(params.columns)
    ]


def feature_page(feature: FeatureResults) -> SummaryPage:
    """The page on one feature, laid out as statsmodels' MixedLM prints it."""
    results = feature._results
    head: list[tuple[str, Any]] = [
        ("Model", "MixedLM"),
        ("Dependent Variable", _label(feature.name)),
        ("No. Observations", feature.nobs),
        ("No. Groups", _group_counts(results)),
        ("Method", feature.method),
        ("Scale", _number(feature.scale)),
        ("Log-Likelihood", f"{feature.llf:.4f}"),
        ("Converged", "Yes" if feature.converged else "No"),
        ("Verdict", feature.status),
        ("Iterations", feature.n_iter),
    ]
    p = results.stats.p
    columns = [
        feature.fe_params,
        feature.bse_fe,
        feature.df.iloc[:p],
        feature.tvalues.iloc[:p],
        feature.pvalues.iloc[:p],
        *(feature.conf_int().iloc[:p, bound] for bound in (0, 1)),
    ]
    forms = [_number, _number, _df, _t_value, _p_value, _number, _number]
    rows = [
        [_label(name), *(form(column.iloc[j]) for form, column in zip(forms, columns, strict=True))]
        for j, name in enumerate(feature.fe_params.index)
    ]
    coefficients, notes = _truncated(rows, "coefficients", "results.sel(...).fe_params")
    variances, more = _truncated(_variance_rows(feature), "parameters", "results.sel(...).theta")
    notes += more
    width = 5 if any(row[4] for row in variances) else 4  # no correlations, no column
    notes.append(
        f"t tests on {DF_TEXT[DEFAULT_DF]} degrees of freedom. Scale is the residual variance."
    )
    if feature.status != Status.CONVERGED.label:
        verdict = next(s for s in Status if s.label == feature.status)
        notes.append(f"{feature.status}: {MEANINGS[verdict]}.")
    return SummaryPage(
        "Mixed Linear Model Regression Results",
        [
            *_head(head, _formulas(results)),
            Table(coefficients, ["", "Coef.", "Std.Err.", "df", "t", "P>|t|", "[0.025", "0.975]"]),
            Table(
                [row[:width] for row in variances],
                ["", "Estimate", "Std.Err.", "Std.Dev.", "Corr."][:width],
                "Variance parameters",
            ),
        ],
        notes,
    )


def _variance_rows(feature: FeatureResults) -> list[list[str]]:
    """Variances with their square roots, covariances with their correlations."""
    theta, errors = feature.theta.to_numpy(), feature.bse_theta.to_numpy()
    structure = feature._results.stats.structure
    variance_of = {
        (p.term, p.row): theta[i] for i, p in enumerate(structure.parameters) if p.is_variance
    }
    rows = []
    for i, name in enumerate(feature.theta.index):
        parameter = structure.parameters[i] if i < len(structure.parameters) else None
        deviation, correlation = "", ""
        if parameter is None or parameter.is_variance:
            deviation = _number(np.sqrt(theta[i])) if theta[i] >= 0 else "-"
        else:
            pair = [variance_of[parameter.term, j] for j in (parameter.row, parameter.column)]
            correlation = f"{theta[i] / np.sqrt(pair[0] * pair[1]):.3f}" if min(pair) > 0 else "-"
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


def _group_counts(results: MultiLMMResults) -> str:
    terms = results.stats.structure.terms
    if len(terms) == 1:
        return str(len(terms[0].levels))
    return _label(", ".join(f"{term.name} {len(term.levels)}" for term in terms))
