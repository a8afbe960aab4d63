"""The one settings object of a process.

Read once at start, passed down. Each value comes from the first of:

1. the context of `--context`;
2. `LOOMOS_*` variables (`LOOMOS_CLUSTER__ENDPOINT`, `LOOMOS_TOKEN`);
3. the context of `LOOMOS_CONTEXT`;
4. `~/.loomos/config.yaml`;
5. the stack that `loomos up` wrote to `.loomos/stack.json` here or in a folder above, if no context
   was named;
6. the current context (`loomos context use`), if there is no such stack either;
7. the default.

The credentials of a stack or context go to its own gateway only: if a stronger source names
another one, they do not apply.
"""

from __future__ import annotations

import difflib
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from loomos import contexts
from loomos.contexts import STACK_FILE, STATE_DIR, config_file, find_state_dir
from loomos.errors import FieldError, InvalidInput
from loomos.quantities import Duration, Quantity

__all__ = ["STACK_FILE", "STATE_DIR", "Settings", "config_file", "find_state_dir", "load_settings"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ClusterSettings(_Section):
    """How clients reach the gateway."""

    endpoint: str = "http://127.0.0.1:8400"
    """URL of the gateway."""
    timeout: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a request may take."""
    retries: Annotated[int, Field(ge=0, le=20)] = 3
    """Times a request is sent again when the gateway cannot be reached."""


class AuthSettings(_Section):
    """Who the client is."""

    method: Literal["token"] = "token"
    """How to authenticate."""
    token: SecretStr | None = None
    """Bearer token; `LOOMOS_TOKEN` sets it too."""
    token_file: Path | None = None
    """File that holds the token."""
    signing_key_file: Path | None = None
    """File with the key that signs and verifies tokens; the gateway's, and `create-token`'s."""
    stack_key_file: Path | None = None
    """File with the secret by which the gateway of an embedded stack proves itself to clients,
    before they send it a token."""


class OutputSettings(_Section):
    """What the CLI prints."""

    format: Literal["table", "json", "yaml"] = "table"
    """Default of `-o`."""
    verbosity: Literal["debug", "info", "warn", "error"] = "info"
    """What goes to stderr besides errors: `debug` logs requests too, `warn` and `error` show no
    progress, `error` hides warnings."""


class JobResourceDefaults(_Section):
    """What jobs need if their manifests do not say."""

    gpu_type: str | None = None
    """`spec.resources.gpu_type`."""
    timeout: str | None = None
    """`spec.runtime.max_duration`, such as 24h."""


class JobNotifications(_Section):
    """Who is told when a command has waited for a job until its end."""

    email: bool = False
    """Mail to the user, by this machine's `sendmail`, as cron does."""
    slack_webhook: SecretStr | None = None
    """Incoming webhook of Slack that gets a line."""


class JobDefaults(_Section):
    """Defaults of jobs."""

    resources: JobResourceDefaults = JobResourceDefaults()
    """What they need."""
    notifications: JobNotifications = JobNotifications()
    """Who hears of their ends."""


class DefaultsSettings(_Section):
    """What is filled in where a document says nothing; only on its way from CLI and SDK."""

    job: JobDefaults = JobDefaults()
    """For training jobs."""


class PluginsSettings(_Section):
    """Commands that other packages add to `loomos`."""

    enabled: list[str] = []
    """Names of installed packages with entry points in the group `loomos.plugins`, each a
    `typer.Typer`."""


class TemporalSettings(_Section):
    """Where the durable engine is."""

    address: str = "127.0.0.1:7233"
    """Host and port of the Temporal frontend."""
    namespace: str = "default"
    """Temporal namespace."""
    ui_url: str = "http://127.0.0.1:8233"
    """Base URL of Temporal's UI, for links."""


class StorageSettings(_Section):
    """Where big bytes are."""

    url: str = "s3://loomos"
    """`s3://bucket[/prefix]`, or `file:///folder` on one machine."""
    endpoint: str | None = None
    """URL of an S3 server other than AWS."""
    access_key: str | None = None
    """S3 access key; none for the machine's own AWS credentials."""
    secret_key: SecretStr | None = None
    """S3 secret key."""
    region: str = "us-east-1"
    """S3 region."""


class LoomDBSettings(_Section):
    """Where events and the ledger are, and who vouches for them."""

    url: str = Field(default_factory=lambda: f"sqlite:///{Path.home() / '.loomos' / 'loomdb.db'}")
    """`sqlite:///PATH`, or `postgresql://USER@HOST/NAME[?role=loomdb_writer]`."""
    log_key_file: Path | None = None
    """Signer key of the log; only the ledger's own process needs it."""
    policy_file: Path | None = None
    """C2SP policy: the log's public key, the witnesses, the quorum."""
    attestation_key_file: Path | None = None
    """PEM with the P-256 key that signs provenance statements and model signatures."""

    def origin(self) -> str:
        """Name of the log that the policy names first; a generic one without a policy."""
        if self.policy_file is None or not self.policy_file.exists():
            return "loomos"
        for line in self.policy_file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "log":
                return words[1].split("+")[0]
        return "loomos"


class NodeSettings(_Section):
    """What a worker node says of itself."""

    id: str = Field(default_factory=lambda: socket.gethostname().lower())
    """Name of the node, unique in the cluster."""
    address: str = "127.0.0.1"
    """Address at which the other nodes of a gang reach this one."""
    max_ranks: Annotated[int, Field(ge=1)] | None = None
    """Ranks it will run at once. Default: its GPUs, or its cores."""
    pool_slots: Annotated[int, Field(ge=0, le=256)] | None = None
    """Trials that it runs at a time, besides leased work. Default: half its cores, none on a
    machine with GPUs, whose memory a leased job may fill."""
    labels: dict[str, str] = {}
    """Free key/value pairs."""
    node_type: str = ""
    """What kind of machine it is, for `resources.node_type`."""
    region: str = ""
    """Where it stands, for `resources.region`."""
    bandwidth_gbps: Annotated[float, Field(ge=0)] | None = None
    """Bandwidth to other nodes, in Gbit/s."""
    latency_ms: Annotated[float, Field(ge=0)] | None = None
    """Latency to other nodes, in ms."""
    cost_per_hour: Annotated[float, Field(ge=0)] = 0.0
    """What an hour of it costs, in any one currency."""
    scratch_dir: Path | None = None
    """Folder for checkpoints on their way and cached data. Default: the system's temporary one."""


class RemoteKey(_Section):
    """A key for servers elsewhere, and where it may be sent."""

    url: Annotated[str, Field(pattern=r"^https?://.+")]
    """The key goes to this URL and to those below it only."""
    file: Path | None = None
    """File that holds the key. Default: the variable that has the entry's name."""


class ServingSettings(_Section):
    """A process that serves models."""

    id: str = Field(default_factory=lambda: f"serve-{socket.gethostname().lower()}")
    """Name of the server, unique in the cluster."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8500
    """Port to listen at."""
    url: str | None = None
    """URL at which the gateway reaches it. Default: from host and port."""
    public_key_file: Path | None = None
    """PEM of the key that signs models; nothing else is loaded."""
    cache_dir: Path | None = None
    """Folder for the files of models. Default: in the system's temporary one."""
    max_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    """Most requests that are generated together."""
    batch_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """How long the first request of an idle engine waits for others."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Torch threads. Default: torch's own."""
    drain_s: Annotated[float, Field(ge=0)] = 30.0
    """How long running requests may take when the process is asked to stop."""
    remotes: dict[str, RemoteKey] = {}
    """Keys for servers elsewhere, by the name that documents give as `remote.api_key_env`; the
    gateway and the serving processes need it. Default: none, so that no key is ever sent."""

    @property
    def advertised(self) -> str:
        """Where it is reached."""
        return (self.url or f"http://{self.host}:{self.port}").rstrip("/")


class DataSettings(_Section):
    """Which files documents may name, beside what people upload."""

    roots: list[Path] | None = None
    """Folders of the control worker's and the gateway's machine whose files documents may name.
    Default: none; `loomos up` allows the folder where it was called. Hidden files, keys and the
    stack's own state stay closed even there."""
    max_upload_bytes: Quantity = 1024**4
    """Size that one upload may have; larger data belong into S3."""


class RetentionSettings(_Section):
    """How long things are kept that nobody needs any more; see docs/retention.md."""

    every: Duration = timedelta(hours=1)
    """Time between two collections of garbage; 0 for none."""
    checkpoints: Duration = timedelta(hours=1)
    """Checkpoints of jobs that completed, and states of their trials."""
    failed_checkpoints: Duration = timedelta(days=7)
    """Checkpoints of jobs that failed or were cancelled, which a restart goes on from."""
    records: Duration = timedelta(days=30)
    """Logs, metrics and events of jobs that have ended, and what updates learnt from."""
    answers: Duration = timedelta(days=7)
    """What versions said in verifications; reports stay."""
    outcomes: Duration = timedelta(days=7)
    """How requests to endpoints went."""
    samples: Duration = timedelta(days=30)
    """Requests kept to learn from, once every schedule has read them."""
    uploads: Duration = timedelta(days=30)
    """Uploads that no document has named."""
    blobs: Annotated[Duration, Field(ge=timedelta(hours=1))] = timedelta(days=7)
    """Inputs that no run, version or upload refers to. Uploads on their way are such for a while,
    so at least an hour."""
    caches: Duration = timedelta(days=7)
    """Files of inputs and models on the machines of workers, unused."""
    scratch: Duration = timedelta(hours=1)
    """What died work has left on the machines of workers."""
    log_bytes: Quantity = 32 * 1024 * 1024
    """Length at which the log of a member of the stack is rotated."""
    logs_kept: Annotated[int, Field(ge=0, le=100)] = 3
    """Older pieces of such a log."""


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix="LOOMOS_",
        env_nested_delimiter="__",
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    cluster: ClusterSettings = ClusterSettings()
    auth: AuthSettings = AuthSettings()
    output: OutputSettings = OutputSettings()
    defaults: DefaultsSettings = DefaultsSettings()
    plugins: PluginsSettings = PluginsSettings()
    temporal: TemporalSettings = TemporalSettings()
    storage: StorageSettings = StorageSettings()
    loomdb: LoomDBSettings = Field(default_factory=LoomDBSettings)
    node: NodeSettings = Field(default_factory=NodeSettings)
    serving: ServingSettings = Field(default_factory=ServingSettings)
    data: DataSettings = DataSettings()
    retention: RetentionSettings = RetentionSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order: as the module says."""
        sources: list[PydanticBaseSettingsSource] = [init_settings]
        endpoint: str | None = init_settings().get("cluster", {}).get("endpoint")
        for _, content, is_gateways in named_sources():
            if is_gateways and endpoint not in (None, _endpoint(content)):
                content = content | {"auth": _without_credentials(content.get("auth", {}))}
            endpoint = endpoint or _endpoint(content)
            sources.append(InitSettingsSource(settings_cls, content))
        return tuple(sources)

    def token(self, *, to_stack: bool = True) -> str | None:
        """The bearer token to send, from `auth.token` or `auth.token_file`.

        Args:
            to_stack: whether it is for the gateway of these settings; another one is not sent the
                token of an embedded stack.
        """
        if self.auth.token is not None:
            return self.auth.token.get_secret_value()
        if self.auth.stack_key_file is not None and not to_stack:
            return None
        if self.auth.token_file is not None:
            path = self.auth.token_file.expanduser()
            if path.exists():
                return path.read_text(encoding="utf-8").strip()
        return None


def load_settings() -> Settings:
    """Read the settings of this process.

    Raises:
        InvalidInput: a value does not fit, or a name is unknown; says which, and the fix.
    """
    try:
        return Settings()
    except ValidationError as error:
        errors = [_field_error(e) for e in error.errors(include_url=False)]
        raise InvalidInput(
            "settings: " + "; ".join(map(str, errors)) + " (see `loomos config view`)", errors
        ) from None


def _field_error(error: Any) -> FieldError:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return FieldError(path=path, message=f"no such setting{did_you_mean(path)}")
    return FieldError(path=path, message=error["msg"])


def known_names() -> list[str]:
    """Dotted names of all settings, and of all sections."""
    found: list[str] = []

    def walk(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            found.append(prefix + name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                walk(field.annotation, f"{prefix}{name}.")

    walk(Settings, "")
    return found


def did_you_mean(name: str) -> str:
    """`; did you mean NAME?`, if a setting has a name like it."""
    close = difflib.get_close_matches(name, known_names(), n=1)
    return f"; did you mean {close[0]}?" if close else "; `loomos config view` lists them"


def read_config_file() -> dict[str, Any]:
    """Content of the config file; empty if there is none.

    Raises:
        InvalidInput: it is not a YAML mapping of sections that there are.
    """
    path = config_file()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"{path} is not YAML: {str(error).splitlines()[0]}; mend it") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} must hold a mapping such as `cluster: {{endpoint: URL}}`")
    for section, values in content.items():
        if section not in Settings.model_fields:
            raise InvalidInput(f"{path}: no section {section!r}{did_you_mean(str(section))}")
        if values is not None and not isinstance(values, dict):
            raise InvalidInput(f"{path}: {section} must hold a mapping of settings")
    return {section: values for section, values in content.items() if values is not None}


def named_sources() -> list[tuple[str, dict[str, Any], bool]]:
    """Where settings come from, the strongest first.

    Each is (name, settings, whether it is a gateway's own: a stack or a context).

    Raises:
        InvalidInput: a source cannot be read.
        NotFound: the context that was named is not there.
    """
    flagged, named = contexts.chosen_by_flag(), contexts.chosen_by_variable()
    sources: list[tuple[str, dict[str, Any], bool]] = []
    if flagged is not None:
        sources.append(("--context", flagged.settings(), True))
    sources.append(("environment", _environment(), False))
    if flagged is None and named is not None:
        sources.append((contexts.VARIABLE, named.settings(), True))
    sources.append((str(config_file()), read_config_file(), False))
    if flagged is None and named is None:
        folder = find_state_dir()
        if folder is not None:
            sources.append(("local stack", contexts.read_stack(folder), True))
        elif (current := contexts.current()) is not None:
            sources.append(("current context", current.settings(), True))
    return sources


def _environment() -> dict[str, Any]:
    """Settings in variables.

    Raises:
        InvalidInput: a variable names no section that there is.
    """
    for name in os.environ:
        section, nested, _ = name.removeprefix("LOOMOS_").lower().partition("__")
        if name.startswith("LOOMOS_") and nested and section not in Settings.model_fields:
            raise InvalidInput(f"{name}: no section {section!r}{did_you_mean(section)}")
    content = EnvSettingsSource(Settings)()
    token = os.environ.get("LOOMOS_TOKEN")
    if token and not content.get("auth", {}).get("token"):
        content["auth"] = content.get("auth", {}) | {"token": token}
    return content


def _endpoint(content: dict[str, Any]) -> str | None:
    found = (content.get("cluster") or {}).get("endpoint")
    return None if found is None else str(found)


def _without_credentials(auth: dict[str, Any]) -> dict[str, Any]:
    secrets = ("token", "token_file", "stack_key_file")
    return {name: value for name, value in auth.items() if name not in secrets}


def explain() -> list[tuple[str, Any, str]]:
    """Each setting as (dotted name, value, where it came from); secrets are masked."""
    settings = load_settings()
    sources = [(label, _leaves(content)) for label, content, _ in named_sources()]
    rows: list[tuple[str, Any, str]] = []
    for name, value in _leaves(settings.model_dump(mode="json")).items():
        origin = next((label for label, known in sources if _covers(known, name)), "default")
        rows.append((name, value, origin))
    return rows


def _covers(known: dict[str, Any], name: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for key in known)


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
