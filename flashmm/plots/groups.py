"""What each group of samples does to the results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flashmm.exceptions import InputError
from flashmm.plots.style import (
    BLACK,
    BLUE,
    RED,
    legend,
    new_axes,
    nothing_to_draw,
    plain,
    plain_all,
)
from flashmm.slips.answers import answered

__all__ = ["cooks_distances", "hits_without_groups"]


@answered
def cooks_distances(
    distance: ArrayLike, groups: Sequence[Any], *, ylabel: str = "group", ax: Any = None
) -> Any:
    """Distribution over the features of Cook's distance of each group.

    Parameters
    ----------
    distance
        Shape (m, g); NaN is left out.
    groups
        Names of the g groups, the first at the top.
    ylabel
        Text.
    ax
        Axes of matplotlib; new ones by default.

    Returns
    -------
    Axes
        A mark at the median; a thick line to the quartiles, a thin one to the 5 and 95 %
        quantiles.

    Raises
    ------
    InputError
        If matplotlib is not installed, or shapes differ.

    Examples
    --------
    >>> import matplotlib.pyplot as plt, flashmm as fm
    >>> ax = fm.plots.cooks_distances([[0.1, 0.5], [0.2, 0.9]], ["s1", "s2"])
    >>> plt.close()
    """
    D = np.asarray(distance, dtype=np.float64)
    if D.ndim != 2 or D.shape[1] != len(groups):
        raise InputError(f"There are {len(groups)} groups, but the distances have {D.shape}.")
    ax = new_axes(ax, height=_height(len(groups)))
    ax.set(xlabel="Cook's distance", ylabel=plain(ylabel))
    known = np.isfinite(D).any(axis=0)
    if not known.any():
        return nothing_to_draw(ax, "no group could be left out")
    at = np.arange(len(groups))
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    low, first, middle, third, high = np.nanquantile(D[:, known], levels, axis=0)
    ax.hlines(at[known], low, high, color=BLUE, linewidth=1.0)
    ax.hlines(at[known], first, third, color=BLUE, linewidth=4.0, alpha=0.6)
    ax.scatter(middle, at[known], s=18, color="white", edgecolor=BLACK, zorder=3)
    ax.set_yticks(at, labels=plain_all(groups))
    ax.set_ylim(len(groups) - 0.4, -0.6)
    return ax


@answered
def hits_without_groups(
    lost: ArrayLike,
    gained: ArrayLike,
    groups: Sequence[Any],
    *,
    hits: int,
    ylabel: str = "group",
    ax: Any = None,
) -> Any:
    """How many hits are lost and gained without each group.

    Parameters
    ----------
    lost, gained
        Numbers of features, shape (g,); NaN counts as none.
    groups
        Names of the g groups, the first at the top.
    hits
        How many features are hits with all groups.
    ylabel
        Text.
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
    >>> ax = fm.plots.hits_without_groups([3, 0], [1, 2], ["s1", "s2"], hits=10)
    >>> plt.close()
    """
    ax = new_axes(ax, height=_height(len(groups)) + 0.4)
    at = np.arange(len(groups))
    less, more = (np.nan_to_num(np.asarray(v, dtype=np.float64)) for v in (lost, gained))
    ax.barh(at, -less, color=RED, label="no hit without it")
    ax.barh(at, more, color=BLUE, hatch="////", edgecolor="white", label="a hit only without it")
    ax.axvline(0.0, color=BLACK, linewidth=0.8)
    ax.set_yticks(at, labels=plain_all(groups))
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set(xlabel=f"features, of {hits} hits", ylabel=plain(ylabel))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    legend(ax, place="above")
    return ax


def _height(count: int) -> float:
    return float(np.clip(1.0 + 0.19 * count, 2.0, 10.0))
