"""The parts of the documentation that are made from the code: python -m docs.generate

A part stands between ``<!-- name -->`` and ``<!-- /name -->`` in its file.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import grimp

import feeds as declared
from bench.city import ROW, ratios
from citystream.rights import rights
from citystream.settings import Settings, variable
from docs import language
from sinks.questions import question_columns

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("citystream", "operations", "simulation", "feeds", "processors", "sinks", "streams", "schemas")
#: Packages whose modules are shown; in feeds each file is alike, so it is one box.
SHOWN = ("citystream", "operations", "processors", "sinks", "streams", "schemas")

Edges = list[tuple[str, str]]


def imports() -> tuple[list[str], Edges]:
    """The modules, and which imports which, as the code has it; a package inside citystream counts as one module."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    edges = {
        (_box(module), _box(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    return sorted({_box(module) for module in graph.modules}), sorted((a, b) for a, b in edges if a != b)


def _box(module: str) -> str:
    package, _, rest = module.partition(".")
    return package if package == "feeds" or not rest else f"{package}.{rest.partition('.')[0]}"


def import_graph() -> str:
    """Mermaid graphs of the packages, and of the modules inside each package."""
    modules, edges = imports()
    across = {(_package(a), _package(b)) for a, b in edges}
    parts = ["The packages:\n", _mermaid(sorted((a, b) for a, b in across if a != b))]
    for package in SHOWN:
        inside = [module for module in modules if module.startswith(f"{package}.")]
        within = [(_name(a), _name(b)) for a, b in edges if a in inside and b in inside]
        joined = {name for edge in within for name in edge}
        alone = [name for name in map(_name, inside) if name not in joined]
        parts += [f"\nInside {package}:\n", _mermaid(within, alone)]
    return "\n".join(parts)


def _package(module: str) -> str:
    return module.partition(".")[0]


def _name(module: str) -> str:
    return module.partition(".")[2]


def _mermaid(edges: Edges, alone: Iterable[str] = ()) -> str:
    lines = [f"  {start} --> {' & '.join(end for _, end in group)}" for start, group in groupby(edges, lambda e: e[0])]
    return "\n".join(["```mermaid", "flowchart TD", *lines, *(f"  {name}" for name in alone), "```"])


def settings_table() -> str:
    """Every setting, its default and what it means."""
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{_relative(field.default)}`"
        rows.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(rows)


def _relative(value: object) -> object:
    return value.relative_to(PROJECT) if isinstance(value, Path) and value.is_absolute() else value


def measurements() -> str:
    """What ``make bench`` wrote last, as it was kept in docs/measurements.json."""
    found = json.loads((PROJECT / "docs" / "measurements.json").read_text())
    rows = [
        f"| {row['name']} | {row['events']:,} | {row['events_per_second']:,} | {row['cpu_seconds']:.2f} | "
        f"{row['peak_rss_mb']:,} |"
        for row in found["measurements"]
    ]
    others = [f"| {name} | {value:,} |" for name, value in (found["ratios"] | found["live"]).items()]
    table = ["| what | events | events/s | CPU s | peak MiB |", "| --- | --- | --- | --- | --- |", *rows]
    parts = [f"On {found['machine']}:\n", *table, "", "| ratio or live value | |", "| --- | --- |", *others]
    if row := found.get("city"):
        shown = {words: row[name] for name, words in ROW.items()} | ratios(row)
        parts += ["", f"On {found['city_machine']}:", "", "| the city at its real rate | |", "| --- | --- |"]
        parts += [f"| {words} | {value:,} |" for words, value in shown.items()]
    return "\n".join(parts)


def campaigns() -> str:
    """What ``make faults`` wrote, as it was kept in docs/faults.json."""
    parts = []
    for found in json.loads((PROJECT / "docs" / "faults.json").read_text()):
        lines = found["lines"]
        total = {name: sum(line[name] for line in lines) for name in ("times", "events", "lost", "doubled", "wrong")}
        parts.append(
            f"`{found['command']}`, {found['minutes']} minutes on {found['machine']}: {found['kills']} processes "
            f"killed while {total['events']:,} records were published.\n"
        )
        parts += [
            "| fault | times | records | lost | doubled | wrong | s to recover | at most | MiB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            *(
                f"| {line['fault']} | {line['times']} | {line['events']:,} | {line['lost']:,} | {line['doubled']:,} | "
                f"{line['wrong']:,} | {_seconds(line['recover'])} | {_seconds(line['recover_most'])} | "
                f"{line['peak']:,} |"
                for line in lines
            ),
            f"| all | {' | '.join(f'{number:,}' for number in total.values())} | | | |\n",
        ]
        parts += [
            f"{one['fault']}: MiB of the largest worker every {one['seconds']} s: {', '.join(map(str, one['mib']))}\n"
            for one in found["memory"]
        ]
        parts += ["The first differences:\n", "```text", *found["first"], "```\n"] if found["first"] else []
    return "\n".join(parts).rstrip()


def isolation() -> str:
    """What ``make isolation`` wrote last, as it was kept in docs/isolation.json."""
    found = json.loads((PROJECT / "docs" / "isolation.json").read_text())
    rows = [
        f"| {row['fault']}, {row['seconds']:.0f} s | {_ages(row['before'])} | {_ages(row['during'])} | "
        f"{row['lag']:.1f} | {'<br>'.join(row['said']) or 'nothing: it goes on'} |"
        for row in found["rounds"]
    ]
    return "\n".join(
        [
            f"`make isolation`, {found['minutes']} minutes on {found['machine']}:\n",
            "| done to a feed | others before, s | others meanwhile, s | their lag, s | `citystream status` said |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def truths() -> str:
    """What ``make truth`` wrote last, as it was kept in docs/truth.json."""
    found = json.loads((PROJECT / "docs" / "truth.json").read_text())
    hours = ", ".join(f"{long:g} h of `{name}`" for name, long in found["hours"].items())
    faults = ", ".join(f"{name} {share:g}" for name, share in found["faults"].items())
    counted = ("staged", "found", "in_time", "again", "missed", "hidden", "faked", "false")
    rows = [
        f"| `{one['rule']}` | {' | '.join(f'{one[name]:,}' for name in counted)} | {one['precision']:.4f} | "
        f"{one['recall']:.4f} |"
        for one in found["scores"]
    ]
    same = "the same to the byte" if not found["differ"] else f"{found['differ']:,} of them DIFFERENT"
    return "\n".join(
        [
            f"`{found['command']}`, {found['minutes']} minutes on {found['machine']}: {hours}, {found['records']:,} "
            f"records; {found['messages']:,} messages about alerts, in the replay {same}.\n",
            f"Shares of events (of devices for `behind`, of their time for `silent`) that suffered faults: {faults}.\n",
            f"| rule | {' | '.join(name.replace('_', ' ') for name in counted)} | precision | recall |",
            f"| --- |{' --- |' * (len(counted) + 2)}",
            *rows,
            "\n| staged | times |",
            "| --- | --- |",
            *(f"| {name.replace('_', ' ')} | {times:,} |" for name, times in found["staged"].items()),
        ]
    )


def _ages(freshness: dict[str, float]) -> str:
    return f"{freshness['median']:.1f}, at most {freshness['longest']:.1f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def brokers() -> str:
    """What each of several brokers is set to."""
    return f"```properties\n{(PROJECT / 'deploy/kafka/cluster.properties').read_text()}```"


def rights_table() -> str:
    """What each user may do in Kafka for the declared feeds."""
    found = defaultdict[tuple[str, str, str], list[str]](list)
    for right in rights(declared.load().values(), declared.references().values()):
        found[right.user, right.operation.name.lower(), right.kind.name.lower()].append(f"`{right.names}`")
    rows = ["| user | may | what |", "| --- | --- | --- |"]
    return "\n".join(
        rows
        + [f"| `{user}` | {may} | {kind} {', '.join(names)} |" for (user, may, kind), names in sorted(found.items())]
    )


def asked() -> str:
    """Every question that a department asks: what it asks, how, and the columns of the answer."""
    parts = []
    for question in declared.questions().values():
        rows = [f"| `{column.name}` | {column.comment} |" for column in question_columns(question, Settings().timezone)]
        parts += [
            f"### {question.asks}\n",
            f"```sql\n{question.query}\n```\n",
            *("| column | meaning |", "| --- | --- |", *rows, ""),
        ]
    return "\n".join(parts).rstrip()


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"bench": measurements},
    "ARCHITECTURE.md": {"imports": import_graph},
    "docs/analyst.md": {"questions": asked},
    "docs/operator.md": {"settings": settings_table, "brokers": brokers, "rights": rights_table},
    "docs/language.md": {
        "refused": language.refused,
        "records": language.records,
        "numbers": language.numbers,
        "conditions": language.conditions,
        "groups": language.groups,
        "measures": language.of_windows,
        "roll-ups": language.roll_ups,
        "states": language.states,
        "made": language.made_records,
        "observed": language.observed,
        "looked up": language.looked_up,
        "areas": language.areas,
        "rules": language.of_rules,
        "refused rule": language.refused_rule,
    },
    "docs/truth.md": {"truth": truths},
    "docs/guarantees.md": {"campaigns": campaigns, "isolation": isolation},
}


def filled(file: str) -> str:
    """The text of a file with its parts as the code has them now."""
    text = (PROJECT / file).read_text()
    for name, make in PARTS[file].items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{file} has no part between <!-- {name} --> and <!-- /{name} -->")
        text = before + begin + make() + end + after
    return text


def main() -> None:
    """Write every part."""
    for file in PARTS:
        (PROJECT / file).write_text(filled(file))


if __name__ == "__main__":
    main()
