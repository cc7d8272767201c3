"""What the documentation says exists, and what exists is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import typer
from clickhouse_driver.errors import NetworkError as ClickHouseNetworkError
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.producer.future import RecordMetadata
from tenacity import wait_none

from citystream.cli import build
from citystream.installation import Installation
from citystream.settings import PREFIX, PROJECT, Settings, variable
from docs import generate, language
from feeds.parking import parking_site
from operations.publishing.file import publish_file
from operations.publishing.mapping import make_mapping
from schemas import expressions, measures, rules
from schemas import feed as of_feeds
from schemas.alerts import Category, Severity
from schemas.catalogue import TICK, Catalogue, check, freeze
from schemas.feed import DeclarationError, Feed
from schemas.fields import Record
from schemas.record_codec import decode
from simulation import simulator
from simulation.world import World
from sinks.clickhouse import patiently
from sinks.clickhouse import waiting as waiting_for_clickhouse
from sinks.questions import question_columns
from sinks.references import view_columns as reference_view_columns
from sinks.views import aggregate_view_columns, conflict_view_columns, span_columns, view_columns
from streams import publications, waiting
from streams.cluster import Cluster
from streams.publisher import Publisher
from streams.waiting import KAFKA_ANSWERS, Waiting, until_kafka_answers
from tests.city import feed_in

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("examples/**/*.md")])
TEXTS = {page.relative_to(PROJECT).as_posix(): page.read_text() for page in PAGES}
ALL = "\n".join(TEXTS.values())
TOP = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")}
#: Made by commands, or by the reader of docs/join.md.
MADE = ("bench/out/", ".citystream/", "feeds/bikes/")

LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FUNCTION = re.compile(r"^(?:async )?def (\w+)", re.MULTILINE)
TEST = re.compile(r"(tests/\w+/\w+\.py)::(\w+)")

each_page = pytest.mark.parametrize("page", TEXTS)


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page that are marked with this language."""
    return [body for marked, body in BLOCK.findall(TEXTS[page]) if marked == language]


def code(text: str) -> Iterator[str]:
    """The lines of code blocks, and code within sentences."""
    for _, body in BLOCK.findall(text):
        yield from body.splitlines()
    yield from CODE.findall(BLOCK.sub("", text))


