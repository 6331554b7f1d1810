"""Loops of Python that numba compiles when they are first called.

numba is optional (the extra ``fast``): it takes half a second to import, and seconds to compile
what it has not compiled on this machine before. `flashmm.stats.fused` asks for it where there is
enough to do; without it the sums are those of `flashmm.stats.block_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["compiled", "have_numba"]


@cache
def have_numba() -> bool:
    """Whether numba is there and compiles; it is imported if it is."""
    try:
        from numba.core import config  # noqa: PLC0415 (an extra)
    except ImportError:  # absent, or not made for this numpy
        return False
    return not config.DISABLE_JIT


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as machine code that lets other threads run.

    What is compiled is kept on disk for the next process, where there is a place to keep it.
    """
    import numba  # noqa: PLC0415 (an extra)

    try:
        made: Callable[..., Any] = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that numba may write to
        made = numba.njit(nogil=True)(function)
    return made
