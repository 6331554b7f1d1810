"""Formulas as MathML, written by docutils when the pages are built: no script, no font from elsewhere."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml


def write(translator: Any, node: nodes.math | nodes.math_block, *, block: bool) -> None:
    """Append a formula to a page, and leave its node."""
    source = node.astext().strip().replace(r"\dots", r"\ldots")
    formula = latex2mathml.tex2mathml(source, as_block=block)
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
