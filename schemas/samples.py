"""One encoded record of every version of a feed's schema, kept beside it and decoded by the tests for ever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from schemas.avro import feed_schema
from schemas.catalogue import FROZEN, Catalogue, FrozenSchema
from schemas.feed import Feed
from schemas.fields import Record
from schemas.pseudonyms import replaced
from schemas.record_codec import encode

KEY = b"the key of the samples"


def sample_file(frozen: FrozenSchema, folder: Path = FROZEN) -> Path:
    """Where the sample of a version is: a record as it is on the topic, in hexadecimal."""
    return folder / frozen.subject / f"{frozen.version}.sample"


def write_samples(feeds: Mapping[str, Feed], made: Callable[[Feed], Record], folder: Path = FROZEN) -> list[Path]:
    """Write a record that is ``made`` of each feed whose newest version has no sample; returns the new files.

    An existing sample is kept: it is a record of its own time.
    """
    catalogue = Catalogue.load(folder)
    written = []
    for feed in feeds.values():
        frozen = catalogue.latest(feed.name)
        path = sample_file(frozen, folder)
        if frozen.schema == feed_schema(feed) and not path.exists():
            path.write_text(encode(frozen, replaced(feed, KEY, made(feed).model_dump())).hex() + "\n")
            written.append(path)
    return written
