"""What the demo says of a worker that ended by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from citystream.demo import Crew, _note, fit
from citystream.installation import Installation
from citystream.monitor import Snapshot
from citystream.settings import Settings
from citystream.stack.process import Process


def test_the_last_words_of_a_process_are_its_last_printed_line(tmp_path: Path) -> None:
    process = Process("sink", tmp_path)
    assert process.last_words() == ""
    process.log.parent.mkdir()
    process.log.write_text("sink works\nERROR the schema changed [/x]\n\n")
    assert process.last_words() == "ERROR the schema changed [/x]"


def test_what_was_started_again_is_shown_with_its_last_words() -> None:
    crew = Crew(Installation(Settings()), ended={"sink": ["first", "second"], "processor": [""]})
    note = _note(crew, 3.0, None, Snapshot(0, [], []))
    assert "sink ended 2 times by itself and was started again; it said: second" in note
    assert "processor ended 1 times by itself and was started again; it said: nothing" in note


def test_the_live_view_has_the_width_of_the_terminal_and_not_what_a_shell_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    console = Console()
    for columns in (160, 100):
        monkeypatch.setattr(os, "get_terminal_size", lambda columns=columns: os.terminal_size((columns, 40)))
        fit(console)
        assert console.width == columns


def test_a_log_is_bounded_while_its_process_writes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("citystream.stack.process.LOG_BYTES", 100)
    process = Process("sink", tmp_path)
    process.log.parent.mkdir()
    with process.log.open("a") as written:
        for line in range(1000):
            print(line, file=written, flush=True)
            process.bound_log()
            assert process.log.stat().st_size <= 100
    kept = (process.log.parent / "sink.previous.log").read_text() + process.log.read_text()
    assert kept.endswith("\n998\n999\n")
    assert len(kept) < 300
