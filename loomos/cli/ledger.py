"""`loomos ledger`."""

from __future__ import annotations

import asyncio
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import Output, call, print_facts, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.ledger import LedgerStatus
    from loomos.loomdb.audit import AuditReport
    from loomos.loomdb.checkpoints import Checkpoint
    from loomos.loomdb.policies import Policy

app = typer.Typer(help="Prove what happened, and check it.", no_args_is_help=True)
witness = typer.Typer(help="Vouch for somebody's ledger.", no_args_is_help=True)
app.add_typer(witness, name="witness")

PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="C2SP policy file. Default: loomdb.policy_file.")
]


class KeyKind(StrEnum):
    """What a key is for."""

    LOG = "log"
    WITNESS = "witness"
    WITNESS_MLDSA44 = "witness-mldsa44"


@app.command()
def status(output: Output = None) -> None:
    """Show how far the ledger is."""

    async def work(client: LoomOSClient) -> LedgerStatus:
        return await client.ledger.status()

    found = call(work)

    def table() -> None:
        print_facts(
            [
                ("log", found.origin),
                ("events", str(found.size)),
                ("signed", str(found.signed_size)),
                ("root", found.root),
                ("cosigned by", ", ".join(found.cosigned_by)),
                ("sequenced", "yes" if found.is_sequenced else "no: nothing can be recorded"),
            ]
        )

    show(found, output, table)


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Name of the key, as example.org/log.")],
    file: Annotated[Path, typer.Argument(help="New file for the secret key.")],
    kind: Annotated[KeyKind, typer.Option(help="What it will sign.")] = KeyKind.LOG,
) -> None:
    """Make a key; prints its public half for policies."""
    from loomos.loomdb.keys import write_secret
    from loomos.loomdb.notes import KeyType, SignerKey

    types = {
        KeyKind.LOG: KeyType.ED25519,
        KeyKind.WITNESS: KeyType.COSIGNATURE_ED25519,
        KeyKind.WITNESS_MLDSA44: KeyType.COSIGNATURE_MLDSA44,
    }
    key = SignerKey.generate(name, types[kind])
    write_secret(file, key.encode() + "\n")
    print(key.verifier.encode())


@app.command()
def prove(
    position: Annotated[int, typer.Argument(min=0, help="Position of the event.")],
    folder: Annotated[Path, typer.Option("--folder", "-d", help="Where to write.")] = Path(),
) -> None:
    """Write an event's entry and its offline proof into two files."""

    async def work(client: LoomOSClient) -> tuple[bytes, str]:
        return await client.ledger.entry(position), await client.ledger.proof(position)

    entry, proof = call(work)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{position}.json").write_bytes(entry)
    (folder / f"{position}.tlog-proof").write_text(proof, encoding="utf-8")
    print(folder / f"{position}.json")
    print(folder / f"{position}.tlog-proof")


@app.command()
def verify(
    proof: Annotated[Path, typer.Argument(help="A .tlog-proof file.")],
    entry: Annotated[
        Path | None, typer.Argument(help="The entry. Default: beside it, as .json.")
    ] = None,
    policy: PolicyFile = None,
    key: Annotated[
        str | None, typer.Option(help="Public key of the log, instead of a policy.")
    ] = None,
) -> None:
    """Check offline that an entry is in the log."""
    from loomos.loomdb.bundles import ProofBundle
    from loomos.loomdb.notes import decode_text

    bundle = ProofBundle.parse(decode_text(_read(proof), str(proof)))
    content = _read(entry or proof.with_suffix(".json"))
    checkpoint = bundle.verify(content, _policy(policy, key))
    print(f"verified: entry {bundle.index} of {checkpoint.size} in {checkpoint.origin}")


@app.command()
def audit(
    folder: Annotated[
        Path | None, typer.Argument(help="What `export` wrote. Default: the database.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Database. Default: loomdb.url.")] = None,
    policy: PolicyFile = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint kept from before, which the log must extend; may repeat."),
    ] = None,
    output: Output = None,
) -> None:
    """Hash every event again and compare with what was signed and witnessed.

    Witnesses of the policy that have a URL are asked for what they have cosigned.
    """
    trusted = _policy(policy, None)
    anchors = [_anchor(path, trusted) for path in checkpoint or []]
    report = asyncio.run(_audit(folder, url, trusted, anchors))
    plain = {
        "ok": report.ok,
        "size": report.size,
        "signed_size": report.signed_size,
        "checkpoints": report.checkpoints,
        "root": report.root.hex(),
        "findings": [vars(finding) for finding in report.findings],
    }

    def table() -> None:
        for finding in report.findings:
            print(f"{finding.where}: {finding.message}")
        verdict = "intact" if report.ok else f"{len(report.findings)} findings"
        print(
            f"{verdict}: {report.size} events, {report.signed_size} of them under "
            f"{report.checkpoints} checkpoints that hold"
        )

    show(plain, output, table)
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    url: Annotated[str | None, typer.Option(help="Database. Default: loomdb.url.")] = None,
) -> None:
    """Write the whole ledger as static files (C2SP tlog-tiles) that anyone can audit."""
    size = asyncio.run(_export(folder, url))
    print(f"{folder}: {size} entries; `loomos ledger audit {folder} --policy FILE` checks it")


