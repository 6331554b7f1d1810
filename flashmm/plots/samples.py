"""Samples of one feature: residuals, and predictions over the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flashmm.arrays.types import FloatArray
from flashmm.exceptions import InputError
from flashmm.inference.tails import norm_isf
from flashmm.plots.style import (
    BLUE,
    GREY,
    PALETTE,
    in_legend,
    legend,
    many,
    new_axes,
    nothing_to_draw,
    plain,
    plain_all,
    titled,
)
from flashmm.slips.answers import answered

__all__ = ["predictions", "residuals"]


@answered
def residuals(
    fitted: ArrayLike,
    raw: ArrayLike,
    standard: ArrayLike,
    blup: ArrayLike = (),
    *,
    title: str = "",
    axes: Any = None,
) -> Any:
    """Residuals by fitted values, their quantiles, their size, and quantiles of the BLUPs.

    Parameters
    ----------
    fitted, raw, standard
        Fitted values, residuals and standardised residuals of the samples, shape (n,); NaN is left
        out.
    blup
        Predicted random effects, shape (q,); without any the last panel is a histogram.
    title
        Text over the first panel.
    axes
        Four Axes of matplotlib; new ones by default.

    Returns
    -------
    ndarray of Axes
        Those given, or 2 x 2 new ones.

    Raises
    ------
    InputError
        If matplotlib is not installed, or there are not four Axes.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> axes = fm.plots.residuals([1.0, 2.0], [0.1, -0.1], [1.0, -1.0])
    >>> plt.close()
    """
    mean, left, scaled, effects = (
        np.asarray(v, dtype=np.float64) for v in (fitted, raw, standard, blup)
    )
    axes = many(axes, 4)
    panels = np.ravel(axes)
    there = np.isfinite(scaled)
    titled(panels[0], title)
    if not there.any():
        for panel in panels:
            nothing_to_draw(panel, "no residuals")
        return axes
    dot = {
        "s": 8,
        "color": BLUE,
        "alpha": 0.7,
        "linewidth": 0,
        "rasterized": bool(mean.size > 5000),
    }
    panels[0].scatter(mean[there], left[there], **dot)
    panels[0].axhline(0.0, color=GREY, linewidth=0.8)
    panels[0].set(xlabel="fitted value", ylabel="residual")
    _quantiles(panels[1], scaled[there], "standardised residual", dot)
    panels[2].scatter(mean[there], np.sqrt(np.abs(scaled[there])), **dot)
    panels[2].set(xlabel="fitted value", ylabel="√|standardised residual|")
    if effects.size:
        _quantiles(panels[3], effects[np.isfinite(effects)], "predicted random effect", dot)
    else:
        panels[3].hist(scaled[there], bins="auto", color=BLUE, edgecolor="white")
        panels[3].set(xlabel="standardised residual", ylabel="samples")
    return axes


def _quantiles(panel: Any, values: FloatArray, label: str, dot: dict[str, Any]) -> None:
    """Sorted values by normal quantiles, with the line through their quartiles."""
    normal = -norm_isf((np.arange(values.size) + 0.5) / max(values.size, 1))
    panel.scatter(normal, np.sort(values), **dot)
    if values.size > 1:
        low, high = np.quantile(values, [0.25, 0.75])
        slope = (high - low) / (2.0 * norm_isf(0.25))
        panel.axline((0.0, 0.5 * (low + high)), slope=slope, color=GREY, linewidth=0.8)
    panel.set(xlabel="normal quantile", ylabel=label)


@answered
def predictions(
    x: ArrayLike,
    mean: ArrayLike,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    *,
    lines: Sequence[Any] | None = None,
    by: str = "",
    data_x: ArrayLike | None = None,
    data_y: ArrayLike | None = None,
    data_line: ArrayLike | None = None,
    levels: Sequence[Any] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Predicted lines with their limits, over the samples that they were learned of.

    Parameters
    ----------
    x
        Where predictions were made, shape (g,); positions of ``levels`` where these are given.
    mean, lower, upper
        Predictions and their limits, in the units of Y, shape (g,) or (l, g) for l lines.
    lines
        Names of the lines.
    by
        What tells the lines apart, the title of their legend.
    data_x, data_y
        The samples, shape (n,).
    data_line
        Position of the line each sample belongs to, shape (n,).
    levels
        Names along x where it is a factor: marks with bars take the place of lines.
    xlabel, ylabel, title
        Texts.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.predictions([0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5])
    >>> plt.close()
    """
    at = np.asarray(x, dtype=np.float64)
    middle = np.atleast_2d(np.asarray(mean, dtype=np.float64))
    bounds = None
    if lower is not None and upper is not None:
        bounds = [np.atleast_2d(np.asarray(v, dtype=np.float64)) for v in (lower, upper)]
    if middle.shape[1] != at.size or any(v.shape != middle.shape for v in bounds or ()):
        raise InputError(
            f"There are {at.size} values of x, but predictions have the shape {middle.shape}."
        )
    count = middle.shape[0]
    ax = new_axes(ax)
    ax.set(xlabel=plain(xlabel), ylabel=plain(ylabel))
    titled(ax, title)
    shift = (
        np.zeros(count) if levels is None else (np.arange(count) - (count - 1) / 2) * 0.6 / count
    )
    if data_x is not None and data_y is not None:
        own = np.zeros(np.size(data_x), dtype=int) if data_line is None else np.asarray(data_line)
        _samples(ax, np.asarray(data_x, float), np.asarray(data_y, float), own, shift)
    if not np.isfinite(middle).any() and data_y is None:
        return nothing_to_draw(ax, "no predictions")
    if not np.isfinite(middle).any():
        ax.text(0.02, 0.97, "no estimates", transform=ax.transAxes, va="top", fontsize=8)
    for i in range(count):
        colour = _colour(i)
        name = None if lines is None else in_legend(lines[i])
        style = ("-", "--", ":", "-.")[(i // len(PALETTE)) % 4]
        if levels is None:
            if bounds is not None:
                ax.fill_between(
                    at, bounds[0][i], bounds[1][i], color=colour, alpha=0.2, linewidth=0
                )
            ax.plot(at, middle[i], color=colour, linestyle=style, linewidth=1.6, label=name)
        else:
            if bounds is not None:
                ax.vlines(at + shift[i], bounds[0][i], bounds[1][i], color=colour, linewidth=1.6)
            ax.scatter(at + shift[i], middle[i], s=28, color=colour, label=name, zorder=3)
    if levels is not None:
        ax.set_xticks(np.arange(len(levels)), labels=plain_all(levels))
    if lines is not None and count > 1:
        legend(ax, title=plain(by), place="beside")
    return ax


def _colour(line: int) -> str:
    return PALETTE[line % len(PALETTE)]


def _samples(ax: Any, x: FloatArray, y: FloatArray, line: Any, shift: FloatArray) -> None:
    known = np.isfinite(x) & np.isfinite(y)
    single = shift.size == 1
    for i in range(shift.size):
        here = known & (line == i)
        # Samples of a factor's level stand side by side: apart, in a fixed order.
        apart = 0.04 * np.sin(2.399963 * np.arange(here.sum())) if shift.any() else 0.0
        colour = GREY if single else _colour(i)
        dot = {"s": 9, "color": colour, "alpha": 0.55, "linewidth": 0, "zorder": 1}
        ax.scatter(x[here] + shift[i] + apart, y[here], **dot)
