"""Pages of tables that print as text and show as HTML in a notebook."""

from __future__ import annotations

import csv
import html
import io
import textwrap
from dataclasses import dataclass, field

import pandas as pd

__all__ = ["WIDTH", "SummaryPage", "Table"]

WIDTH = 78


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

    def as_html(self) -> str:
        """The page as HTML, a table for each of its tables."""
        return self._repr_html_()

    def as_csv(self) -> str:
        """The page as comma-separated values: title, tables and notes below each other."""
        lines = [[self.title]]
        for table in self.parts:
            lines += [[table.caption]] * bool(table.caption)
            lines += [] if table.header is None else [table.header]
            lines += table.rows
        lines += [[note] for note in self.notes]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        return text.getvalue()

    def as_latex(self) -> str:
        """The page as LaTeX, a tabular for each of its tables; no packages are needed."""
        parts = [rf"\begin{{center}}{_latex(self.title)}\end{{center}}"]
        for table in self.parts:
            rows = table.rows if table.header is None else [table.header, *table.rows]
            if not rows:
                continue
            align = table.align or "l" + "r" * (len(rows[0]) - 1)
            lines = [" & ".join(map(_latex, row)) + r" \\" for row in rows]
            if table.header is not None:
                lines.insert(1, r"\hline")
            parts += [rf"\noindent {_latex(table.caption)}\par"] * bool(table.caption)
            parts += [rf"\begin{{tabular}}{{{align}}}", r"\hline", *lines, r"\hline"]
            parts += [r"\end{tabular}\par", r"\medskip"]
        parts += [rf"\noindent {_latex(note)}\par" for note in self.notes]
        return "\n".join(parts)

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


_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
}


def _latex(text: str) -> str:
    """Text with the letters that LaTeX reads as its own escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


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
