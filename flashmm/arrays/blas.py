"""One BLAS thread while many small matrices are worked on.

A threaded BLAS wakes its threads for each of them and waits for the last: on a busy machine that
takes many times as long as one thread does. What works on features in batches holds BLAS to one
thread meanwhile, whatever the number of threads that batches are spread over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from threading import Lock, local
from typing import Any, ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["LARGE", "hold_methods", "one_blas_thread"]

P = ParamSpec("P")
Result = TypeVar("Result")
Class = TypeVar("Class")

# Random effects from which on a single matrix is worth BLAS's threads.
LARGE = 500


@dataclass
class _Threads:
    """BLAS's number of threads, held at one while anybody asks for it.

    With some libraries the number is the process's, with others each thread's. Whoever comes first
    notes it; everybody restores it in a thread of their own, so that nobody is left with one.
    """

    lock: Lock = field(default_factory=Lock)
    holders: int = 0
    before: list[int] = field(default_factory=list)
    here: local = field(default_factory=local)

    @cached_property
    def libraries(self) -> list[Any]:
        """Looking for the libraries takes longer than many a product: once will do."""
        return list(ThreadpoolController().select(user_api="blas").lib_controllers)

    def enter(self) -> None:
        depth = getattr(self.here, "depth", 0)
        self.here.depth = depth + 1
        if depth:
            return
        with self.lock:
            if self.holders == 0:
                self.before = [library.get_num_threads() for library in self.libraries]
            self._set([1] * len(self.before))
            self.holders += 1

    def leave(self) -> None:
        self.here.depth -= 1
        if self.here.depth:
            return
        with self.lock:
            self.holders -= 1
            self._set(self.before)

    def _set(self, numbers: list[int]) -> None:
        for library, number, before in zip(self.libraries, numbers, self.before, strict=True):
            if before != 1:
                library.set_num_threads(number)


_THREADS = _Threads()


@contextmanager
def one_blas_thread(size: int = 0) -> Iterator[None]:
    """Hold BLAS to one thread in this process; as often, and in as many threads, as one likes.

    Parameters
    ----------
    size
        Rows of the matrices. BLAS keeps its threads where they are large.

    Examples
    --------
    >>> import numpy as np
    >>> with one_blas_thread():
    ...     np.matmul(np.ones((1000, 3, 3)), np.ones((1000, 3, 3))).shape
    (1000, 3, 3)
    """
    if size >= LARGE:
        yield
        return
    _THREADS.enter()
    try:
        yield
    finally:
        _THREADS.leave()


def _held(method: Callable[P, Result]) -> Callable[P, Result]:
    @wraps(method)
    def held(*args: P.args, **kwargs: P.kwargs) -> Result:
        fitted = getattr(args[0], "fitted", None)
        with one_blas_thread(0 if fitted is None else fitted.stats.q):
            return method(*args, **kwargs)

    return held


def hold_methods(cls: type[Class]) -> type[Class]:
    """A class whose public methods and properties hold BLAS to one thread.

    Only the class's own count, not those of what it inherits from. An attribute ``fitted`` says
    how large matrices are.
    """
    for name, value in list(vars(cls).items()):
        if name.startswith("_"):
            continue
        if isinstance(value, property) and value.fget is not None:
            setattr(cls, name, property(_held(value.fget), value.fset, value.fdel, value.__doc__))
        elif callable(value) and not isinstance(value, type):
            setattr(cls, name, _held(value))
    return cls
