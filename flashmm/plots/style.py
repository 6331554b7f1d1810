"""One look for all pictures: colours, sizes, marks of the verdicts; and the way to matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmm.arrays.types import BoolArray
from flashmm.exceptions import InputError

__all__ = [
    "BLACK",
    "BLUE",
    "GREY",
    "ORANGE",
    "PALETTE",
    "RED",
    "by_status",
    "check_axes",
    "in_legend",
    "legend",
    "many",
    "new_axes",
    "nothing_to_draw",
    "plain",
    "plain_all",
    "pyplot",
    "slanted",
    "titled",
]

# The colours of Okabe & Ito (2008), told apart under every common colour blindness.
BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PINK, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#999999"
PALETTE = (BLUE, RED, GREEN, ORANGE, PINK, SKY, BLACK)

# Shape and colour of a verdict; what is not named has failed.
_MARKS = {"converged": ("o", BLUE), "boundary": ("s", ORANGE), "indefinite": ("D", PINK)}
_FAILED = ("X", BLACK)

# Inches: a column of a journal is 3.5 wide, so that text of 9 points is printed at 8.
WIDTH, HEIGHT = 4.0, 3.1
_TEXT, _SMALL = 9, 8


def pyplot() -> Any:
    """matplotlib.pyplot; an error that says how to get it where it is not installed."""
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415  (an extra)
    except ImportError:
        raise InputError("`plot` needs matplotlib: pip install 'multilmm[plot]'.") from None
    return plt


def new_axes(ax: Any = None, *, width: float = WIDTH, height: float = HEIGHT) -> Any:
    """The Axes that were given, or new ones in this style.

    Parameters
    ----------
    ax
        Axes of matplotlib; None for those of a new figure.
    width, height
        Of a new figure, in inches.
    """
    if ax is None:
        _, ax = pyplot().subplots(figsize=(width, height), layout="constrained")
        _dress(ax)
        return ax
    return check_axes(ax)


def check_axes(ax: Any) -> Any:
    """Axes as they are; an error for what is none."""
    if not (hasattr(ax, "scatter") and hasattr(ax, "get_figure")):
        raise InputError(
            f"`ax` must be one Axes of matplotlib, as plt.subplots() makes it, not "
            f"{type(ax).__name__}."
        )
    return ax


def many(axes: Any, count: int, *, columns: int = 2, size: float = 2.7) -> Any:
    """Some Axes that were given, as they are, or new ones in this style."""
    if axes is None:
        rows = -(-count // columns)
        figsize = (size * columns, 0.85 * size * rows)
        _, axes = pyplot().subplots(rows, columns, figsize=figsize, layout="constrained")
        for ax in np.ravel(axes):
            _dress(ax)
        return axes
    given = np.ravel(axes)
    if given.size != count:
        raise InputError(f"`axes` must be {count} Axes of matplotlib; there are {given.size}.")
    for ax in given:
        check_axes(ax)
    return axes


def _dress(ax: Any) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=_SMALL)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_size(_TEXT)


def titled(ax: Any, title: str) -> None:
    """A title of the size of the other texts, if there is one."""
    if title:
        ax.set_title(plain(title), fontsize=_TEXT)


def plain(name: object) -> str:
    """A name as text in which a dollar begins no formula."""
    return str(name).replace("$", r"\$")


def in_legend(name: object) -> str:
    """A name as `plain` text that a legend shows: it leaves out what begins with an underscore."""
    text = plain(name)
    return f" {text}" if text.startswith("_") else text


def plain_all(names: Iterable[object]) -> list[str]:
    """Names as text; see `plain`."""
    return [plain(name) for name in names]


def slanted(ax: Any, at: Any, names: Iterable[object], angle: float = 45.0) -> None:
    """Names along the horizontal axis that end below their place."""
    ax.set_xticks(at, labels=plain_all(names), rotation=angle, ha="right", rotation_mode="anchor")


def legend(
    ax: Any, handles: Sequence[Any] | None = None, *, title: str = "", place: str = "inside"
) -> None:
    """A legend, where there is something to tell: inside the Axes, beside them or above them."""
    if handles is None:
        handles, _ = ax.get_legend_handles_labels()
    if not handles:
        return
    options: dict[str, Any] = {"fontsize": _SMALL, "title_fontsize": _SMALL, "frameon": False}
    if place == "above":
        options |= {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0)}
        options["ncols"] = min(len(handles), 3)  # no wider than the picture
    elif place == "beside":
        options |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    else:
        options |= {"frameon": True, "framealpha": 0.8, "edgecolor": "none"}
    ax.legend(handles=handles, title=title or None, **options)


def nothing_to_draw(ax: Any, why: str) -> Any:
    """Say in the middle of the Axes why they are empty."""
    middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
    ax.text(0.5, 0.5, plain(why), fontsize=_TEXT, color=BLACK, wrap=True, **middle)
    ax.set(xticks=[], yticks=[])
    return ax


def by_status(
    status: NDArray[Any] | None, shown: BoolArray
) -> list[tuple[str, BoolArray, str, str]]:
    """What is shown of each verdict: its text, which (m,), the shape of its mark, its colour.

    Parameters
    ----------
    status
        Verdicts as text, shape (m,); None: all converged.
    shown
        What can be drawn, shape (m,).
    """
    if status is None:
        return [("", shown, *_MARKS["converged"])] if shown.any() else []
    found = [str(s) for s in np.unique(np.asarray(status, dtype=str)[shown])]
    order = [name for name in _MARKS if name in found] + [s for s in found if s not in _MARKS]
    text = np.asarray(status, dtype=str)
    return [(name, shown & (text == name), *_MARKS.get(name, _FAILED)) for name in order]
