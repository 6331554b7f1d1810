"""Names of coefficients and their other spellings.

Coefficients carry the names that formulaic gives them, ``cls[1]:trt[T.B]``. Wherever a name is
given, R's spelling ``cls1:trtB``, the level without its coding mark ``cls[1]:trt[B]``, any mixture
of the two, and the factors in another order, ``trtB:cls1``, mean the same coefficient.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral

import numpy as np

from flashmm.arrays.labels import by_name, one_column
from flashmm.exceptions import InputError, listing, nearest

__all__ = [
    "NUMBER",
    "Coefficients",
    "by_coefficient",
    "coefficients_of",
    "is_boundary",
    "r_name",
    "resolve_names",
    "term_name",
]

_BOOLEANS = frozenset({"True", "False"})
NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def resolve_names(requested: object, names: Sequence[str]) -> list[int]:
    """Find the positions of coefficients that are asked for by name or by position.

    Parameters
    ----------
    requested : str, int, or an iterable of them
        Names, in any spelling that `parse_contrasts` reads, or positions counted from 0.
    names : sequence of str (p,)
        The names of the coefficients.

    Returns
    -------
    list of int
        Positions in `names`, in the order of `requested`.

    Raises
    ------
    InputError
        If a name is unknown (the nearest are offered) or ambiguous, or a position is out of range.

    Examples
    --------
    >>> resolve_names(["(Intercept)", "trtB:cls1", -1], ["Intercept", "cls[1]:trt[T.B]", "age"])
    [0, 1, 2]
    """
    known = Coefficients(names)
    if isinstance(requested, str | Integral) or not isinstance(requested, Iterable):
        requested = [requested]
    return [known.resolve(item) for item in requested]


def coefficients_of(requested: object, names: Sequence[str]) -> list[str]:
    """Names of coefficients that are asked for one by one or by the terms they belong to.

    Parameters
    ----------
    requested : str, int, or an iterable of them
        Coefficients as in `resolve_names`, or terms: ``"cls:trt"`` for all of its coefficients.
    names : sequence of str (p,)
        The names of the coefficients.

    Returns
    -------
    list of str
        Without repetition, in the order of `requested`.

    Raises
    ------
    InputError
        If a name is that of neither a coefficient nor a term.

    Examples
    --------
    >>> coefficients_of(["trt", "x"], ["x", "trt[T.B]", "trt[T.C]", "x:trt[T.B]"])
    ['trt[T.B]', 'trt[T.C]', 'x']
    """
    if isinstance(requested, str | Integral) or not isinstance(requested, Iterable):
        requested = [requested]
    found: list[str] = []
    for item in requested:
        if not isinstance(item, str | Integral):
            raise InputError(f"{item!r} is not the name of a coefficient or a term.")
        of_term = [
            name
            for name in names
            if name != item and item in {term_name(name), *_powers(term_name(name))}
        ]
        found += of_term or [names[i] for i in resolve_names(item, names)]
    return list(dict.fromkeys(found))


def by_coefficient(values: object, names: Sequence[str], what: str) -> object:
    """One number per coefficient, in the order of ``names`` where the values have labels.

    Parameters
    ----------
    values : array_like, Series, DataArray, DataFrame with one column, or dict
        Labels are understood as in `resolve_names`.
    names : sequence of str (p,)
        The names of the coefficients.
    what : str
        What the values are, for messages.

    Raises
    ------
    InputError
        If a name is unknown, or a coefficient is absent.
    """
    series = one_column(values, what)
    named = by_name(values if series is None else series)
    if named is None:
        return values if series is None else series.to_numpy()
    try:
        places = resolve_names(list(named), names)
    except InputError as error:
        raise InputError(f"{what}: {error}") from None
    absent = [name for i, name in enumerate(names) if places.count(i) != 1]
    if absent:
        raise InputError(
            f"{what} must have one value for each coefficient; {listing(absent)} is absent or "
            "there twice."
        )
    row = np.empty(len(names))
    row[places] = list(named.values())
    return row


def r_name(name: str) -> str:
    """Spell a coefficient the way R does.

    Parameters
    ----------
    name : str
        A name as formulaic gives it.

    Returns
    -------
    str
        R's name under treatment coding; a name without levels stays as it is.

    Examples
    --------
    >>> r_name("cls[1]:trt[T.B]"), r_name("C(x)[T.a]:log(libsize)"), r_name("Intercept")
    ('cls1:trtB', 'C(x)a:log(libsize)', '(Intercept)')
    """
    if name == "Intercept":
        return "(Intercept)"
    parts = []
    for variable, level in map(_variable_and_level, _factors(name)):
        plain = level.removeprefix("T.")
        written = plain.upper() if plain in _BOOLEANS else plain
        parts.append(re.sub(r"\s*\*\*\s*", "^", variable) + written)
    return ":".join(parts)


def term_name(name: str) -> str:
    """Name the term of the formula that a coefficient belongs to.

    Parameters
    ----------
    name : str
        A name as formulaic gives it.

    Returns
    -------
    str
        The name without the levels.

    Examples
    --------
    >>> term_name("cls[1]:trt[T.B]"), term_name("C(x)[T.a]"), term_name("log(libsize)")
    ('cls:trt', 'C(x)', 'log(libsize)')
    """
    return ":".join(_variable_and_level(factor)[0] for factor in _factors(name))


def _factors(name: str) -> list[str]:
    """Split an interaction at the colons outside of brackets: ``a[x:y]:b`` has two factors."""
    factors, depth, start = [], 0, 0
    for i, character in enumerate(name):
        if character in "([":
            depth += 1
        elif character in ")]":
            depth = max(depth - 1, 0)
        elif character == ":" and depth == 0:
            factors.append(name[start:i])
            start = i + 1
    return [*factors, name[start:]]


def _variable_and_level(factor: str) -> tuple[str, str]:
    """Split ``C(x)[T.a]`` into ``C(x)`` and ``T.a``; the level is empty when there is none."""
    depth = 0
    if factor.endswith("]"):
        for i, character in enumerate(factor):
            if character == "[" and depth == 0 and i > 0:
                return factor[:i], factor[i + 1 : -1]
            depth += (character == "(") - (character == ")")
    return factor, ""


def _spellings(factor: str) -> set[str]:
    """Give all the ways in which one factor of a name may be written."""
    if factor in {"Intercept", "(Intercept)"}:
        return {"Intercept", "(Intercept)"}
    variable, level = _variable_and_level(factor)
    variables = {variable, *_powers(variable)}
    if not level:
        return variables
    plain = level.removeprefix("T.")
    levels = {level, plain}
    if plain in _BOOLEANS:  # R writes them in capitals
        levels |= {plain.upper(), f"T.{plain.upper()}"}
    return {
        spelling
        for name in variables
        for value in levels
        for spelling in (name + value, f"{name}[{value}]")
    }


def _powers(variable: str) -> set[str]:
    """``I(x ** 2)`` with its powers as R and others write them."""
    if "**" not in variable:
        return set()
    return {re.sub(r"\s*\*\*\s*", power, variable) for power in ("^", " ^ ", "**", " ** ")}


class Coefficients:
    """The known names, and what every other spelling of them means."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(str(name) for name in names)
        self.p = len(self.names)
        self.position = {name: i for i, name in enumerate(self.names)}
        if len(self.position) < self.p:
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise InputError(f"coefficient names occur more than once: {listing(repeated)}")
        # A spelling stands for factors, and a sequence of factors for coefficients: an interaction
        # then needs no list of all its spellings. Sorted factors serve a swapped order.
        self.meaning: dict[str, set[str]] = {}
        self.ordered: dict[tuple[str, ...], set[int]] = {}
        self.unordered: dict[tuple[str, ...], set[int]] = {}
        self.most_factors = 0
        for i, name in enumerate(self.names):
            factors = _factors(name)
            self.most_factors = max(self.most_factors, len(factors))
            self.ordered.setdefault(tuple(factors), set()).add(i)
            self.unordered.setdefault(tuple(sorted(factors)), set()).add(i)
            for factor in factors:
                for spelling in _spellings(factor):
                    self.meaning.setdefault(spelling, set()).add(factor)

    def match(self, text: str, start: int) -> tuple[int, set[int]] | None:
        """Read the longest name at `start`: where it ends, and the coefficients it may mean."""
        ends: dict[int, set[int]] = {}
        for end, chain in self._chains(text, start, ()):
            if is_boundary(text, end) and (meant := self._meant(chain)):
                ends.setdefault(end, set()).update(meant)
        for name, i in self.position.items():
            # A name that is a number needs quotes. An exact name outranks another's alias.
            end = start + len(name)
            fits = bool(name) and text.startswith(name, start) and is_boundary(text, end)
            if fits and not NUMBER.fullmatch(name):
                ends[end] = {i}
        return max(ends.items()) if ends else None

    def _chains(
        self, text: str, start: int, head: tuple[str, ...]
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Read spellings of factors joined by colons; yields every end, with the spellings."""
        for spelling in self.meaning:
            if spelling and text.startswith(spelling, start):
                end = start + len(spelling)
                chain = (*head, spelling)
                if not NUMBER.fullmatch(text[start:end]) or head:
                    yield end, chain
                if len(chain) < self.most_factors and text.startswith(":", end):
                    yield from self._chains(text, end + 1, chain)

    def _meant(self, chain: tuple[str, ...]) -> set[int]:
        """Give the coefficients that spellings of factors stand for, the written order first."""
        readings = list(itertools.product(*(sorted(self.meaning[item]) for item in chain)))
        found: set[int] = set().union(*(self.ordered.get(r, set()) for r in readings))
        if not found:
            swapped = (self.unordered.get(tuple(sorted(r)), set()) for r in readings)
            found = set().union(*swapped)
        return found

    def whole(self, text: str) -> set[int]:
        """Give the coefficients that a text may mean when all of it is one name."""
        for attempt in (text, text.strip()):
            if attempt in self.position:
                return {self.position[attempt]}
        text = text.strip()
        if len(text) > 2 and text[0] == text[-1] and text[0] in '`"':
            return self.whole(text[1:-1])
        matched = self.match(text, 0)
        return matched[1] if matched and matched[0] == len(text) else set()

    def only(self, found: set[int], text: str) -> int:
        """Return the one coefficient that `text` means, or raise."""
        if len(found) > 1:
            meanings = listing(self.names[i] for i in sorted(found))
            raise InputError(f"{text!r} may mean {meanings}: write the full name")
        if not found:
            if not any(character.isalnum() for character in text):
                raise InputError(f"{text!r} is no coefficient")
            # Compare like with like: R's spelling with R's, unless brackets were written.
            options = [
                name if "[" in text or "[" not in name else r_name(name) for name in self.names
            ]
            raise InputError(f"unknown coefficient {text!r}. {nearest(text, options)}")
        return next(iter(found))

    def resolve(self, item: object) -> int:
        """Return the position of a coefficient given by name or by position."""
        if isinstance(item, str):
            return self.only(self.whole(item), item)
        if isinstance(item, Integral) and not isinstance(item, bool | np.bool_):
            position = int(item)
            if -self.p <= position < self.p:
                return position % self.p
            raise InputError(
                f"coefficient {position} is out of range: positions run from 0 to {self.p - 1}"
            )
        raise InputError(f"a coefficient is given by its name or its position, not by {item!r}")


def is_boundary(text: str, end: int) -> bool:
    """Tell whether a name may end here: ``AB`` may not inside ``ABC``, ``AB[x]`` or ``AB:x``."""
    return end >= len(text) or not (text[end].isalnum() or text[end] in "_.:[(")
