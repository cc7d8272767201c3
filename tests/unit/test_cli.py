"""The command line as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from rich.text import Text

import feeds
from citystream.cli import COMMANDS, _fail, build
from citystream.commands.output import as_text
from citystream.installation import Installation
from citystream.settings import Settings, SettingsError
from operations.printable import printable
from schemas.feed import DeclarationError

LIBRARIES = {
    "aiohttp",
    "clickhouse_driver",
    "faust",
    "kafka",
    "numba",
    "pandas",
    "polars",
    "pydantic",
    "rich.table",
    "starlette",
    "uvicorn",
}
SERVED = {"starlette", "uvicorn"}


@pytest.mark.parametrize(
    ("work", "takes"),
    [
        ("import citystream.cli", set()),
        ("from citystream.cli import build; build('process'); build('sink')", {"kafka", "polars", "pydantic"}),
        ("import processors.worker", LIBRARIES - SERVED - {"clickhouse_driver", "pandas", "rich.table"}),
        ("import sinks.worker", LIBRARIES - SERVED - {"pandas", "rich.table"}),
    ],
)
def test_a_command_loads_only_what_it_takes(work: str, takes: set[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"{work}; import sys; print(*sys.modules)"], check=True, capture_output=True, text=True
    )
    assert LIBRARIES & {*found.stdout.split()} == takes


@pytest.mark.parametrize(
    "module",
    [
        "alerts",
        "catalogue",
        "case",
        "dead_letters",
        "operate",
        "positions",
        "publications",
        "reference",
        "sql",
        "stack",
    ],
)
def test_a_command_that_reads_no_records_compiles_nothing(module: str) -> None:
    work = f"import citystream.commands.{module}, sys; print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", work], check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"


def test_each_command_is_found_in_the_module_said_to_have_it() -> None:
    assert {*typer.main.get_command(build()).commands} == {*COMMANDS}  # type: ignore[attr-defined]
    for name, module in COMMANDS.items():
        alone = {*typer.main.get_command(build(name)).commands}  # type: ignore[attr-defined]
        assert alone == {other for other in COMMANDS if COMMANDS[other] == module}


def test_dates_of_clickhouse_are_worked_out_when_they_are_needed() -> None:
    work = (
        "import sinks.worker; from clickhouse_driver.columns.datecolumn import DateColumn as D; print(len(D.date_lut))"
    )
    found = subprocess.run([sys.executable, "-c", work], check=True, capture_output=True, text=True)
    assert found.stdout == "0\n"


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x07", "\r", "\x9b1m", "\u202e", "\u200b", "\ud800", "[red]"])
def test_nothing_in_data_reaches_the_terminal_but_what_can_be_seen(hostile: str) -> None:
    cell = Text.from_markup(as_text(f"a{hostile}b")).plain
    assert cell.isprintable()
    assert cell == f"a{printable(hostile)}b"


def test_nor_by_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _fail("no column \x1b[2J\nsecond line", 2)
    assert capsys.readouterr().err == "citystream: no column \\x1b[2J\nsecond line\n"


def test_it_says_which_version_it_is() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "citystream.cli", "--version"], check=True, capture_output=True, text=True
    )
    assert found.stdout == f"citystream {version('citystream')}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are feeds, too."""
    monkeypatch.setattr(feeds, "__path__", [*feeds.__path__, str(tmp_path / "feeds")])
    department = tmp_path / "feeds" / "oddities"
    department.mkdir(parents=True)
    (department / "__init__.py").touch()
    feeds.declarations.cache_clear()
    yield department
    feeds.declarations.cache_clear()
    for module in ("feeds.odd", "feeds.oddities", "feeds.oddities.odd"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FEED = (\n", "feeds/oddities/odd.py, line 1: '(' was never closed"),
        ("\nFEED = Feed(name='odd')\n", "feeds/oddities/odd.py, line 2: NameError: name 'Feed' is not defined"),
        ("x = 1\n", "feeds/oddities/odd.py: has to declare FEED = Feed(name='odd', ...)"),
        (
            "from dataclasses import replace\n"
            "from feeds.traffic.traffic_flow import FEED as T\nFEED = replace(T, key='none')\n",
            "feeds/oddities/odd.py, line 3: ",
        ),
    ],
    ids=["syntax", "name", "none", "declaration"],
)
def test_a_wrong_feed_file_is_named_and_only_what_is_its_own_is_refused(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.py").write_text(text)
    city = Installation(Settings())
    assert "traffic_flow" in city.feeds
    assert "odd" not in city.feeds
    assert said in capsys.readouterr().err
    assert list(city.choose(["traffic_flow"])) == ["traffic_flow"]
    for refused in (lambda: city.choose(["odd"]), lambda: city.choose(None), lambda: city.prepare(print)):
        with pytest.raises(DeclarationError, match=re.escape(said)):
            refused()


def test_two_feeds_have_no_rule_of_one_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "odd.py").write_text(
        "from dataclasses import replace\nfrom feeds.police.police_incident import FEED as P\n"
        "FEED = replace(P, name='odd', aggregates=())\n"
    )
    assert "odd" not in Installation(Settings()).feeds
    said = "feeds/oddities/odd.py: police_incident.py has a rule overdue_dispatch, too, and alerts go by the names of"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("from schemas.rules import Held\nHeld(times=1.5)", "Held.times: it has to be a valid integer"),
        ("from schemas.rules import Held\nHeld(often=2)", "Held.often: Unexpected keyword argument"),
        ("from schemas.alerts import Severity\nSeverity.HIGH", "Severity has no HIGH; it has UNKNOWN, MINOR"),
        ("from pydantic import TypeAdapter\nTypeAdapter(int).validate_python('x')", "int: it has to be a valid"),
        ("from schemas.rules import *\nwhile_true(Column('x') > 1, until=5)", "Condition.ends: it has to be"),
        ("from schemas.rules import *\nrate(Column('x'), per=60)", "Rate.per: it has to be a valid timedelta"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_in_words(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.py").write_text(f"from schemas.expressions import Column\n{text}\n")
    assert "odd" not in Installation(Settings()).feeds
    assert said.removeprefix("") in capsys.readouterr().err


def test_a_feed_file_outside_of_a_departments_folder_is_told_where_it_belongs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "odd.py").write_text("FEED = 1\n")
    assert "traffic_flow" in Installation(Settings()).feeds
    said = "feeds/odd.py: belongs into the folder of its department: feeds/<department>/odd.py"
    assert said in capsys.readouterr().err


def test_another_time_zone_than_that_of_the_tables_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("streams.topics.wait_for_kafka", lambda *_: None)
    monkeypatch.setattr("sinks.migrate.made_for", lambda *_: "Asia/Shanghai")
    monkeypatch.setattr("sinks.migrate.migrate", lambda *_: done.append("migrated"))
    monkeypatch.setattr(Installation, "server", lambda *_: None)
    with pytest.raises(SettingsError, match="were made for Asia/Shanghai"):
        Installation(Settings(timezone="Europe/Berlin")).prepare(print)
    assert not done
