"""Kafka's v2 record batches as bytes: headers, checksums, bounded decompression, single records.

Format: https://kafka.apache.org/documentation/#record_batch
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import cramjam
import crc32c
import lz4.frame
import zstandard
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from streams.ending import Stop
from streams.wire.column_reader import OpenedBatch, read_varint

HEADER = struct.Struct(">qiibIhiqqqhii")
LENGTH_AND_BELOW = 12
CRC_FROM = 21
CODEC_MASK, LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
LZ4 = 3
CODECS = {0: "none", 1: "gzip", 2: "snappy", LZ4: "lz4", 4: "zstd"}
#: A batch whose body is larger than this is quarantined undecoded.
MAX_BODY = 64 * 2**20
#: So is one of more records: a kilobyte can hold thousands without content, and each takes hundreds of bytes to read.
MAX_RECORDS = 2**17

#: Offset, key, value and headers.
BatchRecord = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]


class CorruptBatch(Stop):
    """A batch the broker should not have sent: wrong checksum, magic or timestamp type."""


class NotOpened(ValueError):
    """A batch holds more than ``MAX_RECORDS``, or its body decompresses to more than ``MAX_BODY``, or not at all."""


class MalformedBatch(ValueError):
    """The records of a batch do not follow the format."""


@dataclass(frozen=True)
class RecordBatch:
    """A batch as the broker sent it, not decompressed; ``raw`` is its place in the fetch."""

    partition: int
    base_offset: int
    last_offset: int
    count: int
    attributes: int
    arrived_ms: int
    producer_id: int
    raw: memoryview = field(repr=False)

    @property
    def is_control(self) -> bool:
        """It holds a transaction's marker and no records."""
        return bool(self.attributes & CONTROL)

    @property
    def is_transactional(self) -> bool:
        """Its records count only if their transaction was committed."""
        return bool(self.attributes & TRANSACTIONAL)

    @property
    def is_log_append_time(self) -> bool:
        """The broker stamped the arrival."""
        return bool(self.attributes & LOG_APPEND_TIME)

    def opened(self) -> OpenedBatch:
        """Decompress.

        Raises
        ------
        NotOpened
            It holds too much, or cannot be decompressed.
        """
        return OpenedBatch(
            self._body(), self.count, self.partition, self.base_offset, self.last_offset, self.arrived_ms
        )

    def records(self) -> list[BatchRecord]:
        """Offset, key, value and headers of each record, by the ordinary reader.

        Raises
        ------
        NotOpened
            See ``opened``.
        MalformedBatch
            The records do not follow the format.
        """
        body = self._body()
        header = list(HEADER.unpack_from(self.raw))
        header[1] = HEADER.size - LENGTH_AND_BELOW + len(body)
        header[5] = self.attributes & ~CODEC_MASK
        plain = DefaultRecordBatch(bytearray(HEADER.pack(*header) + body))
        try:
            return [(r.offset, r.key, r.value, list(r.headers)) for r in plain]
        except (UnicodeDecodeError, CorruptRecordException):
            return list(_records(body, self.base_offset, self.count))

    def _body(self) -> bytes:
        if self.count > MAX_RECORDS:
            raise NotOpened(f"the batch holds more than {MAX_RECORDS:,} records; send smaller ones")
        data = self.raw[HEADER.size :]
        try:
            match CODECS.get(self.attributes & CODEC_MASK):
                case "none":
                    body = bytes(data)
                case "gzip":
                    body = zlib.decompressobj(31).decompress(data, MAX_BODY + 1)
                case "snappy":
                    body = _snappy(bytes(data))
                case "lz4":
                    body = _lz4(data)
                case "zstd":
                    body = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read(MAX_BODY + 1)
                case _:
                    raise NotOpened(f"unknown compression {self.attributes & CODEC_MASK}")
        except (zlib.error, RuntimeError, zstandard.ZstdError, cramjam.DecompressionError, struct.error) as error:
            raise NotOpened(f"the batch cannot be decompressed: {error}") from error
        if len(body) > MAX_BODY:
            raise NotOpened(f"the batch decompresses to more than {MAX_BODY >> 20} MiB")
        return body


