"""Variances: shares, pairs of parameters, profiles, trends and what features know together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flashmm.exceptions import InputError, check_option
from flashmm.plots.style import (
    BLACK,
    BLUE,
    GREY,
    PALETTE,
    RED,
    by_status,
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

__all__ = ["fractions", "profile", "ratio_prior", "theta", "variance_trend", "voom_trend"]

_HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo", "++")


@answered
def fractions(
    shares: ArrayLike,
    components: Sequence[Any],
    *,
    features: Sequence[Any] | None = None,
    kind: str = "violin",
    title: str = "",
    ax: Any = None,
) -> Any:
    """Shares of the variance: their distribution over features, or bars of some features.

    Parameters
    ----------
    shares
        Shape (m, c); features without them (NaN) are left out of violins.
    components
        Names of the c terms and variances.
    features
        Names of the features; needed for bars.
    kind
        ``"violin"`` or ``"bars"``. In the unconstrained space shares may be negative, and then
        reach to the other side of zero.
    title
        Text.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If matplotlib is not installed, an option is unknown or shapes differ.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.fractions([[0.2, 0.8], [0.5, 0.5]], ["donor", "Residual"],
    ...                         features=["a", "b"], kind="bars")
    >>> plt.close()
    """
    check_option("kind", kind, ("violin", "bars"))
    values = np.asarray(shares, dtype=np.float64)
    c = len(components)
    if values.ndim != 2 or values.shape[1] != c:
        raise InputError(f"There are {c} components, but `shares` has the shape {values.shape}.")
    if kind == "bars":
        return _bars(values, components, features, title, ax)
    ax = new_axes(ax, width=float(np.clip(1.2 + 0.6 * c, 3.5, 9.0)))
    ax.set(ylabel="share of the variance")
    titled(ax, title)
    known = np.isfinite(values).all(axis=1)
    if not known.any():
        return nothing_to_draw(ax, "no feature has shares")
    at = np.arange(c)
    parts = ax.violinplot(values[known], at, widths=0.85, showextrema=False)
    for j, body in enumerate(parts["bodies"]):
        body.set(facecolor=PALETTE[j % len(PALETTE)], edgecolor="none", alpha=0.45)
    low, middle, high = np.quantile(values[known], [0.25, 0.5, 0.75], axis=0)
    ax.vlines(at, low, high, color=BLACK, linewidth=3)
    ax.scatter(at, middle, s=16, color="white", edgecolor=BLACK, zorder=3)
    if values[known].min() >= 0:
        ax.set_ylim(0.0, 1.0)
    else:
        ax.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    slanted(ax, at, components, 30.0)
    return ax


def _bars(
    values: Any, components: Sequence[Any], features: Sequence[Any] | None, title: str, ax: Any
) -> Any:
    if features is None or len(features) != values.shape[0]:
        raise InputError('kind="bars" needs `features`, a name for each row of `shares`.')
    count = len(features)
    ax = new_axes(ax, height=float(np.clip(1.1 + 0.2 * count, 2.0, 12.0)))
    ax.set(xlabel="share of the variance")
    titled(ax, title)
    known = np.isfinite(values).all(axis=1)
    # Negative shares stack to the left of zero, positive ones to the right.
    right, left = np.zeros(count), np.zeros(count)
    for j, name in enumerate(components):
        width = np.where(known, values[:, j], 0.0)
        start = np.where(width >= 0, right, left)
        ax.barh(
            np.arange(count),
            width,
            left=start,
            color=PALETTE[j % len(PALETTE)],
            hatch=_HATCHES[(j // len(PALETTE)) % len(_HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            label=in_legend(name),
        )
        right, left = right + np.maximum(width, 0.0), left + np.minimum(width, 0.0)
    for i in np.flatnonzero(~known):
        ax.text(0.01, i, "no estimate", fontsize=7, va="center")
    ax.set_yticks(np.arange(count), labels=plain_all(features))
    ax.set_ylim(count - 0.4, -0.6)
    if left.min(initial=0.0) < 0:
        ax.axvline(0.0, color=BLACK, linewidth=0.8)
    else:
        ax.set_xlim(0.0, max(1.0, right.max(initial=0.0)))
    legend(ax, place="beside")
    return ax


@answered
def theta(
    x: ArrayLike,
    y: ArrayLike,
    *,
    xlabel: str = "",
    ylabel: str = "",
    status: ArrayLike | None = None,
    bounded: tuple[bool, bool] = (True, True),
    log: bool = False,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Two variance parameters of every feature, and where their space ends.

    Parameters
    ----------
    x, y
        In squared units of Y, shape (m,); NaN is left out.
    xlabel, ylabel
        Texts.
    status
        Verdicts as text, shape (m,), which differ in mark and colour.
    bounded
        Which of the two are variances: zero is then the boundary of the psd space, and what lies
        beyond, as in an unconstrained fit, is shaded.
    log
        True for logarithmic axes (linear about zero).
    title
        Text.
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
    >>> ax = fm.plots.theta([0.0, 1.0], [1.0, 2.0], status=["boundary", "converged"])
    >>> plt.close()
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (x, y))
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"`x` and `y` have the shapes {a.shape} and {b.shape}.")
    text = None if status is None else np.asarray(status, dtype=str)
    if text is not None and text.shape != a.shape:
        raise InputError(f"`status` has the shape {text.shape}, but there are {a.size} features.")
    ax = new_axes(ax)
    ax.set(xlabel=plain(xlabel), ylabel=plain(ylabel))
    titled(ax, title)
    shown = np.isfinite(a) & np.isfinite(b)
    if not shown.any():
        return nothing_to_draw(ax, "no feature has estimates")
    for name, here, marker, colour in by_status(text, shown):
        label = f"{name} ({int(here.sum())})" if name else None
        many = bool(here.sum() > 5000)
        ax.scatter(
            a[here],
            b[here],
            s=12,
            marker=marker,
            color=colour,
            alpha=0.7,
            linewidth=0,
            label=label,
            rasterized=many,
            clip_on=True,
        )
    ax.margins(0.07)
    for values, scale in ((a, ax.set_xscale), (b, ax.set_yscale)):
        size = np.abs(values[shown])
        near = float(np.quantile(size[size > 0], 0.05)) if (size > 0).any() else 0.0
        if log and size.max() > 10.0 * near > 0:
            scale("symlog", linthresh=near)
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    # The boundary is shown even where no estimate comes near it.
    left = min(left, -0.05 * right) if bounded[0] and not log else left
    bottom = min(bottom, -0.05 * top) if bounded[1] and not log else bottom
    edge = {"color": BLACK, "linewidth": 0.8, "linestyle": "--", "zorder": 0}
    beyond = {"color": GREY, "alpha": 0.2, "linewidth": 0, "zorder": 0}
    if bounded[0] and left <= 0:
        ax.axvspan(left, 0.0, **beyond)
        ax.axvline(0.0, **edge)
    if bounded[1] and bottom <= 0:
        ax.axhspan(bottom, 0.0, **beyond)
        ax.axhline(0.0, **edge)
    ax.set(xlim=(left, right), ylim=(bottom, top))
    legend(ax)
    return ax


@answered
def profile(
    value: ArrayLike,
    fall: ArrayLike,
    *,
    estimate: float | None = None,
    limits: tuple[float, float] | None = None,
    quantile: float | None = None,
    xlabel: str = "",
    title: str = "",
    ax: Any = None,
) -> Any:
    """How far the log-likelihood falls away from the estimate of a variance parameter.

    Parameters
    ----------
    value
        Values of the parameter, in squared units of Y, shape (g,), in order.
    fall
        Twice the fall of the log-likelihood, maximised over the other parameters, shape (g,).
    estimate, limits
        Where the estimate and the limits of the interval are.
    quantile
        Of the chi-square: the fall at the limits.
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
    >>> ax = fm.plots.profile([0.0, 1.0, 2.0], [1.0, 0.0, 1.0], estimate=1.0, quantile=3.84)
    >>> plt.close()
    """
    at, height = (np.asarray(v, dtype=np.float64) for v in (value, fall))
    if at.shape != height.shape or at.ndim != 1:
        raise InputError(f"`value` and `fall` have the shapes {at.shape} and {height.shape}.")
    ax = new_axes(ax)
    ax.set(xlabel=plain(xlabel), ylabel="twice the fall of the log-likelihood")
    titled(ax, title)
    known = np.isfinite(at) & np.isfinite(height)
    if not known.any():
        return nothing_to_draw(ax, "no profile was found")
    ax.plot(at[known], height[known], color=BLUE, linewidth=1.4)
    if quantile is not None:
        ax.axhline(quantile, color=GREY, linewidth=0.8, linestyle="--")
    if estimate is not None and np.isfinite(estimate):
        ax.axvline(estimate, color=BLACK, linewidth=0.8)
    for limit in () if limits is None else limits:
        if np.isfinite(limit):
            ax.axvline(limit, color=RED, linewidth=0.8, linestyle=":")
    top = 2.2 * quantile if quantile is not None else float(height[known].max()) or 1.0
    ax.set_ylim(0.0, top)
    return ax


@answered
def variance_trend(
    mean: ArrayLike,
    sd: ArrayLike,
    *,
    prior: ArrayLike | None = None,
    status: ArrayLike | None = None,
    title: str = "",
    ax: Any = None,
) -> Any:
    """Residual standard deviations by the features' means.

    Parameters
    ----------
    mean, sd
        Means and residual standard deviations, in the units of Y, shape (m,).
    prior
        Standard deviations that all features together expect there, shape (m,): a line.
    status
        Verdicts as text, shape (m,).
    title
        Text.
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
    >>> ax = fm.plots.variance_trend([1.0, 2.0], [0.5, 0.7], prior=[0.6, 0.6])
    >>> plt.close()
    """
    x, y = (np.asarray(v, dtype=np.float64) for v in (mean, sd))
    if x.shape != y.shape or x.ndim != 1:
        raise InputError(f"`mean` and `sd` have the shapes {x.shape} and {y.shape}.")
    text = None if status is None else np.asarray(status, dtype=str)
    ax = new_axes(ax)
    ax.set(xlabel="mean of the feature", ylabel="residual standard deviation")
    titled(ax, title)
    shown = np.isfinite(x) & np.isfinite(y) & (y > 0)
    if not shown.any():
        return nothing_to_draw(ax, "no feature has a residual variance")
    for name, here, marker, colour in by_status(text, shown):
        label = f"{name} ({int(here.sum())})" if name else None
        many = bool(here.sum() > 5000)
        ax.scatter(
            x[here],
            y[here],
            s=9,
            marker=marker,
            color=colour,
            alpha=0.6,
            linewidth=0,
            label=label,
            rasterized=many,
        )
    if prior is not None:
        expected = np.asarray(prior, dtype=np.float64)
        known = np.flatnonzero(shown & np.isfinite(expected) & (expected > 0))
        order = known[np.argsort(x[known], kind="stable")]
        ax.plot(x[order], expected[order], color=RED, linewidth=1.6, label="prior")
    if y[shown].max() > 20.0 * y[shown].min():
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(_text_of_number)
        ax.yaxis.set_minor_formatter(lambda value, _: _text_of_number(value, _, (2, 5)))
    legend(ax, place="above")  # points may be anywhere
    return ax


def _text_of_number(value: float, _: Any, first: tuple[int, ...] = (1,)) -> str:
    """A number on a logarithmic axis, if its first digit is one of some."""
    text = f"{value:g}"
    return text if text.lstrip("0.")[:1] in {str(digit) for digit in first} else ""


@answered
def voom_trend(x: ArrayLike, y: ArrayLike, fitted: ArrayLike, *, ax: Any = None) -> Any:
    """The mean-variance trend that voom's weights follow.

    Parameters
    ----------
    x
        Mean log2 counts of the features, shape (m,), in order.
    y
        Square roots of the residual standard deviations, shape (m,).
    fitted
        The trend, shape (m,).
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes

    Raises
    ------
    InputError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.voom_trend([1.0, 2.0], [1.0, 0.7], [0.9, 0.8])
    >>> plt.close()
    """
    ax = new_axes(ax)
    at, roots = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    many = bool(at.size > 5000)
    ax.plot(at, roots, ".", markersize=3, color=BLUE, alpha=0.5, rasterized=many)
    ax.plot(at, np.asarray(fitted, dtype=np.float64), color=RED, linewidth=1.6)
    ax.set_xlabel("log2(count + 0.5), mean")
    ax.set_ylabel("root of the residual standard deviation")
    return ax


@answered
def ratio_prior(
    ratios: ArrayLike, weights: ArrayLike, names: Sequence[Any], *, ax: Any = None
) -> Any:
    """Distribution of the variance ratios over the features.

    Parameters
    ----------
    ratios
        Points of the grid, theta over the residual variance, shape (G, k).
    weights
        Their probabilities, shape (G,).
    names
        Of the k ratios.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes
        Prior probability of ratios up to x; what lies at zero stands at the left end.

    Raises
    ------
    InputError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.ratio_prior([[0.0], [0.1]], [0.3, 0.7], ["donor"])
    >>> plt.close()
    """
    points, chance = (np.asarray(v, dtype=np.float64) for v in (ratios, weights))
    ax = new_axes(ax)
    for j, name in enumerate(names):
        order = np.argsort(points[:, j], kind="stable")
        style = ("-", "--", ":", "-.")[j % 4]
        ax.step(
            points[order, j],
            np.cumsum(chance[order]),
            where="post",
            color=PALETTE[j % len(PALETTE)],
            linestyle=style,
            label=in_legend(name),
        )
    positive = points[points > 0]
    ax.set_xscale("symlog", linthresh=float(positive.min()) if positive.size else 1.0)
    ax.set(xlabel="variance over the residual variance", ylabel="prior probability up to here")
    ax.set_ylim(0, 1.02)
    legend(ax)
    return ax
