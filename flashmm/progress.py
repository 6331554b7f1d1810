"""A progress bar where somebody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

from flashmm.exceptions import InputError

__all__ = ["progress_bar"]

Item = TypeVar("Item")


def progress_bar(
    items: Iterable[Item],
    total: int | None,
    *,
    show: bool,
    unit: str = "block",
    desc: str = "summary statistics",
) -> Iterable[Item]:
    """The items themselves, counted by a bar on a terminal; silent anywhere else."""
    if not show or not sys.stderr.isatty():
        return items
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415  (an optional package)
    except ImportError:
        raise InputError("progress=True needs tqdm: pip install 'flashmm[progress]'.") from None
    bar: Iterable[Item] = tqdm(items, total=total, unit=unit, desc=desc)
    return bar
