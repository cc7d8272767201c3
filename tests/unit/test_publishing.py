"""A file on its way to the publisher: read, checked, sorted, sent, reported; with a producer that only remembers."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.producer.future import RecordMetadata

import feeds
from citystream.commands.publish import _told_to_end
from citystream.stack.process import StackError
from operations.publishing.file import publish_file
from operations.publishing.mapping import FileMapping
from operations.publishing.report import Report, rejects_path
from operations.publishing.rows import LONGEST_BYTES, READ_BYTES, FileProblem, Row, Rows
from schemas.catalogue import Catalogue
from schemas.record_codec import decode
from streams import publications
from streams.publications import Publication
from streams.publisher import Publisher

PARKING = feeds.load()["parking_site"]
CATALOGUE = Catalogue.load()
HEADER = "site_id,total_spot_number,occupied_spot_number,observed_at\n"


class Acknowledged:
    """The future of a record, decided at once."""

    def __init__(self, result: RecordMetadata | Exception) -> None:
        self._result = result

    def add_callback(self, call: Callable[..., None], *args: Any) -> None:
        if not isinstance(self._result, Exception):
            call(*args, self._result)

    def add_errback(self, call: Callable[..., None], *args: Any) -> None:
        if isinstance(self._result, Exception):
            call(*args, self._result)


def at(topic: str, offset: int) -> RecordMetadata:
    """Where a record is that is acknowledged."""
    return RecordMetadata(topic, 0, TopicPartition(topic, 0), offset, 0, -1, 0, 0, -1)


class Memory:
    """A producer that remembers records, and fails from the ``limit``-th on."""

    def __init__(self, limit: int | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.noted: dict[str, Publication] = {}
        self.attempts = 0
        self._limit = limit

    def send(self, topic: str, key: bytes, value: bytes) -> Acknowledged:
        if topic == publications.TOPIC:
            publications.take(self.noted, value, 0)
            return Acknowledged(at(topic, 0))
        self.attempts += 1
        if self._limit is not None and len(self.records) >= self._limit:
            return Acknowledged(KafkaTimeoutError("no broker"))
        self.records.append(decode(CATALOGUE, value))
        assert key == self.records[-1]["site_id"].encode()
        return Acknowledged(at(topic, len(self.records) - 1))

    def flush(self) -> None:
        pass


def opened(content: bytes) -> io.BufferedReader:
    """A file with this content."""
    return io.BufferedReader(io.BytesIO(content))


def publish(
    content: str | bytes,
    folder: Path,
    memory: Memory | None = None,
    name: str = "a.csv",
    mapping: FileMapping | None = None,
) -> Report:
    """Publish a file of parking reports."""
    publisher = Publisher(memory or Memory(), PARKING, CATALOGUE.latest(PARKING.name), None)
    raw = content.encode() if isinstance(content, str) else content
    rejects = folder / rejects_path(name, PARKING.name, ".csv")
    now_ms = 1_800_000_000_000
    return publish_file(PARKING, opened(raw), name, mapping or FileMapping(), publisher, b"", rejects, now_ms=now_ms)


def line(minute: int, occupied: int = 5, site: str = "a") -> str:
    """A valid report."""
    return f"{site},10,{occupied},2026-03-01T08:{minute:02}:00Z\n"


def rows(content: str | bytes, columns: list[str] | None = None) -> list[Row]:
    """The rows of a file."""
    return list(Rows(opened(content.encode() if isinstance(content, str) else content), "a.csv", columns))


def test_records_are_sent_by_event_time_and_those_of_one_time_in_the_order_of_their_lines(tmp_path: Path) -> None:
    memory = Memory()
    reports = [(59 - n % 60, n) for n in range(600)]
    report = publish(HEADER + "".join(line(minute, n) for minute, n in reports), tmp_path, memory)
    sent = [(record["observed_at"].minute, record["occupied_spot_number"]) for record in memory.records]
    assert sent == sorted(reports)
    assert (report.read, report.accepted, report.rejected, report.acknowledged, report.failed) == (600, 600, 0, 600, 0)
    assert list(tmp_path.iterdir()) == []


def test_equal_lines_are_the_same_event_and_a_second_time_too(tmp_path: Path) -> None:
    memory = Memory()
    for _ in range(2):
        publish(HEADER + line(1) + line(1) + line(1, 6), tmp_path, memory)
    assert Counter(record["event_id"] for record in memory.records).most_common()[0][1] == 4
    assert len({record["event_id"] for record in memory.records}) == 2


def test_rejected_lines_are_written_unchanged_with_reasons_and_can_be_corrected_and_published(tmp_path: Path) -> None:
    bad = ["a, 10 ,-1,2026-03-01T08:00:00Z\r\n", '"b\nc",10,x,2026-03-01T08:00:00Z\n', "d,10\n", line(2, -4)[:-1]]
    report = publish(HEADER + line(1) + bad[0] + bad[1] + line(2) + bad[2] + bad[3], tmp_path)
    assert (report.accepted, report.rejected) == (2, 4)
    assert report.rejects_file is not None
    assert report.reasons_file is not None
    rejects = Path(report.rejects_file)
    assert rejects.name == "a.rejects.csv"
    assert rejects.read_bytes().decode() == HEADER + "".join(bad) + "\n"
    reasons = list(csv.reader(Path(report.reasons_file).read_text().splitlines()))
    assert reasons == [
        ["line", "line_in_original_file", "reason"],
        ["2", "3", "occupied_spot_number: -1 is below 0"],
        ["3", "4", "occupied_spot_number: x is no whole number"],
        ["5", "7", "4 columns are expected (there are 2)"],
        ["6", "8", "occupied_spot_number: -4 is below 0"],
    ]
    assert [(one.line, one.reason) for one in report.first_rejections] == [(int(r[1]), r[2]) for r in reasons[1:]]
    assert all(text in report.text() for text in ("line 3: occupied", "a.rejects.csv", "a.rejects.reasons.csv"))
    corrected = rejects.read_text().replace("-1", "1").replace(",x,", ",2,").replace("d,10\n", "").replace("-4", "4")
    again = publish(corrected, tmp_path, name=rejects.name)
    assert (again.accepted, again.rejected) == (3, 0)


def test_rejects_of_an_earlier_run_are_never_overwritten(tmp_path: Path) -> None:
    first = publish(HEADER + line(1, -1), tmp_path)
    same = publish(HEADER + line(1, -1), tmp_path)
    other = publish(HEADER + line(1, -2), tmp_path)
    assert first.rejects_file == same.rejects_file != other.rejects_file
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.rejects.2.csv",
        "a.rejects.2.reasons.csv",
        "a.rejects.csv",
        "a.rejects.reasons.csv",
    ]


def test_other_reasons_for_the_same_lines_are_kept_beside_those_of_the_first_run(tmp_path: Path) -> None:
    first = publish(HEADER + line(1) + line(1, -1), tmp_path)
    again = publish(HEADER + line(1, -1), tmp_path)
    assert first.reasons_file is not None
    assert again.reasons_file is not None
    assert [Path(file).read_text().splitlines()[1] for file in (first.reasons_file, again.reasons_file)] == [
        "2,3,occupied_spot_number: -1 is below 0",
        "2,2,occupied_spot_number: -1 is below 0",
    ]


def test_a_link_of_the_name_of_a_file_to_be_written_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    for name in ("a.rejects.csv", "a.rejects.csv.part", "a.rejects.csv.reasons.part", "a.rejects.reasons.csv"):
        (tmp_path / name).symlink_to(precious)
    report = publish(HEADER + line(1, -1), tmp_path)
    assert report.rejects_file is not None
    assert "-1" in Path(report.rejects_file).read_text()
    assert precious.read_text() == "kept"


def test_rejections_are_counted_by_reason_and_a_line_under_each_it_has(tmp_path: Path) -> None:
    two = "a,many,few,2026-03-01T08:00:00Z\n"
    report = publish(HEADER + line(1, -1) + line(2, -7) + two + "b,10,x,yesterday\n" + "c\n", tmp_path)
    assert report.reasons == {
        "occupied_spot_number: is below 0": 2,
        "occupied_spot_number: is no whole number": 2,
        "total_spot_number: is no whole number": 1,
        "observed_at: is no time such as 2026-03-29T08:00:00 (see --time-format)": 1,
        "4 columns are expected": 1,
    }
    assert "        2  occupied_spot_number: is below 0\n" in report.text()


def test_reasons_are_as_few_as_the_kinds_of_problems(tmp_path: Path) -> None:
    bad = [f'{{"a{n}": 1, "a{n}": 2}}\n{{"a": 1{" " * n}\n{{"a": "{n}}}\n' for n in range(50)]
    report = publish('{"site_id": "a"}\n' + "".join(bad), tmp_path, name="a.jsonl")
    assert {"no JSON": 100, "a name that is there twice": 50}.items() <= report.reasons.items()


def test_a_field_that_cannot_be_read_hides_no_other_problem(tmp_path: Path) -> None:
    report = publish(HEADER + "a,many,-3,2026-03-01T08:00:00Z\n", tmp_path)
    assert report.first_rejections[0].reason == (
        "total_spot_number: many is no whole number; occupied_spot_number: -3 is below 0"
    )


def test_where_the_records_are_is_said_also_when_it_is_interrupted(tmp_path: Path) -> None:
    class Interrupted(Memory):
        def send(self, topic: str, key: bytes, value: bytes) -> Acknowledged:
            if len(self.records) == 2 and topic != publications.TOPIC:
                raise KeyboardInterrupt
            return super().send(topic, key, value)

    for memory, sent in ((Memory(), 5), (Memory(limit=3), 3), (Interrupted(), 2)):
        with suppress(KeyboardInterrupt):
            publish(HEADER + "".join(map(line, range(5))), tmp_path, memory)
        (noted,) = memory.noted.values()
        assert (noted.file, noted.accepted, noted.records) == ("a.csv", 5, sent)
        assert noted.stretches == {0: ((0, sent - 1),)}


def test_a_digest_is_of_the_content_however_it_is_packed(tmp_path: Path) -> None:
    content = (HEADER + line(1)).encode()
    found = {publish(one, tmp_path).digest for one in (content, gzip.compress(content))}
    assert found == {hashlib.sha256(content).hexdigest()}


def test_without_a_publisher_a_file_is_only_checked(tmp_path: Path) -> None:
    content = (HEADER + line(1) + line(2, -1)).encode()
    path = tmp_path / "a.rejects.csv"
    report = publish_file(PARKING, opened(content), "a.csv", FileMapping(), None, b"", path, now_ms=1_800_000_000_000)
    assert (report.accepted, report.rejected, report.acknowledged, report.failed) == (1, 1, 0, 0)
    assert path.exists()


def test_a_file_of_a_header_alone_says_so(tmp_path: Path) -> None:
    report = publish(HEADER, tmp_path)
    assert (report.read, report.lines, report.header, report.unaccounted) == (0, 1, 1, 0)
    assert "a header line and no record" in report.text()


def test_a_local_time_that_exists_twice_is_said(tmp_path: Path) -> None:
    chicago = FileMapping(time_zone=ZoneInfo("America/Chicago"))
    hours = "".join(f"a,10,{n},2017-11-05 0{hour}:00\n" for n, hour in enumerate((0, 1, 1, 2)))
    report = publish(HEADER + hours, tmp_path, mapping=chicago)
    assert (report.accepted, report.times_twice) == (4, 2)
    assert "2 local times exist twice, as the clocks went back: the first was taken" in report.text()


def test_reasons_can_be_shown_and_written_whatever_the_value(tmp_path: Path) -> None:
    values = {"site_id": "a", "occupied_spot_number": 1, "observed_at": "2026-03-01T08:00:00Z"}
    bad = ["\ud800", "\x1b[31m\n", 10**400, 1e999, [1], {"a": 1}]
    report = publish("\n".join(json.dumps(values | {"total_spot_number": one}) for one in bad), tmp_path)
    assert report.rejected == len(bad)
    assert report.text().isascii()
    assert "\x1b" not in report.text()


def test_what_kafka_does_not_take_is_failed_and_ends_the_sending(tmp_path: Path) -> None:
    memory = Memory(limit=2)
    report = publish(HEADER + "".join(line(minute) for minute in range(5)), tmp_path, memory)
    assert (report.accepted, report.acknowledged, report.failed) == (5, 2, 3)
    assert memory.attempts == 3
    assert "no broker" in report.text()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("data/x.csv.gz", "x.rejects.csv"),
        ("x.jsonl", "x.rejects.jsonl"),
        ("x", "x.rejects.csv"),
        ("-", "f.rejects.csv"),
    ],
)
def test_rejects_are_named_after_the_file(file: str, name: str) -> None:
    assert rejects_path(file, "f", ".csv") == Path(name)


def test_csv_rows_with_quotes_line_breaks_blank_lines_and_a_byte_order_mark() -> None:
    found = rows(b'\xef\xbb\xbfa,b\r\n1,"x, ""y"""\r\n\r\n"2\n3",z\n')
    assert [(row.line, row.columns, row.problem) for row in found] == [
        (2, {"a": "1", "b": 'x, "y"'}, None),
        (4, {"a": "2\n3", "b": "z"}, None),
    ]
    assert found[1].raw == b'"2\n3",z\n'


