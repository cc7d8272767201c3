"""Which quarantined records are good now, and publishing these once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from kafka import KafkaProducer

from operations.progress import OnProgress, unheard
from operations.redriving.arrival import await_sink
from operations.redriving.corrections import Correction, CorrectionProblem, corrected
from operations.redriving.outcome import Outcome, Result
from schemas.catalogue import Catalogue
from schemas.feed import Feed
from schemas.record_codec import decode
from schemas.verdict import instant_ms
from sinks.quarantine import Identity, Letter, Place, Quarantine, Redriven, Selection
from streams import deadletters
from streams.cluster import Cluster
from streams.decode import Decoder
from streams.feed_topics import FeedPartition, feed_topics
from streams.publisher import Producer, topic_for
from streams.wire.fetched_batches import Run
from streams.wire.record_batch import of_one

#: Problems of a file of corrections that are named.
MOST_SHOWN = 20
#: Topic, partition and the offsets of letters that are looked at together.
Chunk = tuple[str, int, list[int]]


@dataclass(frozen=True)
class Candidate:
    """A quarantined record, the bytes to publish, and why they cannot be, as far as that is known."""

    letter: Letter
    key: bytes | None
    value: bytes | None
    problem: str | None = None


class Redrive:
    """Publishes quarantined records that are good now; of several letters of one event the first.

    With corrections, only those they name, as they are corrected.
    """

    def __init__(
        self,
        quarantine: Quarantine,
        feeds: Mapping[str, Feed],
        catalogue: Catalogue,
        corrections: Mapping[Place, Correction] | None = None,
    ) -> None:
        self._quarantine = quarantine
        self._feeds = feeds
        self._catalogue = catalogue
        self._corrections = corrections
        self._decoders = {name: Decoder(catalogue, name, feed) for name, feed in feeds.items()}
        #: Of each feed, the events that would be published as far as is judged, and where the published ones are.
        self._judged_good: dict[str, set[Identity]] = {name: set() for name in feeds}
        self._published: dict[str, dict[Identity, tuple[int, int]]] = {name: {} for name in feeds}

    def run(
        self, selection: Selection, open_producer: Callable[[], KafkaProducer] | None, on_progress: OnProgress = unheard
    ) -> Counter[Result]:
        """Publish what is good now of a selection, chunk by chunk; judge only without a producer.

        Raises
        ------
        CorrectionProblem
            A correction cannot be taken; nothing was published.
        KafkaError
            As ``take``.
        """
        said, results = self._corrections, Counter[Result]()
        chunks = [
            (topic, number, named)
            for topic, number, offsets in self._quarantine.chunks(selection)
            if (named := [offset for offset in offsets if said is None or (topic, number, offset) in said])
        ]
        if open_producer is None or said is not None:
            results = self._take_all("checking", chunks, None, on_progress)
        if said is not None:
            _refuse(results, said, self._quarantine.known(said))
        if open_producer is None:
            return results
        with closing(open_producer()) as producer:
            return self._take_all("redriving", chunks, producer, on_progress)

    def _take_all(
        self, step: str, chunks: Sequence[Chunk], producer: KafkaProducer | None, on_progress: OnProgress
    ) -> Counter[Result]:
        results, done, total = Counter[Result](), 0, sum(len(offsets) for *_, offsets in chunks)
        on_progress(step, done, total)
        for chunk in chunks:
            results += self.take(chunk, producer)
            done += len(chunk[2])
            on_progress(step, done, total)
        return results

    def take(self, chunk: Chunk, producer: KafkaProducer | None) -> Counter[Result]:
        """Publish what is good now of a chunk, wait for the acknowledgements and note it; judge only without producer.

        Raises
        ------
        KafkaError
            A record was not acknowledged; those that were are noted.
        """
        feed = self._feeds[chunk[0]]
        candidates = self._judged(feed, [self._candidate(feed, one) for one in self._quarantine.letters(*chunk)])
        identities = [self._identity(feed, one) for one in candidates]
        stored = self._quarantine.stored(feed, (identity for identity in identities if identity is not None))
        before = self._judged_good[feed.name] if producer is None else self._published[feed.name]
        results: Counter[Result] = Counter()
        fresh: dict[Identity, Candidate] = {}
        noted, repeats = [], []
        for one, identity in zip(candidates, identities, strict=True):
            if identity is None:
                outcome = Outcome.BAD
            elif identity in fresh or identity in before:
                outcome = Outcome.REPEATED
                repeats.append((identity, one))
            elif identity in stored:
                outcome = Outcome.STORED
                noted.append(self._redriven(one, *stored[identity]))
            else:
                outcome = Outcome.REDRIVEN
                fresh[identity] = one
            results[one.letter.topic, one.letter.cause, outcome, one.problem] += 1
        if producer is None:
            self._judged_good[feed.name].update(fresh)
        else:
            self._quarantine.note(noted)
            self._publish(producer, feed, fresh, repeats)
        return results

    def _candidate(self, feed: Feed, letter: Letter) -> Candidate:
        if self._corrections is None:
            without = letter.key is None or letter.value is None
            return Candidate(letter, letter.key, letter.value, letter.cause if without else None)
        try:
            return Candidate(letter, *corrected(self._catalogue, feed, letter, self._corrections[letter.place]))
        except CorrectionProblem as problem:
            return Candidate(letter, None, None, str(problem))

    def _judged(self, feed: Feed, candidates: Sequence[Candidate]) -> list[Candidate]:
        """With what the workers would say of the bytes now, had these arrived when the record did."""
        batches = tuple(of_one(0, n, one.letter.arrived_ms, one.key, one.value) for n, one in enumerate(candidates))
        decoded = self._decoders[feed.name].read(Run(feed.name, 0, 0, len(batches), batches), 0)
        causes = {dead.offset: dead.cause for dead in decoded.dead}
        return [
            replace(one, problem=self._located(one.letter, causes[n])) if n in causes and one.problem is None else one
            for n, one in enumerate(candidates)
        ]

    def _located(self, letter: Letter, cause: str) -> str:
        return cause if self._corrections is None else f"line {self._corrections[letter.place].line}: {cause}"

    def _identity(self, feed: Feed, one: Candidate) -> Identity | None:
        """Which event it is, or None if it is still bad."""
        if one.problem is not None or one.value is None:
            return None
        values = decode(self._catalogue, one.value)
        return values[feed.key], instant_ms(values[feed.event_time]), values["event_id"]

    def _redriven(self, one: Candidate, partition: int, offset: int) -> Redriven:
        return Redriven(one.letter.place, partition, offset, self._corrections is not None)

    def _publish(
        self,
        producer: KafkaProducer,
        feed: Feed,
        fresh: Mapping[Identity, Candidate],
        repeats: Iterable[tuple[Identity, Candidate]],
    ) -> None:
        """Publish the fresh ones, and note them and their repeats as far as they are acknowledged."""
        topic, published = topic_for(feed), self._published[feed.name]
        sent = {identity: producer.send(topic, key=one.key, value=one.value) for identity, one in fresh.items()}
        producer.flush()
        for identity, future in sent.items():
            if future.succeeded():
                published[identity] = FeedPartition.of(topic, future.value.partition).number, future.value.offset
        self._quarantine.note(
            [
                self._redriven(one, *published[identity])
                for identity, one in (*fresh.items(), *repeats)
                if identity in published
            ]
        )
        for future in sent.values():
            future.get()


def redrive(
    cluster: Cluster,
    quarantine: Quarantine,
    feeds: Mapping[str, Feed],
    catalogue: Catalogue,
    selection: Selection,
    corrections: Mapping[Place, Correction] | None = None,
    *,
    dry_run: bool,
    on_progress: OnProgress = unheard,
) -> Counter[Result]:
    """Publish what is good now of a selection, or only judge it, once the sink has stored what was published before.

    Raises
    ------
    SinkBehind
        The sink does not store it.
    CorrectionProblem, KafkaError
        As ``Redrive.run``.
    """
    topics = [*feed_topics(*(feeds[name] for name in selection.topics)), deadletters.TOPIC]
    await_sink(cluster, topics, partial(on_progress, "waiting for the sink"))
    work = Redrive(quarantine, feeds, catalogue, corrections)
    return work.run(selection, None if dry_run else partial(Producer, cluster), on_progress)


def _refuse(results: Mapping[Result, int], corrections: Mapping[Place, Correction], known: set[Place]) -> None:
    """Refuse a file of which a line cannot be taken."""
    wrong = [problem for *_, problem in results if problem is not None]
    wrong += [
        f"line {correction.line}: {place[0]}/{place[1]} has no quarantined record at offset {place[2]}"
        for place, correction in corrections.items()
        if place not in known
    ]
    if wrong:
        more = f"\nand {len(wrong) - MOST_SHOWN:,} more" if len(wrong) > MOST_SHOWN else ""
        raise CorrectionProblem("nothing was published:\n" + "\n".join(wrong[:MOST_SHOWN]) + more)
