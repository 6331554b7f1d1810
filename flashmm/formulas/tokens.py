"""Formulas as tokens: read from text, changed, and written as text again."""

from __future__ import annotations

import re

from formulaic.errors import FormulaicError
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Token

from flashmm.exceptions import InputError
from flashmm.slips.cures import FUNCTIONS, known

__all__ = [
    "first_line",
    "is_operator",
    "quote_name",
    "render",
    "token_text",
    "tokens_of",
    "trim",
    "without_tilde",
]

_TIGHT = frozenset({":", "**", "^"})


def quote_name(name: str) -> str:
    """Put a column name in backticks where a formula needs them."""
    return name if re.fullmatch(r"[^\W\d][\w.]*", name) else f"`{name}`"


def tokens_of(text: str, source: str) -> list[Token]:
    """The tokens of a text; ``source`` says in errors where it is from."""
    foreign = re.search(r"(?<![\w.])(as\.\w+)\s*\(", text)
    if foreign and (cure := known(FUNCTIONS, foreign[1])):
        raise InputError(f"{source} calls {foreign[1]!r}, which is not known here. {cure}")
    try:
        return list(tokenize(text))
    except FormulaicError as error:
        raise InputError(f"{source} cannot be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_operator(token: Token) -> bool:
    """Whether a token is an operator."""
    return token.kind is Token.Kind.OPERATOR


def token_text(token: Token) -> str:
    """A token as it was written."""
    opening = token.source[token.source_start] if token.source is not None else ""
    if token.kind is Token.Kind.NAME:
        return quote_name(token.token)
    if token.kind is Token.Kind.PYTHON and opening == "{":
        return f"{{{token.token}}}"
    if is_operator(token) and opening == "%":
        return f"%{token.token}%"
    return str(token.token)


def render(tokens: list[Token]) -> str:
    """Tokens as text, spaced like ``0 + log(x) + a:b``."""
    text = ""
    for position, token in enumerate(tokens):
        piece = token_text(token)
        if is_operator(token) and piece not in _TIGHT:
            piece = f"{piece} " if position == 0 else f" {piece} "
        elif token.kind is not Token.Kind.OPERATOR and text and text[-1] not in " :^*([)":
            # Two operands side by side: keep them apart, formulaic says what is wrong.
            piece = piece if piece in ")]" else f" {piece}"
        text += piece
    return re.sub(r"  +", " ", text).strip()


def without_tilde(tokens: list[Token], text: str, argument: str) -> list[Token]:
    """Remove the leading ``~``; refuse a left-hand side."""
    if tokens and is_operator(tokens[0]) and tokens[0].token.startswith("~"):
        tokens = trim(tokens, 0, tokens[0].token[1:])
    if any(is_operator(token) and "~" in token.token for token in tokens):
        raise InputError(
            f"`{argument}` = {text!r} is two-sided. Formulas are one-sided because Y is given "
            "separately: leave out what stands before `~`."
        )
    return tokens


def trim(tokens: list[Token], position: int, operator: str) -> list[Token]:
    """Replace the operator at a position by a shorter one, or remove it."""
    old = tokens[position]
    start = old.source_start + len(old.token) - len(operator)
    new = Token(
        operator, kind="operator", source=old.source, source_start=start, source_end=old.source_end
    )
    return [*tokens[:position], *([new] if operator else []), *tokens[position + 1 :]]
