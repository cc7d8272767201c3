"""The command line as a whole."""

import subprocess
import sys

import pytest
from rich.text import Text

from citystream.cli import _fail
from citystream.commands.output import as_text
from citystream.printable import printable


def test_a_command_loads_only_what_it_takes() -> None:
    loaded = "import sys, citystream.cli; print(*sorted({'aiohttp', 'faust', 'numba'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    assert found.stdout == "\n"


@pytest.mark.parametrize("hostile", ["\x1b[2J", "\x07", "\r", "\x9b1m", "\u202e", "\u200b", "\ud800", "[red]"])
def test_nothing_in_data_reaches_the_terminal_but_what_can_be_seen(hostile: str) -> None:
    cell = Text.from_markup(as_text(f"a{hostile}b")).plain
    assert cell.isprintable()
    assert cell == f"a{printable(hostile)}b"


def test_nor_by_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _fail("no column \x1b[2J\nsecond line", 2)
    assert capsys.readouterr().err == "citystream: no column \\x1b[2J\nsecond line\n"
