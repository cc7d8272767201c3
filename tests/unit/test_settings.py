import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from citystream.secrets import load_secrets, make_secrets, secret
from citystream.settings import Settings, SettingsError, load_settings


def test_defaults_mean_the_local_stack() -> None:
    settings = load_settings({})
    assert str(settings.cluster) == "127.0.0.1:19092"
    assert settings.clickhouse_hosts == ("127.0.0.1",)
    assert settings.home == Path.cwd() / ".citystream"
    assert set(settings.ports()) == {"kafka_port", "clickhouse_port", "clickhouse_http_port", "registry_port"}


def test_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYSTREAM_KAFKA_PORT", "29092")
    assert load_settings().kafka_port == 29092


def test_elsewhere_needs_no_local_port() -> None:
    settings = load_settings(
        {"CITYSTREAM_KAFKA_BOOTSTRAP": "kafka-1:9092,kafka-2:9092", "CITYSTREAM_CLICKHOUSE_HOST": "db"}
    )
    assert str(settings.cluster) == "kafka-1:9092,kafka-2:9092"
    assert set(settings.ports()) == {"registry_port"}


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("CITYSTREAM_KAFKA_PORT", "many", "1 to 65535"),
        ("CITYSTREAM_KAFKA_PORT", "0", "1 to 65535"),
        ("CITYSTREAM_CLICKHOUSE_PORT", "65536", "1 to 65535"),
        ("CITYSTREAM_KAFKA_PORT", "19000", "two ports"),
        ("CITYSTREAM_KAFKA_BOOTSTRAP", "kafka", "host:port"),
        ("CITYSTREAM_KAFKA_BOOTSTRAP", "", "host:port"),
        ("CITYSTREAM_KAFKA_BOOTSTRAP", "kafka:9092,", "host:port"),
        ("CITYSTREAM_KAFKA_BOOTSTRAP", "kafka:99999", "host:port"),
        ("CITYSTREAM_CLICKHOUSE_HOST", "db:9000", "without a port"),
        ("CITYSTREAM_CLICKHOUSE_HOST", "", "without a port"),
        ("CITYSTREAM_TIMEZONE", "Mars/Olympus", "Asia/Shanghai"),
        ("CITYSTREAM_TIMEZONE", "../etc/passwd", "Asia/Shanghai"),
        ("CITYSTREAM_TIMEZONE", "", "Asia/Shanghai"),
        ("CITYSTREAM_SINK_PASSWORD", "short", "12 characters"),
        ("CITYSTREAM_PSEUDONYM_KEY", "short", "32 characters"),
        ("CITYSTREAM_HOME", __file__, "folder"),
        ("CITYSTREAM_KAFKA_PROT", "1", "CITYSTREAM_KAFKA_PORT"),
    ],
)
def test_refuses_what_makes_no_sense(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({name: value})
    assert name in str(refused.value)
    assert allowed in str(refused.value)


def test_names_every_wrong_setting_and_no_secret() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({"CITYSTREAM_KAFKA_PORT": "x", "CITYSTREAM_SINK_PASSWORD": "hunter2"})
    assert "CITYSTREAM_KAFKA_PORT" in str(refused.value)
    assert "CITYSTREAM_SINK_PASSWORD" in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_secrets_are_made_once_and_kept_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    made = make_secrets(settings)
    assert make_secrets(settings) == load_secrets(settings) == made
    assert stat.S_IMODE((tmp_path / "secrets.json").stat().st_mode) == 0o600
    assert made.password("owner") not in repr(made)
    assert len(set(made.clickhouse_environment().values())) == 4


def test_given_secrets_come_first(tmp_path: Path) -> None:
    make_secrets(Settings(home=tmp_path))
    given = load_settings({"CITYSTREAM_HOME": str(tmp_path), "CITYSTREAM_SINK_PASSWORD": "a-given-password"})
    assert load_secrets(given).password("sink") == "a-given-password"


def test_missing_secrets_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CITYSTREAM_ANALYST_PASSWORD"):
        load_secrets(Settings(home=tmp_path, clickhouse_host="db"))


def test_a_lost_pseudonym_key_is_not_replaced(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.data_of("clickhouse").mkdir(parents=True)
    with pytest.raises(SettingsError, match="CITYSTREAM_PSEUDONYM_KEY"):
        make_secrets(settings)


def test_one_secret_needs_no_other(tmp_path: Path) -> None:
    """A worker elsewhere gets the one password it uses."""
    settings = Settings(home=tmp_path, clickhouse_host="db", sink_password=SecretStr("a-given-password"))
    assert secret(settings, "sink_password") == "a-given-password"
    with pytest.raises(SettingsError, match="CITYSTREAM_OWNER_PASSWORD: not set"):
        secret(settings, "owner_password")


def test_damaged_secrets_are_named(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{")
    with pytest.raises(SettingsError, match=r"secrets\.json is damaged"):
        load_secrets(Settings(home=tmp_path))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"CLICKHOUSE_CLUSTER": "city"}, "CITYSTREAM_CLICKHOUSE_HOST"),
        ({"CLICKHOUSE_HOST": "db-1,db-2"}, "CITYSTREAM_CLICKHOUSE_CLUSTER"),
        ({"CLICKHOUSE_HOST": "db-1,db-2:9000", "CLICKHOUSE_CLUSTER": "city"}, "without a port"),
        ({"CLICKHOUSE_HOST": "db", "CLICKHOUSE_CLUSTER": "city'"}, "CITYSTREAM_CLICKHOUSE_CLUSTER"),
    ],
)
def test_what_makes_no_clickhouse_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({f"CITYSTREAM_{name}": value for name, value in given.items()})
    assert said in str(refused.value)
