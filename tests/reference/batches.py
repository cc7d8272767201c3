"""Kafka record batches as bytes, right and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import crc32c
from aiokafka.codec import gzip_encode, lz4_encode, snappy_encode, zstd_encode
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from streams.wire.fetched_batches import Run
from streams.wire.record_batch import CRC_FROM, HEADER, LENGTH_AND_BELOW, RecordBatch, split

ARRIVED = 1_714_564_900_000
LOG_APPEND_TIME, TRANSACTIONAL, CONTROL = 0x08, 0x10, 0x20
#: Kinds of the markers that end a transaction.
ABORT, COMMIT = 0, 1
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes, "gzip": gzip_encode, "snappy": snappy_encode, "lz4": lz4_encode, "zstd": zstd_encode,
}  # fmt: skip

#: Key, value, headers.
Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]


def stamped(
    raw: bytes, base: int, arrived_ms: int = ARRIVED, set_attributes: int = LOG_APPEND_TIME, **fields: int
) -> bytes:
    """A batch as a broker stores it: its offset, its time of arrival and a checksum that fits."""
    names = (
        "base", "length", "epoch", "magic", "crc", "attributes", "last_delta", "first_ts", "max_ts", "producer",
        "producer_epoch", "sequence", "count",
    )  # fmt: skip
    header = dict(zip(names, HEADER.unpack_from(raw), strict=True))
    header |= {"base": base, "max_ts": arrived_ms, "length": len(raw) - LENGTH_AND_BELOW}
    header["attributes"] |= set_attributes
    header |= fields
    return sealed(HEADER.pack(*header.values()) + raw[HEADER.size :])


def sealed(raw: bytes) -> bytes:
    """The batch with a checksum that fits."""
    checksum = struct.pack(">I", crc32c.crc32c(raw[CRC_FROM:]))
    return raw[: CRC_FROM - 4] + checksum + raw[CRC_FROM:]


def batch(records: Sequence[Record], base: int, codec: str = "none", arrived_ms: int = ARRIVED, **fields: int) -> bytes:
    """A batch of these records, built by aiokafka."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=CODECS[codec], is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=2**30,
    )  # fmt: skip
    for delta, (key, value, headers) in enumerate(records):
        builder.append(delta, timestamp=ARRIVED + delta, key=key, value=value, headers=headers)
    return stamped(bytes(builder.build()), base, arrived_ms, **fields)


def batch_of(body: bytes, count: int, base: int = 0, codec: int = 0, **fields: int) -> bytes:
    """A batch with this body, whatever it is; compressed already if ``codec`` says so."""
    header = HEADER.pack(base, 0, 0, 2, 0, codec, count - 1, ARRIVED, ARRIVED, -1, -1, -1, count)
    return stamped(header + body, base, **fields)


def varint(number: int) -> bytes:
    """A zigzag varint."""
    encoded = number * 2 if number >= 0 else -number * 2 - 1
    out = b""
    while encoded > 0x7F:
        out += bytes([encoded & 0x7F | 0x80])
        encoded >>= 7
    return out + bytes([encoded])


def sized(content: bytes | None) -> bytes:
    """Bytes after their length."""
    return varint(-1) if content is None else varint(len(content)) + content


def record_bytes(delta: int, key: bytes | None, value: bytes | None, headers: bytes = b"\x00") -> bytes:
    """A record as it lies in a batch; ``headers`` with their count in front."""
    inner = b"\x00" + varint(0) + varint(delta) + sized(key) + sized(value) + headers
    return varint(len(inner)) + inner


def run(*raw: bytes, start: int | None = None, topic: str = "toy") -> Run:
    """A run of these batches."""
    batches: tuple[RecordBatch, ...] = tuple(split(0, b"".join(raw)))
    first = batches[0].base_offset if start is None else start
    return Run(topic, 0, first, batches[-1].last_offset + 1, batches)


def rows_of(frame: Any) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries."""
    rows: list[dict[str, Any]] = frame.to_dicts()
    return rows


def marker_key(kind: int) -> bytes:
    """The key of a marker, ``ABORT`` or ``COMMIT``, that ends a transaction."""
    return struct.pack(">hh", 0, kind)


def plain(base: int, count: int = 3) -> bytes:
    """A batch of so many records from an offset on."""
    return batch([(b"k", b"v", [])] * count, base, arrived_ms=9000 + base)
