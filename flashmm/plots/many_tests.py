"""Tests of one contrast over all features: volcano, p-values, means and differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from flashmm.arrays.types import BoolArray, FloatArray, IntArray
from flashmm.exceptions import InputError
from flashmm.inference.multiplicity import adjust_pvalues
from flashmm.plots.label_places import label_points
from flashmm.plots.style import (
    BLACK,
    BLUE,
    GREY,
    RED,
    by_status,
    legend,
    new_axes,
    nothing_to_draw,
    plain,
    titled,
)
from flashmm.slips.answers import answered

__all__ = ["mean_difference", "pvalue_histogram", "qq", "volcano"]

# Beyond so many marks a vector file holds a picture of them.
_MANY = 5000
_NO_TESTS = "no feature has a test"


@answered
def volcano(
    estimate: ArrayLike,
    p: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    status: ArrayLike | None = None,
    p_adjusted: ArrayLike | None = None,
    alpha: float = 0.05,
    label: int | Sequence[int] = 10,
    xlabel: str = "estimate",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Evidence by size of the effect, one mark per feature.

    Parameters
    ----------
    estimate, p
        Estimates, in the units of Y, and p-values, shape (m,). Features without either are left
        out and counted. p-values of zero, too small for a number, are triangles at the top.
    names
        Of the features; needed for labels.
    status
        Verdicts as text, shape (m,): features that did not simply converge have other marks.
    p_adjusted
        Adjusted p-values, shape (m,); Benjamini and Hochberg's by default.
    alpha
        Adjusted p-values up to it are coloured by the sign of the estimate.
    label
        How many of the smallest p-values are named, of those up to alpha; or positions of
        features.
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
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.volcano([0.2, -2.0], [0.4, 0.0], names=["a", "b"])
    >>> [text.get_text() for text in ax.texts]
    ['b']
    >>> plt.close()
    """
    estimate, p, text = _of_features(estimate, p, names, status)
    adjusted = _adjusted(p, p_adjusted)
    ax = new_axes(ax)
    shown = np.isfinite(estimate) & np.isfinite(p)
    ax.set(xlabel=plain(xlabel), ylabel="$-\\log_{10}$ p")
    titled(ax, title)
    if not shown.any():
        return nothing_to_draw(ax, _NO_TESTS)
    y, top = _heights(p, shown)
    handles = _by_size(ax, estimate, y, shown, p == 0, _colours(estimate, adjusted, alpha), text)
    ax.axvline(0.0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_ylim(-0.03 * top, 1.1 * top)
    ax.margins(x=0.1)
    if (~shown).any():
        handles.append(_note(ax, f"{int((~shown).sum())} without a test"))
    legend(ax, handles)
    if names is not None:
        chosen = _to_label(label, p, np.abs(estimate), shown & (adjusted <= alpha), shown)
        _label(ax, estimate, y, names, shown, chosen)
    return ax


@answered
def mean_difference(
    mean: ArrayLike,
    estimate: ArrayLike,
    p: ArrayLike,
    *,
    names: Sequence[Any] | None = None,
    status: ArrayLike | None = None,
    p_adjusted: ArrayLike | None = None,
    alpha: float = 0.05,
    label: int | Sequence[int] = 10,
    ylabel: str = "estimate",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Size of the effect by the features' means (an MA plot).

    Parameters
    ----------
    mean
        Means of the features, shape (m,), in the units of Y.
    estimate, p, names, status, p_adjusted, alpha, label
        As in `volcano`.
    ylabel, title
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
    >>> ax = fm.plots.mean_difference([5.0, 7.0], [0.2, -2.0], [0.4, 1e-9], names=["a", "b"])
    >>> plt.close()
    """
    estimate, p, text = _of_features(estimate, p, names, status)
    mean = _same_shape(mean, p, "mean")
    adjusted = _adjusted(p, p_adjusted)
    ax = new_axes(ax)
    shown = np.isfinite(estimate) & np.isfinite(p) & np.isfinite(mean)
    ax.set(xlabel="mean of the feature", ylabel=plain(ylabel))
    titled(ax, title)
    if not shown.any():
        return nothing_to_draw(ax, _NO_TESTS)
    none = np.zeros(p.size, dtype=bool)
    colours = _colours(estimate, adjusted, alpha)
    handles = _by_size(ax, mean, estimate, shown, none, colours, text)
    ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    ax.margins(0.1)
    if (~shown).any():
        handles.append(_note(ax, f"{int((~shown).sum())} without a test"))
    legend(ax, handles)
    if names is not None:
        chosen = _to_label(label, p, np.abs(estimate), shown & (adjusted <= alpha), shown)
        _label(ax, mean, estimate, names, shown, chosen)
    return ax


@answered
def pvalue_histogram(
    p: ArrayLike,
    *,
    status: ArrayLike | None = None,
    bins: int = 20,
    title: str = "",
    ax: Any = None,
) -> Any:
    """How many features have which p-value, by verdict.

    Parameters
    ----------
    p
        p-values, shape (m,); NaN is left out.
    status
        Verdicts as text, shape (m,).
    bins
        Number of bars between 0 and 1.
    title
        Text.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes
        The dashed line is where all bars end if no feature has an effect.

    Raises
    ------
    InputError
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import numpy as np, matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.pvalue_histogram(np.linspace(0, 1, 200), bins=10)
    >>> [int(bar.get_height()) for bar in ax.patches][:3]
    [20, 20, 20]
    >>> plt.close()
    """
    p, text = _of_pvalues(p, status)
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise InputError(f"`bins` must be a whole number of bars, not {bins!r}.")
    ax = new_axes(ax)
    shown = np.isfinite(p)
    ax.set(xlabel="p-value", ylabel="features", xlim=(0, 1))
    titled(ax, title)
    if not shown.any():
        return nothing_to_draw(ax, _NO_TESTS)
    edges = np.linspace(0.0, 1.0, int(bins) + 1)
    below = np.zeros(int(bins))
    for name, here, _, colour in by_status(text, shown):
        count, _ = np.histogram(p[here], edges)
        label = f"{name} ({int(here.sum())})" if name else None
        width = np.diff(edges)
        ax.bar(
            edges[:-1],
            count,
            width,
            below,
            align="edge",
            color=colour,
            edgecolor="white",
            linewidth=0.5,
            label=label,
        )
        below += count
    ax.axhline(shown.sum() / bins, color=BLACK, linewidth=0.8, linestyle="--")
    ax.set_ylim(0.0, 1.2 * below.max())
    legend(ax)
    return ax


@answered
def qq(
    p: ArrayLike,
    *,
    status: ArrayLike | None = None,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Quantiles of the p-values by those of a uniform distribution, by verdict.

    Parameters
    ----------
    p
        p-values, shape (m,); NaN is left out. Those of zero are triangles at the top.
    status
        Verdicts as text, shape (m,): features of each are a sample of their own.
    title
        Text.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes
        The band holds each order statistic of as many independent uniform p-values with
        probability 0.95; that of the verdict with most features.

    Raises
    ------
    InputError
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import numpy as np, matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.qq(np.linspace(0.01, 1, 100))
    >>> plt.close()
    """
    p, text = _of_pvalues(p, status)
    ax = new_axes(ax, width=3.8)
    shown = np.isfinite(p)
    ax.set(xlabel="$-\\log_{10}$ p, expected", ylabel="$-\\log_{10}$ p, observed")
    titled(ax, title)
    if not shown.any():
        return nothing_to_draw(ax, _NO_TESTS)
    y, _ = _heights(p, shown)
    groups = by_status(text, shown)
    largest = max(int(here.sum()) for _, here, _, _ in groups)
    rank = np.unique(np.round(np.geomspace(1, largest, 200)))
    low, high = (-np.log10(special.betaincinv(rank, largest - rank + 1, q)) for q in (0.975, 0.025))
    expected = -np.log10((rank - 0.5) / largest)
    ax.fill_between(expected, low, high, color=GREY, alpha=0.3, linewidth=0, zorder=0)
    end = -np.log10(0.5 / largest)
    ax.plot([0, end], [0, end], color=BLACK, linewidth=0.8)
    told = False
    for name, here, marker, colour in groups:
        observed = np.sort(y[here])[::-1]
        count = observed.size
        at = -np.log10((np.arange(count) + 0.5) / count)
        zero = np.arange(count) < int((p[here] == 0).sum())
        for some, shape in ((~zero, marker), (zero, "^")):
            if some.any():
                label = f"{name} ({count})" if name and shape == marker else None
                if shape == "^":
                    label = None if told else "p = 0, too small for a number"
                    told = True
                ax.scatter(at[some], observed[some], s=9, marker=shape, color=colour, label=label)
    legend(ax)
    return ax


# ---- parts ------------------------------------------------------------------------------------


def _same_shape(values: ArrayLike | None, like: FloatArray, name: str) -> FloatArray:
    found = np.asarray(values, dtype=np.float64)
    if found.shape != like.shape:
        raise InputError(
            f"`{name}` has the shape {found.shape}, but the p-values have {like.shape}."
        )
    return found


def _of_pvalues(p: ArrayLike, status: ArrayLike | None) -> tuple[FloatArray, Any]:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"`p` must hold one p-value per feature; its shape is {values.shape}.")
    if ((values < 0) | (values > 1)).any():
        raise InputError("`p` must lie between 0 and 1.")
    text = None if status is None else np.asarray(status, dtype=str)
    if text is not None and text.shape != values.shape:
        raise InputError(
            f"`status` has the shape {text.shape}, but the p-values have {values.shape}."
        )
    return values, text


def _of_features(
    estimate: ArrayLike, p: ArrayLike, names: Sequence[Any] | None, status: ArrayLike | None
) -> tuple[FloatArray, FloatArray, Any]:
    values, text = _of_pvalues(p, status)
    if names is not None and len(names) != values.size:
        raise InputError(f"`names` has {len(names)} names of {values.size} features.")
    return _same_shape(estimate, values, "estimate"), values, text


def _adjusted(p: FloatArray, given: ArrayLike | None) -> FloatArray:
    if given is not None:
        return _same_shape(given, p, "p_adjusted")
    return adjust_pvalues(p[:, None], "bh")[:, 0] if p.size else p


def _heights(p: FloatArray, shown: BoolArray) -> tuple[FloatArray, float]:
    """-log10 p with a height above all others for zeros, and the largest."""
    with np.errstate(divide="ignore"):
        y = -np.log10(p) + 0.0
    finite = y[shown & np.isfinite(y)]
    zeros = shown & (p == 0)
    largest = float(finite.max(initial=0.0))
    if zeros.any():
        largest = 1.08 * largest if finite.size and largest > 0 else 324.0
        y = np.where(p == 0, largest, y)
    return y, largest or 1.0


def _colours(estimate: FloatArray, adjusted: FloatArray, alpha: float) -> list[tuple[str, Any]]:
    hit = adjusted <= alpha
    return [(GREY, ~hit), (BLUE, hit & (estimate <= 0)), (RED, hit & (estimate > 0))]


def _by_size(
    ax: Any,
    x: FloatArray,
    y: FloatArray,
    shown: BoolArray,
    zero: BoolArray,
    colours: list[tuple[str, BoolArray]],
    status: Any,
) -> list[Any]:
    """Marks, coloured by sign and shaped by verdict; handles of a legend."""
    hits = {BLUE: "lower", RED: "higher"}
    handles = []
    for colour, those in colours:
        if colour in hits and (those & shown).any():
            label = f"{hits[colour]} ({int((those & shown).sum())})"
            handles.append(ax.scatter([], [], s=16, color=colour, label=label))
    groups = by_status(status, shown)
    for name, here, marker, _ in groups:
        for colour, those in colours:
            for some, shape in ((here & those & ~zero, marker), (here & those & zero, "^")):
                if some.any():
                    ax.scatter(
                        x[some],
                        y[some],
                        s=10 if shape == "o" else 18,
                        marker=shape,
                        color=colour,
                        linewidth=0,
                        alpha=0.6 if colour == GREY else 0.9,
                        rasterized=bool(some.sum() > _MANY),
                    )
        if name not in ("", "converged"):
            label = f"{name} ({int(here.sum())})"
            handles.append(ax.scatter([], [], s=18, marker=marker, color=BLACK, label=label))
    if (zero & shown).any():
        label = f"p = 0, too small for a number ({int((zero & shown).sum())})"
        handles.append(ax.scatter([], [], s=18, marker="^", color=BLACK, label=label))
    return handles


def _note(ax: Any, text: str) -> Any:
    """A line of the legend without a mark."""
    return ax.scatter([], [], s=0, label=text)


def _to_label(
    label: int | Sequence[int], p: FloatArray, size: FloatArray, hit: BoolArray, shown: BoolArray
) -> IntArray:
    """Positions of the features to name, the most important first."""
    if isinstance(label, (bool, np.bool_)):
        label = 10 if label else 0
    if isinstance(label, (int, np.integer)):
        order = np.lexsort((-np.nan_to_num(size), np.where(hit, p, 2.0)))
        return order[hit[order]][: max(int(label), 0)]
    chosen = np.asarray(label, dtype=np.intp).reshape(-1)
    return chosen[shown[chosen]]


def _label(
    ax: Any,
    x: FloatArray,
    y: FloatArray,
    names: Sequence[Any],
    shown: BoolArray,
    chosen: IntArray,
) -> None:
    place = np.flatnonzero(shown)
    of = np.searchsorted(place, chosen)
    label_points(ax, x[place], y[place], [str(names[int(i)]) for i in place], of)
