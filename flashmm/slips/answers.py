"""Calls that do not fit and attributes that are not there: answered with what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from flashmm.exceptions import InputError, listing, nearest
from flashmm.slips.cures import ATTRIBUTES, CONSTRUCTORS, argument_cure, known

__all__ = ["answer_calls", "answered", "no_such_attribute"]

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
    unknown = [key for key in kwargs if key not in names]
    if unknown:
        found = [
            f"{name} has no argument `{key}`. {argument_cure(key, kwargs[key])}".rstrip()
            for key in unknown
        ]
        cured = [argument_cure(key, kwargs[key]) for key in unknown]
        found = [
            text if cure else f"{text} {nearest(key, names)}"
            for key, text, cure in zip(unknown, found, cured, strict=True)
        ]
        return " ".join(found)
    positional = [p.name for p in shown if p.kind in _POSITIONAL]
    given = len(args) - own
    if given > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in shown):
        by_name = [p.name for p in shown if p.kind is p.KEYWORD_ONLY]
        most = f"{listing(positional)} by position" if positional else "no argument by position"
        more = f"; pass others by name: {listing(by_name, 12)}" if by_name else ""
        return f"{name} takes {most}, and {given} were given{more}."
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
    return f"{name} needs {listing(needed)}."


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


def no_such_attribute(owner: object, name: str, what: str, instead: str = "") -> Any:
    """Raise for an attribute that is not there, with the name that it has here.

    Parameters
    ----------
    owner, name
        The object, and what was asked of it.
    what
        What the object is to a user: ``"Results"``.
    instead
        The cure, if it is known to the caller.
    """
    if hasattr(type(owner), name):
        return object.__getattribute__(owner, name)  # a property failed: its own error
    if name.startswith("_"):
        raise AttributeError(f"{what} have no attribute {name!r}")
    public = [member for member in dir(type(owner)) if not member.startswith("_")]
    cure = known(ATTRIBUTES, name)
    if instead:
        cure = instead
    said = f": {cure}." if cure else f". {nearest(name, public)}"
    raise AttributeError(f"{what} have no `{name}`{said}", name=name, obj=owner)
