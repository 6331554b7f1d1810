"""A progress bar where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from flashmm.exceptions import InputError

__all__ = ["Progress", "counted", "counting_on", "progress_bar", "wanted"]

Item = TypeVar("Item")

# True for a bar, False for none, None for one on a terminal once a call has taken `DELAY` seconds;
# or a function of the numbers of things done and in all.
Progress = bool | Callable[[int, int], object] | None
DELAY = 3.0


def wanted(progress: Progress) -> bool | None:
    """Whether a bar is asked for; None to wait and see."""
    return None if progress is None else progress is True


def progress_bar(
    items: Iterable[Item],
    total: int | Callable[[], int | None] | None,
    *,
    show: bool | None,
    unit: str = "block",
    desc: str = "summary statistics",
) -> Iterable[Item]:
    """The items themselves, counted by a bar on a terminal; silent anywhere else.

    Parameters
    ----------
    items
        What is counted.
    total
        How many, or a function that finds out; None when that is not known.
    show
        False for none; None for a bar that appears after a few seconds, if there is tqdm.
    unit, desc
        What one item is, and what the bar is of.
    """
    bar = _bar(items, total, show, unit, desc)
    return items if bar is None else bar


@contextmanager
def counted(
    progress: Progress, total: int, *, unit: str, desc: str
) -> Iterator[Callable[[int], None]]:
    """A function that is told how many more are done, and tells whoever wants to know."""
    bar, done = _bar(None, total, wanted(progress), unit, desc), 0

    def more(count: int) -> None:
        nonlocal done
        if count == 0:
            return
        done += count
        if bar is not None:
            bar.update(count)
        if callable(progress):
            progress(done, total)

    try:
        yield more
    finally:
        if bar is not None:
            bar.close()


def counting_on(done: Callable[[int], None]) -> Progress:
    """What is told of a part of some work, as `counted`'s function is told how many more."""
    before = 0

    def told(now: int, total: int) -> None:
        nonlocal before
        del total
        done(now - before)
        before = now

    return told


def _bar(
    items: Iterable[Item] | None,
    total: int | Callable[[], int | None] | None,
    show: bool | None,
    unit: str,
    desc: str,
) -> Any:
    if show is False or not sys.stderr.isatty():
        return None
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415  (an optional package)
    except ImportError:
        if show is None:
            return None
        raise InputError("progress=True needs tqdm: pip install 'multilmm[progress]'.") from None
    total = total() if callable(total) else total
    return tqdm(items, total=total, unit=unit, desc=desc, delay=0.0 if show else DELAY)
