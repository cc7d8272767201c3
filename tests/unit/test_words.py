"""One word for one thing in what all commands print and take."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer

from citystream.cli import build
from citystream.settings import PROJECT
from citystream.stack.stack import ProcessStatus
from operations.publishing.report import Report
from sinks.ledger import Account

#: What the words of the glossary must not be called beside.
OTHERS = {
    "feed": {"feed_name", "stream"}, "topic": {"topic_name"}, "partition": {"source_partition"},
    "offset": {"source_offset"}, "worker": {"group", "consumer", "consumer_group"},
    "committed": {"processed", "position", "current_offset"}, "lag": {"behind", "to_store", "waiting"},
    "published_at": {"sent_at", "arrived_at"}, "publisher": {"by", "user"}, "digest": {"SHA-256", "sha256", "hash"},
    "cause": {"error"}, "problem": {"message"}, "log_end": {"end", "high_watermark"},
}  # fmt: skip


def printed() -> Iterator[tuple[str, str]]:
    """Each command's module, or what it prints as it is, and the keys of its JSON, which are its columns."""
    for path in sorted((PROJECT / "citystream" / "commands").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for key in node.keys if isinstance(node, ast.Dict) else ():
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield path.stem, key.value
    for kind, command in ((Account, "operate"), (Report, "publish"), (ProcessStatus, "stack")):
        yield from ((command, field.name) for field in dataclasses.fields(kind))


def taken(command: Any = None) -> Iterator[tuple[str, bool]]:
    """The names of all arguments and options, and whether it is an option."""
    command = command or typer.main.get_command(build())
    for one in getattr(command, "commands", {}).values():
        yield from taken(one)
    for parameter in command.params:
        option = parameter.param_type_name == "option"
        yield parameter.opts[-1].lstrip("-") if option else parameter.name, option


def glossary() -> set[str]:
    text = (PROJECT / "docs" / "operator.md").read_text()
    table = text.partition("## Words\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(\w+)`", table))


def test_what_several_commands_print_is_a_word_of_the_glossary() -> None:
    commands = Counter(key for _, key in set(printed()))
    assert len(commands) > 60
    assert {key for key, number in commands.items() if number > 1} <= glossary()


def test_nothing_of_the_glossary_has_another_name() -> None:
    assert OTHERS.keys() - {"log_end"} <= glossary()
    used = {key for _, key in printed()} | {name for name, _ in taken()} - {"user"}
    assert {word: found for word, others in OTHERS.items() if (found := others & used)} == {}


def test_feeds_and_topics_are_named_behind_the_command() -> None:
    assert {name for name, option in taken() if not option} >= {"feed", "feeds", "topic", "topics"}
    assert not {name for name, option in taken() if option} & {"feed", "feeds", "topic", "topics"}
