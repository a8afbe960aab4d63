"""`loomos cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from loomos.cli.output import Output, ago, call, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import ClusterResources
    from loomos.jobs.cluster import ClusterStatus

app = typer.Typer(help="Look at the cluster.", no_args_is_help=True)


@app.command()
def status(output: Output = None) -> None:
    """Show nodes, and what waits and why."""

    async def work(client: LoomOSClient) -> ClusterStatus:
        return await client.get_cluster_status()

    found = call(work)

    def table() -> None:
        print_table(
            ("NODE", "STATE", "RANKS", "JOBS"),
            [
                (n.info.node_id, n.state, f"{n.ranks_used}/{n.info.max_ranks}", ", ".join(n.jobs))
                for n in found.nodes
            ],
        )
        if found.queue:
            print_table(
                ("WAITING", "PRIORITY", "NODES", "SINCE", "WHY"),
                [
                    (q.job_id, q.priority, q.nodes_wanted, ago(q.since), q.reason)
                    for q in found.queue
                ],
            )

    show(found, output, table)


@app.command()
def resources(output: Output = None) -> None:
    """Show what the ready nodes have, and what of it is in use."""

    async def work(client: LoomOSClient) -> ClusterResources:
        return await client.get_available_resources()

    found = call(work)

    def table() -> None:
        from loomos.quantities import format_bytes

        print_facts(
            [
                ("nodes ready", f"{found.nodes_ready} of {found.nodes_total}"),
                ("ranks in use", f"{found.ranks_used} of {found.ranks_total}"),
                ("gpus in use", f"{found.gpus_used} of {found.gpus_total}"),
                ("cores", found.cpu_total),
                ("memory", format_bytes(found.memory_bytes_total)),
                ("jobs waiting", str(found.jobs_waiting)),
            ]
        )

    show(found, output, table)
