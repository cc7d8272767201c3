"""Positions kept a second time, on a compacted topic, for the day a group's commits are lost.

A checkpoint is written when the brokers have taken the commit of the same position. They take commits only from members
of the group's present generation, and a worker commits only what is assigned to it, so one that lost the partition
leaves no checkpoint behind, and none is ever ahead of what was flushed. One that lags behind its commit only makes a
worker write again what replaces itself, and judge again what it had given up behind it (``streams.missing_schemas``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from schemas.persisted import Newer, check_version
from streams.clients import records_of
from streams.cluster import Cluster
from streams.positions import Position, PositionProblem, parse

TOPIC = "checkpoints"
#: Of a record's value; the position in it has its own. Those of version 1 need not say it.
VERSION = 1

#: Worker, topic, partition.
Place = tuple[str, str, int]


def record(place: Place, position: Position) -> tuple[bytes, bytes]:
    """Key and value of a checkpoint."""
    worker, topic, partition = place
    value = {"version": VERSION, "processed": position.processed, "metadata": position.metadata()}
    return f"{worker}/{topic}/{partition}".encode(), json.dumps(value).encode()


def place_of(key: bytes) -> Place:
    """Whose checkpoint a key stands for."""
    worker, topic, partition = key.decode().split("/")
    return worker, topic, int(partition)


def read(cluster: Cluster) -> Mapping[Place, Position | PositionProblem]:
    """The newest checkpoint of every worker in every partition, or what is wrong with one of a newer release."""
    found: dict[Place, Position | PositionProblem] = {}
    for kept in records_of(cluster, TOPIC):
        take(found, kept.key, kept.value)
    return found


def take(found: dict[Place, Position | PositionProblem], key: bytes | None, value: bytes | None) -> None:
    """Note a checkpoint, or that it is of a newer release; one that cannot be read counts as none."""
    position: Position | PositionProblem | None
    try:
        place, fields = place_of(key or b""), json.loads(value or b"")
        where = "the checkpoint of {} in {}/{}".format(*place)
        check_version(fields, VERSION)
        position = parse(where, int(fields["processed"]), fields["metadata"])
    except Newer as newer:
        position = PositionProblem(f"{where} {newer}")
    except PositionProblem as problem:
        position = problem
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    if position is None:
        found.pop(place, None)
    else:
        found[place] = position
