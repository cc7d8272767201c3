"""What cases are after their steps, one step after the other, in plain Python: slow and obviously right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

#: Where a step leads from a state; "" is no case yet. What is not here does not count.
MOVES = {
    ("", "reported"): "open",
    ("open", "assigned"): "assigned",
    ("open", "handled"): "handled",
    ("open", "closed"): "closed",
    ("assigned", "assigned"): "assigned",
    ("assigned", "handled"): "handled",
    ("assigned", "closed"): "closed",
    ("handled", "closed"): "closed",
    ("handled", "reported"): "open",
    ("handled", "reopened"): "open",
    ("closed", "reported"): "open",
    ("closed", "reopened"): "open",
} | {
    (state, step): state
    for state in ("open", "assigned", "handled", "closed")
    for step in ("updated", "ended", "commented")
}
STEPS = (
    "reported", "updated", "ended", "assigned", "handled", "closed", "reopened", "commented", "unknown",
)  # fmt: skip
#: What stays as it was where a step does not say it; an opening says the deadline anew.
STANDS = ("agency", "assignee", "grid", "deadline", "source", "source_id", "kind", "subject", "severity")

Step = Mapping[str, Any]


@dataclass
class Case:
    """A case after some steps: its state, those that counted, and what stands."""

    state: str = ""
    steps: int = 0
    stands: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(STANDS))
    #: Each with what stood when it had come.
    counted: list[Step] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Take one step."""
        self.steps += 1
        after = MOVES.get((self.state, step["step"]))
        if after is None:
            return
        self.state = after
        if step["step"] in ("reported", "reopened"):
            self.stands |= {"deadline": None, "opened_at": step["at"]}
        self.stands |= {name: step[name] for name in STANDS if step[name] is not None}
        self.counted.append({**step, **self.stands})

    @property
    def waits(self) -> bool:
        """Whether somebody has to handle it."""
        return self.state in ("open", "assigned")


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Steps in the order in which they count: by event time, then by where they lie in the log."""
    return sorted(steps, key=lambda one: (one["at"], one["source_partition"], one["source_offset"]))


def cases(steps: Iterable[Step]) -> dict[str, Case]:
    """Those that were ever reported, by their ids."""
    found: dict[str, Case] = {}
    for step in in_order(steps):
        found.setdefault(step["case_id"], Case()).take(step)
    return {case_id: one for case_id, one in found.items() if one.counted}


def overdue(steps: Sequence[Step], until: int) -> list[tuple[int, str]]:
    """When one case is overdue, and when it is not any more, up to a time: who is late stays so until it is handled."""
    case, late, said = Case(), False, list[tuple[int, str]]()
    for now in sorted({one[name] for one in steps for name in ("at", "deadline") if one[name] is not None}):
        if now > until:
            break
        was = late
        for step in in_order(one for one in steps if one["at"] == now):
            case.take(step)
            late = late and case.waits
        deadline = case.stands["deadline"]
        late = case.waits and (late or (deadline is not None and deadline <= now))
        if late != was:
            said.append((now, "Alert" if late else "Cancel"))
    return said


def steps(begin: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Steps of some cases within seconds of a time (ms), often several at once, in the order of their offsets."""
    text = st.sampled_from([None, "a", "b"])
    times = st.integers(begin, begin + 6)
    one = st.fixed_dictionaries(
        {
            "case_id": st.sampled_from(["c-1", "c-2"]),
            "step": st.sampled_from(STEPS) | st.sampled_from(STEPS[:7]),
            "at": times,
            **dict.fromkeys(STANDS, text),
            "deadline": st.none() | times,
            "role": st.sampled_from(["desk", "patrol"]),
            "who": text,
            "why": text,
        }
    )
    return st.lists(one, max_size=24).map(
        lambda found: [{**step, "source_partition": 0, "source_offset": n} for n, step in enumerate(found)]
    )
