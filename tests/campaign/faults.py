"""What is done to a running city, each with a real process and a real signal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from functools import partial
from random import Random
from time import monotonic, sleep

from citystream.stack import clickhouse, kafka
from tests.campaign.arena import PARTS, TO_CLICKHOUSE, Arena, Stuck
from tests.campaign.refusals import refusals
from tests.campaign.worker import MOMENTS

#: Does something to the city while records come in, and puts it right again; what it did in words. Raises
#: ``NotStaged`` where it did not come to it.
Fault = Callable[[Arena, Random], str]

SESSION_SECONDS = 10.0
KINDS = ("processor", "sink")
#: Which moments are whose.
OF_PROCESSOR = ("replaying or processing", "parts half sent")
OF_SINK = ("rows not sent", "acknowledged, not committed")
#: An insert takes two answers or more: 5 s.
SLOW_ANSWER_SECONDS, ANSWERS_OF_INSERT = 2.5, 2
STORM = range(1, 5)
STABLE = "Stable"
#: Moments that come once in a worker's life.
ONCE = ("started", "assigned", "revoked")
#: How long a moment is waited for.
MOMENT_SECONDS = 30.0
#: First byte of what ClickHouse's native protocol calls a packet of data, and the size (bytes) of one with rows.
DATA, ROWS = b"\x02", 256
#: How long a worker may take to start.
STARTING_SECONDS = 120.0


class NotStaged(Stuck):
    """A fault did not come about: what it waited for did not happen."""


def seen(what: Callable[[], object], name: str, seconds: float = MOMENT_SECONDS) -> None:
    """Wait until something can be observed.

    Raises
    ------
    NotStaged
        It does not happen.
    """
    until = monotonic() + seconds
    while not what():
        if monotonic() > until:
            raise NotStaged(f"{name} did not come within {seconds:.0f} s")
        sleep(0.02)


def killed(kind: str) -> Fault:
    """A worker is killed one to three times, at any moment, and started again at once."""

    def fault(city: Arena, random: Random) -> str:
        times = random.randint(1, 3)
        for _ in range(times):
            sleep(random.random() * 6)
            city.kill(f"{kind}-1")
            city.start(f"{kind}-1")
        return f"{times} times"

    return fault


def killed_at(kind: str, moment: str) -> Fault:
    """A worker kills itself at a moment in its code."""

    def fault(city: Arena, random: Random) -> str:
        name, count = f"{kind}-1", 1 if moment in ONCE else random.randint(1, 2)
        city.kill(name)
        city.start(name, moment, count)
        if moment == "revoked":
            city.wait(lambda: city.works(name) or not city.alive(name), STARTING_SECONDS)
            city.start(f"{kind}-2")
        try:
            seen(lambda: not city.alive(name), moment, STARTING_SECONDS)
            city.died(name)
        finally:
            city.kill(name)
            city.kill(f"{kind}-2")
            city.start(name)
        return f"there for the {count}. time"

    return fault


def killed_unacknowledged(city: Arena, random: Random) -> str:
    """ClickHouse has inserted a block, and the sink is killed before it hears of it."""
    network = city.networks[TO_CLICKHOUSE]
    network.withhold(lambda data: data.startswith(DATA) and len(data) > ROWS)
    try:
        seen(network.withheld.is_set, "an insert")
        rows = -1
        while rows != (rows := city.inserted()):  # it is inserted when no more rows come
            sleep(0.5)
        city.kill("sink-1")
    finally:
        network.reset()
        network.mend()
    city.start("sink-1")
    return "the answer was on its way"


def killed_starting(city: Arena, random: Random) -> str:
    """Both workers are killed while they start, again and again."""
    for _ in range(3):
        for kind in KINDS:
            city.kill(f"{kind}-1")
            city.start(f"{kind}-1")
        sleep(random.random() * 4)
    return "3 times"


def killed_rebalancing(kind: str) -> Fault:
    """A second worker joins, and one of the two is killed while partitions move."""

    def fault(city: Arena, random: Random) -> str:
        joined = f"{kind}-2"
        city.start(joined)
        try:
            victim = random.choice((f"{kind}-1", joined))
            seen(lambda: city.state(kind) != STABLE, "a rebalance")
            city.kill(victim)
            state = city.state(kind)
            sleep(random.random() * 2)
            city.start(victim)
            if state == STABLE:
                raise NotStaged("the rebalance was over before the kill")
            sleep(random.random() * 4)
        finally:
            city.kill(joined)
        return f"{victim} killed, the group then {state}"

    return fault


def server_killed(name: str, start: Callable[[Arena], None], seconds: tuple[float, float]) -> Fault:
    """A server is killed, away for a while, and started again."""

    def fault(city: Arena, random: Random) -> str:
        sleep(random.random())
        city.kill_server(name)
        away = random.uniform(*seconds)
        sleep(away)
        start(city)
        return f"away for {away:.0f} s"

    return fault


broker_killed = partial(server_killed, kafka.NAME, Arena.start_kafka)
clickhouse_killed = partial(server_killed, clickhouse.NAME, Arena.start_clickhouse)


def refusing(name: str) -> Fault:
    """ClickHouse refuses inserts into a feed's table."""

    def fault(city: Arena, random: Random) -> str:
        table = f"raw.{random.choice(city.feeds)}"
        refusal, seconds, said = refusals(table)[name], random.uniform(1, 6), city.log_size("sink-1")
        with city.owner() as owner:
            for statement in refusal.stage:
                owner.execute(statement)
            try:
                seen(lambda: city.said_since("sink-1", said, refusal.reason), "a refused insert")
                sleep(seconds)
            finally:
                for statement in refusal.mend:
                    owner.execute(statement)
        return f"{table} for {seconds:.0f} s after the first refusal"

    return fault