def test_a_quotation_mark_never_closed_spoils_its_own_line_only() -> None:
    found = rows("a,b\n" + '"1,x\n' + "".join(f"{n},x\n" for n in range(200)))
    assert [row.line for row in found if row.problem] == [2]
    assert found[0].problem == "a quotation mark is opened and never closed"
    assert [row.line for row in found] == list(range(2, 203))


def test_a_file_without_header_line_has_the_columns_it_is_told() -> None:
    read = Rows(opened(b"1,x\n"), "a.csv", ["n", "t"])
    assert [row.columns for row in read] == [{"n": "1", "t": "x"}]
    assert read.header == b""


def test_json_lines_are_flattened_and_bad_ones_named() -> None:
    found = rows('{"a": 1, "place": {"longitude": 2.5}}\n[1]\n{"a": NaN}\n{"a"\n7\n' + "[" * 100_000 + "\n")
    assert found[0].columns == {"a": 1, "place": {"longitude": 2.5}, "place.longitude": 2.5}
    assert [row.problem is None for row in found] == [True, False, False, False, False, False]
    assert (found[2].problem, found[2].detail) == ("no JSON number", "NaN")


@pytest.mark.parametrize(
    "bad", ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"b.a": 1, "b": {"a": 2}}', '{"a": 1} {"a": 2}']
)
def test_a_name_that_is_there_twice_is_no_value(bad: str) -> None:
    assert [row.problem is None for row in rows(bad + '\n{"a": 1}\n')] == [False, True]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_ends_with_a_line_feed_a_carriage_return_or_both(end: str) -> None:
    found = rows(end.join(["a,b", "1,2", f'"x{end}y",3', "", "4,5"]))
    assert [(row.line, row.columns) for row in found] == [
        (2, {"a": "1", "b": "2"}),
        (3, {"a": f"x{end}y", "b": "3"}),
        (6, {"a": "4", "b": "5"}),
    ]
    assert [row.columns for row in rows(f'{{"a": 1}}{end}{{"a": 2}}')] == [{"a": 1}, {"a": 2}]


