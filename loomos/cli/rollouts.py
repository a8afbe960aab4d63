"""`loomos rollouts`: canaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.arguments import File, ManifestOption, manifest_of
from loomos.cli.output import (
    Format,
    Output,
    call,
    call_on,
    chosen,
    ends,
    print_facts,
    print_table,
    show,
)
from loomos.cli.tables import printable

if TYPE_CHECKING:
    from loomos.client.delivery_models import RolloutList
    from loomos.client.http import LoomOSClient
    from loomos.jobs.rollouts import RolloutStatus

app = typer.Typer(help="Put versions on trial and steer that.", no_args_is_help=True)

Endpoint = Annotated[str, typer.Argument(help="Name of the endpoint.")]
Why = Annotated[str, typer.Option("--reason", help="For the record.")]


@app.command()
def start(
    file: File = None,
    manifest: ManifestOption = None,
    endpoint: Annotated[str | None, typer.Option(help="Where, without a manifest.")] = None,
    model: Annotated[str | None, typer.Option(help="NAME@VERSION, without a manifest.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait until it is over.")] = False,
    output: Output = None,
) -> None:
    """Put a version on trial; the default stages are shadow, 5, 25, 50 and 100 percent.

    A trial judges by real requests; `loomos endpoints load` sends some. With --follow, exit code 1
    unless the version is promoted.
    """
    from loomos.errors import InvalidInput
    from loomos.jobs.rollouts import CanaryRollout
    from loomos.manifest import read_document, validate_as

    if file or manifest:
        rollout = read_document(manifest_of(file, manifest), CanaryRollout)
    elif endpoint and model:
        document = {
            "apiVersion": "loomos.ai/v1",
            "kind": "CanaryRollout",
            "metadata": {"name": endpoint},
            "spec": {"endpoint": endpoint, "model": model},
        }
        rollout = validate_as(CanaryRollout, document, "the command line")
    else:
        raise InvalidInput("give a manifest, or --endpoint and --model")

    async def work(client: LoomOSClient) -> RolloutStatus:
        return await client.rollouts.start(rollout)

    started = call(work)
    _print(_followed(started.endpoint, output) if follow else started, output)


@app.command("list")
def list_rollouts(output: Output = None) -> None:
    """List the newest rollout of each endpoint."""

    async def work(client: LoomOSClient) -> RolloutList:
        return await client.rollouts.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("ENDPOINT", "STATE", "STAGE", "CANDIDATE", "SHARE", "WHY"),
            [
                (r.endpoint, r.state, r.stage, r.candidate, f"{r.canary_percent:g} %", r.message)
                for r in found.rollouts
            ],
            spare=("STAGE",),
        )

    show(found, output, table)


@app.command()
def status(
    endpoint: Endpoint,
    follow: Annotated[bool, typer.Option(help="Wait until it is over.")] = False,
    output: Output = None,
) -> None:
    """Show the newest rollout of an endpoint; exit code 1 if it has ended without promotion."""
    if follow:
        _print(_followed(endpoint, output), output)
        return
    _print(call_on("rollout", endpoint, lambda client, one: client.rollouts.get(one)), output)


@app.command()
def approve(
    endpoint: Endpoint,
    stage: Annotated[str, typer.Option(help="The stage that waits.")],
    output: Output = None,
) -> None:
    """Let a stage that waits for approval be left."""
    _steer(endpoint, "approve", output, stage=stage)


@app.command()
def pause(endpoint: Endpoint, reason: Why = "", output: Output = None) -> None:
    """Keep the canary's share; it may still be rolled back."""
    _steer(endpoint, "pause", output, reason=reason)


@app.command()
def resume(endpoint: Endpoint, reason: Why = "", output: Output = None) -> None:
    """Go on after a pause."""
    _steer(endpoint, "resume", output, reason=reason)


@app.command()
def promote(endpoint: Endpoint, reason: Why = "", output: Output = None) -> None:
    """Skip what is left of the stages; the version still bakes."""
    _steer(endpoint, "promote", output, reason=reason)


@app.command()
def abort(endpoint: Endpoint, reason: Why = "", output: Output = None) -> None:
    """Take all traffic away from the canary, whatever the state."""
    _steer(endpoint, "abort", output, reason=reason)


@app.command()
def delete(endpoint: Endpoint) -> None:
    """Forget the rollouts that an endpoint has had; what they promoted stays."""
    call(lambda client: client.rollouts.delete(endpoint))
    print(f"deleted the rollouts of {endpoint}")


def _steer(endpoint: str, verb: str, output: Output, reason: str = "", stage: str = "") -> None:
    async def work(client: LoomOSClient, one: str) -> RolloutStatus:
        return await client.rollouts.steer(one, verb, reason=reason, stage=stage)

    _print(call_on("rollout", endpoint, work), output, is_judged=False)


def _followed(endpoint: str, output: Output) -> RolloutStatus:
    """Print what happens until it is over."""
    tells = chosen(output) == Format.TABLE

    async def work(client: LoomOSClient, one: str) -> RolloutStatus:
        shown = 0
        async for rollout in client.rollouts.follow(one):
            for event in rollout.timeline:
                if event.sequence > shown and tells:
                    moment = f"{event.at.astimezone():%H:%M:%S}"
                    message = printable(event.message)
                    print(f"{moment}  {event.state:<12} {event.stage:<12} {message}", flush=True)
                shown = max(shown, event.sequence)
        return rollout

    goes_on = (
        f"the rollout goes on; `loomos rollouts status {endpoint} --follow` follows it, "
        f"`loomos rollouts abort {endpoint}` ends it"
    )
    return call_on("rollout", endpoint, work, goes_on)


def _print(rollout: RolloutStatus, output: Output, is_judged: bool = True) -> None:
    """Print a rollout; then end with code 1 if it is over and the version was not promoted."""

    def table() -> None:
        print_facts(
            [
                ("endpoint", rollout.endpoint),
                ("state", f"{rollout.state}: {rollout.message}"),
                ("stage", rollout.stage),
                ("candidate", rollout.candidate),
                ("compared with", rollout.stable),
                ("its share", f"{rollout.canary_percent:g} %"),
                (
                    "verdict to route",
                    None
                    if rollout.verdict_to_traffic_ms is None
                    else f"{rollout.verdict_to_traffic_ms:g} ms",
                ),
            ]
        )
        rows = [
            (
                verdict.progress.stage.partition("/")[2],
                key,
                f"{seen.stage.canary_events}/{seen.stage.canary_n}",
                f"{seen.stage.control_events}/{seen.stage.control_n}",
                f"{2.718281828 ** min(seen.log_e, 50):.3g}",
                verdict.decision,
            )
            for verdict in rollout.verdicts
            for key, seen in verdict.progress.guardrails.items()
        ]
        if rows:
            print()
            print_table(("STAGE", "GUARDRAIL", "CANARY", "CONTROL", "EVIDENCE", "VERDICT"), rows)

    show(rollout, output, table)
    if is_judged:
        ends(rollout.state == "promoted", rollout.state.is_final)
