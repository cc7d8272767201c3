"""Expressions of rules as small programs for compiled code, which works them out for one observation at a time.

A number is a double, NaN stands for null, a condition is 1, 0 or NaN, and a text is the number it has in ``Texts``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit

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

#: Operations: three push a value by its column, one a constant; the others take their operands from the stack.
_VALUE, _TEXT, _KEPT, _CONSTANT = range(4)
_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE, _MIN, _MAX = range(4, 10)
_LESS, _AT_MOST, _MORE, _AT_LEAST, _EQUAL, _AND, _OR = range(10, 17)
_NOT, _ABSOLUTE, _PRESENT, _WHEN, _SCALED, _OTHERWISE = range(17, 23)
_BINARY = {
    "+": _ADD, "-": _SUBTRACT, "*": _MULTIPLY, "/": _DIVIDE, "min": _MIN, "max": _MAX, "<": _LESS, "<=": _AT_MOST,
    ">": _MORE, ">=": _AT_LEAST, "==": _EQUAL, "and": _AND, "or": _OR,
    "otherwise": _OTHERWISE,
}  # fmt: skip
#: How deep a stack may get.
DEEPEST = 64


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
                self.code.append((_KEPT, self.kept[name]))
            case Column(name) if name in self.texts:
                self.code.append((_TEXT, self.texts[name]))
            case LookedUp() if written(expression) in self.texts:
                self.code.append((_TEXT, self.texts[written(expression)]))
            case Column() | Component() | LookedUp():
                self.code.append((_VALUE, self.values[expression]))
            case Constant(value):
                self.code.append((_CONSTANT, self._constant(value)))
            case Binary(operator, left, right):
                self._compile_all(left, right)
                self.code.append((_BINARY[operator], 0))
            case Not(operand):
                self._compile_all(operand)
                self.code.append((_NOT, 0))
            case Absolute(operand):
                self._compile_all(operand)
                self.code.append((_ABSOLUTE, 0))
            case Present(operand):
                self._compile_all(operand)
                self.code.append((_PRESENT, 0))
            case When(condition, then):
                self._compile_all(condition, then)
                self.code.append((_WHEN, 0))
            case Scaled(operand, scale):
                self._compile_all(operand)
                self.code.append((_SCALED, self._constant(scale)))
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


@njit(nogil=True, cache=True)
def work_out(machine: Any, begin: int, end: int, rows: Any, row: int, room: Any) -> Any:
    """What a program comes to at a row.

    ``machine`` is all code and the constants, ``rows`` are times, values and texts, and ``room`` is what is kept and
    room for a stack.
    """
    code, constants = machine
    _, values, texts = rows
    kept, stack = room
    top = -1
    for at in range(begin, end):
        operation, argument = code[at, 0], code[at, 1]
        if operation <= _CONSTANT:
            top += 1
            if operation == _VALUE:
                stack[top] = values[row, argument]
            elif operation == _TEXT:
                stack[top] = texts[row, argument] if texts[row, argument] >= 0 else np.nan
            elif operation == _KEPT:
                stack[top] = kept[argument]
            else:
                stack[top] = constants[argument]
        elif operation == _NOT:
            stack[top] = 1.0 - stack[top]
        elif operation == _ABSOLUTE:
            stack[top] = abs(stack[top])
        elif operation == _PRESENT:
            stack[top] = 0.0 if np.isnan(stack[top]) else 1.0
        elif operation == _SCALED:
            scaled = np.floor(stack[top] * constants[argument] + 0.5)
            stack[top] = scaled if abs(scaled) <= 4503599627370496.0 else np.nan
        else:
            top -= 1
            if operation in (_AND, _OR, _WHEN, _OTHERWISE):
                stack[top] = _with_null(operation, stack[top], stack[top + 1])
            else:
                stack[top] = _of_numbers(operation, stack[top], stack[top + 1])
    return stack[0]


@njit(nogil=True, cache=True)
def _with_null(operation: int, left: float, right: float) -> float:
    """What says something of null: 1 and 0 decide, whatever the other is."""
    if operation == _AND:
        return 0.0 if left == 0.0 or right == 0.0 else left + right - 1.0
    if operation == _OR:
        return 1.0 if left == 1.0 or right == 1.0 else left + right
    if operation == _OTHERWISE:
        return right if np.isnan(left) else left
    return right if left == 1.0 else np.nan


@njit(nogil=True, cache=True)
def _of_numbers(operation: int, left: float, right: float) -> Any:
    """Arithmetic, and what compares; what is beyond all doubles is not compared."""
    if operation == _ADD:
        return left + right
    if operation == _SUBTRACT:
        return left - right
    if operation == _MULTIPLY:
        return left * right
    if operation == _DIVIDE:
        return left / right if right != 0.0 else np.nan
    if not (np.isfinite(left) and np.isfinite(right)):
        return np.nan
    if operation == _MIN:
        return min(left, right)
    if operation == _MAX:
        return max(left, right)
    return _compared(operation, left, right)


@njit(nogil=True, cache=True)
def _compared(operation: int, left: float, right: float) -> Any:
    holds = left == right
    if operation == _LESS:
        holds = left < right
    elif operation == _AT_MOST:
        holds = left <= right
    elif operation == _MORE:
        holds = left > right
    elif operation == _AT_LEAST:
        holds = left >= right
    return 1.0 if holds else 0.0