def test_a_carriage_return_and_its_line_feed_are_one_end_wherever_the_file_is_cut() -> None:
    for size in range(READ_BYTES - 40, READ_BYTES + 2):
        found = rows(b"a\r\n" + b"x" * size + b"\r\n1\r\n")
        assert [row.line for row in found] == [2, 3]


@pytest.mark.parametrize("long", ["x\n" * 200, "x" * (LONGEST_BYTES - 100), "x" * 200_000 + "\n" * 100])
def test_long_quoted_texts_are_one_record(long: str) -> None:
    assert [row.columns for row in rows(f'a,b\n"{long}",1\ny,2\n')] == [{"a": long, "b": "1"}, {"a": "y", "b": "2"}]


def test_a_quotation_mark_that_makes_no_csv_spoils_its_own_line_only() -> None:
    found = rows('a,b\n"1,x\n2,"y"\n3,z\n')
    assert [(row.line, row.problem is None) for row in found] == [(2, False), (3, True), (4, True)]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (b"[site],[total]\n1,2\n", {"[site]": "1", "[total]": "2"}),
        (b"{site},total\n1,2\n", {"{site}": "1", "total": "2"}),
        (b"\n \r\n\xef\xbb\xbf\na,b\n1,2\n", {"a": "1", "b": "2"}),
        (b'\n{"a": 1}\n', {"a": 1}),
        (b'\xef\xbb\xbf { }\n{"a": 1}\n', {}),
    ],
)
def test_what_a_file_is_shows_in_its_first_line_that_is_not_blank(content: bytes, columns: dict[str, Any]) -> None:
    assert rows(content)[0].columns == columns


