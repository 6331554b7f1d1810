"""Loops of Python that numba compiles when they are first called.

numba is optional (the extra ``fast``): it takes half a second to import, and seconds to compile
what it has not compiled on this machine before. `flashmm.stats.fused` asks for it where there is
enough to do; without it the sums are those of `flashmm.stats.block_sums`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

__all__ = ["compiled", "have_numba"]


@cache
def have_numba() -> bool:
    """Whether numba is there and compiles; it is imported if it is."""
    try:
        from numba.core import config  # noqa: PLC0415 (an extra)
    except Exception:  # absent, not made for this numpy, or at odds with another package
        return False
    return not config.DISABLE_JIT


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as machine code that lets other threads run.

    What is compiled is kept on disk for the next process, where there is a place to keep it.
    """
    import numba  # noqa: PLC0415 (an extra)

    plain: Callable[..., Any] = numba.njit(nogil=True)(function)
    try:
        kept = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that numba may write to
        return plain

    def run(*arguments: Any) -> Any:
        try:
            return kept(*arguments)
        except OSError:  # nothing was run: what was compiled finds no room
            return plain(*arguments)

    return update_wrapper(run, kept, assigned=(), updated=())
