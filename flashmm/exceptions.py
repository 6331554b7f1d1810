"""Errors and warnings that flashmm raises, and the phrasing they share."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import FrameType
from typing import Any

__all__ = [
    "ConvergenceWarning",
    "CovarianceWarning",
    "FlashMMError",
    "FormulaWarning",
    "InputError",
    "MissingSamplesWarning",
    "RankWarning",
    "SlowWarning",
]


class FlashMMError(Exception):
    """Base class of every error that flashmm raises on purpose."""


class InputError(FlashMMError, ValueError):
    """Input that no model can be fitted to; the message names the culprit."""


class ConvergenceWarning(UserWarning):
    """Some features ended without a regular fit; see ``results.status``."""


class CovarianceWarning(UserWarning):
    """A known covariance is not on the scale of a relationship; its variance is per unit of it."""


class MissingSamplesWarning(UserWarning):
    """Samples with missing values were dropped, as ``missing="drop"`` asked, or groups lack all.

    The latter: features have no samples of a group, whose residual variance is theirs alone.
    """


class FormulaWarning(UserWarning):
    """A formula means something that users of R may not expect."""


class RankWarning(UserWarning):
    """Columns of X that depend on others were dropped, as ``rank="drop"`` asked."""


class PrecisionWarning(UserWarning):
    """The statistics of a design keep fewer digits than an analysis may need."""


class SlowWarning(UserWarning):
    """What was asked for takes long; the message says why, and what is faster."""


def _module(frame: FrameType) -> str:
    """Name of the module whose code a frame runs; code run by ``exec`` may have none."""
    return str(frame.f_globals.get("__name__") or "")


def warn(message: str, category: type[Warning]) -> None:
    """Warn about the line outside of flashmm that called it, however deep this is."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _module(frame).split(".")[0] == "flashmm":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def listing(names: Iterable[object], limit: int = 5) -> str:
    """Quote the first few names for a message: ``'a', 'b', ... (12 in all)``."""
    items = [str(name) for name in names]
    text = ", ".join(repr(item) for item in items[:limit])
    return text if len(items) <= limit else f"{text}, ... ({len(items)} in all)"


def nearest(name: object, options: Sequence[str], limit: int = 3) -> str:
    """Suggest the nearest valid names: ``Did you mean 'a', 'b'?`` or the list of options."""
    lowered = {option.lower(): option for option in reversed(options)}
    close = difflib.get_close_matches(str(name).lower(), list(lowered), n=limit, cutoff=0.5)
    if close:
        return f"Did you mean {', '.join(repr(lowered[item]) for item in close)}?"
    return f"Available: {listing(options, 10)}." if options else "There are none."


def check_names(what: str, given: Any, values: str) -> dict[str, Any]:
    """A mapping whose keys are names, as a dict; empty for None.

    Parameters
    ----------
    what, given
        Name of the parameter and what was passed to it.
    values
        What belongs to each name, for the message.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise InputError(f"`{what}` must be a dict, {{name: {values}}}, not {kind}.")
    for name in given:
        if not isinstance(name, str):
            raise InputError(f"`{what}` has the key {name!r}; its keys are names, as text.")
    return dict(given)


def check_option(name: str, value: object, options: Sequence[str]) -> None:
    """Refuse what is none of an argument's options, and suggest the nearest."""
    if not isinstance(value, str) and (len(repr(value)) > 60 or "\n" in repr(value)):
        kind = type(value).__name__
        raise InputError(f"`{name}` must be one of {listing(options, 10)}, not a {kind}.")
    if not (isinstance(value, str) and value in options):
        raise InputError(f"Unknown {name}={value!r}. {nearest(str(value), options)}")
