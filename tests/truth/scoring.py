"""What rules found of what was staged: a pure function of truth, alerts, and what faults kept from the rules."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

#: An alert is laid to a record that a fault kept from its rule so long before it, or so shortly after.
LAID_TO = (timedelta(hours=1), timedelta(minutes=15))
#: What is found so long after it ended is found, though not in time.
AFTER = timedelta(minutes=30)


@dataclass(frozen=True)
class Staged:
    """An incident at one entity that a rule has to find by a time; no rule if it must not alarm."""

    kind: str
    rule: str | None
    entity: str
    begins: datetime
    ends: datetime
    found_by: datetime | None


@dataclass(frozen=True)
class Raised:
    """An alert that began, and when it was decided, in event time."""

    rule: str
    entity: str
    sent: datetime


@dataclass(frozen=True)
class Harm:
    """A record about an entity that a fault kept from the rules: late, corrupt, from the future, or never sent."""

    entity: str
    at: datetime


@dataclass
class Score:
    """Of one rule. What was ``staged`` is ``found``, or ``missed``, or ``hidden`` by a fault; ``in_time`` is what was
    found within the rule's time. ``again`` are further alerts about what was found; those about nothing that was staged
    are ``faked`` by a fault, or ``false``.
    """

    rule: str
    staged: int = 0
    found: int = 0
    in_time: int = 0
    again: int = 0
    hidden: int = 0
    missed: int = 0
    faked: int = 0
    false: int = 0

    @property
    def precision(self) -> float:
        """Share of its alerts that are the first about something staged; those that a fault faked are left out."""
        return self.found / ((self.found + self.again + self.false) or 1)

    @property
    def recall(self) -> float:
        """Share of what was staged that it found in time; what a fault hid is left out."""
        return self.in_time / ((self.staged - self.hidden) or 1)


def decided(
    truth: Iterable[Staged], raised: Iterable[Raised], until: Mapping[str, datetime]
) -> tuple[list[Staged], list[Raised]]:
    """What can be judged of a feed that ended: incidents that each rule has to have found until then, and alerts but
    those about others, which begin at the same entity with the first of them or later.
    """
    staged, undecided = list[Staged](), dict[tuple[str, str], datetime]()
    for one in sorted(truth, key=lambda one: one.begins):
        if one.rule is None or one.found_by is None or one.found_by <= until[one.rule]:
            staged.append(one)
        else:
            undecided.setdefault((one.rule, one.entity), one.begins)
    return staged, [
        one for one in raised if one.sent < undecided.get((one.rule, one.entity), datetime.max.replace(tzinfo=UTC))
    ]


def score(staged: Iterable[Staged], raised: Iterable[Raised], harms: Iterable[Harm]) -> list[Score]:
    """By rule."""
    scores: dict[str, Score] = {}
    alerts, harmed = defaultdict[tuple[str, str], list[datetime]](list), defaultdict[str, list[datetime]](list)
    for alert in raised:
        alerts[alert.rule, alert.entity].append(alert.sent)
        scores.setdefault(alert.rule, Score(alert.rule))
    for harm in harms:
        harmed[harm.entity].append(harm.at)
    for one in staged:
        if one.rule is not None and one.found_by is not None:
            told = alerts[one.rule, one.entity]
            mine = sorted(at for at in told if one.begins <= at <= one.ends + AFTER)
            alerts[one.rule, one.entity] = [at for at in told if at not in mine]
            _count(scores.setdefault(one.rule, Score(one.rule)), one, one.found_by, mine, harmed[one.entity])
    for (rule, entity), left in alerts.items():
        faked = sum(any(at - LAID_TO[0] <= harm <= at + LAID_TO[1] for harm in harmed[entity]) for at in left)
        scores[rule].faked += faked
        scores[rule].false += len(left) - faked
    return sorted(scores.values(), key=lambda one: one.rule)


def _count(score: Score, one: Staged, by: datetime, mine: Sequence[datetime], harmed: Sequence[datetime]) -> None:
    score.staged += 1
    in_time = bool(mine) and mine[0] <= by
    hidden = not in_time and any(one.begins <= harm <= one.ends for harm in harmed)
    score.in_time += in_time
    score.hidden += hidden
    score.found += bool(mine)
    score.again += max(0, len(mine) - 1)
    score.missed += not mine and not hidden
