"""`loomos endpoints`: models in service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import (
    Format,
    Output,
    call,
    call_on,
    chosen,
    counting,
    ends,
    print_facts,
    print_table,
    show,
)
from loomos.cli.tables import number

if TYPE_CHECKING:
    from loomos.client.delivery_models import EndpointDetail, EndpointList
    from loomos.client.http import LoomOSClient
    from loomos.jobs.serving import Route

app = typer.Typer(help="Look at endpoints, try them under load, delete them.", no_args_is_help=True)

Endpoint = Annotated[str, typer.Argument(help="Name of the endpoint.")]


@app.command("list")
def list_endpoints(output: Output = None) -> None:
    """List endpoints."""

    async def work(client: LoomOSClient) -> EndpointList:
        return await client.endpoints.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("ENDPOINT", "STABLE", "CANARY", "SHARE", "SERVERS", "READY"),
            [(e.name, *_traffic(e.route), "yes" if e.is_ready else "no") for e in found.endpoints],
            spare=("SERVERS",),
        )

    show(found, output, table)


@app.command()
def describe(endpoint: Endpoint, output: Output = None) -> None:
    """Show an endpoint: versions, shares, servers."""
    print_endpoint(call_on("endpoint", endpoint, lambda c, one: c.endpoints.get(one)), output)


@app.command()
def delete(endpoint: Endpoint) -> None:
    """Delete an endpoint; its models stay in the registry."""

    async def work(client: LoomOSClient) -> None:
        await client.endpoints.delete(endpoint)

    call(work)
    print(f"deleted {endpoint}")


@app.command()
def load(
    endpoint: Endpoint,
    rate: Annotated[float, typer.Option(min=0.01, max=1000, help="Requests a second.")] = 5.0,
    duration: Annotated[str, typer.Option("--for", help="How long at most, as 90s or 5m.")] = "60s",
    requests: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many at most.")] = 10_000,
    clients: Annotated[
        int, typer.Option(min=1, max=1000, help="How many may wait for an answer at a time.")
    ] = 8,
    prompt: Annotated[list[str] | None, typer.Option(help="What to ask; may repeat.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(exists=False, help="File with a prompt in each line.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Longest answer.")] = 64,
    while_rollout: Annotated[
        bool, typer.Option(help="Stop when the endpoint's rollout is over.")
    ] = False,
    output: Output = None,
) -> None:
    """Send real requests at a steady rate, each as another user: traffic for a rollout.

    Exit code 1 if none was answered.
    """
    from loomos.client.load import PROMPTS, Load, LoadPlan, send_load
    from loomos.errors import InvalidInput
    from loomos.quantities import parse_duration

    try:
        longest = parse_duration(duration)
    except ValueError as error:
        raise InvalidInput(f"--for: {error}") from None
    lines = prompts.read_text(encoding="utf-8").splitlines() if prompts else []
    asked = [*(prompt or []), *(line for line in lines if line.strip())]
    plan = LoadPlan(
        prompts=asked or PROMPTS,
        rate=rate,
        duration_s=longest.total_seconds(),
        requests=requests,
        clients=clients,
        max_tokens=max_tokens,
        while_rollout=while_rollout,
    )

    async def work(client: LoomOSClient, one: str) -> Load:
        await client.endpoints.get(one)
        most = min(plan.requests, max(1, round(plan.duration_s * plan.rate)))
        with counting(one, most, shows=chosen(output) == Format.TABLE) as count:
            async for found in send_load(client, one, plan):
                count(found.answered + found.failed)
        return found

    found = call_on("endpoint", endpoint, work)
    plain = {
        "sent": found.sent,
        "answered": found.answered,
        "failed": found.failed,
        "versions": dict(found.versions),
        "p50_s": found.percentile_s(0.5),
        "p95_s": found.percentile_s(0.95),
        "first_failure": found.first_failure,
    }
    failed = f"{found.failed}, the first: {found.first_failure}"
    show(
        plain,
        output,
        lambda: print_facts(
            [
                ("sent", str(found.sent)),
                ("answered", str(found.answered)),
                ("failed", failed if found.failed else None),
                *((f"by {version}", str(n)) for version, n in found.versions.most_common()),
                ("half within", f"{number(found.percentile_s(0.5) or 0)} s"),
                ("95 % within", f"{number(found.percentile_s(0.95) or 0)} s"),
                ("rollout", found.state),
            ]
        ),
    )
    ends(found.answered > 0)


def _traffic(route: Route | None) -> tuple[str | None, ...]:
    """Columns of an endpoint's row; it may have none yet."""
    if route is None:
        return (None, None, None, None)
    canary = route.canary
    return (
        route.stable.version,
        canary.version if canary else None,
        f"{route.canary_bp / 100:g} %" if canary else None,
        ", ".join(route.replicas),
    )


def print_endpoint(endpoint: EndpointDetail, output: Output) -> None:
    """Print an endpoint."""
    route = endpoint.route
    canary = route.canary if route else None

    def table() -> None:
        print_facts(
            [
                ("endpoint", endpoint.name),
                ("state", f"{endpoint.state}: {endpoint.message}"),
                ("ready", "yes" if endpoint.is_ready else "no"),
                ("stable", route and route.stable.version),
                ("canary", canary and canary.version),
                ("its share", route and canary and f"{route.canary_bp / 100:g} %"),
                ("lease until", route and route.expires_at),
                ("route", route and f"{route.generation}, by {route.issued_by}"),
                (
                    "replicas",
                    route
                    and f"{len(route.replicas)} ({route.spec.replicas.min} to "
                    f"{route.spec.replicas.max})",
                ),
            ]
        )
        print()
        print_table(
            ("SERVER", "URL", "LOADED", "RUNNING", "FAILED"),
            [
                (
                    s.server_id,
                    s.url,
                    ", ".join(s.loaded),
                    s.waiting.get(endpoint.name, 0),
                    "; ".join(f"{v}: {why}" for v, why in s.failed.items()),
                )
                for s in endpoint.servers
            ],
        )

    show(endpoint, output, table)
