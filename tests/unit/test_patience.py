"""A broker that is away does not fill a worker's log."""

from __future__ import annotations

import logging
from unittest.mock import create_autospec

import pytest
from kafka.errors import KafkaTimeoutError
from kafka.producer.future import RecordMetadata

from citystream.commands.workers import Patience
from feeds.parking.parking_site import FEED as PARKING
from schemas.catalogue import Catalogue
from streams.publisher import Producer, Publisher
from streams.waiting import KAFKA_ANSWERS


def record(name: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, "Unable to connect to node %s", (1,), None)


def test_complaints_of_the_client_are_printed_at_growing_pauses() -> None:
    now = 0.0
    patience = Patience(lambda: now)
    printed = []
    for tenth in range(1200):
        now = tenth / 10
        if patience.filter(record("aiokafka.client")):
            printed.append(round(now))
    assert printed == [0, 1, 3, 7, 15, 31, 61, 91]


def test_they_start_anew_after_a_minute_of_peace() -> None:
    now = 0.0
    patience = Patience(lambda: now)
    assert patience.filter(record("kafka"))
    assert not patience.filter(record("aiokafka"))
    now = 61.0
    assert patience.filter(record("aiokafka"))
    now = 62.0
    assert patience.filter(record("aiokafka"))


def test_what_is_printed_says_whose_complaint_it_is() -> None:
    complaint, own = record("aiokafka.client"), record("citystream")
    patience = Patience(lambda: 0.0)
    assert patience.filter(complaint)
    assert complaint.getMessage() == "Kafka does not answer as it should, trying on: Unable to connect to node 1"
    assert all(patience.filter(own) for _ in range(9))
    assert own.getMessage() == "Unable to connect to node 1"


def test_what_a_publisher_waited_for_is_over_with_the_next_acknowledgement(caplog: pytest.LogCaptureFixture) -> None:
    publisher = Publisher(
        create_autospec(Producer, instance=True), PARKING, Catalogue.load().latest(PARKING.name), None
    )
    for _ in range(2):
        assert Patience(lambda: 0.0).filter(record("kafka"))
        publisher._slots.acquire()
        publisher._failed(None, KafkaTimeoutError())
        assert KAFKA_ANSWERS not in caplog.text
        for _ in range(2):
            publisher._slots.acquire()
            publisher._acknowledged(None, create_autospec(RecordMetadata, instance=True))
        assert caplog.text.count(KAFKA_ANSWERS) == 1
        caplog.clear()