def slow_inserts(city: Arena, random: Random) -> str:
    """ClickHouse takes some five seconds for an insert."""
    before = city.inserted()
    slowed = _slow(city, TO_CLICKHOUSE, SLOW_ANSWER_SECONDS, seconds := random.uniform(15, 25))
    if slowed < ANSWERS_OF_INSERT or city.inserted() == before:
        raise NotStaged(f"{slowed} slow answers, which were not those of an insert,")
    return f"{SLOW_ANSWER_SECONDS:.1f} s for each of {slowed} answers, for {seconds:.0f} s"


def network_cut(part: str) -> Fault:
    """Nothing gets through for a while; then connections go on, or break."""

    def fault(city: Arena, random: Random) -> str:
        network, seconds, breaks = city.networks[part], random.uniform(2, 15), random.random() < 0.5
        sleep(random.random())
        network.cut()
        sleep(seconds)
        if breaks:
            network.reset()
        network.mend()
        return f"{seconds:.0f} s, connections {'broke' if breaks else 'went on'}"

    return fault


def _slow(city: Arena, part: str, delay: float, seconds: float) -> int:
    """Hold back each answer on a network for a while; how many there were."""
    network = city.networks[part]
    network.slow(delay)
    sleep(seconds)
    network.mend()
    return network.slowed


def network_slow(part: str) -> Fault:
    """Every answer is late."""

    def fault(city: Arena, random: Random) -> str:
        delay = random.uniform(0.1, 0.5)
        slowed = _slow(city, part, delay, 10)
        if not slowed:
            raise NotStaged("no answer came")
        return f"{delay:.1f} s for each of {slowed} answers"

    return fault


def zombie(kind: str) -> Fault:
    """A worker is stopped for twice the session timeout while another takes over, and woken."""

    def fault(city: Arena, random: Random) -> str:
        first, second = f"{kind}-1", f"{kind}-2"
        city.start(second)
        try:
            seen(lambda: city.members(kind) == {first, second}, "the other worker", STARTING_SECONDS)
            sleep(random.uniform(1, 3))
            city.signal(first, signal.SIGSTOP)
            try:
                until = monotonic() + 2 * SESSION_SECONDS + random.random() * 3
                seen(lambda: city.members(kind) == {second}, "the end of a session")
                sleep(max(0.0, until - monotonic()))
            finally:
                city.signal(first, signal.SIGCONT)
            sleep(random.random() * 5)
        finally:
            city.kill(second)
        return f"{first} woke up, {second} had taken over"

    return fault


