"""What the city publishes: a folder a department, a file a feed or a table of reference data, one with its questions.

``load``, ``references`` and ``questions`` find them; no name appears anywhere else. ``declared_in`` reads a file that
is none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import EnumType
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from schemas.feed import DeclarationError, Feed
from schemas.question import Question
from schemas.reference import Reference

#: How the file of a table's rows may end, in the folder ``reference`` of its department.
ROWS = (".csv", ".jsonl", ".geojson")
#: The file of a department's questions.
ASKED = "questions"

Declared = Feed | Reference | Question


def load() -> dict[str, Feed]:
    """Every declared feed by name.

    Raises
    ------
    DeclarationError
        A file is wrong.
    """
    found, wrong = look()
    for problem in wrong.values():
        raise problem
    return found


def look() -> tuple[dict[str, Feed], dict[str, DeclarationError]]:
    """Every declared feed by name, and what is wrong with the files that declare nothing."""
    found, wrong = declarations()
    return {name: one for name, one in found.items() if isinstance(one, Feed)}, wrong


def references() -> dict[str, Reference]:
    """Every declared table of reference data by name."""
    return {name: one for name, one in declarations()[0].items() if isinstance(one, Reference)}


def questions() -> dict[str, Question]:
    """Every question that a department asks, by its name.

    Raises
    ------
    DeclarationError
        One has the name of another view.
    """
    found = {name: one for name, one in declarations()[0].items() if isinstance(one, Question)}
    taken = {view for one in declarations()[0].values() if not isinstance(one, Question) for view in one.views}
    for name in sorted(found.keys() & taken):
        raise DeclarationError(f"question {name}: it has the name of another view of city")
    return found


def rows_of(reference: Reference) -> Path | None:
    """The file of a table's rows in the folder of its department, if there is one."""
    for folder in __path__:
        for ending in ROWS:
            for file in Path(folder).glob(f"*/reference/{reference.name}{ending}"):
                return file
    return None


@cache
def declarations() -> tuple[dict[str, Declared], dict[str, DeclarationError]]:
    """Everything declared by its name, and what is wrong with the files of the others by theirs."""
    found: dict[str, Declared] = {}
    wrong: dict[str, DeclarationError] = {}
    for module in pkgutil.walk_packages(__path__, "feeds."):
        if not module.ispkg:
            name = module.name.rpartition(".")[2]
            try:
                declared = _declared(module.name, name)
                for reason in _twice(declared, found):
                    raise DeclarationError(reason)  # noqa: TRY301
                found |= declared
            except Exception as error:  # noqa: BLE001  whatever a file raises is a mistake in that file
                wrong[name] = _problem(f"{module.name.replace('.', '/')}.py", error)
    return found, wrong


def _twice(declared: Mapping[str, Declared], found: Mapping[str, Declared]) -> Iterator[str]:
    """What some declarations have in common with those found before that has to be one's own."""
    yield from (f"{name} is declared twice" for name in declared.keys() & found.keys())
    whose = {name: feed for feed in found.values() for name in _rules(feed)}
    for name in (name for one in declared.values() for name in _rules(one) if name in whose):
        yield f"{whose[name].name}.py has a rule {name}, too, and alerts go by the names of rules: rename one of them"


def _rules(declared: Declared) -> list[str]:
    return [rule.name for _, rule in declared.watched] if isinstance(declared, Feed) else []


def declared_in(path: Path) -> Feed:
    """The feed that a file declares, wherever it lies; nothing else changes by it.

    Raises
    ------
    DeclarationError
        It declares none.
    """
    try:
        return _feed_of(path)
    except Exception as error:  # noqa: BLE001  as in ``declarations``
        raise _problem(path.name, error) from None


def _feed_of(path: Path) -> Feed:
    spec = importlib.util.spec_from_file_location(f"tried_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DeclarationError("is no file of Python")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where pydantic looks annotations up
    spec.loader.exec_module(module)
    feed = getattr(module, "FEED", None)
    if not isinstance(feed, Feed):
        raise DeclarationError(f"has to declare FEED = Feed(name='{path.stem}', ...)")
    return feed


def _declared(module: str, name: str) -> Mapping[str, Declared]:
    if module.count(".") != 2:
        raise DeclarationError(f"belongs into the folder of its department: feeds/<department>/{name}.py")
    file = importlib.import_module(module)
    if name == ASKED:
        return _asked(getattr(file, "QUESTIONS", ()))
    declared = getattr(file, "FEED", None) or getattr(file, "REFERENCE", None)
    if not isinstance(declared, Feed | Reference) or declared.name != name:
        raise DeclarationError(f"has to declare FEED = Feed(name='{name}', ...), or REFERENCE = Reference(...)")
    return {name: declared}


def _asked(asked: Sequence[Question]) -> Mapping[str, Question]:
    found = {one.name: one for one in asked if isinstance(one, Question)}
    if not found or len(found) < len(asked):
        raise DeclarationError("has to declare QUESTIONS = (Question(...), ...), each with a name of its own")
    return found


def _problem(file: str, error: Exception) -> DeclarationError:
    """Where a file is wrong, and what is."""
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    else:
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename.endswith(f"/{file}")]
        line = lines[-1] if lines else None
        what = str(error) if isinstance(error, DeclarationError) else _said(error)
    return DeclarationError(f"{file}{f', line {line}' if line else ''}: {what}")


def _said(error: Exception) -> str:
    """What Python, or pydantic of the parts of a declaration, says is wrong."""
    if isinstance(error, AttributeError) and isinstance(error.obj, EnumType):
        return f"{error.obj.__name__} has no {error.name}; it has {', '.join(error.obj.__members__)}"
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    said = defaultdict[str, list[str]](list)
    for one in error.errors():
        said[".".join([error.title, *map(str, one["loc"][:1])])].append(one["msg"].removeprefix("Value error, "))
    return (
        "; ".join(f"{part}: {' or '.join(dict.fromkeys(reasons))}" for part, reasons in said.items())
        .replace("Input should be a valid tuple", "it has to be a tuple, with a comma even behind a single one")
        .replace(" or Input should be", " or")
        .replace("Input should be", "it has to be")
    )
