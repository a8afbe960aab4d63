"""`loomos verify`: Prism."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.output import (
    Format,
    Output,
    call,
    call_on,
    chosen,
    ends,
    forget,
    print_facts,
    print_table,
    show,
)

if TYPE_CHECKING:
    from loomos.client.delivery_models import VerificationList
    from loomos.client.http import LoomOSClient
    from loomos.jobs.verification import VerificationJob, VerificationStatus

app = typer.Typer(help="Let Prism ask a version whether it is good enough.", no_args_is_help=True)

VerificationId = Annotated[
    str, typer.Argument(help="Id that `start` printed, or what only it begins with.")
]


@app.command()
def start(
    model: Annotated[str | None, typer.Argument(help="NAME@VERSION or NAME@ALIAS.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("-f", "--manifest", help="A kind: VerificationSuite.")
    ] = None,
    suite: Annotated[
        list[str], typer.Option(help="Built-in suite or JSONL file; default all built-in ones.")
    ] = [],  # noqa: B006
    baseline: Annotated[str | None, typer.Option(help="Version to compare with.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait for the verdict.")] = False,
    output: Output = None,
) -> None:
    """Verify a version; with --follow, exit code 1 unless it passes."""
    job = _job(model, manifest, suite, baseline)
    folder = manifest.absolute().parent if manifest else None

    async def work(client: LoomOSClient) -> VerificationStatus:
        return await client.verifications.start(job, folder=folder)

    started = call(work)
    _print(_followed(_short(started), output) if follow else started, output)


def _job(
    model: str | None, manifest: Path | None, suites: list[str], baseline: str | None
) -> VerificationJob:
    from loomos.errors import InvalidInput
    from loomos.jobs.verification import VerificationJob
    from loomos.manifest import read_document, validate_as

    if manifest is not None:
        return read_document(manifest, VerificationJob)
    if model is None:
        raise InvalidInput("give a model, or --manifest")
    spec: dict[str, Any] = {"baseline": baseline} if baseline else {}
    if suites:
        spec["suites"] = [
            {"suite": str(Path(name).absolute()) if name.endswith(".jsonl") else name}
            for name in suites
        ]
    name = model.partition("@")[0]
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "VerificationSuite",
        "metadata": {"name": name},
        "model": model,
        "spec": spec,
    }
    return validate_as(VerificationJob, document, "the command line")


@app.command("list")
def list_verifications(output: Output = None) -> None:
    """List the newest verifications."""

    async def work(client: LoomOSClient) -> VerificationList:
        return await client.verifications.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("ID", "STATE", "VERSION", "VERDICT", "SHARDS"),
            [
                (
                    _short(v),
                    v.state,
                    v.version,
                    v.result.verdict if v.result else None,
                    f"{v.shards_done}/{v.shards}",
                )
                for v in found.verifications
            ],
            spare=("SHARDS", "VERSION"),
        )

    show(found, output, table)


@app.command()
def status(
    verification_id: VerificationId,
    follow: Annotated[bool, typer.Option(help="Wait for the verdict.")] = False,
    output: Output = None,
) -> None:
    """Show a verification; exit code 1 if it has ended without passing."""
    wanted = _bare(verification_id)
    if follow:
        _print(_followed(wanted, output), output)
        return
    _print(call_on("verification", wanted, lambda c, one: c.verifications.get(one)), output)


@app.command()
def cancel(verification_id: VerificationId, output: Output = None) -> None:
    """Stop a verification; what was generated stays for the next."""
    wanted = _bare(verification_id)
    found = call_on("verification", wanted, lambda c, one: c.verifications.cancel(one))
    _print(found, output, is_judged=False)


@app.command()
def delete(verification_id: VerificationId) -> None:
    """Forget a verification that has ended; evidence and verdicts stay."""
    wanted = _bare(verification_id)
    forget("verification", wanted, lambda client, one: client.verifications.delete(one))


@app.command()
def report(
    verification_id: VerificationId,
    to: Annotated[Path, typer.Option(help="FILE.pdf, FILE.html, FILE.json, or a folder for logs.")],
) -> None:
    """Download a report; a folder gets the logs that `inspect view` opens."""
    form = {".pdf": "pdf", ".html": "html", ".json": "json"}.get(to.suffix, "zip")

    content = call_on(
        "verification",
        _bare(verification_id),
        lambda client, one: client.verifications.report(one, form),
    )
    if form == "zip":
        import io
        import zipfile

        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(to)
    else:
        to.write_bytes(content)
    print(f"wrote {to}")


class Tool(StrEnum):
    """Whose suite it is."""

    INSPECT = "inspect"
    GARAK = "garak"
    LM_EVAL = "lm-eval"


@app.command()
def external(
    endpoint: Annotated[str, typer.Argument(help="Endpoint to ask.")],
    task: Annotated[str, typer.Option(help="inspect task or file, garak probes, lm-eval task.")],
    runner: Annotated[Tool, typer.Option(help="What runs it.")] = Tool.INSPECT,
    python: Annotated[
        Path, typer.Option(help="Interpreter of the environment that has the runner.")
    ] = Path(sys.executable),
    claim: Annotated[float, typer.Option(min=0.0001, max=0.9999)] = 0.05,
    limit: Annotated[int | None, typer.Option(min=1, help="Most samples.")] = None,
    folder: Annotated[Path, typer.Option(help="For the tool's own reports.")] = Path("external"),
    output: Output = None,
) -> None:
    """Run somebody else's suite against an endpoint, in its own process; the verdict is ours."""
    from loomos.prism.external import External, Where, run_external
    from loomos.settings import load_settings

    settings = load_settings()
    where = Where(
        base_url=f"{settings.cluster.endpoint.rstrip('/')}/v1",
        model=endpoint,
        api_key=settings.token() or "",
    )
    suite = External(runner=runner.value, task=task, claim=claim, limit=limit, python=python)
    found = run_external(suite, where, folder)

    def table() -> None:
        print_table(
            ("TEST", "VERDICT", "FAILED", "WHY"),
            [(found.name, found.verdict, f"{found.failures}/{found.n}", found.reason)],
        )

    show(found, output, table)