def storm(kind: str) -> Fault:
    """Workers come every few seconds until there are four, and then go and come."""
    names = [f"{kind}-{number}" for number in STORM]

    def fault(city: Arena, random: Random) -> str:
        steps = 8
        try:
            for name in names[1:]:
                city.start(name)
                sleep(random.uniform(1, 4))
            seen(lambda: city.members(kind) == set(names), "the last of the workers", STARTING_SECONDS)
            for _ in range(steps):
                there = [name for name in names if name in city.wanted]
                away = [name for name in names if name not in there]
                if away and (len(there) == 1 or random.random() < 0.5):
                    city.start(random.choice(away))
                else:
                    random.choice((city.kill, city.leave))(random.choice(there))
                sleep(random.uniform(1, 4))
        finally:
            for name in names[1:]:
                city.kill(name)
            if names[0] not in city.wanted:
                city.start(names[0])
        return f"{len(names)} workers, and {steps} times one went or came"

    return fault


def publisher_killed(city: Arena, random: Random) -> str:
    """The publisher is killed in the middle, and publishes everything again."""
    sleep(random.random() * 4)
    city.kill_publisher()
    return "once"


def upgraded(city: Arena, random: Random) -> str:
    """Both workers end, or are killed; what they left becomes what the release before would have left; this release is
    installed over it.

    The workers are this release's before and after it. That older code really leaves this, and older tables too, is
    what tests/integration/test_upgrade.py is for.
    """
    seen(lambda: all(city.commits(kind) for kind in KINDS), "a commit of both workers", STARTING_SECONDS)
    sleep(random.random() * 2)
    for kind in KINDS:
        random.choice((city.kill, city.leave))(f"{kind}-1")
        city.dismiss(kind)
    positions = city.leave_as_before()
    city.prepare()
    for kind in KINDS:
        city.start(f"{kind}-1")
    return f"from {positions} positions of the release before"


#: By name: kills of one process or two, which are quick.
KILLS: Mapping[str, Fault] = {
    **{f"{kind} killed": killed(kind) for kind in KINDS},
    **{
        f"{kind} killed: {moment}": killed_at(kind, moment)
        for kind, others in zip(KINDS, (OF_SINK, OF_PROCESSOR), strict=True)
        for moment in MOMENTS
        if moment not in others
    },
    "sink killed: inserted, not acknowledged": killed_unacknowledged,
    **{f"{kind} killed in a rebalance": killed_rebalancing(kind) for kind in KINDS},
    "both killed starting": killed_starting,
    "publisher killed": publisher_killed,
}
#: What goes on for some time.
OUTAGES: Mapping[str, Fault] = {
    "broker killed": broker_killed((0, 1)),
    "broker away": broker_killed((5, 20)),
    "ClickHouse killed": clickhouse_killed((0, 1)),
    "ClickHouse away": clickhouse_killed((5, 30)),
    **{f"ClickHouse refuses: {name}": refusing(name) for name in refusals("")},
    "ClickHouse slow": slow_inserts,
    **{f"network cut: {part}": network_cut(part) for part in (*PARTS, TO_CLICKHOUSE)},
    **{f"network slow: {part}": network_slow(part) for part in (*PARTS, TO_CLICKHOUSE)},
    **{f"zombie {kind}": zombie(kind) for kind in KINDS},
    **{f"storm of {kind}s": storm(kind) for kind in KINDS},
    "upgrade": upgraded,
}
LONG_OUTAGES: Mapping[str, Fault] = {"ClickHouse away for minutes": clickhouse_killed((120, 180))}
