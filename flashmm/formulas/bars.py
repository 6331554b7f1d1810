"""The grammar of random effects: lme4 bars and FLASHMM formulas, text to terms.

Nothing here looks at data. formulaic's tokenizer (not public; its minor version is pinned)
splits the text, so backticks, quotes and function calls mean here what they mean there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from formulaic import Formula, SimpleFormula
from formulaic.errors import FormulaicError
from formulaic.parser.types import Token

from flashmm.exceptions import InputError
from flashmm.formulas.calls import (
    refuse_arithmetic,
    refuse_lost_offsets,
    refuse_powers,
    with_powers,
)
from flashmm.formulas.structures import (
    ALONG,
    FOREIGN_WRAPPERS,
    KNOWN,
    OPTIONS,
    STRUCTURES,
    WRAPPED,
    Structure,
)
from flashmm.formulas.tokens import (
    first_line,
    is_operator,
    quote_name,
    render,
    tokens_of,
    trim,
    without_tilde,
)

__all__ = [
    "BarTerm",
    "PlainTerm",
    "effects_along",
    "parse_formula",
    "parse_random",
    "terms_text",
]


@dataclass(frozen=True)
class BarTerm:
    """One ``(effects | group)``, ``||`` and ``/`` already expanded.

    Parameters
    ----------
    effects
        What stands before the bar.
    group
        Columns of data whose observed combinations are the levels.
    covariance
        ``"full"``, ``"diagonal"``, ``"identity"`` (one variance), ``"cs"`` (compound symmetry),
        ``"csh"`` (the same with a variance per effect), ``"ar1"`` or ``"exp"``.
    source
        The bar as the user wrote it, for messages.
    split
        Whether the term comes from ``||``, which wants one numeric column per term.
    name
        Name given by the user; empty for the default.
    along
        The column of times or positions of ``"ar1"`` and ``"exp"``, whose values are the effects.
    """

    effects: SimpleFormula
    group: tuple[str, ...]
    covariance: Structure
    source: str
    split: bool = False
    name: str = ""
    along: str = ""

    @property
    def group_text(self) -> str:
        """The grouping factor: ``batch:cask``."""
        return ":".join(self.group)

    @property
    def effects_text(self) -> str:
        """The effects with the intercept spelt out: ``1 + x`` or ``0 + x``; the times of ar1."""
        return self.along or terms_text(self.effects)

    @property
    def text(self) -> str:
        """Canonical form: ``(1 + x | batch:cask)``."""
        wrapper = WRAPPED.get(self.covariance, self.covariance)
        option = OPTIONS.get(self.covariance, "")
        group = ":".join(quote_name(name) for name in self.group)
        return f"{wrapper}({self.effects_text} | {group}{option})"


@dataclass(frozen=True)
class PlainTerm:
    """One FLASHMM formula such as ``~ 0 + sam``: a component with independent columns.

    Parameters
    ----------
    formula
        The parsed formula.
    source
        Its canonical text, without the ``~``.
    name
        Name given by the user; empty for the default.
    """

    formula: SimpleFormula
    source: str
    name: str = ""

    @property
    def text(self) -> str:
        """Canonical form: ``~ 0 + sam``."""
        return f"~ {self.source}"


def terms_text(formula: SimpleFormula) -> str:
    """Write a parsed formula as text, the intercept always spelt out."""
    terms = [term for term in formula if term.degree > 0]
    start = "1" if len(terms) < len(formula) else "0"
    return " + ".join([start, *(":".join(map(_factor_text, t.factors)) for t in terms)])


def _factor_text(factor: Any) -> str:
    method = factor.eval_method.value
    if method == "lookup":
        return quote_name(factor.expr)
    if method == "python":
        try:
            named = re.sub("`[^`]*`", "_", factor.expr)
            call = isinstance(ast.parse(named, mode="eval").body, ast.Call)
        except SyntaxError:
            call = True
        return factor.expr if call else f"{{{factor.expr}}}"
    return str(factor.expr)


def parse_formula(
    formula: str | SimpleFormula, argument: str
) -> tuple[SimpleFormula, str, list[BarTerm]]:
    """Split a one-sided formula into its plain part and its bars.

    Parameters
    ----------
    formula
        Text, with or without ``~``, or a formulaic formula.
    argument
        Name of the argument it came from, for messages.

    Returns
    -------
    plain
        The part without bars; ``1`` when there is nothing but bars.
    text
        The plain part as canonical text, without ``~``; empty when there is nothing but bars.
    bars
        The bars in order, ``||`` and ``/`` expanded.

    Raises
    ------
    InputError
        If the formula is two-sided or cannot be read.
    """
    if isinstance(formula, SimpleFormula):
        refuse_powers(formula, f"`{argument}`")
        return formula, terms_text(formula).removeprefix("1 + "), []
    if isinstance(formula, Formula):
        raise InputError(
            f"`{argument}` is a formula with several parts. Formulas are one-sided because Y is "
            "given separately: pass Formula('~ ...')."
        )
    if not isinstance(formula, str):
        raise InputError(
            f"`{argument}` must be a formula such as '~ x + (1 | g)', not {type(formula).__name__}."
        )
    plain, text, bars = _parsed_text(formula, argument)
    return plain, text, [*bars]


@lru_cache(maxsize=256)
def _parsed_text(formula: str, argument: str) -> tuple[SimpleFormula, str, tuple[BarTerm, ...]]:
    """The same of a text, once for all models that share it."""
    source = f"`{argument}` = {formula!r}"
    tokens = without_tilde(tokens_of(formula, source), formula, argument)
    kept, groups = _split_bars(tokens, source, strict=argument != "fixed")
    bars = tuple(bar for group, kind in groups for bar in _expand_bar(group, kind, source))
    return _parse_plain(render(kept) or "1", source), render(kept), bars


@lru_cache(maxsize=256)
def _parsed(text: str) -> Formula:
    """A formula of formulaic, which nobody changes."""
    return Formula(text)


def _parse_plain(text: str, source: str) -> SimpleFormula:
    tokens = tokens_of(text, source)
    for token in tokens:
        if token.kind is Token.Kind.NAME and token.token in ("1", "."):
            raise InputError(
                f"{source}: a column named {token.token!r} is read as what {token.token} means in "
                f"a formula. Rename it, or write Q({token.token!r})."
            )
    refuse_arithmetic(tokens, source)
    text = with_powers(text, tokens, source)
    try:
        parsed = _parsed(text)
    except SyntaxError as error:
        raise InputError(f"{source} cannot be read: {error.msg} in {error.text!r}.") from error
    except FormulaicError as error:
        if re.search(r"(^|[\s+(])\.($|[\s+)])", text):
            raise InputError(f"{source}: `.` is not supported; name the columns.") from error
        raise InputError(f"{source} cannot be read: {first_line(error)}") from error
    if not isinstance(parsed, SimpleFormula):
        raise InputError(f"{source} cannot be read: it has more than one part.")
    refuse_lost_offsets(tokens, parsed, source)
    return parsed


def _split_bars(
    tokens: list[Token], source: str, *, strict: bool
) -> tuple[list[Token], list[tuple[list[Token], str]]]:
    """Take the top-level bars out; each is (the tokens inside, what wraps them or nothing).

    Where every term is a random effect, `strict`, a call around a bar is a structure.
    """
    kept: list[Token] = []
    groups: list[tuple[list[Token], str]] = []
    position, after_bar = 0, False
    while position < len(tokens):
        token = tokens[position]
        end, inside, wrapper = position + 1, None, ""
        if token.kind is Token.Kind.CONTEXT:
            end = _closing(tokens, position, source)
            inside = tokens[position + 1 : end - 1]
        elif token.kind is Token.Kind.PYTHON:
            inside, wrapper = _wrapped_bar(token, source, strict)
        if inside is not None and _bars_at_top(inside):
            if kept and kept[-1].kind is Token.Kind.NAME and end > position + 1:
                # `diag (x | g)`: with a space the tokenizer sees no call.
                wrapper = _known_wrapper(kept[-1].token, source) or ""
                kept = kept[:-1] if wrapper else kept
            if after_bar or (kept and not (is_operator(kept[-1]) and kept[-1].token[-1] == "+")):
                raise InputError(f"{source}: write `+` before ({render(inside)}).")
            kept = trim(kept, len(kept) - 1, kept[-1].token[:-1]) if kept else kept
            groups.append((inside, wrapper))
            after_bar = True
        else:
            _refuse_bars(tokens[position:end], source)
            if after_bar and not (is_operator(token) and token.token[0] in "+-"):
                raise InputError(f"{source}: write `+` after ({render(groups[-1][0])}).")
            kept += tokens[position:end]
            if after_bar and len(kept) == 1 and token.token[0] == "+":
                kept = trim(kept, 0, token.token[1:])
            after_bar = False
        position = end
    if groups and is_operator(tokens[-1]):
        raise InputError(f"{source} ends with {tokens[-1].token!r}.")
    return kept, groups


def _closing(tokens: list[Token], start: int, source: str) -> int:
    """Position just after the bracket that closes the one at ``start``."""
    depth = 0
    for position in range(start, len(tokens)):
        if tokens[position].kind is Token.Kind.CONTEXT:
            depth += 1 if tokens[position].token in "([" else -1
            if depth == 0:
                return position + 1
    raise InputError(f"{source} cannot be read: a bracket is not closed or not opened.")


def _known_wrapper(name: str, source: str) -> str | None:
    """The name of a structure, None for what names none; refuses those of other packages."""
    if name in FOREIGN_WRAPPERS:
        raise InputError(
            f"{source}: the covariance {name}(...) is not available. Known are {KNOWN}."
        )
    return name if name in STRUCTURES else None


def _wrapped_bar(token: Token, source: str, strict: bool) -> tuple[list[Token] | None, str]:
    """Read ``diag(x | g)``, which the tokenizer sees as a function call."""
    match = re.fullmatch(r"([\w.]+)\s*\((.*)\)", token.token, flags=re.DOTALL)
    if match is None or "|" not in match[2]:
        return None, ""
    known = _known_wrapper(match[1], source)
    if known is None:
        if strict and _bars_at_top(tokens_of(match[2], source)):
            raise InputError(
                f"{source}: {match[1]}(...) is no covariance of random effects. Known are {KNOWN}."
            )
        return None, ""
    return tokens_of(match[2], source), known


def _structure(tokens: list[Token], wrapper: str, source: str) -> tuple[list[Token], Structure]:
    """The tokens of a bar without ``, hom=TRUE``, and the structure that it has."""
    commas = [i for i, token in enumerate(tokens) if is_operator(token) and token.token == ","]
    kinds = STRUCTURES[wrapper or "us"]
    if not commas:
        return tokens, next(iter(kinds.values()))
    written = render(tokens[commas[0] + 1 :])
    match = re.fullmatch(r"\s*hom\s*=\s*(TRUE|True|T|FALSE|False|F)\s*", written)
    if match is None or len(commas) > 1:
        raise InputError(
            f"{source}: {written!r} is no option of {wrapper or 'a bar'}(...). The one option is "
            "hom=TRUE or hom=FALSE, of diag and cs."
        )
    hom = match[1][0] == "T"
    if hom not in kinds or wrapper in ("", "us"):
        has = f"{wrapper}(...) has no option hom={match[1]}" if wrapper else "a bar has no options"
        raise InputError(f"{source}: {has}. Known are {KNOWN}.")
    return tokens[: commas[0]], kinds[hom]


def _bars_at_top(tokens: list[Token]) -> bool:
    depth = 0
    for token in tokens:
        if token.kind is Token.Kind.CONTEXT:
            depth += 1 if token.token in "([" else -1
        elif depth == 0 and is_operator(token) and "|" in token.token:
            return True
    return False


def _refuse_bars(tokens: list[Token], source: str) -> None:
    if any(is_operator(token) and "|" in token.token for token in tokens):
        raise InputError(
            f"{source}: a bar stands outside parentheses or too deep inside them. Write each "
            "random term as (effects | group), joined with `+`."
        )


def _expand_bar(tokens: list[Token], wrapper: str, source: str) -> list[BarTerm]:
    tokens, structure = _structure(tokens, wrapper, source)
    bars = [i for i, token in enumerate(tokens) if is_operator(token) and "|" in token.token]
    written = f"({render(tokens)})"
    # `||-x` and the like reach us as one operator token.
    operator = tokens[bars[0]].token
    if len(bars) != 1 or operator not in {"|", "||"} or (wrapper and operator == "||"):
        raise InputError(f"{source}: {written} must hold one bar: (effects | group).")
    text = render(tokens[: bars[0]])
    if not text:
        raise InputError(f"{source}: {written} has no effects. Write (1 | group).")
    effects = _parse_plain(text, source)
    if len(effects) == 0:
        raise InputError(f"{source}: {written} has no effects left. Write (1 | group).")
    groups = _parse_group(tokens[bars[0] + 1 :], written, source)
    along = ""
    if structure in ALONG:
        along = _column_along(effects, structure, f"{wrapper}{written}", source)
        effects = effects_along(along)
    if operator == "|":
        parts = [(effects, False)]
    else:
        parts = [(SimpleFormula([term]), term.degree > 0) for term in effects]
    label = f"{wrapper}{written[:-1]}{OPTIONS.get(structure, '')})"
    return [
        BarTerm(part, group, structure, label, split, along=along)
        for group in groups
        for part, split in parts
    ]


def effects_along(column: str) -> SimpleFormula:
    """The formula of an effect for each value of a column."""
    return _parse_plain(f"0 + C({column})", column)


def _column_along(effects: SimpleFormula, structure: str, written: str, source: str) -> str:
    """The column of times or positions in what stands before the bar: ``t`` or ``0 + t``."""
    terms = [term for term in effects if term.degree > 0]
    factors: tuple[Any, ...] = tuple(terms[0].factors) if len(terms) == 1 else ()
    name = factors[0].expr if len(factors) == 1 else ""
    if len(factors) != 1 or factors[0].eval_method.value != "lookup":
        what = "times" if structure == "ar1" else "positions"
        raise InputError(
            f"{source}: {written} needs the column of {what}, {structure}(column | group). Store "
            f"computed {what} as a column of data first."
        )
    if quote_name(name) != name:
        raise InputError(
            f"{source}: rename the column {name!r}, which stands in {written}, to letters, digits "
            "and `_`."
        )
    return str(name)


def _parse_group(tokens: list[Token], written: str, source: str) -> list[tuple[str, ...]]:
    """Read ``a:b/c`` as [(a, b), (a, b, c)]."""
    names, operators = tokens[::2], tokens[1::2]
    if (
        len(tokens) % 2 == 0
        or any(token.kind is not Token.Kind.NAME for token in names)
        or any(token.token not in {":", "/"} or not is_operator(token) for token in operators)
    ):
        raise InputError(
            f"{source}: the group in {written} must be column names joined with `:` or `/`. "
            "For crossed factors write (1 | a) + (1 | b); store a computed group as a column "
            "of data first."
        )
    groups: list[tuple[str, ...]] = []
    current: tuple[str, ...] = (names[0].token,)
    for operator, name in zip(operators, names[1:], strict=True):
        if operator.token == "/":
            groups.append(current)
        current = (*current, name.token)
    for group in (*groups, current):
        if len(set(group)) < len(group):
            raise InputError(f"{source}: the group in {written} names a column twice.")
    return [*groups, current]


def parse_random(random: object) -> list[BarTerm | PlainTerm]:
    """Read the `random` argument: a formula, a list of formulas or a dict name -> formula.

    Parameters
    ----------
    random
        See `flashmm.formulas.build.build_design`.

    Returns
    -------
    terms
        One entry per random term, in order.

    Raises
    ------
    InputError
        If an entry cannot be read.
    """
    if isinstance(random, Mapping):
        terms: list[BarTerm | PlainTerm] = []
        for key, value in random.items():
            if not isinstance(key, str) or not key:
                raise InputError(f"`random` has the key {key!r}; component names are strings.")
            terms += _named(key, _parse_entry(value, f"random[{key!r}]"))
        return terms
    if isinstance(random, list | tuple):
        return [
            term
            for position, value in enumerate(random)
            for term in _parse_entry(value, f"random[{position}]")
        ]
    if isinstance(random, str) and random.replace(" ", "") in ("", "~", "0", "~0"):
        return []
    return _parse_entry(random, "random")


def _named(name: str, terms: list[BarTerm | PlainTerm]) -> list[BarTerm | PlainTerm]:
    """Name a component; the parts of ``(1 | a/b)`` become ``name.a`` and ``name.a:b``."""
    if len(terms) == 1:
        return [replace(terms[0], name=name)]
    bars = [term for term in terms if isinstance(term, BarTerm)]
    groups = [bar.group_text for bar in bars]
    return [
        replace(
            bar,
            name=f"{name}.{bar.group_text}"
            if groups.count(bar.group_text) == 1 or bar.effects_text == "1"
            else f"{name}.{bar.group_text}[{bar.effects_text.removeprefix('0 + ')}]",
        )
        for bar in bars
    ]


def _parse_entry(value: object, argument: str) -> list[BarTerm | PlainTerm]:
    if not isinstance(value, str | Formula):
        raise InputError(
            f"`{argument}` must be a formula such as '(1 | g)' or '~ 0 + g', "
            f"not {type(value).__name__}."
        )
    plain, text, bars = parse_formula(value, argument)
    if bars and text:
        raise InputError(
            f"`{argument}` = {value!r} mixes bars with {text!r}. Fixed effects belong in `fixed`; "
            "pass a list to combine bars with a FLASHMM formula."
        )
    if bars:
        return list(bars)
    if not text or all(t.degree == 0 for t in plain):
        raise InputError(
            f"`{argument}` = {str(value)!r} has no random effects. Write '(1 | group)'."
        )
    if any(t.degree == 0 for t in plain):
        # With an intercept a factor would lose its first level, and the rest would differ from it.
        shown = text.removeprefix("1 + ")
        raise InputError(
            f"`{argument}` = {str(value)!r} is ambiguous: it has an intercept. Write "
            f"'(1 | {shown})' for a random intercept per level, or '~ 0 + {shown}' for one "
            "component with independent columns."
        )
    return [PlainTerm(plain, text)]