@given(
    st.lists(st.sampled_from([b"a", b",", b'"', b"\n", b"\r", b"\r\n", b" ", b"{", b"}", b'{"a":1}', b"\xff"])),
    st.booleans(),
)
def test_every_line_is_in_a_record_in_the_header_or_blank(pieces: list[bytes], described: bool) -> None:
    content = b"".join(pieces)
    try:
        read = Rows(opened(content), "a.csv", ["a", "b"] if described else None)
    except FileProblem:
        return
    found = list(read)
    assert read.lines == len(content.splitlines())
    assert read.lines == len(read.header.splitlines()) + read.blank + sum(row.lines for row in found)
    assert all(row.raw in content for row in found)


def test_a_line_that_is_no_utf_8_is_a_bad_line() -> None:
    good, bad = rows(b"a\nx\n" + "\u00e4\n".encode("latin-1"))
    assert good.problem is None
    assert (bad.problem, bad.detail) == ("no UTF-8; save the file as UTF-8", "byte 1 of the line")


def test_gzip_is_read_whatever_the_file_is_called() -> None:
    assert [row.columns for row in rows(gzip.compress(b"a\n1\n"))] == [{"a": "1"}]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\n\n", "is empty"),
        (b'[\n{"a": 1}\n]', "is a JSON list"),
        (gzip.compress(HEADER.encode() + line(1).encode(), mtime=0) + b"rest", "is damaged after line"),
        (b'[{"a": 1}]', "is a JSON list"),
        (b"a,\xff\n", "the header line cannot be read: no UTF-8"),
        (b"x" * (LONGEST_BYTES + 1), "line 1 has over"),
        (gzip.compress(HEADER.encode() + line(1).encode() * 1000, mtime=0)[:-12], "is damaged after line"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_as_a_whole(content: bytes, reason: str, tmp_path: Path) -> None:
    memory = Memory()
    with pytest.raises(FileProblem, match=reason):
        publish(content, tmp_path, memory)
    assert memory.records == []
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 59), min_size=1))
def test_any_order_of_lines_gives_the_same_records_in_the_order_of_time(
    tmp_path_factory: pytest.TempPathFactory, minutes: list[int]
) -> None:
    memory, sorted_memory = Memory(), Memory()
    folder = tmp_path_factory.getbasetemp()
    publish(HEADER + "".join(map(line, minutes)), folder, memory)
    publish(HEADER + "".join(map(line, sorted(minutes))), folder, sorted_memory)
    assert memory.records == sorted_memory.records
    assert [record["observed_at"].minute for record in memory.records] == sorted(minutes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=2)
)
FIELDS = st.sampled_from([f.name for f in PARKING.fields] + ["place.longitude", "place.latitude"])


