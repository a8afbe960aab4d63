from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer

from loomos.cli import plugins
from loomos.client.job_defaults import with_defaults
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


SEEDS_FILE = """
cluster:
  endpoint: "https://production-cluster.loomos.com"
  timeout: 300
  retries: 3

auth:
  method: "token"  # or "oauth", "certificate"
  token_file: "~/.loomos/token"

defaults:
  job:
    resources:
      gpu_type: "A100"
      timeout: "24h"
    notifications:
      email: true
      slack_webhook: "https://hooks.slack.com/..."

output:
  format: "table"  # json, yaml, table
  verbosity: "info"  # debug, info, warn, error

plugins:
  enabled:
    - "loomos-visualizer"
    - "loomos-cost-optimizer"
"""


def test_the_documented_file_is_understood_whole(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(SEEDS_FILE)
    settings = load_settings()
    assert settings.cluster.timeout == 300
    assert settings.output.verbosity == "info"
    assert settings.plugins.enabled == ["loomos-visualizer", "loomos-cost-optimizer"]
    webhook = settings.defaults.job.notifications.slack_webhook
    assert webhook is not None and webhook.get_secret_value() == "https://hooks.slack.com/..."
    assert not [name for name, value, _ in explain() if "hooks.slack.com" in str(value)]
    given = {name for name, _, origin in explain() if origin == str(tmp_path / "config.yaml")}
    assert {"defaults.job.resources.timeout", "output.verbosity", "auth.token_file"} <= given
    job = {"spec": {"algorithm": "sft", "resources": {"gpu_count": 1}}}
    assert with_defaults(job, settings.defaults.job) == {
        "spec": {
            "algorithm": "sft",
            "resources": {"gpu_type": "A100", "gpu_count": 1},
            "runtime": {"max_duration": "24h"},
        }
    }
    said = {"spec": {"resources": {"gpu_type": "H100"}, "runtime": {"max_duration": "1h"}}}
    assert with_defaults(said, settings.defaults.job) == said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("clustr: {endpoint: x}", "no section 'clustr'; did you mean cluster?"),
        ("cluster: {timout: 3}", "cluster.timout: no such setting; did you mean cluster.timeout?"),
        ("output: {verbosity: loud}", "output.verbosity"),
        ("defaults: {job: {resources: {gpu: A}}}", "defaults.job.resources.gpu: no such setting"),
        ("cluster: 3", "cluster must hold a mapping"),
        ("[1]", "must hold a mapping"),
        ("cluster: {", "is not YAML"),
        ("3: {}", "no section 3"),
    ],
)
def test_what_is_unknown_in_the_file_is_named_with_what_was_meant(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InvalidInput) as caught:
        load_settings()
    assert message in str(caught.value)


def test_a_section_without_settings_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("cluster:\noutput: {format: json}\n")
    assert load_settings().output.format == "json"


def test_a_variable_of_no_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOMOS_CLUSTR__ENDPOINT", "http://x")
    with pytest.raises(InvalidInput, match=r"LOOMOS_CLUSTR__ENDPOINT.*did you mean cluster"):
        load_settings()


def test_a_plugin_that_is_not_installed_is_a_warning_and_one_that_is_adds_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = EntryPoint("visualize", "loomos.cli.config:app", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [offered])
    app = typer.Typer()
    plugins.add_plugins(app, ["visualize", "loomos-cost-optimizer"])
    assert [group.name for group in app.registered_groups] == ["visualize"]
    assert capsys.readouterr().err == (
        "warning: plugin 'loomos-cost-optimizer' is not installed; "
        "pip install loomos-cost-optimizer\n"
    )
