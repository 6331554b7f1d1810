"""Calls, sums and attributes of what has none: of modules, results, models and classes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flashmm.exceptions import InputError, nearest
from flashmm.slips.answers import NoSuchAttributeError
from flashmm.slips.cures import CLASSES, known

__all__ = ["AnsweringClass", "no_call", "no_operator"]


class _OperandError(InputError, TypeError):
    """What Python says of operands that do not fit, with a cure."""


# In a traceback it is what it is to whoever reads it.
_OperandError.__name__ = _OperandError.__qualname__ = InputError.__name__
_OperandError.__module__ = InputError.__module__


def no_call(module: str, cure: str) -> None:
    """Let a module say what it holds when it is called like a function.

    Parameters
    ----------
    module
        Its full name.
    cure
        What to write.
    """

    def refuse(*_: object, **__: object) -> Any:
        raise _OperandError(f"{module} is a module: {cure}.")

    sys.modules[module].__class__ = type("Module", (ModuleType,), {"__call__": refuse})


def no_operator(what: str, cure: str) -> Callable[[object, object], Any]:
    """A ``__add__`` or the like for what cannot be added: it says what can.

    Parameters
    ----------
    what
        What the object is to a user: ``"Results"``.
    cure
        What to write.
    """

    def refuse(_: object, other: object) -> Any:
        named = _named(other)
        raise _OperandError(f"{what} and {named} have no sum, difference or product: {cure}.")

    return refuse


def _named(other: object) -> str:
    kind = type(other).__name__
    return repr(other) if isinstance(other, (int, float, str, type(None))) else f"a {kind}"


class AnsweringClass(type):
    """The class of a class that answers what is asked of it, not of its objects."""

    if not TYPE_CHECKING:  # which would believe in every attribute

        def __getattr__(cls, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(f"{cls.__name__} has no attribute {name!r}")

            def say() -> str:
                public = [member for member in dir(cls) if not member.startswith("_")]
                cure = known(CLASSES.get(cls.__name__, {}), name)
                return f"{cls.__name__} has no `{name}`{f': {cure}.' if cure else '. '}" + (
                    "" if cure else nearest(name, public)
                )

            raise NoSuchAttributeError(say, cls, name)