@given(
    st.one_of(
        st.lists(st.dictionaries(FIELDS, JSON), min_size=1).map(
            lambda records: "\n".join(map(json.dumps, records)).encode()
        ),
        st.lists(st.binary(max_size=60), min_size=1).map(lambda lines: HEADER.encode() + b"\n".join(lines)),
        st.lists(st.text(max_size=60), min_size=1).map(lambda lines: (HEADER + "\n".join(lines)).encode()),
    )
)
def test_whatever_stands_in_a_file_every_record_is_accepted_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    memory = Memory()
    report = publish(content, tmp_path_factory.mktemp("any"), memory)
    assert len(memory.records) == report.accepted == report.acknowledged
    assert report.lines == len(content.splitlines())
    assert report.unaccounted == 0
    if report.rejects_file:
        kept = Path(report.rejects_file).read_bytes()
        assert all(raw in content + b"\n" for raw in kept.removeprefix(HEADER.encode()).splitlines())


def test_publishing_told_to_end_says_how_many_records_kafka_has() -> None:
    before = signal.getsignal(signal.SIGTERM)
    publisher = Publisher(Memory(), PARKING, CATALOGUE.latest(PARKING.name), None)

    def ended() -> None:
        with _told_to_end(publisher):
            publisher.acknowledged = 2
            signal.raise_signal(signal.SIGTERM)

    try:
        with pytest.raises(StackError, match="ended before everything was sent: Kafka has 2 records of it"):
            ended()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        (False, "The history is finished: event time went on to 2024-05-01 12:00:00 UTC."),
        (True, "Its last windows end after now: publish it again with --finished after 2024-05-01 12:00:00 UTC."),
    ],
)
def test_a_finished_history_says_how_far_it_is_final(later: bool, said: str) -> None:
    assert said in Report("toy", "toys.csv", finished_at_ms=1_714_564_800_000, ends_later=later).text()
