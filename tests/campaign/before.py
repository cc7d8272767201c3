"""What the release before left, made of what this one left: its writers, kept as they were and never changed.

That they are the same is held by what it wrote itself, in tests/golden. It goes when that release is the last but one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from schemas.feed import Feed

#: What the metadata of a commit held, in this order.
FIELDS = ("rewind", "max_event_ms", "max_processed_ms", "topic", "def", "bad", "since", "unknown", "schema", "paused")
#: Tables it did not have.
TABLES = ("raw.layout", "raw.shown", "raw.withdrawn")


def record_definition(feed: Feed) -> str:
    """Its fingerprint of a feed's records."""
    rules = ", ".join(f"NotAfter(earlier={rule.earlier!r}, later={rule.later!r})" for rule in feed.rules)
    rules = f"({rules},)" if len(feed.rules) == 1 else f"({rules})"
    first = [*(topic.partitions for topic in feed.outgrown), feed.partitions][0]
    allowance = feed.disorder + feed.lateness if feed.ahead is None else feed.ahead
    text = f"({feed.key!r}, {feed.event_time!r}, {rules}, {allowance!r}, {feed.earliest!r}, {first})"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def metadata(now: str, feed: Feed | None) -> str:
    """Its metadata of a commit, in a topic of a feed or in another one."""
    fields: dict[str, Any] = json.loads(now)
    if feed is not None:
        assert fields["def"].startswith(feed.record_definition)
        fields["def"] = record_definition(feed) + fields["def"].removeprefix(feed.record_definition)
    # It had no rules; those that go on here are compared with a city that had them all the time.
    named = {"snapshot": fields["snapshot"]} if "snapshot" in fields else {}
    return json.dumps({name: fields[name] for name in FIELDS} | named, separators=(",", ":"))


def checkpoint(now: bytes, feed: Feed | None) -> bytes:
    """Its value of a checkpoint."""
    fields: Mapping[str, Any] = json.loads(now)
    return json.dumps({"processed": fields["processed"], "metadata": metadata(fields["metadata"], feed)}).encode()
