"""The automata of one rule, one for each entity and level: compiled code that takes observations in their order.

An *instant* is all that happens to an entity at one event time: its observations, in the order of their offsets, and
then what falls due. A message says how an instant left the alert, so none is sent twice for one time.

Programs (``processors.programs``) are worked out here, too: numba keeps what it compiled until the file of a kernel
changes, and looks at no other file, so kernels call none of another module.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

#: Operations: three push a value by its column, one a constant; the others take their operands from the stack.
VALUE, TEXT, KEPT, CONSTANT = range(4)
ADD, SUBTRACT, MULTIPLY, DIVIDE, MIN, MAX = range(4, 10)
LESS, AT_MOST, MORE, AT_LEAST, EQUAL, AND, OR = range(10, 17)
NOT, ABSOLUTE, PRESENT, WHEN, SCALED, OTHERWISE = range(17, 23)
#: How deep a stack may get.
DEEPEST = 64

#: In the place of a time that never comes, and of one that never was.
NEVER, BEFORE_ALL = 2**63 - 1, -(2**62)
#: The last time (ms) that anything is due at: a double beyond is none.
LATEST = 9e15

#: Cells of an entity's integers: the level its last message spoke of or -1, the event times at which the alert began,
#: at which the last message was sent and at which it was last observed, the kind of the last message. Those of each
#: level follow.
SPOKEN, BEGAN, SENT, OBSERVED, KIND, _LEVELS = range(6)
#: Cells of a level's integers: whether it holds, since when; when the run began that would begin or end it, and of how
#: many observations it is; when it falls due. The last hits follow.
HOLDS, SINCE, RUN, HITS, DUE, _RING = range(6)
#: Columns of a rule's levels: kind, the three programs, what begins and what ends it (times, lasting, within or -1),
#: its first cell, how many hits it keeps.
KIND_OF, PROGRAMS, HELD, CLEAR, CELL, RING, LEVEL_COLUMNS = 0, 1, 7, 10, 13, 14, 15
TIMES, LASTING, WITHIN = range(3)
CONDITION, DEADLINE = range(2)
#: Columns of what is remembered: kind, the two programs, the span of a rate in ms.
PREVIOUS, RUNNING, RATE = range(3)
#: What a message does.
ALERT, UPDATE, CANCEL = range(3)
#: Columns of a message: the entity, what it does, when it is sent, the level, when the alert began, kind and time of
#: the message before (or -1), when the entity was observed last.
ENTITY, DOES, SENT_AT, LEVEL, ONSET, KIND_BEFORE, SENT_BEFORE, LAST, MESSAGE_COLUMNS = range(9)


def cells(levels: Any) -> int:
    """How many integers an entity has."""
    return _LEVELS + int(sum(_RING + level[RING] for level in levels))


def first_cell(levels: Any, number: int) -> int:
    """Where those of a level begin."""
    return _LEVELS + int(sum(_RING + level[RING] for level in levels[:number]))


@njit(nogil=True, cache=True)
def begin(integers: Any, numbers: Any, levels: Any, memories: Any) -> None:
    """Let an entity be as if it had never been observed."""
    integers[:] = 0
    numbers[:] = np.nan
    integers[SPOKEN] = -1
    integers[SENT] = integers[BEGAN] = integers[OBSERVED] = BEFORE_ALL
    integers[KIND] = -1
    for level in range(len(levels)):
        integers[levels[level, CELL] + DUE] = NEVER
    for memory in range(len(memories)):
        if memories[memory, 0] == RUNNING:
            numbers[2 * memory] = 0.0


@njit(nogil=True, cache=True)
def begin_all(integers: Any, numbers: Any, levels: Any, memories: Any) -> None:
    """The same for several entities."""
    for entity in range(len(integers)):
        begin(integers[entity], numbers[entity], levels, memories)


@njit(nogil=True, cache=True)
def due(integers: Any, count: int, levels: Any) -> Any:
    """When the next thing falls due of each entity."""
    found = np.full(count, NEVER, np.int64)
    for entity in range(count):
        for level in range(len(levels)):
            found[entity] = min(found[entity], integers[entity, levels[level, CELL] + DUE])
    return found


@njit(nogil=True, cache=True)
def is_idle(integers: Any, through: int, remembers: int, levels: Any) -> bool:
    """Whether an entity is forgotten: it has no alert, nothing is due of it, and it was not observed for long."""
    if integers[SPOKEN] >= 0 or integers[OBSERVED] > through - remembers:
        return False
    nothing_due = True
    for level in range(len(levels)):
        nothing_due = nothing_due and integers[levels[level, CELL] + DUE] == NEVER
    return nothing_due


@njit(nogil=True, cache=True)
def idle(integers: Any, count: int, through: int, remembers: int, levels: Any) -> Any:
    """Which entities are forgotten."""
    found = np.zeros(count, np.bool_)
    for entity in range(count):
        found[entity] = is_idle(integers[entity], through, remembers, levels)
    return found


@njit(nogil=True, cache=True)
def observe(state: Any, visited: Any, rows: Any, through: int, rule: Any, out: Any) -> int:
    """Take entities' rows and what falls due of them up to ``through``; gives how many messages there are.

    ``visited`` are the entities, and where the rows of each begin and end, by event time and offset; ``rows`` are
    times, values and texts. ``rule`` is its machine (``work_out``), levels, memories, what it shows and how long it
    remembers. Messages are written to the first of ``out``, and what they show to the second.
    """
    integers, numbers = state
    entities, begins, ends = visited
    machine, levels, memories, shows, remembers = rule
    said, shown = out
    times = rows[0]
    room = np.empty(len(memories), np.float64), np.empty(DEEPEST, np.float64)
    count, shows_from = 0, 2 * len(memories)
    for n in range(len(entities)):
        own, more = integers[entities[n]], numbers[entities[n]]
        row = begins[n]
        while True:
            now = NEVER
            for level in range(len(levels)):
                now = min(now, own[levels[level, CELL] + DUE])
            if row < ends[n]:
                now = min(now, times[row])
            if now > through:
                break
            while row < ends[n] and times[row] == now:
                if is_idle(own, now, remembers, levels):
                    begin(own, more, levels, memories)
                for memory in range(len(memories)):
                    _remember(memories[memory], more[2 * memory : 2 * memory + 2], memory, machine, rows, row, room)
                for level in range(len(levels)):
                    _step(levels[level], own[levels[level, CELL] :], machine, rows, row, room)
                for show in range(len(shows)):
                    more[shows_from + show] = work_out(machine, shows[show, 0], shows[show, 1], rows, row, room)
                own[OBSERVED] = now
                row += 1
            for level in range(len(levels)):
                _fall_due(levels[level], own[levels[level, CELL] :], now)
            if _speak(own, entities[n], now, levels, said[count]):
                shown[count] = more[shows_from:]
                count += 1
    return count


@njit(nogil=True, cache=True)
def _remember(memory: Any, cells: Any, place: int, machine: Any, rows: Any, row: int, room: Any) -> None:
    kept, now = room[0], rows[0][row]
    value = work_out(machine, memory[1], memory[2], rows, row, room)
    if memory[0] == PREVIOUS:
        kept[place] = cells[0]
        if not np.isnan(value):
            cells[0] = value
    elif memory[0] == RUNNING:
        if memory[4] > memory[3] and work_out(machine, memory[3], memory[4], rows, row, room) == 1.0:
            cells[0] = 0.0
        if not np.isnan(value):
            cells[0] += value
        kept[place] = cells[0]
    else:
        kept[place] = np.nan
        if not np.isnan(value):
            if now > cells[1]:
                kept[place] = (value - cells[0]) / (now - cells[1]) * memory[5]
            cells[0], cells[1] = value, now


@njit(nogil=True, cache=True)
def _step(level: Any, cells: Any, machine: Any, rows: Any, row: int, room: Any) -> None:
    """Let a level see a row."""
    now = rows[0][row]
    if level[KIND_OF] == DEADLINE:
        start, done = level[PROGRAMS + 2 : PROGRAMS + 4], level[PROGRAMS + 4 : PROGRAMS + 6]
        if done[0] == done[1] or work_out(machine, done[0], done[1], rows, row, room) == 1.0:
            cells[HOLDS], cells[DUE] = 0, NEVER
        if start[0] == start[1] or work_out(machine, start[0], start[1], rows, row, room) == 1.0:
            at = work_out(machine, level[PROGRAMS], level[PROGRAMS + 1], rows, row, room)
            cells[DUE] = max(now, np.int64(np.floor(at))) if abs(at) <= LATEST else NEVER
        return
    program = PROGRAMS + 2 if cells[HOLDS] == 1 else PROGRAMS
    held = level[CLEAR : CLEAR + 3] if cells[HOLDS] == 1 else level[HELD : HELD + 3]
    result = work_out(machine, level[program], level[program + 1], rows, row, room)
    if result == 1.0:
        _hit(cells, now, held[TIMES], held[LASTING], held[WITHIN])
    elif result == 0.0 and held[WITHIN] < 0:
        cells[HITS], cells[DUE] = 0, NEVER


@njit(nogil=True, cache=True)
def _hit(cells: Any, now: int, times: int, lasting: int, within: int) -> None:
    """Count an observation in for which the condition is true that would turn a level."""
    cells[HITS] += 1
    if within >= 0:
        for place in range(times - 1):
            cells[_RING + place] = cells[_RING + place + 1]
        cells[_RING + times - 1] = now
        cells[RUN] = cells[_RING]
        if cells[HITS] >= times and now - cells[RUN] <= within:
            _turn(cells)
        return
    if cells[HITS] == 1:
        cells[RUN] = now
        cells[DUE] = now + lasting if lasting > 0 else NEVER
    if cells[HITS] >= times and now - cells[RUN] >= lasting:
        _turn(cells)


@njit(nogil=True, cache=True)
def _turn(cells: Any) -> None:
    """Let a level hold that did not, since its run began, or not hold any more."""
    cells[HOLDS] = 1 - cells[HOLDS]
    cells[SINCE] = cells[RUN]
    cells[HITS], cells[DUE] = 0, NEVER


@njit(nogil=True, cache=True)
def _fall_due(level: Any, cells: Any, now: int) -> None:
    if cells[DUE] > now:
        return
    cells[DUE] = NEVER
    if level[KIND_OF] == DEADLINE:
        if cells[HOLDS] == 0:
            cells[HOLDS], cells[SINCE] = 1, now
    elif cells[HITS] >= level[(CLEAR if cells[HOLDS] == 1 else HELD) + TIMES]:
        _turn(cells)


@njit(nogil=True, cache=True)
def _speak(own: Any, entity: int, now: int, levels: Any, said: Any) -> bool:
    """Say how an instant left the alert, if it changed."""
    top, began = -1, NEVER
    for level in range(len(levels)):
        cell = levels[level, CELL]
        if own[cell + HOLDS] == 1:
            top, began = level, min(began, own[cell + SINCE])
    before = own[SPOKEN]
    if top == before:
        return False
    if before < 0:  # an alert began after the one before it had ended
        does, own[BEGAN] = ALERT, max(began, own[SENT])
    else:
        does = CANCEL if top < 0 else UPDATE
    said[ENTITY], said[DOES], said[SENT_AT] = entity, does, now
    said[LEVEL], said[ONSET] = before if top < 0 else top, own[BEGAN]
    said[KIND_BEFORE], said[SENT_BEFORE] = -1 if does == ALERT else own[KIND], own[SENT]
    said[LAST] = own[OBSERVED]
    own[SPOKEN], own[SENT], own[KIND] = top, now, does
    return True


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
        if operation <= CONSTANT:
            top += 1
            if operation == VALUE:
                stack[top] = values[row, argument]
            elif operation == TEXT:
                stack[top] = texts[row, argument] if texts[row, argument] >= 0 else np.nan
            elif operation == KEPT:
                stack[top] = kept[argument]
            else:
                stack[top] = constants[argument]
        elif operation == NOT:
            stack[top] = 1.0 - stack[top]
        elif operation == ABSOLUTE:
            stack[top] = abs(stack[top])
        elif operation == PRESENT:
            stack[top] = 0.0 if np.isnan(stack[top]) else 1.0
        elif operation == SCALED:
            scaled = np.floor(stack[top] * constants[argument] + 0.5)
            stack[top] = scaled if abs(scaled) <= 4503599627370496.0 else np.nan
        else:
            top -= 1
            if operation in (AND, OR, WHEN, OTHERWISE):
                stack[top] = _with_null(operation, stack[top], stack[top + 1])
            else:
                stack[top] = _of_numbers(operation, stack[top], stack[top + 1])
    return stack[0]


@njit(nogil=True, cache=True)
def _with_null(operation: int, left: float, right: float) -> float:
    """What says something of null: 1 and 0 decide, whatever the other is."""
    if operation == AND:
        return 0.0 if left == 0.0 or right == 0.0 else left + right - 1.0
    if operation == OR:
        return 1.0 if left == 1.0 or right == 1.0 else left + right
    if operation == OTHERWISE:
        return right if np.isnan(left) else left
    return right if left == 1.0 else np.nan


@njit(nogil=True, cache=True)
def _of_numbers(operation: int, left: float, right: float) -> Any:
    """Arithmetic, and what compares; what is beyond all doubles is not compared."""
    if operation == ADD:
        return left + right
    if operation == SUBTRACT:
        return left - right
    if operation == MULTIPLY:
        return left * right
    if operation == DIVIDE:
        return left / right if right != 0.0 else np.nan
    if not (np.isfinite(left) and np.isfinite(right)):
        return np.nan
    if operation == MIN:
        return min(left, right)
    if operation == MAX:
        return max(left, right)
    return _compared(operation, left, right)


@njit(nogil=True, cache=True)
def _compared(operation: int, left: float, right: float) -> Any:
    holds = left == right
    if operation == LESS:
        holds = left < right
    elif operation == AT_MOST:
        holds = left <= right
    elif operation == MORE:
        holds = left > right
    elif operation == AT_LEAST:
        holds = left >= right
    return 1.0 if holds else 0.0
