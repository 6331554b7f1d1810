"""A small parser of linear expressions of coefficient names, without ``eval``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from flashmm.exceptions import InputError
from flashmm.inference.names import NUMBER, Coefficients, is_boundary

__all__ = ["Equation", "read_equations"]

_OPERATORS = "+-*/=(),"


@dataclass(frozen=True)
class _Token:
    """A piece of an expression: an operator, a number or a coefficient, and where it stands."""

    value: str | Fraction | int
    start: int
    end: int


def _tokens(text: str, known: Coefficients) -> Iterator[_Token]:
    """Cut an expression into operators (str), numbers (Fraction) and coefficients (int)."""
    i = 0
    while i < len(text):
        if text[i].isspace():
            i += 1
            continue
        value: str | Fraction | int
        matched, number = known.match(text, i), NUMBER.match(text, i)
        if matched:
            end = matched[0]
            value = known.only(matched[1], text[i:end])
        elif text[i] in '`"':
            end = text.find(text[i], i + 1) + 1
            if end == 0:
                raise InputError(f"contrast {text!r}: a quote is opened and not closed")
            value = known.only(known.whole(text[i + 1 : end - 1]), text[i + 1 : end - 1])
        elif number and is_boundary(text, number.end()):
            end = number.end()
            value = _exact(number.group(), text)
        elif text[i] in _OPERATORS:
            end = i + 1
            value = text[i]
        else:
            end = _end_of_word(text, i)
            value = known.only(set(), text[i:end])
        yield _Token(value, i, end)
        i = end


def _exact(number: str, text: str) -> Fraction:
    """Read a number without rounding, so that a contrast that cancels is exactly zero."""
    approximate = float(number)
    if not math.isfinite(approximate):
        raise InputError(f"contrast {text!r}: the number {number} is too large")
    return Fraction(number) if approximate else Fraction(0)


def _end_of_word(text: str, start: int) -> int:
    """Find where an unknown name ends, keeping its brackets: ``log(x, 2)[T.a b]`` is one."""
    depth = 0
    for i in range(start, len(text)):
        if depth == 0 and i > start and (text[i].isspace() or text[i] in "+-*/=,)"):
            return i
        if text[i] in "([":
            depth += 1
        elif text[i] in ")]":
            depth = max(depth - 1, 0)
    return len(text)


@dataclass(frozen=True)
class _Linear:
    """A linear expression: weights of coefficients by position, and a constant."""

    weights: dict[int, Fraction]
    constant: Fraction

    def plus(self, other: _Linear, sign: int) -> _Linear:
        weights = dict(self.weights)
        for i, weight in other.weights.items():
            weights[i] = weights.get(i, Fraction(0)) + sign * weight
        kept = {i: weight for i, weight in weights.items() if weight}
        return _Linear(kept, self.constant + sign * other.constant)

    def times(self, factor: Fraction) -> _Linear:
        kept = {i: factor * weight for i, weight in self.weights.items() if factor}
        return _Linear(kept, factor * self.constant)


class _Parser:
    """Recursive descent over ``sum [= sum]`` with + - * / and parentheses."""

    def __init__(self, tokens: Sequence[_Token], text: str) -> None:
        self.tokens, self.text, self.at = tokens, text, 0

    def error(self, problem: str) -> InputError:
        return InputError(f"contrast {self.text!r}: {problem}")

    def peek(self) -> str | Fraction | int | None:
        return self.tokens[self.at].value if self.at < len(self.tokens) else None

    def take(self, options: str) -> str | None:
        """Take the next token when it is one of the operators in `options`."""
        value = self.peek()
        if isinstance(value, str) and value in options:
            self.at += 1
            return value
        return None

    def equation(self) -> tuple[dict[int, Fraction], Fraction]:
        """Return the weights and the hypothesised value."""
        left = self.sum()
        if self.take("="):
            self.take("=")  # as Python and R's multcomp have it
            right = self.sum()
            if self.peek() == "=":
                raise self.error("has more than one '='; separate hypotheses by commas")
            left = left.plus(right, -1)
        elif left.constant:
            raise self.error("adds a constant; write a hypothesised value as 'a = 0.5'")
        if self.at < len(self.tokens):
            raise self.error(f"expected an operator before {self.rest()!r}")
        return left.weights, -left.constant

    def rest(self) -> str:
        start = self.tokens[self.at].start - self.tokens[0].start
        return self.text[start:]

    def sum(self) -> _Linear:
        total = self.product()
        while sign := self.take("+-"):
            total = total.plus(self.product(), 1 if sign == "+" else -1)
        return total

    def product(self) -> _Linear:
        result = self.operand()
        while operator := self.take("*/"):
            factor = self.operand()
            if operator == "/":
                if factor.weights:
                    raise self.error("divides by a coefficient, which is not linear")
                if not factor.constant:
                    raise self.error("divides by zero")
                result = result.times(1 / factor.constant)
            elif not factor.weights:
                result = result.times(factor.constant)
            elif not result.weights:
                result = factor.times(result.constant)
            else:
                raise self.error("multiplies coefficients, which is not linear")
        return result

    def operand(self) -> _Linear:
        sign = 1
        while operator := self.take("+-"):
            sign = -sign if operator == "-" else sign
        value = self.peek()
        if value == "(" and isinstance(value, str):
            self.at += 1
            inner = self.sum()
            if not self.take(")"):
                raise self.error("has a '(' that is not closed")
            return inner.times(Fraction(sign))
        if value is None or isinstance(value, str):
            place = "at its end" if value is None else f"before {self.rest()!r}"
            raise self.error(f"expected a coefficient or a number {place}")
        self.at += 1
        if isinstance(value, Fraction):
            return _Linear({}, sign * value)
        return _Linear({value: Fraction(sign)}, Fraction(0))


@dataclass(frozen=True)
class Equation:
    """One hypothesis: weights by coefficient position, hypothesised value, text as written."""

    weights: dict[int, float]
    value: float
    text: str


def read_equations(text: str, known: Coefficients) -> list[Equation]:
    """Read the hypotheses that commas separate, as in ``"a - b, (a + b)/2 = 0.5"``.

    Parameters
    ----------
    text : str
        Linear expressions of coefficient names, each with ``=`` or without (then ``= 0``).
    known : Coefficients
        The names.

    Returns
    -------
    list of Equation
        One per hypothesis, in the order written.

    Raises
    ------
    InputError
        If a name is unknown or ambiguous, or an expression is malformed or not linear.
    """
    whole = known.whole(text)
    if len(whole) == 1:
        return [Equation({next(iter(whole)): 1.0}, 0.0, text.strip())]
    equations = []
    for tokens in _split(text, known):
        if not tokens:
            raise InputError(f"contrast {text!r}: an expression is empty")
        label = text[tokens[0].start : tokens[-1].end]
        inner = _unwrap(tokens)
        try:
            weights, value = _Parser(inner, text[inner[0].start : inner[-1].end]).equation()
            numbers = {i: float(weight) for i, weight in weights.items()}
            equations.append(Equation(numbers, float(value), label))
        except RecursionError:
            raise InputError("a contrast nests parentheses too deeply") from None
        except OverflowError:
            raise InputError(f"contrast {label!r} holds numbers that are too large") from None
    return equations


def _split(text: str, known: Coefficients) -> list[list[_Token]]:
    """Tokens of each of the expressions that commas outside of parentheses separate."""
    expressions: list[list[_Token]] = [[]]
    depth = 0
    for token in _tokens(text, known):
        depth += (token.value == "(") - (token.value == ")")
        if token.value == "," and depth == 0:
            expressions.append([])
        else:
            expressions[-1].append(token)
    return expressions


def _unwrap(tokens: list[_Token]) -> list[_Token]:
    """Drop parentheses around a whole hypothesis, ``(a = b)``, as statsmodels users write."""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.value == "(") - (token.value == ")")
        if depth == 0 and i < len(tokens) - 1:
            return tokens
    wrapped = len(tokens) > 2 and tokens[0].value == "(" and tokens[-1].value == ")"
    return tokens[1:-1] if wrapped and any(token.value == "=" for token in tokens) else tokens
