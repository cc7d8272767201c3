"""citystream positions: where the workers stand, and starting over when a position cannot be trusted."""

from __future__ import annotations

from contextlib import closing
from enum import StrEnum
from typing import Annotated

import typer
from kafka import KafkaAdminClient, TopicPartition
from kafka.errors import GroupSubscribedToTopicError, NoError

from citystream.installation import Installation
from citystream.settings import SettingsError
from citystream.stack.process import StackError
from processors.worker import GROUP as PROCESSOR
from sinks.worker import GROUP as SINK
from streams.lag import measure


class Worker(StrEnum):
    """A worker's consumer group."""

    PROCESSOR = PROCESSOR
    SINK = SINK


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Where the workers stand in the topics.")
    group.command("reset")(reset)
    group.callback()(lambda: None)
    app.add_typer(group, name="positions")


def reset(
    worker: Annotated[Worker, typer.Argument(help="Whose positions.")],
    topic: Annotated[str, typer.Argument(help="In which topic.")],
) -> None:
    """Let a stopped worker read a topic again from its first record. Nothing is counted twice: rows and windows
    replace what they were.

    Refused where retention has already deleted the beginning of the topic: windows would be rebuilt from their middle.

    Example: citystream positions reset processor traffic_flow
    """
    city = Installation.load()
    partitions = measure(city.bootstrap, worker.value, [topic])
    if not partitions:
        raise SettingsError(f"there is no topic {topic}")
    cut = [p for p in partitions if p.log_start > 0]
    if cut:
        raise StackError(
            f"{topic}/{cut[0].partition} begins at offset {cut[0].log_start}: what came before is deleted and its "
            "windows cannot be built again; restore the topic, or remove it and publish its data again"
        )
    with closing(KafkaAdminClient(bootstrap_servers=city.bootstrap)) as admin:
        answers = admin.delete_group_offsets(worker.value, [TopicPartition(p.topic, p.partition) for p in partitions])
    for answer in answers.values():
        if answer is GroupSubscribedToTopicError:
            raise StackError(f"the {worker.value} is running, or ended less than a session ago; stop it and try again")
        if answer is not NoError:
            raise StackError(f"Kafka refused to forget the positions: {answer.__name__}")
    typer.echo(f"the {worker.value} will read {topic} again from its first record")