def commands() -> dict[str, set[str]]:
    """Every command and its options; a command in a group as "group command"."""
    found: dict[str, set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        inner = getattr(command, "commands", None)
        if inner is not None:
            for name, one in inner.items():
                walk(one, (*path, name))
        else:
            found[" ".join(path)] = {option for parameter in command.params for option in parameter.opts} | {"--help"}

    walk(typer.main.get_command(build()), ())
    return found


COMMANDS = commands()
GROUPS = {command.partition(" ")[0] for command in COMMANDS if " " in command}


def uses(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands a text names, with the words behind them."""
    for line in code(text):
        for part in re.findall(r"(?:^|[\s/])citystream ([a-z][^#|]*)", line.removeprefix("$ ")):
            words = shlex.split(part.replace("'", ""))
            name = " ".join(words[: 2 if words[0] in GROUPS else 1])
            yield name, words


@each_page
def test_every_command_and_option_named_exists(page: str) -> None:
    for name, words in uses(TEXTS[page]):
        assert name in COMMANDS, f"{page} names the command: citystream {name}"
        options = {word for word in words if re.fullmatch("--?[a-z-]+", word)}
        assert options <= COMMANDS[name], f"{page}: citystream {name} has no {options - COMMANDS[name]}"


def test_every_command_is_documented() -> None:
    named = {name for text in TEXTS.values() for name, _ in uses(text)}
    assert set(COMMANDS) <= named


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = {match for line in code(ALL) for match in re.findall(r"^make ([a-z]+)", line)}
    assert named <= targets
    assert {"demo", "test", "bench", "setup"} <= named


def test_every_setting_is_documented_and_every_setting_named_exists() -> None:
    known = {variable(name) for name in Settings.model_fields}
    named = set(re.findall(rf"{PREFIX}[A-Z_]+", ALL))
    assert named == known


@pytest.mark.parametrize("page", generate.PARTS)
def test_what_is_made_from_the_code_is_current(page: str) -> None:
    assert TEXTS[page] == generate.filled(page), "run: python -m docs.generate"


def test_imports_go_in_no_circle() -> None:
    _, edges = generate.imports()
    left = set(edges)
    while ends := {a for a, _ in left} - {b for _, b in left}:
        left = {(a, b) for a, b in left if a not in ends}
    assert not left


@each_page
def test_every_link_leads_somewhere(page: str) -> None:
    for link in LINK.findall(TEXTS[page]):
        if not link.startswith("http"):
            file, _, heading = link.partition("#")
            target = (PROJECT / page).parent / file if file else PROJECT / page
            assert target.exists(), f"{page} links to {link}"
            if heading:
                assert heading in {anchor(title) for title in titles(target)}, f"{page} links to {link}"


def titles(page: Path) -> list[str]:
    """The headings of a page."""
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def anchor(title: str) -> str:
    """The fragment that leads to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@each_page
def test_every_file_named_exists(page: str) -> None:
    for word in CODE.findall(BLOCK.sub("", TEXTS[page])):
        path = word.partition("::")[0]
        if re.fullmatch(r"[\w./-]+", path) and ("/" in path and path.split("/")[0] in TOP) and path not in MADE:
            assert (PROJECT / path).exists() or path.startswith(MADE), f"{page} names {word}"


def test_every_test_named_exists() -> None:
    named = set(TEST.findall(ALL))
    files = {file: (PROJECT / file).read_text() for file, _ in named}
    functions = {(file, name) for file, text in files.items() for name in FUNCTION.findall(text)}
    assert named - functions == set()


def texts() -> Iterator[str]:
    """Every text in the code, with "…" where something is filled in."""
    for folder in ("citystream", "operations", "streams", "processors", "sinks", "schemas"):
        for path in (PROJECT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text())
            within = {id(part) for one in ast.walk(tree) if isinstance(one, ast.JoinedStr) for part in one.values}
            for node in ast.walk(tree):
                parts = node.values if isinstance(node, ast.JoinedStr) else [node] if id(node) not in within else []
                words = [one.value if isinstance(one, ast.Constant) else "…" for one in parts]
                if all(isinstance(one, str) for one in words):
                    yield re.sub("%[sdr]", "…", "".join(map(str, words)))


def waits() -> Iterator[str]:
    """What is said of servers that are away."""
    said: list[str] = []
    clickhouse = create_autospec(lambda: None, side_effect=[ClickHouseNetworkError("…"), None])
    kafka = create_autospec(lambda: None, side_effect=[KafkaError("…"), None])
    patiently(clickhouse, waiting_for_clickhouse(said.append))
    until_kafka_answers(Cluster(("…",)), kafka, Waiting(KAFKA_ANSWERS, said.append))
    for text in said:
        yield re.sub(r"(again in) \d+ s", r"\1 …", text)


QUOTED = re.compile(r"^\| (?:message|problem) \|.*\n\| ---.*\n((?:\|.*\n)+)", re.MULTILINE)


def test_every_message_quoted_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, with "…" where something is filled in."""
    monkeypatch.setattr(waiting, "wait_exponential", lambda **_: wait_none())
    operator = TEXTS["docs/operator.md"]
    tables = QUOTED.findall(operator)
    assert len(tables) == 4
    quoted = {message for row in "".join(tables).splitlines() for message in CODE.findall(row.split("|")[1])}
    quoted |= {message for message in CODE.findall(BLOCK.sub("", operator)) if "…" in message}
    quoted |= {"Kafka answers again", "ClickHouse takes data again", "No other topic waits for it", "goes on"}
    known = [*texts(), *waits()]
    for message in quoted:
        pattern = re.compile(".+".join(map(re.escape, message.split("…"))))
        assert any(pattern.search(text) for text in known), f"no such message: {message}"


SQL = blocks("docs/analyst.md", "sql")


@cache
def columns() -> dict[str, set[str]]:
    """The columns of every view."""
    city = Installation(Settings())
    zone, found = city.settings.timezone, {}
    for feed in city.feeds.values():
        found[feed.name] = {column.name for column in view_columns(feed, zone)}
        found[f"{feed.name}_conflicts"] = {column.name for column in conflict_view_columns(feed, zone)}
        if feed.latest is not None:
            found[f"{feed.name}_now"] = found[feed.name]
            found[f"{feed.name}_at"] = {*found[feed.name], "t"}
            if feed.latest_active is not None:
                found[f"{feed.name}_active"] = found[feed.name]
        if feed.spans is not None:
            named = {column.name for column in span_columns(feed, feed.spans, zone)}
            found[f"{feed.name}_spans"] = {*named, "since", "until"}
        for aggregate in feed.aggregates:
            for one in (None, *aggregate.rollups):
                columns = aggregate_view_columns(feed, aggregate, zone, one)
                found[(one or aggregate).name] = {column.name for column in columns}
    for table in city.references.values():
        found[table.name] = {column.name for column in reference_view_columns(table, zone)}
        found[f"{table.name}_at"] = {*found[table.name], "t"}
    for question in city.questions.values():
        found[question.name] = {column.name for column in question_columns(question, zone)} | {*question.parameters}
    return found


@pytest.mark.parametrize("query", SQL, ids=lambda query: re.sub(r"\W+", " ", query)[:40])
def test_queries_name_views_and_columns_there_are(query: str) -> None:
    plain = re.sub(r"'[^']*'", "", query)
    views = re.findall(r"city\.(\w+)", plain)
    assert views
    aliases = set(re.findall(r"AS (\w+)", plain))
    words = set(re.findall(r"(?<![\w.])([a-z]\w*)\b(?!\(|\.)", plain))
    assert words - aliases <= {name for view in views for name in columns()[view]}


def test_there_are_queries() -> None:
    assert len(SQL) >= 5


# docs/join.md, done as it says


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Feed]:
    """The feed the page declares."""
    (source,) = blocks("docs/join.md", "python")
    folder = tmp_path_factory.mktemp("joined")
    (folder / "bike_station.py").write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        feed = importlib.import_module("bike_station").FEED
        assert isinstance(feed, Feed)
        yield feed


@pytest.fixture(scope="module")
def frozen(joined: Feed, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Its frozen schemas."""
    folder = tmp_path_factory.mktemp("frozen")
    freeze({joined.name: joined}, folder)
    return Catalogue.load(folder)


def test_the_feed_of_the_page_is_named_as_its_file_and_is_new(joined: Feed) -> None:
    assert f"feeds/bikes/{joined.name}.py" in TEXTS["docs/join.md"]
    assert not [*PROJECT.glob(f"feeds/*/{joined.name}.py")]


def test_its_schemas_can_be_frozen(joined: Feed, frozen: Catalogue) -> None:
    assert check(frozen, {joined.name: joined}) == []
    named = set(re.findall(r"^(\w+): version 1 is frozen as id \d+$", TEXTS["docs/join.md"], re.MULTILINE))
    assert named | {TICK} == {schema.subject for schema in frozen.by_id.values()}


def test_it_can_be_simulated_without_a_word_more(joined: Feed) -> None:
    start = datetime(2026, 3, 2, tzinfo=UTC)
    records: list[Record] = list(islice(simulator(joined)(World(start, 1)), 100))
    times = [getattr(record, joined.event_time) for record in records]
    assert times == sorted(times)
    assert times[0] >= start


class Memory:
    """A producer that takes everything and remembers it."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def send(self, topic: str, key: bytes, value: bytes) -> Memory:
        if topic != publications.TOPIC:
            self.values.append(value)
        self._place = RecordMetadata(topic, 0, TopicPartition(topic, 0), len(self.values) - 1, 0, -1, 0, 0, -1)
        return self

    def add_callback(self, call: object, *args: object) -> None:
        assert callable(call)
        call(*args, self._place)

    def add_errback(self, _call: object, *args: object) -> None:
        """Nothing fails."""

    def flush(self) -> None:
        """Nothing waits."""


def test_its_file_is_reported_on_as_the_page_says(
    joined: Feed, frozen: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (content,), (mapping,), (report,) = (blocks("docs/join.md", kind) for kind in ("csv", "toml", "report"))
    Path("bikes.csv").write_text(content)
    said, memory, now_ms = make_mapping(tomllib.loads(mapping)), Memory(), 1_800_000_000_000
    publisher = Publisher(memory, joined, frozen.latest(joined.name), b"k" * 32)
    with Path("bikes.csv").open("rb") as opened, publisher:
        found = publish_file(joined, opened, "bikes.csv", said, publisher, b"k" * 32, None, now_ms=now_ms)
    assert found.text() == report.strip()
    sent = [decode(frozen, value) for value in memory.values]
    assert len({record["event_id"] for record in sent}) == len(sent) - 1
    assert all(re.fullmatch("[0-9a-f]{32}", record["counted_by"]) for record in sent)


def test_the_broker_of_a_small_machine_is_set_as_the_page_says() -> None:
    page = TEXTS["docs/operator.md"].partition("## A small machine")[2].partition("\n## ")[0]
    said = dict(re.findall(r"^\| `(num\.[a-z.]+)` \| (\d+) \|", page, re.MULTILINE))
    source = (PROJECT / "citystream" / "stack" / "kafka.py").read_text()
    assert said.keys() == {"num.network.threads", "num.io.threads"}
    assert all(f'"{name}": {value},' in source for name, value in said.items())
    (heap,) = re.findall(r"^\| heap \| `(\S+) (\S+)` \|", page, re.MULTILINE)
    assert '"{}", "{}", "kafka.Kafka"'.format(*heap) in source
    assert f"KAFKA_HEAP_OPTS: {' '.join(heap)}" in (PROJECT / "docker-compose.yml").read_text()


def test_every_word_of_the_language_is_described_with_an_example() -> None:
    described = {*language.NUMBERS, *language.CONDITIONS, *language.MEASURES}
    said = {
        *(one for one in vars(expressions.Expression).values() if callable(one)),
        *(one for one in vars(expressions).values() if getattr(one, "__module__", "") == expressions.__name__),
        *(one for one in vars(measures).values() if getattr(one, "__module__", "") == measures.__name__),
    }
    assert described == {expressions.Column.component, *(one for one in said if ">>> " in (one.__doc__ or ""))}
    public = [one for one in vars(measures).values() if inspect.isfunction(one) and one.__module__ == measures.__name__]
    assert sorted(one.__name__ for one in public) == sorted(one.__name__ for one in language.MEASURES)
    of_rules = {vars(rules)[name] for name in rules.__all__} - {rules.Condition, rules.Memory}
    assert {*language.WATCHED} == of_rules
    own = [one for one in vars(of_feeds).values() if getattr(one, "__module__", "") == of_feeds.__name__]
    shown = {f"### `{one.__name__}`" for one in own if ">>> " in (one.__doc__ or "")}
    assert shown <= {*TEXTS["docs/language.md"].splitlines()}


def test_a_rule_names_every_category_and_severity_there_is() -> None:
    for one in (*Category, *Severity):
        assert (re.search(rf"\b{one.name}\b", rules.Rule.__doc__ or "") is None) == (one.value == "unknown"), one


def test_the_rule_of_your_own_is_declared_and_refused_as_the_page_says(tmp_path: Path) -> None:
    words, rule = blocks("docs/language.md", "python")[-2:]
    source = inspect.getsource(parking_site).replace("FEED = ", f"{rule}\nFEED = ", 1)
    source = source.replace("alerts=(", "alerts=(FEW_SPOTS,", 1)
    source = source.replace("from schemas.rules import", f"{words}from schemas.rules import", 1)
    (tmp_path / "own.py").write_text(source)
    declared = [one.name for one in feed_in(tmp_path / "own.py", "own").alerts]
    assert declared == ["few_spots", *(one.name for one in parking_site.FEED.alerts)]
    (tmp_path / "wrong.py").write_text(
        source.replace('below(Column("available_spot_number"', 'below(Column("free_spots"', 1)
    )
    with pytest.raises(DeclarationError, match=re.escape(blocks("docs/language.md", "text")[-1].strip())):
        feed_in(tmp_path / "wrong.py", "wrong")
