"""Formulas as MathML, written by docutils when the pages are built: no script, no font from elsewhere."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def readable(source: str) -> str:
    """A formula that docutils reads as meant: of ``\\tfrac12`` it makes twelve over what follows."""
    source = source.strip().replace(r"\dots", r"\ldots")
    source = re.sub(r"(\\[dt]?frac)\s*(\d)\s*(\d)", r"\1{\2}{\3}", source)
    source = re.sub(r"([_^]|\\sqrt)\s*(\d)(?=\d)", r"\1{\2}", source)
    # A subscript of what has a hat would stand below it, as a limit of a sum does.
    source = re.sub(r"(\\(?:hat|bar|tilde)\s*(?:\\\w+|\{[^}]*\}|\w))_", r"\1{}_", source)
    if re.search(r"\\[dt]?frac\s*[^\s{]", source):
        raise ValueError(f"Write fractions with braces: {source}")
    return source


def write(translator: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    """Append a formula to a page, and leave its node."""
    formula = latex2mathml.tex2mathml(readable(node.astext()), as_block=block)
    translator.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def visit_inline(translator: Any, node: nodes.math) -> None:
    write(translator, node, block=False)


def visit_block(translator: Any, node: nodes.math_block) -> None:
    write(translator, node, block=True)


def setup(app: Any) -> dict[str, Any]:
    """Make it a renderer of formulas that ``html_math_renderer`` can name."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None)
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
