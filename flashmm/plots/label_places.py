"""Labels of points that overlap neither each other nor the edge of the Axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashmm.arrays.types import FloatArray, IntArray
from flashmm.plots.style import BLACK, GREY, plain

__all__ = ["label_points"]

_ANGLES = np.deg2rad([45, 135, -45, -135, 0, 180, 90, -90, 22, 158, -22, -158])
_DISTANCES = (4.0, 10.0, 18.0, 28.0, 42.0)  # points, from the mark to the nearest edge of the text
_PAD = 1.0


def label_points(
    ax: Any, x: FloatArray, y: FloatArray, names: list[str], chosen: IntArray
) -> list[Any]:
    """Write names beside points where there is room; the first of ``chosen`` choose first.

    Parameters
    ----------
    ax
        Axes whose limits are final.
    x, y
        All points that are drawn, shape (m,): labels keep clear of them if they can.
    names
        Of all points.
    chosen
        Positions of those to be labelled, in order of importance.

    Returns
    -------
    list of Text
        One for each label that found a place; a label without one is left out.

    Notes
    -----
    Of places around the point, near ones first, the one is taken that covers fewest points and
    overlaps no label.
    """
    figure = ax.figure
    while hasattr(figure, "figure") and figure.figure is not figure:  # of a SubFigure the whole
        figure = figure.figure
    figure.draw_without_rendering()  # the layout, and so the size of the Axes, is then final
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    scale = figure.dpi / 72.0
    frame = ax.get_window_extent(renderer)
    pixels = ax.transData.transform(np.column_stack([x, y]))
    taken: list[tuple[float, float, float, float]] = []
    legend = ax.get_legend()
    if legend is not None:
        box = legend.get_window_extent(renderer)
        taken.append((box.x0, box.y0, box.x1, box.y1))
        # It has found its place; labels that come must not move it.
        legend.set_loc(tuple(ax.transAxes.inverted().transform((box.x0, box.y0))))
    written = []
    for i in chosen:
        text = ax.annotate(
            plain(names[i]),
            (x[i], y[i]),
            (0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=BLACK,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "shrinkB": 2},
        )
        box = super(type(text), text).get_window_extent(renderer)  # the text, without its line
        half = np.array([box.width, box.height]) / 2.0 + _PAD * scale
        place = _best(pixels, pixels[i], half, scale, frame, taken)
        if place is None:
            text.remove()
            continue
        center, near = place
        text.set_position(tuple((center - pixels[i]) / scale))
        if near:
            text.arrow_patch.set_visible(False)
        taken.append((*(center - half), *(center + half)))
        written.append(text)
    return written


def _best(
    pixels: FloatArray,
    point: FloatArray,
    half: FloatArray,
    scale: float,
    frame: Any,
    taken: list[tuple[float, float, float, float]],
) -> tuple[FloatArray, bool] | None:
    """Middle of the best place for a box, and whether it is beside its point."""
    best, cost = None, np.inf
    for rank, distance in enumerate(_DISTANCES):
        for angle in _ANGLES:
            way = np.array([np.cos(angle), np.sin(angle)])
            side = np.where(np.abs(way) < 0.3, 0.0, np.sign(way))
            center = point + way * distance * scale + side * half
            low, high = center - half, center + half
            inside = low[0] >= frame.x0 and low[1] >= frame.y0
            if not (inside and high[0] <= frame.x1 and high[1] <= frame.y1):
                continue
            if any(
                low[0] < b[2] and b[0] < high[0] and low[1] < b[3] and b[1] < high[1] for b in taken
            ):
                continue
            covered = ((pixels > low) & (pixels < high)).all(axis=1).sum()
            now = covered + 0.7 * rank
            if now < cost:
                best, cost = (center, rank == 0), now
    return best
