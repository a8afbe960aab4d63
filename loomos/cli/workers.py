"""`loomos workers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Format, Output, ago, call, call_on, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import WorkerDetail, WorkerList

app = typer.Typer(help="Look at and steer worker nodes.", no_args_is_help=True)

NodeId = Annotated[str, typer.Argument(help="Name of the node.")]


@app.command("list")
def list_workers(output: Output = None) -> None:
    """List worker nodes."""

    async def work(client: LoomOSClient) -> WorkerList:
        return await client.list_workers()

    found = call(work)

    def table() -> None:
        print_table(
            ("NODE", "STATE", "SINCE", "RANKS", "GPUS", "CORES", "JOBS"),
            [
                (
                    w.info.node_id,
                    w.state,
                    ago(w.since),
                    f"{w.ranks_used}/{w.info.max_ranks}",
                    len(w.info.gpus),
                    w.info.cpu_count,
                    ", ".join(w.jobs),
                )
                for w in found.workers
            ],
        )

    show(found, output, table)


@app.command()
def describe(node_id: NodeId, output: Output = None) -> None:
    """Show a node with its load."""
    _print(call_on("node", node_id, lambda client, one: client.get_worker(one)), output)


@app.command()
def drain(node_id: NodeId, output: Output = None) -> None:
    """Move away what runs on a node, then give it nothing new."""
    _print(call_on("node", node_id, lambda client, one: client.drain_worker(one)), output)


@app.command()
def cordon(node_id: NodeId, output: Output = None) -> None:
    """Give a node nothing new."""
    _print(call_on("node", node_id, lambda client, one: client.cordon_worker(one)), output)


@app.command()
def uncordon(node_id: NodeId, output: Output = None) -> None:
    """Let a node take work again."""
    _print(call_on("node", node_id, lambda client, one: client.uncordon_worker(one)), output)


def _print(worker: WorkerDetail, output: Format | None) -> None:
    from loomos.quantities import format_bytes

    load = worker.load

    def table() -> None:
        print_facts(
            [
                ("node", worker.info.node_id),
                ("state", f"{worker.state}, since {ago(worker.since)}"),
                ("jobs", ", ".join(worker.jobs)),
                ("ranks", f"{worker.ranks_used} of {worker.info.max_ranks}"),
                ("gpus", ", ".join(worker.info.gpus)),
                ("cores", worker.info.cpu_count),
                ("memory", format_bytes(worker.info.memory_bytes)),
                (
                    "cpu",
                    f"{load.cpu_percent:.0f} %" if load and load.cpu_percent is not None else None,
                ),
                (
                    "memory used",
                    f"{load.memory_percent:.0f} %"
                    if load and load.memory_percent is not None
                    else None,
                ),
                ("address", worker.info.address),
                ("incarnation", worker.info.incarnation),
            ]
        )

    show(worker, output, table)
