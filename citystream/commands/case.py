"""citystream case: the cases of grassroots governance, and moving one on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from citystream.commands.output import Output, OutputOption, show
from citystream.installation import Installation
from citystream.secrets import pseudonym_key
from feeds.governance.case import FEED, OF_PEOPLE, Step, possible
from operations import cases
from streams.publisher import publishers

Case = Annotated[str, typer.Argument(help="The case, see: citystream case list")]
#: Columns of a list.
LISTED = ("case_id", "state", "agency", "assignee", "grid", "kind", "subject", "severity", "opened_at", "deadline")


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    group = typer.Typer(no_args_is_help=True, help="Cases of grassroots governance: lists, history, moving one on.")
    group.command("list")(list_cases)
    group.command("show")(show_case)
    group.command("move")(move)
    app.add_typer(group, name="case")


def list_cases(
    agency: Annotated[str | None, typer.Option(help="Only those of this agency.")] = None,
    grid: Annotated[str | None, typer.Option(help="Only those in this grid.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the cases that are not closed, those first that have to be handled first.

    Example: citystream case list --agency Police
    """
    wanted = {name: value for name, value in (("agency", agency), ("grid", grid)) if value is not None}
    with Installation.load().server("analyst").connect() as client:
        found = cases.cases(client, wanted)
    show([{name: _shown(row[name]) for name in LISTED} for row in found], output)


def show_case(case_id: Case, output: OutputOption = Output.TABLE) -> None:
    """Show the steps of a case: when, what, who in which role, and why; then, beside the table, what can come now.

    Example: citystream case show 3c1f6a52-6a0b-5b8c-9d43-1c6f0d8e2a77
    """
    with Installation.load().server("analyst").connect() as client:
        state = cases.case(client, case_id)["state"]
        found = cases.history(client, case_id)
    show([{name: _shown(value) for name, value in row.items()} for row in found], output)
    typer.echo(f"it is {state}, and can be {_any_of(possible(state))}", err=True)


def move(
    case_id: Case,
    step: Annotated[str, typer.Argument(metavar="STEP", help=f"{_any_of(OF_PEOPLE)}: one that can come now.")],
    who: Annotated[str, typer.Option(help="Who does it; only a pseudonym leaves this machine.")],
    role: Annotated[str, typer.Option(help="In which role, such as dispatcher; no person's name.")],
    why: Annotated[str | None, typer.Option(help="Why, or what came of it; no person's name.")] = None,
    agency: Annotated[str | None, typer.Option(help="Agency that handles it from now on.")] = None,
    assignee: Annotated[str | None, typer.Option(help="Team or post of the agency; no person's name.")] = None,
) -> None:
    """Move a case on: publish a step, if it may come in the state that the case is in.

    Exit codes: 0 Kafka has it, 1 there is no such case or it cannot be moved so.

    Example: citystream case move 3c1f6a52-6a0b-5b8c-9d43-1c6f0d8e2a77 assigned --who wang --role dispatcher
    """
    city = Installation.load()
    with city.server("analyst").connect() as client:
        there = cases.case(client, case_id)
        record = cases.step_of(
            there, step, who=who, role=role, why=why, now=datetime.now(UTC), agency=agency, assignee=assignee
        )
        keys = {FEED.name: pseudonym_key(city.settings, FEED)}
        with publishers(city.cluster, [FEED], city.catalogue, keys, partial(typer.echo, err=True)) as found:
            cases.move(found[FEED.name], record)
    typer.echo(f"{case_id} was {there['state']}, and is {record.step.value}; a moment later it is so in city.case_now")


def _any_of(steps: Iterable[Step]) -> str:
    *some, last = steps
    return f"{', '.join(some)} or {last}"


def _shown(value: object) -> object:
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else value
