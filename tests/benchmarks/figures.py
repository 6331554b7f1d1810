"""The figure of growth, drawn from what `growth` measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["growth_figure"]

LABELS = {
    "m": "features m",
    "n": "samples n",
    "q": "levels q",
    "p": "fixed effects p",
    "components": "components",
}
# Exponents drawn as thin guides, with the text beside them.
GUIDES = {"m": (1,), "n": (0,), "q": (1, 2), "p": (1, 2), "components": (1, 2)}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe & Ito 2008
MARKERS = ("o", "s", "^", "D")


def growth_figure(measured: Sequence[dict[str, Any]]) -> Any:
    """Small multiples on log scales: time above, memory below, one column per axis.

    Thin grey lines are powers of the axis, for comparison of slopes.
    """
    import matplotlib.pyplot as plt  # noqa: PLC0415  (only the documentation has it)

    axes = list(dict.fromkeys(point["axis"] for point in measured))
    structures = list(dict.fromkeys(point["structure"] for point in measured))
    figure, panels = plt.subplots(
        2, len(axes), figsize=(2.5 * len(axes), 5.4), sharey="row", squeeze=False
    )
    for column, axis in enumerate(axes):
        for row, (quantity, label) in enumerate(
            (("seconds", "time of the fit (s)"), ("memory", "memory of the fit (MB)"))
        ):
            panel = panels[row, column]
            for structure, colour, marker in zip(structures, COLOURS, MARKERS, strict=False):
                own = [x for x in measured if x["axis"] == axis and x["structure"] == structure]
                at = [x[axis] for x in own]
                values = [x[quantity] / (1e6 if quantity == "memory" else 1) for x in own]
                panel.plot(
                    at, values, color=colour, marker=marker, markersize=4, lw=1.5, label=structure
                )
            panel.set(xscale="log", yscale="log")
            at = sorted({x[axis] for x in measured if x["axis"] == axis})
            panel.set_xticks(at, labels=[_short(value) for value in at])
            panel.minorticks_off()
            panel.tick_params(labelsize=8)
            panel.grid(color="0.9", lw=0.6)
            if column == 0:
                panel.set_ylabel(label)
            if row == 1:
                panel.set_xlabel(LABELS[axis])
    for column, axis in enumerate(axes):
        for row in range(2):
            _guides(
                panels[row, column], GUIDES[axis], [x[axis] for x in measured if x["axis"] == axis]
            )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(structures), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    return figure


def _short(value: int) -> str:
    """1000 as 1k, 1000000 as 1M."""
    for factor, unit in ((10**6, "M"), (10**3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return str(value)


def _guides(panel: Any, exponents: Sequence[int], at: Sequence[int]) -> None:
    """Lines of slope ``exponents`` through the lower left of a panel, labelled at their ends."""
    x = np.array([min(at), max(at)], dtype=float)
    low, high = panel.get_ylim()
    bottom = low * (high / low) ** 0.06
    for exponent in exponents:
        y = bottom * (x / x[0]) ** exponent
        if y[1] > high:
            x_end = x[0] * (high / bottom) ** (1 / exponent)
            end = np.array([x[0], x_end]), np.array([bottom, high])
        else:
            end = x, y
        panel.plot(*end, color="0.6", lw=0.8, ls=(0, (4, 3)), zorder=0)
        text = {0: "flat", 1: "slope 1"}.get(exponent, f"slope {exponent}")
        panel.annotate(
            text,
            (end[0][1], end[1][1]),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            va="bottom" if y[1] <= high else "top",
            fontsize=7,
            color="0.45",
        )
    panel.set_ylim(low, high)
