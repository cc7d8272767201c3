"""Expressions of rules as small programs for compiled code, which works them out for one observation at a time.

A number is a double, NaN stands for null, a condition is 1, 0 or NaN, and a text is the number it has in ``Texts``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from processors import automata
from processors.observations import Numbers
from processors.tables import Texts
from schemas.expressions import (
    Absolute,
    Binary,
    Column,
    Component,
    Constant,
    Expression,
    LookedUp,
    Not,
    Present,
    Scaled,
    When,
    written,
)

_BINARY = {
    "+": automata.ADD, "-": automata.SUBTRACT, "*": automata.MULTIPLY, "/": automata.DIVIDE,
    "min": automata.MIN, "max": automata.MAX,
    "<": automata.LESS, "<=": automata.AT_MOST, ">": automata.MORE, ">=": automata.AT_LEAST,
    "==": automata.EQUAL, "and": automata.AND, "or": automata.OR, "otherwise": automata.OTHERWISE,
}  # fmt: skip


@dataclass
class Programs:
    """The programs of one rule: where a column's value lies, what was compiled, and the constants.

    ``values``, ``texts`` and ``kept`` number the columns. A program is called by where it begins and ends in ``code``.
    """

    values: Mapping[Expression, int]
    texts: Mapping[str, int]
    kept: Mapping[str, int]
    code: list[tuple[int, int]] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    #: Constants that are texts, by their place among the constants.
    texts_of: dict[int, str] = field(default_factory=dict)

    def add(self, expression: Expression) -> tuple[int, int]:
        """Compile an expression; gives where its program begins and ends."""
        begin = len(self.code)
        self._compile(expression)
        return begin, len(self.code)

    def numbered(self, texts: Texts) -> Numbers:
        """The constants, texts by the numbers they have now."""
        found = np.array(self.constants, np.float64)
        if self.texts_of:
            found[[*self.texts_of]] = texts.number_all([*self.texts_of.values()])
        return found

    def _compile(self, expression: Expression) -> None:
        match expression:
            case Column(name) if name in self.kept:
                self.code.append((automata.KEPT, self.kept[name]))
            case Column(name) if name in self.texts:
                self.code.append((automata.TEXT, self.texts[name]))
            case LookedUp() if written(expression) in self.texts:
                self.code.append((automata.TEXT, self.texts[written(expression)]))
            case Column() | Component() | LookedUp():
                self.code.append((automata.VALUE, self.values[expression]))
            case Constant(value):
                self.code.append((automata.CONSTANT, self._constant(value)))
            case Binary(operator, left, right):
                self._compile_all(left, right)
                self.code.append((_BINARY[operator], 0))
            case Not(operand):
                self._compile_all(operand)
                self.code.append((automata.NOT, 0))
            case Absolute(operand):
                self._compile_all(operand)
                self.code.append((automata.ABSOLUTE, 0))
            case Present(operand):
                self._compile_all(operand)
                self.code.append((automata.PRESENT, 0))
            case When(condition, then):
                self._compile_all(condition, then)
                self.code.append((automata.WHEN, 0))
            case Scaled(operand, scale):
                self._compile_all(operand)
                self.code.append((automata.SCALED, self._constant(scale)))
            case _:
                raise TypeError(f"no rule can work out {expression!r}")

    def _compile_all(self, *operands: Expression) -> None:
        for operand in operands:
            self._compile(operand)

    def _constant(self, value: float | str) -> int:
        if isinstance(value, str):
            self.texts_of[len(self.constants)] = value
        self.constants.append(math.nan if isinstance(value, str) else float(value))
        return len(self.constants) - 1


def substituted(expression: Expression, by: Mapping[str, Expression]) -> Expression:
    """The same over other columns: each that has a name in ``by`` is what it stands for."""
    match expression:
        case Column(name):
            return by.get(name, expression)
        case Binary(operator, left, right):
            return Binary(operator, substituted(left, by), substituted(right, by))
        case When(condition, then):
            return When(substituted(condition, by), substituted(then, by))
        case Scaled(operand, scale):
            return Scaled(substituted(operand, by), scale)
        case Not(operand) | Absolute(operand) | Present(operand):
            return type(expression)(substituted(operand, by))
    return expression
