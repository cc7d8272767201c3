"""citystream alerts: who is in alarm, what was, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from citystream.commands.output import Output, OutputOption, show, waiting_for
from citystream.commands.times import given
from citystream.installation import Installation
from citystream.settings import SettingsError
from operations.printable import printable
from operations.rules import declared, span_words
from schemas.alerts import Severity
from schemas.cap import NotCap, cap_xml
from schemas.rules import Level
from sinks import alerts

if TYPE_CHECKING:  # kernels come with it, and only one that is explained is evaluated
    from operations.explaining import Explanation
    from processors.steps import LevelStep, Step, Value

IdArgument = Annotated[str, typer.Argument(help="Its id, or the beginning of it; see: alerts active")]
#: Characters of an id that a table shows.
SHORT = 8


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Who is in alarm, what was, and why.")
    group.command("active")(active)
    group.command("history")(history)
    group.command("show")(show_alert)
    group.command("explain")(explain_alert)
    group.command("cap")(cap)
    app.add_typer(group, name="alerts")


def active(output: OutputOption = Output.TABLE) -> None:
    """Show who is in alarm now, the gravest and oldest first.

    Example: citystream alerts active
    """
    city = Installation.load()
    with city.server("analyst").connect() as client:
        found = alerts.active(client)
    show(found if output is Output.JSON else [_of_alert(one) for one in found], output)


def history(
    rule: Annotated[str | None, typer.Option(help="Only of this rule.")] = None,
    entity: Annotated[str | None, typer.Option(help="Only about this entity.")] = None,
    severity: Annotated[Severity | None, typer.Option(help="Only of this severity.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only from then on: ISO 8601, of the city's time zone unless given.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only up to then.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List messages about alerts, the newest first: each begins, updates or ends one.

    Example: citystream alerts history --rule parking_full --since 2026-03-22
    """
    city = Installation.load()
    zone = ZoneInfo(city.settings.timezone)
    chosen = {"rule": rule, "entity": entity, "severity": severity.value if severity else None}
    wanted = {name: value for name, value in chosen.items() if value is not None}
    with city.server("analyst").connect() as client:
        found = alerts.history(client, wanted, given("since", since, zone), given("until", until, zone), limit)
    show(found if output is Output.JSON else [_of_message(one) for one in found], output)


def show_alert(alert: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Show an alert: all its messages with their numbers, where it is, and the SQL that shows what raised it.

    Example: citystream alerts show 3f2a9c1e
    """
    messages = _messages(Installation.load(), alert)
    if output is Output.JSON:
        show(messages, output)
        return
    last = messages[-1]
    typer.echo(printable(f"{last['headline']} ({last['rule']}, {last['status']})"))
    typer.echo(f"alert {last['alert_id']}")
    if last["place_longitude"] is not None:
        typer.echo(f"at longitude {last['place_longitude']:.6f}, latitude {last['place_latitude']:.6f}")
    show([_of_message(one) for one in messages], output)
    typer.echo(f'citystream sql "{printable(last["query"])}"')


def explain_alert(alert: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Explain an alert: what its entity did, from before its beginning to its last message, and what each level said.

    All its stored observations are evaluated once more, by the rule as it is declared now. A condition is true, false
    or, where something is null, not known.

    Example: citystream alerts explain 3f2a9c1e
    """
    from operations.explaining import explain  # noqa: PLC0415  as above

    city = Installation.load()
    messages = _messages(city, alert)
    feed, name = messages[0]["feed"], messages[0]["rule"]
    found = next((one for one in declared(city.feeds) if (one.feed.name, one.rule.name) == (feed, name)), None)
    if found is None:
        raise SettingsError(f"the rule {name} of {feed}, which raised it, is not declared any more")
    with city.server("operator").connect() as client, waiting_for("what is stored of its entity"):
        why = explain(client, found, city.references, messages)
    zone = ZoneInfo(city.settings.timezone)
    levels = found.rule.levels
    if output is Output.JSON:
        rows = [_as_json(step, told, levels, zone) for step, told in zip(why.steps, why.told, strict=True)]
        typer.echo(json.dumps({"alert_id": messages[0]["alert_id"], "agree": why.agree, "steps": rows}, indent=2))
        return
    typer.echo(printable(messages[0]["headline"]))
    show(_shortened(why, levels, zone), output)
    if not why.agree:
        typer.echo(
            "This is not what was said then: the rule was changed since, it was added behind the first of what is "
            "stored, or rows are not stored any more."
        )


def cap(
    alert: Annotated[str, typer.Argument(help="Its id, or the beginning of it; of its messages the last is printed.")],
) -> None:
    """Print the last message about an alert as a document of the Common Alerting Protocol 1.2, in XML.

    Example: citystream alerts cap 3f2a9c1e
    """
    city = Installation.load()
    last = alerts.record_of(_messages(city, alert)[-1])
    try:
        typer.echo(cap_xml(last, ZoneInfo(city.settings.timezone)), nl=False)
    except NotCap as reason:
        raise SettingsError(str(reason)) from None


def _messages(city: Installation, alert: str) -> alerts.Messages:
    if not alert:
        raise SettingsError("an alert is called by its id, or by the beginning of it; see: citystream alerts active")
    with city.server("analyst").connect() as client:
        found = alerts.of_alerts(client, alert)
    ids = {one["alert_id"] for one in found}
    if len(ids) != 1:
        wrong = f"{len(ids)} alerts have an id that begins with" if ids else "there is no alert"
        raise SettingsError(f"{wrong} {alert}; see: citystream alerts active, citystream alerts history")
    return found


def _of_alert(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "alert": one["alert_id"][:SHORT],
        "severity": one["severity"],
        "onset": f"{one['onset']:%Y-%m-%d %H:%M:%S}",
        "rule": one["rule"],
        "entity": one["entity"],
        "numbers": _numbers(one["numbers"]),
    }


def _of_message(one: Mapping[str, Any]) -> dict[str, Any]:
    return {"sent": f"{one['sent']:%Y-%m-%d %H:%M:%S}", "msg_type": one["msg_type"], **_of_alert(one)}


def _numbers(text: str) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in json.loads(text).items())


