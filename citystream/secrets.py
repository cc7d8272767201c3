"""Passwords of the ClickHouse users and the pseudonym key: from the settings, else made once and kept in the home."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from citystream.settings import Settings, SettingsError, variable
from schemas.feed import Feed
from schemas.persisted import Newer, check_version
from schemas.pseudonyms import OtherDepartment, department_key

FILE = "secrets.json"
#: Of the file; one of version 1 need not say it.
VERSION = 1


class Secrets(BaseModel):
    """All secrets of one installation; printing it shows none of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    owner_password: SecretStr
    sink_password: SecretStr
    operator_password: SecretStr
    analyst_password: SecretStr
    pseudonym_key: SecretStr

    def password(self, user: str) -> str:
        """The password of one of the ClickHouse users owner, sink, operator, analyst."""
        value: SecretStr = getattr(self, f"{user}_password")
        return value.get_secret_value()

    def clickhouse_environment(self) -> dict[str, str]:
        """The variables from which `deploy/clickhouse/users.xml` takes the password hashes."""
        users = (name for name in type(self).model_fields if name.endswith("_password"))
        return {
            f"{variable(name)}_SHA256": hashlib.sha256(getattr(self, name).get_secret_value().encode()).hexdigest()
            for name in users
        }


def load_secrets(settings: Settings) -> Secrets:
    """The secrets to work with; ``SettingsError`` naming what is missing when there are none yet."""
    found = _stored(settings.home / FILE) | _given(settings)
    missing = [name for name in Secrets.model_fields if name not in found]
    if missing:
        raise _missing(settings, missing)
    return Secrets.model_validate(found)


def secret(settings: Settings, name: str) -> str:
    """One secret, for those who need no more than it; ``SettingsError`` naming it when it is missing."""
    found = _given(settings).get(name) or _stored(settings.home / FILE).get(name)
    if not found:
        raise _missing(settings, [name])
    return found


def pseudonym_key(settings: Settings, feed: Feed) -> bytes | None:
    """The key of a feed's department, None if the feed has no personal fields.

    ``SettingsError`` when it is missing or another department's.
    """
    if not any(field.personal for field in feed.fields):
        return None
    try:
        return department_key(secret(settings, "pseudonym_key"), feed.department.name)
    except OtherDepartment as error:
        raise SettingsError(f"{variable('pseudonym_key')}: {error}") from None


def _missing(settings: Settings, names: Sequence[str]) -> SettingsError:
    return SettingsError(
        f"{', '.join(variable(name) for name in names)}: not set, and no local stack was ever started in "
        f"{settings.home} to make {'it' if len(names) == 1 else 'them'}; run this where the stack was started, or set "
        "CITYSTREAM_HOME"
    )


def make_secrets(settings: Settings) -> Secrets:
    """The secrets of the local stack, made at its first start with what the settings leave open.

    A lost file is not replaced while data made with its pseudonym key is there: ``SettingsError``.
    """
    path = settings.home / FILE
    if not path.exists():
        if settings.data_of("clickhouse").exists() and settings.pseudonym_key is None:
            raise SettingsError(
                f"{path} is gone, and with it the key to the pseudonyms in the data beside it; put it back, "
                f"set {variable('pseudonym_key')}, or remove {settings.home} to start anew"
            )
        _write(path, {name: secrets.token_urlsafe(32) for name in Secrets.model_fields} | _given(settings))
    return load_secrets(settings)


def _given(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in Secrets.model_fields}
    return {name: value.get_secret_value() for name, value in values.items() if value is not None}


def _stored(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        fields = json.loads(path.read_text())
        check_version(fields, VERSION)
        stored = Secrets.model_validate({name: value for name, value in fields.items() if name != "version"})
    except Newer as newer:
        raise SettingsError(f"{path} {newer}") from None
    except (ValidationError, ValueError, TypeError, AttributeError):
        raise SettingsError(f"{path} is damaged: put back a copy of it") from None
    return {name: getattr(stored, name).get_secret_value() for name in Secrets.model_fields}


def _write(path: Path, values: dict[str, str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"version": VERSION, **values}, file, indent=2)
    unfinished.replace(path)
