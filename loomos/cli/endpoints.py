"""`loomos endpoints`: models in service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Output, call, call_on, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.delivery_models import EndpointDetail, EndpointList
    from loomos.client.http import LoomOSClient

app = typer.Typer(help="Look at and delete endpoints.", no_args_is_help=True)

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
            [
                (
                    e.name,
                    e.route.stable.version,
                    e.route.canary.version if e.route.canary else None,
                    f"{e.route.canary_bp / 100:g} %" if e.route.canary else None,
                    ", ".join(e.route.replicas),
                    "yes" if e.is_ready else "no",
                )
                for e in found.endpoints
            ],
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


def print_endpoint(endpoint: EndpointDetail, output: Output) -> None:
    """Print an endpoint."""
    route = endpoint.route

    def table() -> None:
        print_facts(
            [
                ("endpoint", endpoint.name),
                ("state", f"{endpoint.state}: {endpoint.message}"),
                ("ready", "yes" if endpoint.is_ready else "no"),
                ("stable", route.stable.version),
                ("canary", route.canary.version if route.canary else None),
                ("its share", f"{route.canary_bp / 100:g} %" if route.canary else None),
                ("lease until", route.expires_at),
                ("route", f"{route.generation}, by {route.issued_by}"),
                (
                    "replicas",
                    f"{len(route.replicas)} ({endpoint.spec.replicas.min} to "
                    f"{endpoint.spec.replicas.max})",
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
