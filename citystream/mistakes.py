"""What went wrong, as a message for people who can put it right, and the exit code."""

from __future__ import annotations

from clickhouse_driver.errors import Error as ClickHouseError
from clickhouse_driver.errors import ServerException
from kafka.errors import AuthorizationError, KafkaError

from citystream.settings import SettingsError, variable
from citystream.stack.process import StackError
from operations.problems import CaseProblem
from operations.redriving.arrival import SinkBehind
from operations.redriving.corrections import CorrectionProblem
from schemas.catalogue import SchemaProblem
from schemas.feed import DeclarationError
from schemas.persisted import Newer
from sinks.clickhouse import first_line, reason
from streams.positions import PositionProblem
from streams.topics import TopicProblem

CHECK_FAILED, WRONG_USE, UNREACHABLE = 1, 2, 3


def explained(error: Exception) -> tuple[str, int] | None:
    """The message and the exit code, or None for what only a traceback explains."""
    match error:
        case SettingsError():
            return str(error), WRONG_USE
        case StackError() | TopicProblem() | SinkBehind():
            return str(error), UNREACHABLE
        case AuthorizationError():
            user = variable("kafka_user")
            return f"Kafka does not allow it ({error}): {user} needs a right, see: citystream rights", CHECK_FAILED
        case KafkaError():
            return f"Kafka does not answer ({error}); see: citystream status", UNREACHABLE
        case ServerException():
            return f"ClickHouse refused: {reason(error)}", CHECK_FAILED
        case ClickHouseError() | EOFError():
            return f"ClickHouse does not answer ({first_line(error)}); see: citystream status", UNREACHABLE
        case SchemaProblem() | DeclarationError() | PositionProblem() | CorrectionProblem() | CaseProblem():
            return str(error), CHECK_FAILED
        case Newer():
            return str(error), CHECK_FAILED
    return None
