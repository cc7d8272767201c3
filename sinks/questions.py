"""Questions as views: what they read, they read with the rights of whoever asks."""

from __future__ import annotations

from collections.abc import Iterable

from schemas.question import Question
from schemas.sql import literal
from sinks.dialect import Dialect
from sinks.shown import Ask
from sinks.tables import TableColumn, field_columns
from sinks.views import view

#: A view that shows nobody more than they may see; no other view has it.
AS_WHO_ASKS = "SQL SECURITY INVOKER"


def question_columns(question: Question, timezone: str) -> list[TableColumn]:
    """Columns of its view."""
    return [column for field in question.fields for column in field_columns(field, timezone)]


def question_view(question: Question, dialect: Dialect) -> str:
    """Statement creating its view; the columns of one with parameters have the types of its SQL, if that casts none."""
    columns = question_columns(question, dialect.timezone)
    cast = ", ".join(f"accurateCast({column.name}, {literal(column.type)}) AS {column.name}" for column in columns)
    select = f"SELECT {cast} FROM ({question.sql.strip()})"
    return view(dialect, f"city.{question.name}", columns, question.asks, select, security=AS_WHO_ASKS)


def ask_all(ask: Ask, questions: Iterable[Question], dialect: Dialect) -> None:
    """Make the views of these questions, and drop those of others."""
    questions = list(questions)
    for question in questions:
        ask(question_view(question, dialect))
    names = {question.name for question in questions}
    there = "SELECT name FROM system.tables WHERE database = 'city' AND position(create_table_query, %(security)s) > 0"
    for (name,) in ask(there, {"security": AS_WHO_ASKS}):
        if name not in names:
            ask(f"DROP VIEW IF EXISTS city.{name}{dialect.everywhere}")