@witness.command("serve")
def serve_witness(
    key_file: Annotated[list[Path], typer.Option("--key", help="Secret key; may repeat.")],
    log: Annotated[list[str], typer.Option(help="Public key of a log to vouch for; may repeat.")],
    folder: Annotated[Path, typer.Option(help="State and evidence.")] = Path("witness"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8500,
) -> None:
    """Run a witness (C2SP tlog-witness). Run it on another party's machine."""
    import uvicorn

    from loomos.errors import InvalidInput
    from loomos.loomdb.keys import read_signer
    from loomos.loomdb.notes import KeyType, VerifierKey
    from loomos.loomdb.witness.app import create_app
    from loomos.loomdb.witness.store import Witness

    keys = [read_signer(path) for path in key_file]
    for key in keys:
        if key.key_type is KeyType.ED25519:
            raise InvalidInput(
                f"key {key.name} is a log's; make one with `loomos ledger keygen --kind witness`"
            )
    logs = [VerifierKey.parse(vkey) for vkey in log]
    app = create_app(Witness(folder / "witness.db", keys, logs, folder / "evidence"))
    for key in keys:
        print(f"witness {key.name.replace('/', '-')} {key.verifier.encode()} http://{host}:{port}")
    sys.stdout.flush()
    uvicorn.run(app, host=host, port=port, log_level="warning")


async def _audit(
    folder: Path | None, url: str | None, policy: Policy, anchors: list[Checkpoint]
) -> AuditReport:
    import httpx

    from loomos.loomdb.database import LoomDB
    from loomos.loomdb.static import audit_folder
    from loomos.loomdb.witnessing import newest_cosigned

    keys = [member.key for member in policy.logs]
    async with httpx.AsyncClient(trust_env=False) as http:
        for member in policy.witnesses.values():
            for key in keys if member.url else []:
                known = await newest_cosigned(key.name, member, keys, http)
                anchors += [known] if known else []
    with _progress() as progress:
        if folder is not None:
            return await asyncio.to_thread(audit_folder, folder, policy, anchors, progress)
        async with LoomDB(_existing(url), may_lead=False) as db:
            return await db.audit(policy, anchors, progress)


async def _export(folder: Path, url: str | None) -> int:
    from loomos.loomdb.database import LoomDB
    from loomos.loomdb.static import export_folder

    with _progress() as progress:
        async with LoomDB(_existing(url), may_lead=False) as db:
            return await export_folder(db, folder, progress)


def _existing(url: str | None) -> str:
    """The database's URL; opening a file that is not there would make an empty one."""
    from loomos.errors import InvalidInput
    from loomos.settings import load_settings

    chosen = url or load_settings().loomdb.url
    scheme, _, path = chosen.partition(":///")
    if scheme.startswith("sqlite") and not Path(path).exists():
        raise InvalidInput(f"there is no database at {path}; give --url")
    return chosen


class _progress:
    """A progress bar on stderr, if that is a terminal."""

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        task = self._bar.add_task("entries", total=None)
        return lambda done, of: self._bar.update(task, completed=done, total=of)

    def __exit__(self, *failure: object) -> None:
        self._bar.stop()


def _policy(path: Path | None, key: str | None) -> Policy:
    from loomos.errors import InvalidInput
    from loomos.loomdb.keys import read_policy
    from loomos.loomdb.notes import VerifierKey
    from loomos.loomdb.policies import Policy
    from loomos.settings import load_settings

    if key is not None:
        return Policy.for_log(VerifierKey.parse(key))
    chosen = path or load_settings().loomdb.policy_file
    if chosen is None:
        raise InvalidInput("give --policy FILE (or --key), so that it is clear whom to trust")
    return read_policy(chosen)


def _anchor(path: Path, policy: Policy) -> Checkpoint:
    from loomos.loomdb.notes import Note, decode_text

    return policy.verify(Note.parse(decode_text(_read(path), str(path))))


def _read(path: Path) -> bytes:
    from loomos.errors import InvalidInput

    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
