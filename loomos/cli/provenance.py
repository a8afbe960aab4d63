"""`loomos provenance`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import Output, call, show

if TYPE_CHECKING:
    from rich.tree import Tree

    from loomos.client.http import LoomOSClient
    from loomos.loomdb.policies import Policy
    from loomos.provenance.lineage import Lineage, LineageFact

app = typer.Typer(help="Where a model comes from, provably.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(metavar="MODEL@VERSION", help="A published model.")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="C2SP policy: whose ledger, which witnesses. Bring your own."),
]


@app.command("show")
def show_lineage(model: Model, policy: PolicyFile = None, output: Output = None) -> None:
    """Print a model's lineage as a tree; every fact's proof is checked here."""
    from loomos.provenance.lineage import check_proofs, check_story

    name, version = _split(model)

    async def work(client: LoomOSClient) -> Lineage:
        return await client.ledger.lineage(name, version)

    lineage = call(work)
    trusted, whose = _policy(policy, lineage)
    check_proofs(lineage, trusted)
    check_story(lineage)

    def tree() -> None:
        import sys

        from rich.console import Console

        width = None if sys.stdout.isatty() else 200
        console = Console(highlight=False, width=width)
        console.print(_tree(lineage))
        console.print(
            f"verified: {len(lineage.facts)} facts are in the log "
            f"{trusted.logs[0].key.name}, and they agree ({whose})",
            style="green",
        )

    show(_plain(lineage), output, tree)


@app.command()
def export(
    model: Model,
    folder: Annotated[Path, typer.Argument(help="New folder; `verify` needs nothing else.")],
    policy: PolicyFile = None,
) -> None:
    """Write a model with its proofs, SLSA statement, model signature and ML-BOM into a folder."""
    from loomos.errors import InvalidInput
    from loomos.provenance import directory

    name, version = _split(model)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"{folder} is not empty; name a new folder")

    async def work(client: LoomOSClient) -> Lineage:
        return await client.ledger.export_lineage(name, version, folder)

    lineage = call(work)
    directory.verify(folder, _policy(policy, lineage)[0])
    print(f"{folder}: {name}@{version} with {len(lineage.facts)} facts, verified")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    policy: PolicyFile = None,
    key: Annotated[
        Path | None, typer.Option(help="PEM of the attestation key that you trust.")
    ] = None,
) -> None:
    """Check an exported model from its bytes up, offline."""
    from loomos.errors import InvalidInput
    from loomos.loomdb.keys import read_policy
    from loomos.provenance import directory

    try:
        pem = key.read_text() if key else None
    except OSError as error:
        raise InvalidInput(f"key {key} cannot be read: {error.strerror}") from None
    trusted = read_policy(policy) if policy else None
    lineage = directory.verify(folder, trusted, pem, say=lambda what: print(f"ok  {what}"))
    print(f"verified: {lineage.name}@{lineage.version}, made by job {lineage.job_id}")
    if trusted is None or pem is None:
        print("note: keys are the folder's own; give --policy and --key to trust nobody else's")


def _split(model: str) -> tuple[str, str]:
    from loomos.errors import InvalidInput

    name, separator, version = model.partition("@")
    if not (name and separator and version):
        raise InvalidInput(f"{model!r} is not MODEL@VERSION; `loomos jobs describe` prints it")
    return name, version


def _policy(given: Path | None, lineage: Lineage) -> tuple[Policy, str]:
    """The policy to go by, and in words whose it is."""
    from loomos.loomdb.keys import read_policy
    from loomos.loomdb.policies import Policy
    from loomos.settings import load_settings

    path = given or load_settings().loomdb.policy_file
    if path is not None:
        return read_policy(path), f"by the policy in {path}"
    return Policy.parse(lineage.policy), "by the gateway's own policy; give --policy to trust less"


def _plain(lineage: Lineage) -> dict[str, Any]:
    return {
        "model": f"{lineage.name}@{lineage.version}",
        "job_id": lineage.job_id,
        "verified": True,
        "facts": [
            {
                "position": f.position,
                "event_type": f.event_type,
                "time": f.time.isoformat(),
                "by": f.by,
                "data": f.data,
            }
            for f in lineage.facts
        ],
    }


def _tree(lineage: Lineage) -> Tree:
    from rich.tree import Tree

    made = json.loads(lineage.manifest)["lineage"]
    root = Tree(f"[bold]{lineage.name}@{lineage.version}[/]")
    branch: Tree = root
    for fact in lineage.facts:
        parent = root
        if fact.event_type == "lease_granted":
            branch = root.add(_line(fact))
            continue
        if fact.event_type in ("checkpoint_committed", "run_recovered"):
            parent = branch
        node = parent.add(_line(fact))
        for line in _details(fact, made):
            node.add(line)
    return root


def _line(fact: LineageFact) -> str:
    from rich.markup import escape

    by = f" by {fact.by}" if fact.by and fact.by != "control" else ""
    what = escape(_what(fact) + by)
    return f"[green]✓[/] {what} [dim]#{fact.position} {fact.time:%Y-%m-%d %H:%M:%S}[/]"


def _what(fact: LineageFact) -> str:
    data = fact.data
    match fact.event_type:
        case "job_submitted":
            return f"submitted as {data['job_id']}"
        case "inputs_resolved":
            return "inputs pinned"
        case "lease_granted":
            nodes = ", ".join(f"{n['node_id']}/{n['incarnation']}" for n in data["nodes"])
            start = f" from step {data['from_step']}" if data["from_step"] else ""
            return f"attempt {data['generation']} on {nodes}{start}"
        case "checkpoint_committed":
            return f"checkpoint of step {data['step']}, sha256:{data['manifest_sha256'][:16]}"
        case "run_recovered":
            return f"recovered: {data['reason']}"
        case "model_published":
            return f"published, weights sha256:{data['weights_sha256'][:16]}"
        case other:
            return other.replace("_", " ")


def _details(fact: LineageFact, made: dict[str, Any]) -> list[str]:
    from rich.markup import escape

    if fact.event_type == "inputs_resolved":
        inputs = fact.data["inputs"]
        lines = [
            f"{name}: {inputs[name]['uri']}  sha256:{inputs[name]['sha256'][:16]}"
            for name in ("model", "tokenizer", "training", "validation")
            if inputs.get(name)
        ]
        return [escape(line) for line in (*lines, f"code: loomos {inputs['code']}")]
    if fact.event_type == "model_published":
        files = fact.data["attestations"].items()
        return [f"{name}  sha256:{digest[:16]}" for name, digest in files]
    return []
