"""`loomos scheduler` and `loomos optimize`."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Output, ago, call, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.jobs.cluster import AdviceList, ClusterStatus, Quota

app = typer.Typer(help="See and set how nodes are given out.", no_args_is_help=True)
optimize = typer.Typer(help="Find what could be asked for differently.", no_args_is_help=True)


@app.command()
def status(output: Output = None) -> None:
    """Show the queue with its order and reasons, projects' shares, and the rules in force."""

    async def work(client: LoomOSClient) -> ClusterStatus:
        return await client.get_cluster_status()

    found = call(work)
    show(found, output, lambda: _print(found))


def _print(found: ClusterStatus) -> None:
    from loomos.jobs.states import NodeState

    config, audit = found.config, found.audit
    ready = [node for node in found.nodes if node.state == NodeState.READY]
    print_facts(
        [
            ("policy", config.policy),
            ("nodes", f"{sum(bool(n.jobs) for n in ready)} of {len(ready)} ready ones in use"),
            ("waiting", str(len(found.queue))),
            ("waiting for admission", str(found.deferred) if found.deferred else None),
            ("audit", f"failed {audit.failures} times: {audit.error}" if audit.error else None),
            ("standing by", str(config.standby_nodes) if config.standby_nodes else None),
            ("preemption", None if config.preemption else "off"),
            ("backfill", None if config.backfill_depth else "off"),
        ]
    )
    if found.queue:
        print_table(
            ("#", "JOB", "PROJECT", "PRIORITY", "NODES", "SINCE", "DEADLINE", "WHY"),
            [
                (
                    q.position,
                    q.job_id,
                    q.project,
                    q.priority,
                    q.nodes_wanted,
                    ago(q.since),
                    f"{q.deadline:%Y-%m-%d %H:%M}" if q.deadline else "",
                    q.reason,
                )
                for q in found.queue
            ],
        )
    if found.leases:
        print_table(
            ("HOLDS", "NODES", "SINCE", "UNTIL", ""),
            [
                (
                    lease.job_id,
                    ", ".join(node.node_id for node in lease.nodes),
                    ago(lease.granted_at) if lease.granted_at else "",
                    f"{lease.ends_by:%Y-%m-%d %H:%M}" if lease.ends_by else "",
                    "asked back" if lease.is_revoked else "gap" if lease.is_backfill else "",
                )
                for lease in found.leases
            ],
        )
    if found.shares:
        print_table(
            ("PROJECT", "SHARE", "WEIGHT", "NODES", "GPUS", "RANKS", "WAITING"),
            [
                (
                    s.project,
                    f"{s.dominant_share:.0%}",
                    s.weight,
                    s.nodes,
                    s.gpus,
                    s.ranks,
                    s.waiting,
                )
                for s in found.shares
            ],
        )


@app.command("set")
def set_rules(
    policy: Annotated[str | None, typer.Option(help="Placement policy, such as spread.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="PROJECT=WEIGHT of its fair share; repeatable.")
    ] = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="PROJECT:nodes|gpus|ranks=N, or PROJECT=none; repeatable."),
    ] = None,
    standby: Annotated[
        int | None, typer.Option(min=0, help="Idle nodes kept for recovery.")
    ] = None,
    preemption: Annotated[
        bool | None, typer.Option(help="Whether higher priorities take nodes from lower ones.")
    ] = None,
    backfill: Annotated[
        int | None, typer.Option(min=0, help="Requests looked at behind the first; 0 for none.")
    ] = None,
    starves_after: Annotated[
        str | None, typer.Option(help="Wait after which a request goes first, such as 12h.")
    ] = None,
    output: Output = None,
) -> None:
    """Change the rules; what is not named stays as it is."""
    from loomos.errors import InvalidInput
    from loomos.quantities import parse_duration

    try:
        longest = parse_duration(starves_after) if starves_after else None
    except ValueError as error:
        raise InvalidInput(f"--starves-after: {error}") from None
    changes: dict[str, object] = {
        "policy": policy,
        "standby_nodes": standby,
        "preemption": preemption,
        "backfill_depth": backfill,
        "starves_after": longest,
    }

    async def work(client: LoomOSClient) -> ClusterStatus:
        config = await client.scheduler.config()
        weights, quotas = dict(config.weights), dict(config.quotas)
        for item in weight or []:
            project, found, value = item.partition("=")
            try:
                weights[project] = float(value)
            except ValueError:
                found = ""
            if not found or weights[project] <= 0:
                raise InvalidInput(f"--weight {item}: write PROJECT=WEIGHT, as in vision=2")
        for item in quota or []:
            _set_quota(quotas, item)
        chosen = {key: value for key, value in changes.items() if value is not None}
        update = {**chosen, "weights": weights, "quotas": quotas}
        return await client.scheduler.configure(config.model_copy(update=update))

    found = call(work)
    show(found.config, output, lambda: _print(found))


def _set_quota(quotas: dict[str, Quota], item: str) -> None:
    from loomos.errors import InvalidInput
    from loomos.jobs.cluster import Quota

    key, _, value = item.partition("=")
    project, _, resource = key.partition(":")
    if value == "none" and not resource:
        quotas.pop(project, None)
        return
    if not project or resource not in ("nodes", "gpus", "ranks") or not value.isdigit():
        raise InvalidInput(
            f"--quota {item}: write PROJECT:nodes|gpus|ranks=N, as vision:gpus=8, or PROJECT=none"
        )
    known = quotas.get(project, Quota())
    quotas[project] = known.model_copy(update={resource: int(value)})


class Which(StrEnum):
    """Jobs to advise on."""

    RUNNING = "running"
    WAITING = "waiting"
    ALL = "all"


@optimize.command()
def resources(
    jobs: Annotated[Which, typer.Option(help="Jobs to look at.")] = Which.ALL,
    output: Output = None,
) -> None:
    """Changes of manifests that would start waiting jobs sooner; each was tried on the rules."""

    async def work(client: LoomOSClient) -> AdviceList:
        return await client.scheduler.advice()

    wanted = {Which.RUNNING: (True,), Which.WAITING: (False,), Which.ALL: (True, False)}[jobs]
    every = call(work)
    found = every.model_copy(update={"advice": [a for a in every.advice if a.is_running in wanted]})

    def table() -> None:
        if not found.advice:
            print("nothing found that a job should ask for differently")
            return
        print_table(
            ("JOB", "CHANGE", "EFFECT"), [(a.job_id, a.change, a.effect) for a in found.advice]
        )

    show(found, output, table)
