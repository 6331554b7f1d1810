"""Modules that are imported when something of them is first used.

``stats = lazy("scipy.stats")`` stands where ``from scipy import stats`` would, at the top of a
module, for packages that take long to import and that few calls need. Type checkers read the real
import beside it, under ``TYPE_CHECKING``; ``tests/test_imports.py`` counts both as imports.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["lazy"]


class _Lazy(ModuleType):
    """A module by its name; the real one is imported with the first attribute."""

    def __init__(self, name: str, target: str) -> None:
        super().__init__(name)
        self.__dict__["_target"] = target

    def __getattr__(self, name: str) -> Any:
        # Tools look through all modules for __file__, __wrapped__ and the like: no reason to load.
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)
        value = getattr(import_module(self.__dict__["_target"]), name)
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        return dir(import_module(self.__dict__["_target"]))


def lazy(target: str, name: str | None = None) -> Any:
    """A stand-in for a module, imported when an attribute of it is first read.

    Parameters
    ----------
    target
        Full name of the module.
    name
        Name the stand-in gives itself; that of the module by default.
    """
    return _Lazy(name or target, target)
