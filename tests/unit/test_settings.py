from __future__ import annotations

from pathlib import Path

import pytest

from loomos.errors import InvalidInput
from loomos.settings import Settings, explain, load_settings
from loomos.stack.members import settings_environment


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of the test."""
    monkeypatch.setenv("LOOMOS_CONFIG", str(tmp_path / "config.yaml"))
    monkeypatch.setenv("LOOMOS_STATE_DIR", str(tmp_path / "no-stack"))
    monkeypatch.chdir(tmp_path)


def test_the_environment_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("cluster: {endpoint: 'http://file', timeout: 5}")
    monkeypatch.setenv("LOOMOS_CLUSTER__ENDPOINT", "http://environment")
    settings = load_settings()
    assert (settings.cluster.endpoint, settings.cluster.timeout) == ("http://environment", 5)
    origins = {name: origin for name, _, origin in explain()}
    assert origins["cluster.endpoint"] == "environment"
    assert origins["cluster.timeout"] == str(tmp_path / "config.yaml")
    assert origins["cluster.retries"] == "default"


def test_loomos_token_is_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOMOS_TOKEN", "abc")
    assert load_settings().token() == "abc"
    shown = {name: value for name, value, _ in explain()}
    assert "abc" not in str(shown["auth.token"])


def test_a_value_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOMOS_CLUSTER__TIMEOUT", "soon")
    with pytest.raises(InvalidInput, match=r"cluster\.timeout"):
        load_settings()


def test_what_the_stack_puts_into_the_environment_reads_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {
        "temporal": {"address": "127.0.0.1:1234"},
        "storage": {"endpoint": "http://127.0.0.1:9", "secret_key": "s", "access_key": "a"},
    }
    for name, value in settings_environment(given).items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.temporal.address == "127.0.0.1:1234"
    assert settings.storage.secret_key is not None
    assert settings.storage.secret_key.get_secret_value() == "s"