def _records(body: bytes, base_offset: int, count: int) -> Iterator[BatchRecord]:
    """Records by Kafka's format alone.

    The ordinary reader gives up a batch for a header name that is not UTF-8, or a bit of the attributes nobody uses.
    """
    at = 0
    for _ in range(count):
        length, at = _number(body, at)
        end = at + length
        _, at = _number(body, at + 1)
        delta, at = _number(body, at)
        key, at = _sized(body, at)
        value, at = _sized(body, at)
        header_count, at = _number(body, at)
        headers: list[tuple[str, bytes]] = []
        while len(headers) < header_count:
            name, at = _sized(body, at)
            content, at = _sized(body, at)
            if name is None:
                raise MalformedBatch(f"the record at offset {base_offset + delta} has a header without a name")
            headers.append((name.decode(errors="backslashreplace"), content or b""))
        if at != end or header_count < 0:
            raise MalformedBatch(f"the record at offset {base_offset + delta} is not as long as it states")
        yield base_offset + delta, key, value, headers
    if at != len(body):
        raise MalformedBatch(f"{len(body) - at} bytes are left over after the records")


def _number(body: bytes, at: int) -> tuple[int, int]:
    number, after = read_varint(body, at)
    if not at < after <= len(body) or body[after - 1] >= 0x80:
        raise MalformedBatch("a number is cut off")
    return number, after


def _sized(body: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = _number(body, at)
    if at + size > len(body):
        raise MalformedBatch("a record is cut off")
    return (None, at) if size < 0 else (body[at : at + size], at + size)


def _lz4(data: memoryview) -> bytes:
    """An LZ4 frame; the decompressor takes as much memory as it is allowed, so it is allowed little at a time."""
    decompressor = lz4.frame.LZ4FrameDecompressor()
    body: bytes = decompressor.decompress(data, 8 * len(data))
    while not decompressor.eof and len(body) <= MAX_BODY:
        more = decompressor.decompress(b"", MAX_BODY)
        if not more:
            raise RuntimeError("the frame is cut off")
        body += more
    return body


def _snappy(data: bytes) -> bytes:
    """Snappy, raw or in xerial's framing; sizes are checked before anything is decompressed."""
    if not data.startswith(b"\x82SNAPPY\x00"):
        chunks = [data]
    else:
        chunks, at = [], 16
        while at < len(data):
            (size,) = struct.unpack_from(">I", data, at)
            chunks.append(data[at + 4 : at + 4 + size])
            at += 4 + size
    if sum(cramjam.snappy.decompress_raw_len(chunk) for chunk in chunks) > MAX_BODY:
        return bytes(MAX_BODY + 1)
    return b"".join(bytes(cramjam.snappy.decompress_raw(chunk)) for chunk in chunks)


def packed(body: bytes, count: int) -> bytes:
    """A batch of these records, compressed; the broker sets its offset and its timestamps.

    A record's offset has to be stated as its place in the batch, its timestamp as 0.
    """
    data = lz4.frame.compress(body, block_linked=False)
    length = HEADER.size - LENGTH_AND_BELOW + len(data)
    from_crc: bytes = HEADER.pack(0, length, -1, 2, 0, LZ4, count - 1, 0, 0, -1, -1, -1, count)[CRC_FROM:] + data
    checksum = crc32c.crc32c(from_crc)
    return HEADER.pack(0, length, -1, 2, checksum, *[0] * 8)[:CRC_FROM] + from_crc


def of_one(partition: int, offset: int, arrived_ms: int, key: bytes | None, value: bytes | None) -> RecordBatch:
    """A batch of one record without headers, as a broker would hand it out."""
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=MAX_BODY,
    )
    builder.append(0, timestamp=0, key=key, value=value, headers=[])
    raw = builder.build()
    struct.pack_into(">q", raw, 0, offset)
    return RecordBatch(partition, offset, offset, 1, LOG_APPEND_TIME, arrived_ms, -1, memoryview(raw))


def split(partition: int, data: bytes) -> Iterator[RecordBatch]:
    """The whole batches in a fetch; a last one that is cut off is left for the next fetch.

    Raises
    ------
    CorruptBatch
        A checksum, magic or length is wrong.
    """
    view = memoryview(data)
    at = 0
    while at + HEADER.size <= len(data):
        base, length, _, magic, crc, attributes, last_delta, _, max_ts, producer, _, _, count = HEADER.unpack_from(
            data, at
        )
        end = at + LENGTH_AND_BELOW + length
        if end > len(data):
            return
        if magic != 2:
            raise CorruptBatch(f"the batch at offset {base} has format version {magic}, not 2")
        if end < at + HEADER.size:
            raise CorruptBatch(f"the batch at offset {base} is shorter than its header")
        raw = view[at:end]
        if crc32c.crc32c(raw[CRC_FROM:]) != crc:
            raise CorruptBatch(f"the batch at offset {base} has a wrong checksum")
        if last_delta < 0:
            raise CorruptBatch(f"the batch at offset {base} ends before it begins")
        yield RecordBatch(partition, base, base + last_delta, count, attributes, max_ts, producer, raw)
        at = end