def _value(value: Value) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _at(ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, zone)


def _as_json(step: Step, told: Mapping[str, Any] | None, levels: Sequence[Level], zone: ZoneInfo) -> dict[str, Any]:
    def at(ms: int | None) -> str | None:
        return None if ms is None else _at(ms, zone).isoformat(timespec="milliseconds")

    return {
        "time": at(step.time),
        "observations": step.observations,
        "values": dict(step.values),
        "levels": {
            level.severity.value: {
                **said.said,
                "value": said.value,
                "limit": said.limit,
                "holds": said.standing is not None and said.standing.holds,
                "since": at(said.standing.since) if said.standing else None,
                "hits": said.standing.hits if said.standing else 0,
                "run": at(said.standing.run) if said.standing else None,
                "due": at(said.standing.due) if said.standing else None,
            }
            for level, said in zip(levels, step.levels, strict=True)
        },
        "msg_type": None if told is None else told["msg_type"],
        "severity": None if told is None else told["severity"],
    }


def _shortened(why: Explanation, levels: Sequence[Level], zone: ZoneInfo) -> list[dict[str, Any]]:
    """The steps as a table; of many in a row that are alike, the first and the last."""
    rows, alike, skipped = list[dict[str, Any]](), None, 0
    last = len(why.steps) - 1
    for n, (step, told) in enumerate(zip(why.steps, why.told, strict=True)):
        like = [(one.said, one.standing is not None and one.standing.holds) for one in step.levels]
        follows = why.told[n + 1] if n < last else None
        if like == alike and told is None and follows is None and n < last:
            skipped += 1
            continue
        if skipped:
            rows.append(dict.fromkeys(rows[-1], "") | {"time": f"... {skipped:,} alike"})
        alike, skipped = like, 0
        rows.append(_as_row(step, told, levels, zone))
    return rows


def _as_row(step: Step, told: Mapping[str, Any] | None, levels: Sequence[Level], zone: ZoneInfo) -> dict[str, Any]:
    values = ", ".join(f"{name} {_value(value)}" for name, value in step.values.items())
    return {
        "time": f"{_at(step.time, zone):%m-%d %H:%M:%S}",
        "observed": values if step.observations else "(time passed)",
        **{one.severity.value: _of_level(said, one, step.time) for one, said in zip(levels, step.levels, strict=True)},
        "said": "" if told is None else f"{told['msg_type']} {told['severity']}",
    }


def _of_level(step: LevelStep, level: Level, now: int) -> str:
    """What a level said, and how it stands."""
    words = [f"{what} {'not known' if said is None else str(said).lower()}" for what, said in step.said.items()]
    if step.value is not None or step.limit is not None:
        words.insert(0, f"{_value(step.value)} beside {_value(step.limit)}")
    if (standing := step.standing) is None:
        return ", ".join(words)
    held = level.clear if standing.holds else level.held
    if standing.hits and held.times > 1:
        words.append(f"{standing.hits} of {held.times} times")
    if standing.run is not None and held.lasting:
        words.append(f"{span_words(timedelta(milliseconds=now - standing.run))} of {span_words(held.lasting)}")
    elif standing.due is not None:
        words.append(f"due in {span_words(timedelta(milliseconds=standing.due - now))}")
    if standing.holds:
        words.append("holds")
    return ", ".join(words)
