"""`loomos jobs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loomos.cli.arguments import File, JobId, ManifestOption, manifest_of
from loomos.cli.job_progress import wait_for
from loomos.cli.job_records import logs, metrics
from loomos.cli.job_steering import Wait, steer
from loomos.cli.job_view import print_job
from loomos.cli.output import Format, Output, ago, call, call_on, chosen, forget, print_table, show

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient
    from loomos.client.models import JobPage, Submitted
    from loomos.manifest import JobManifest

app = typer.Typer(help="Submit, follow and steer training jobs.", no_args_is_help=True)

Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="Template parameter, name=value.")
]
Environment = Annotated[str | None, typer.Option("--environment", "-e", help="Overlay to apply.")]


@app.command()
def submit(
    file: File = None,
    manifest: ManifestOption = None,
    param: Params = None,
    environment: Environment = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Submit at most once.")] = None,
    priority: Annotated[
        int | None, typer.Option(min=1, max=5, help="Instead of the manifest's; 1 goes first.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    output: Output = None,
) -> None:
    """Submit a manifest or template; with --wait, exit code 1 unless the job completes."""
    loaded = _load(manifest_of(file, manifest), param, environment)

    async def work(client: LoomOSClient) -> Submitted:
        return await client.submit_job_from_manifest(
            loaded, idempotency_key=idempotency_key, priority=priority
        )

    submitted = call(work)
    if wait:
        if chosen(output) == Format.TABLE:
            print(f"job {submitted.job_id}\n{submitted.temporal_url}")
        wait_for(submitted.job_id, output)
        return
    show(submitted, output, lambda: print(f"job {submitted.job_id}\n{submitted.temporal_url}"))


@app.command("submit-batch")
def submit_batch(
    template: Annotated[Path, typer.Option(help="Template manifest.")],
    params: Annotated[Path, typer.Option(help="JSON list of parameter sets.")],
    environment: Environment = None,
    output: Output = None,
) -> None:
    """Submit one job per parameter set; none if one of them is wrong."""
    from loomos.errors import InvalidInput

    try:
        sets = json.loads(params.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{params} cannot be read as JSON: {error}") from None
    if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
        raise InvalidInput(f"{params} must hold a list of mappings")
    base = _load(template, None, environment)
    jobs = [base.with_params(one) for one in sets]

    async def work(client: LoomOSClient) -> list[Submitted]:
        return await client.submit_batch_jobs(jobs)

    submitted = call(work)
    plain = [one.model_dump(mode="json") for one in submitted]
    show(plain, output, lambda: print("\n".join(one.job_id for one in submitted)))


@app.command()
def validate(
    file: File = None,
    manifest: ManifestOption = None,
    param: Params = None,
    environment: Environment = None,
    output: Output = None,
) -> None:
    """Check a manifest without submitting it; lists every error."""
    from loomos.manifest import ManifestValidator

    path = manifest_of(file, manifest)
    result = ManifestValidator().validate(_load(path, param, environment))
    errors = [{"path": e.path, "message": e.message} for e in result.errors]

    def table() -> None:
        if result.is_valid:
            print(f"{path}: valid")
        for error in result.errors:
            typer.echo(f"{path}: {error}", err=True)

    show({"valid": result.is_valid, "errors": errors}, output, table)
    if not result.is_valid:
        raise typer.Exit(2)


@app.command()
def schema() -> None:
    """Print the JSON Schema of manifests."""
    from loomos.manifest import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command("list")
def list_jobs(
    status: Annotated[list[str] | None, typer.Option(help="State; may be repeated.")] = None,
    user: Annotated[str | None, typer.Option(help="Owner.")] = None,
    project: Annotated[str | None, typer.Option(help="Project.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    cursor: Annotated[str | None, typer.Option(help="Where the next page starts.")] = None,
    output: Output = None,
) -> None:
    """List jobs, newest first."""
    labels = _pairs(label, "--label")

    async def work(client: LoomOSClient) -> JobPage:
        return await client.list_jobs(
            states=status or (),
            owner=user,
            project=project,
            labels=labels,
            limit=limit,
            cursor=cursor,
        )

    page = call(work)

    def table() -> None:
        print_table(
            ("JOB", "STATE", "PRIORITY", "OWNER", "PROJECT", "MODEL", "CREATED"),
            [
                (j.job_id, j.state, j.priority, j.owner, j.project, j.model, ago(j.created_at))
                for j in page.jobs
            ],
            spare=("PROJECT", "OWNER", "PRIORITY", "MODEL"),
        )
        if page.next_cursor:
            # The cursor has a line of its own, so that it can be copied whole at 80 columns.
            print(f"There are more jobs. To see them, add\n--cursor {page.next_cursor}")

    show(page, output, table)


@app.command()
def describe(job_id: JobId, output: Output = None) -> None:
    """Show everything about a job."""
    job = call_on("job", job_id, lambda client, job: client.get_job_status(job))
    show(job, output, lambda: print_job(job))


app.command()(logs)
app.command()(metrics)


@app.command()
def cancel(job_id: JobId, wait: Wait = False, output: Output = None) -> None:
    """Stop a job for good; its ranks get time for a last checkpoint."""
    steer("cancel_job", job_id, output, wait=wait)


@app.command()
def pause(job_id: JobId, wait: Wait = False, output: Output = None) -> None:
    """Checkpoint a job and give its nodes back."""
    steer("pause_job", job_id, output, wait=wait)


@app.command()
def resume(job_id: JobId, wait: Wait = False, output: Output = None) -> None:
    """Let a paused job go on."""
    steer("resume_job", job_id, output, wait=wait)


@app.command()
def restart(
    job_id: JobId,
    from_scratch: Annotated[bool, typer.Option(help="Ignore its checkpoints.")] = False,
    wait: Wait = False,
    output: Output = None,
) -> None:
    """Start a new attempt, or run a job again that has ended."""
    steer("restart_job", job_id, output, wait=wait, from_scratch=from_scratch)


@app.command()
def migrate(
    job_id: JobId,
    to: Annotated[list[str], typer.Option("--to", help="Node to move to; may be repeated.")],
    wait: Wait = False,
    output: Output = None,
) -> None:
    """Move a running job to other nodes: it checkpoints and goes on there."""
    steer("migrate_job", job_id, output, wait=wait, nodes=to)


@app.command()
def change(
    job_id: JobId,
    priority: Annotated[int | None, typer.Option(min=1, max=5)] = None,
    label: Annotated[list[str] | None, typer.Option(help="key=value; replaces all.")] = None,
    output: Output = None,
) -> None:
    """Change priority or labels of a job that lives."""
    labels = _pairs(label, "--label") if label else None
    steer("change_job", job_id, output, priority=priority, labels=labels)


@app.command()
def delete(job_id: JobId) -> None:
    """Forget a job that has ended, with its checkpoints, logs and metrics. Its model stays."""
    forget("job", job_id, lambda client, job: client.delete_job(job))


@app.command()
def wait(job_id: JobId, output: Output = None) -> None:
    """Follow a job to its end with a progress bar; exit code 1 unless it completes."""
    wait_for(job_id, output)


@app.command()
def download(
    job_id: JobId,
    output: Annotated[Path, typer.Option("--output", help="Folder for the files.")] = Path("."),
    artifact: Annotated[str, typer.Option(help="`model`, or one of its files.")] = "model",
) -> None:
    """Download the model that a job published."""

    async def work(client: LoomOSClient, job: str) -> Path:
        return await client.download_job_artifact(job, artifact, output)

    print(call_on("job", job_id, work))


def _load(path: Path, param: list[str] | None, environment: str | None) -> JobManifest:
    from loomos.manifest import JobManifest

    manifest = JobManifest.from_file(path)
    if param:
        manifest = manifest.with_params(_typed(_pairs(param, "--param")))
    return manifest.for_environment(environment) if environment else manifest


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    from loomos.errors import InvalidInput

    for item in items or ():
        if "=" not in item:
            raise InvalidInput(f"{option} {item!r} is not name=value")
    return dict(item.split("=", 1) for item in items or ())


def _typed(params: dict[str, str]) -> dict[str, Any]:
    """Parameters as a manifest would read them: numbers, truths and text."""
    from loomos.manifest import read_scalar

    return {name: read_scalar(value) for name, value in params.items()}