def _bare(verification_id: str) -> str:
    return verification_id.removeprefix("verify/")


def _short(verification: VerificationStatus) -> str:
    return _bare(verification.verification_id)


def _followed(verification_id: str, output: Output) -> VerificationStatus:
    """Print progress until there is a verdict."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    quiet = chosen(output) != Format.TABLE

    async def work(client: LoomOSClient, one: str) -> VerificationStatus:
        await client.verifications.get(one)  # if there is none, nothing is drawn
        with Progress(console=Console(stderr=True), disable=quiet) as progress:
            bar = progress.add_task("planning", total=None)
            async for found in client.verifications.follow(one):
                progress.update(
                    bar,
                    description=escape(f"{found.state}: {found.message}"),
                    total=found.shards or None,
                    completed=found.shards_done,
                )
        return found

    goes_on = (
        f"verification {verification_id} goes on; `loomos verify status {verification_id} "
        f"--follow` follows it, `loomos verify cancel {verification_id}` ends it"
    )
    return call_on("verification", verification_id, work, goes_on)


def _print(verification: VerificationStatus, output: Output, is_judged: bool = True) -> None:
    """Print a verification; then end with code 1 if it is over and has not passed."""
    result = verification.result

    def table() -> None:
        print_facts(
            [
                ("id", _short(verification)),
                ("state", f"{verification.state}: {verification.message}"),
                ("version", verification.version),
                ("verdict", result.verdict if result else None),
                ("shards", f"{verification.shards_done} of {verification.shards}"),
                ("plan", result.plan_sha256 if result else None),
                ("evidence", result.evidence_sha256 if result else None),
            ]
        )
        if result is not None:
            print()
            rows = [(s.suite, s.verdict, f"{s.failures}/{s.n}", s.reason) for s in result.suites]
            print_table(("TEST", "VERDICT", "FAILED", "WHY"), rows)

    show(verification, output, table)
    if is_judged:
        ends(result is not None and result.verdict == "PASS", verification.state.is_final)
