"""Estimates with their limits: forests, caterpillars, dots of contrasts by features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flashmm.exceptions import InputError
from flashmm.plots.style import (
    BLACK,
    BLUE,
    GREY,
    PALETTE,
    check_axes,
    in_legend,
    legend,
    new_axes,
    nothing_to_draw,
    plain,
    plain_all,
    slanted,
    titled,
)
from flashmm.slips.answers import answered

__all__ = ["caterpillar", "dots", "forest"]

_MARKERS = "osD^vPX"
_NAMED_LEVELS = 60  # more names than that cannot be read


@answered
def forest(
    estimate: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence[Any],
    *,
    series: Sequence[Any] | None = None,
    null: float | None = 0.0,
    xlabel: str = "estimate",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Estimates and their limits, one row each, the first at the top.

    Parameters
    ----------
    estimate, lower, upper
        In the units of Y, shape (r,) or (r, s) for several series. Rows without an estimate keep
        their name; limits may be infinite, as those of one-sided tests are.
    names
        Of the rows: contrasts of one feature, or features.
    series
        Names of the s series, contrasts, which differ in colour and mark. At most 7.
    null
        Where the dashed line stands; None for no line.
    xlabel, title
        Texts.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If matplotlib is not installed, shapes differ or there are more than 7 series.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.forest([0.5, -1.0], [0.1, -2.0], [0.9, 0.0], ["age", "sex"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['age', 'sex']
    >>> plt.close()
    """
    values, low, high = (_table(v, len(names)) for v in (estimate, lower, upper))
    count, s = values.shape
    if low.shape != values.shape or high.shape != values.shape:
        raise InputError("`estimate`, `lower` and `upper` have different shapes.")
    if s > len(PALETTE):
        raise InputError(
            f"There are {s} series, more than the {len(PALETTE)} that can be told apart: choose "
            "fewer contrasts, or draw `dots`."
        )
    if series is not None and len(series) != s:
        raise InputError(f"`series` has {len(series)} names of {s} series.")
    ax = new_axes(ax, height=float(np.clip(0.9 + 0.16 * count * max(1.0, 0.7 * s), 1.8, 12.0)))
    ax.set(xlabel=plain(xlabel))
    titled(ax, title)
    if not np.isfinite(values).any():
        return nothing_to_draw(ax, "nothing has an estimate")
    if null is not None:
        ax.axvline(null, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    here = np.isfinite(values)
    ends = np.concatenate([v[np.isfinite(v)] for v in (values, low, high)])
    left, right = ends.min(), ends.max()
    if null is not None:
        left, right = min(left, null), max(right, null)
    margin = 0.05 * (right - left or 1.0)
    ax.set_xlim(left - margin, right + margin)
    for j in range(s):
        y = np.arange(count) + (j - (s - 1) / 2.0) * 0.7 / s
        some = here[:, j]
        # An infinite limit ends at the edge, a limit that is not known at the estimate.
        edge = [
            np.clip(np.where(np.isnan(v[some, j]), values[some, j], v[some, j]), *ax.get_xlim())
            for v in (low, high)
        ]
        ax.hlines(y[some], *edge, color=PALETTE[j], linewidth=1.4)
        label = None if series is None or s == 1 else in_legend(series[j])
        ax.scatter(
            values[some, j], y[some], s=20, marker=_MARKERS[j], color=PALETTE[j], label=label
        )
    _rows(ax, names)
    if s > 1:
        legend(ax, place="beside")
    return ax


@answered
def caterpillar(
    estimate: ArrayLike,
    lower: ArrayLike,
    upper: ArrayLike,
    names: Sequence[Any],
    *,
    sort: bool = True,
    xlabel: str = "predicted random effect",
    ylabel: str = "",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Predicted random effects of all levels with their limits, in order of size.

    Parameters
    ----------
    estimate, lower, upper
        In the units of Y, shape (L,).
    names
        Levels; beyond 60 their names are not written.
    sort
        False for the order given.
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
    >>> ax = fm.plots.caterpillar([1.0, -1.0], [0.0, -2.0], [2.0, 0.0], ["s1", "s2"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['s2', 's1']
    >>> plt.close()
    """
    values, low, high = (_table(v, len(names))[:, 0] for v in (estimate, lower, upper))
    height = float(np.clip(0.8 + 0.15 * len(names), 1.8, 6.5))
    ax = new_axes(ax, height=height)
    ax.set(xlabel=plain(xlabel))
    titled(ax, title)
    here = np.flatnonzero(np.isfinite(values))
    if here.size == 0:
        return nothing_to_draw(ax, "no level has a prediction")
    order = here[np.argsort(values[here], kind="stable")] if sort else here[::-1]
    y = np.arange(order.size)
    clear = (low[order] > 0) | (high[order] < 0)
    ax.axvline(0.0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
    for some, colour in ((clear, BLUE), (~clear, GREY)):
        ax.hlines(y[some], low[order][some], high[order][some], color=colour, linewidth=1.2)
        ax.scatter(values[order][some], y[some], s=12, color=colour)
    ax.set_ylim(-0.7, order.size - 0.3)
    ax.set_ylabel(plain(ylabel))
    if order.size <= _NAMED_LEVELS:
        ax.set_yticks(y, labels=plain_all(names[i] for i in order))
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{plain(ylabel)} ({order.size} levels)".strip())
    return ax


@answered
def dots(
    estimate: ArrayLike,
    p: ArrayLike,
    features: Sequence[Any],
    contrasts: Sequence[Any],
    *,
    alpha: float = 0.05,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Contrasts by features: colour tells the estimate, area the evidence.

    Parameters
    ----------
    estimate, p
        Estimates, in the units of Y, and p-values, shape (f, c).
    features, contrasts
        Names of the rows and columns.
    alpha
        p-values up to it have a ring.
    title
        Text.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes
        With a bar of colours beside them. What has no test has a small cross.

    Raises
    ------
    InputError
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.dots([[0.5, -1.0]], [[0.1, 1e-8]], ["gene"], ["age", "sex"])
    >>> plt.close()
    """
    f, c = len(features), len(contrasts)
    values, chance = (np.asarray(v, dtype=np.float64) for v in (estimate, p))
    if values.shape != (f, c) or chance.shape != (f, c):
        raise InputError(
            f"`estimate` and `p` have the shapes {values.shape} and {chance.shape}, but there are "
            f"{f} features and {c} contrasts."
        )
    if ax is None:
        longest = max((len(str(name)) for name in features), default=0)
        width = float(np.clip(1.9 + 0.07 * longest + 0.42 * c, 3.2, 12.0))
        ax = new_axes(None, width=width, height=float(np.clip(1.5 + 0.19 * f, 2.6, 14.0)))
    ax = check_axes(ax)
    titled(ax, title)
    here = np.isfinite(values) & np.isfinite(chance)
    if not here.any():
        return nothing_to_draw(ax, "no feature has a test")
    row, column = np.nonzero(here)
    with np.errstate(divide="ignore"):
        evidence = np.minimum(-np.log10(chance[here]), _MOST)
    limit = float(np.abs(values[here]).max()) or 1.0
    marks = ax.scatter(
        column,
        row,
        s=_area(evidence),
        c=values[here],
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
        edgecolors=np.where(chance[here] <= alpha, BLACK, "#cccccc"),
        linewidths=np.where(chance[here] <= alpha, 1.0, 0.5),
    )
    if (~here).any():
        lost = np.nonzero(~here)
        ax.scatter(lost[1], lost[0], s=10, marker="x", color=GREY, linewidth=0.8)
    ax.set_xlim(-0.6, c - 0.4)
    _rows(ax, features)
    slanted(ax, np.arange(c), contrasts)
    bar = ax.figure.colorbar(marks, ax=ax, shrink=0.6, aspect=15)
    bar.set_label("estimate", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    handles = [
        ax.scatter([], [], s=_area(v), facecolor="white", edgecolor=BLACK, linewidth=0.6, label=t)
        for v, t in ((0.5, "0.3"), (2.0, "0.01"), (5.0, "1e-5"), (_MOST, "1e-10 or less"))
    ]
    _sizes(ax, handles)
    return ax


_MOST = 10.0


def _area(evidence: Any) -> Any:
    return 8.0 + 11.0 * evidence


def _sizes(ax: Any, handles: list[Any]) -> None:
    """The sizes, above the Axes, where they cover nothing."""
    ax.legend(
        handles=handles,
        title="p",
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(handles),
        fontsize=7,
        title_fontsize=7,
        frameon=False,
        handletextpad=0.2,
        columnspacing=0.7,
        alignment="left",
    )


def _rows(ax: Any, names: Sequence[Any]) -> None:
    """Names of rows, the first at the top."""
    ax.set_yticks(np.arange(len(names)), labels=plain_all(names))
    ax.set_ylim(len(names) - 0.4, -0.6)


def _table(values: ArrayLike, rows: int) -> Any:
    found = np.asarray(values, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[0] != rows:
        raise InputError(f"There are {rows} names, but the numbers have the shape {found.shape}.")
    return found
