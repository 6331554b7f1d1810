"""Calls that do not fit and attributes that are not there: answered with what to write instead."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from flashmm.exceptions import InputError, listing, nearest
from flashmm.slips.arguments import BY_POSITION
from flashmm.slips.cures import ATTRIBUTES, CONSTRUCTORS, argument_cure, known

__all__ = ["NoSuchAttributeError", "answer_calls", "answered", "no_index", "no_such_attribute"]

P = ParamSpec("P")
Result = TypeVar("Result")
Class = TypeVar("Class")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_INNER = ("fitted", "positions")  # what methods pass on to functions
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def answered(function: Callable[P, Result]) -> Callable[P, Result]:
    """A function that answers a call which does not fit its arguments with an InputError.

    Examples
    --------
    >>> @answered
    ... def fit(method="REML"):
    ...     return method
    >>> fit(REML=False)
    Traceback (most recent call last):
    ...
    flashmm.exceptions.InputError: fit has no argument `REML`. Write fit(method='ML'); REML is \
the default.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            answer = _answer(function, args, kwargs)
            if answer is None:  # the call was good; the fault lies deeper
                raise
            raise InputError(answer) from error

    return call


def _answer(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    """What is wrong with a call, or None."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        parameters = list(signature.parameters.values())
    else:
        return None
    own = bool(parameters) and parameters[0].name in ("self", "cls")
    name = function.__name__
    if name == "__init__":
        name = type(args[0]).__name__
        if cure := known(CONSTRUCTORS, name):
            return cure
    shown = parameters[1:] if own else parameters
    names = [p.name for p in shown if p.kind in _NAMED and p.name not in _INNER]
    if "positions" in signature.parameters:  # of a method with the same arguments
        names.append("features")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in shown)
    unknown = [
        key
        for key in kwargs
        if key not in names and not (takes_any and not argument_cure(key, kwargs[key], name, names))
    ]
    if unknown:
        return " ".join(
            f"{name} has no argument `{key}`. "
            + (argument_cure(key, kwargs[key], name, names) or nearest(key, names))
            for key in unknown
        )
    positional = [p.name for p in shown if p.kind in _POSITIONAL]
    given = len(args) - own
    if given > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in shown):
        by_name = [p.name for p in shown if p.kind is p.KEYWORD_ONLY]
        most = f"{listing(positional)} by position" if positional else "no argument by position"
        more = f"; pass others by name: {listing(by_name, 12)}" if by_name else ""
        meant = f" {BY_POSITION[name]}" if name in BY_POSITION else ""
        return f"{name} takes {most}, and {given} were given{more}.{meant}"
    twice = [key for key in kwargs if key in positional[:given]]
    if twice:
        return f"{name} was given {listing(twice)} by position and by name."
    needed = [
        p.name
        for i, p in enumerate(shown)
        if p.default is p.empty
        and p.kind in (*_POSITIONAL, p.KEYWORD_ONLY)
        and p.name not in kwargs
        and not (p.kind in _POSITIONAL and i < given)
    ]
    drawn = (function.__module__ or "").startswith("flashmm.plots")
    of_fit = f" It draws numbers; of a fit or of tests write result.plot.{name}(...)." * drawn
    return f"{name} needs {listing(needed)}.{of_fit}"


def answer_calls(cls: type[Class]) -> type[Class]:
    """A class whose constructor and public methods are `answered`; its own, not inherited ones."""
    for name, value in list(vars(cls).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, (classmethod, staticmethod)):
            setattr(cls, name, type(value)(answered(value.__func__)))
        elif inspect.isfunction(value):
            setattr(cls, name, answered(value))
    start: Any = cls.__init__
    if "__init__" not in vars(cls) and start is not object.__init__:
        setattr(cls, "__init__", answered(start))  # noqa: B010  (a method, to mypy)
    return cls


class NoSuchAttributeError(AttributeError):
    """What it says is put together when it is read: most are caught, by ``hasattr``."""

    def __init__(self, say: Callable[[], str], owner: object, name: str) -> None:
        super().__init__(name=name, obj=owner)
        self._say = say

    def __str__(self) -> str:
        return self._say()

    def __reduce__(self) -> tuple[type[AttributeError], tuple[str]]:
        return AttributeError, (str(self),)


# In a traceback it is what it is to whoever reads it.
NoSuchAttributeError.__name__ = NoSuchAttributeError.__qualname__ = AttributeError.__name__
NoSuchAttributeError.__module__ = AttributeError.__module__


def no_such_attribute(
    owner: object, name: str, what: str, instead: str = "", own: Mapping[str, str] | None = None
) -> Any:
    """Raise for an attribute that is not there, with the name that it has here.

    Parameters
    ----------
    owner, name
        The object, and what was asked of it.
    what
        What the object is to a user: ``"Results"``.
    instead
        The cure, if it is known to the caller.
    own
        What attributes of such objects are called, which counts before `ATTRIBUTES`.
    """
    if hasattr(type(owner), name):
        return object.__getattribute__(owner, name)  # a property failed: its own error
    if name.startswith("_"):
        raise AttributeError(f"{what} have no attribute {name!r}")

    def say() -> str:
        public = [member for member in dir(owner) if not member.startswith("_")]
        cures = [instead, known(own or {}, name), known(ATTRIBUTES, name)]
        # A name that the object does not have either is no cure.
        cure = next((c for c in cures if c and (c == instead or _has(owner, c))), "")
        said = f": {cure}." if cure else f". {nearest(name, public)}"
        return f"{what} have no `{name}`{said}"

    raise NoSuchAttributeError(say, owner, name)


def _has(owner: object, cure: str) -> bool:
    """Whether an object has the attribute that a cure names first, if it names one."""
    named = re.search(r"`(\w+)", cure)
    return named is None or named[1] in dir(owner)


def no_index(what: str, cure: str) -> Callable[[object, object], Any]:
    """A ``__getitem__`` for what has no elements: it says where they are.

    Parameters
    ----------
    what
        What the object is to a user, of which there is one: ``"One feature"``.
    cure
        What to write.
    """

    def refuse(_: object, key: object) -> Any:
        raise InputError(f"{what} has no elements, [{key!r}] among them: {cure}.")

    return refuse
