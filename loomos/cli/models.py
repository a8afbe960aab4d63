"""`loomos models`: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import Output, call, call_on, forget, print_facts, print_table, show

if TYPE_CHECKING:
    from loomos.client.delivery_models import (
        EndpointDetail,
        InferenceAnswer,
        ModelDetail,
        ModelList,
    )
    from loomos.client.http import LoomOSClient

app = typer.Typer(help="Look at models, upload, alias, serve and ask them.", no_args_is_help=True)

Model = Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME@VERSION.")]


@app.command("list")
def list_models(output: Output = None) -> None:
    """List models with their aliases."""

    async def work(client: LoomOSClient) -> ModelList:
        return await client.models.list()

    found = call(work)

    def table() -> None:
        print_table(
            ("MODEL", "VERSIONS", "STABLE", "CANARY", "OTHER ALIASES"),
            [
                (
                    model.name,
                    model.versions,
                    model.aliases.get("stable"),
                    model.aliases.get("canary"),
                    ", ".join(
                        f"{alias}={version}"
                        for alias, version in sorted(model.aliases.items())
                        if alias not in ("stable", "canary")
                    ),
                )
                for model in found.models
            ],
        )

    show(found, output, table)


@app.command()
def describe(model: Model, output: Output = None) -> None:
    """Show a version: files, lineage, signature, verdict."""
    _print(call_on("model", model, lambda client, one: client.models.get(one)), output)


@app.command()
def upload(
    folder: Annotated[Path, typer.Argument(help="Folder that save_pretrained() wrote.")],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    output: Output = None,
) -> None:
    """Register a folder as a version; it is signed."""

    async def work(client: LoomOSClient) -> ModelDetail:
        return await client.models.upload(folder, name)

    _print(call(work), output)


@app.command()
def alias(
    model: Model,
    name: Annotated[str, typer.Argument(help="Alias, such as stable.")],
    expect: Annotated[
        str | None, typer.Option(help="Move it only if it is at this version now.")
    ] = None,
    output: Output = None,
) -> None:
    """Point an alias at a version."""

    async def work(client: LoomOSClient, one: str) -> ModelDetail:
        return await client.models.edit(one, aliases={name: expect})

    _print(call_on("model", model, work), output)


@app.command()
def unalias(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    name: Annotated[str, typer.Argument(help="Alias, such as stable.")],
) -> None:
    """Remove an alias; the version that it is at stays."""

    async def work(client: LoomOSClient) -> None:
        await client.models.unalias(model, name)

    call(work)
    print(f"removed the alias {name} of {model}")


@app.command()
def edit(
    model: Model,
    description: Annotated[str | None, typer.Option(help="In words.")] = None,
    tag: Annotated[list[str], typer.Option(help="KEY=VALUE; replaces all tags.")] = [],  # noqa: B006
    output: Output = None,
) -> None:
    """Describe and tag a version."""
    from loomos.errors import InvalidInput

    for item in tag:
        if "=" not in item:
            raise InvalidInput(f"--tag: {item!r} is not KEY=VALUE")
    tags = dict(item.split("=", 1) for item in tag) if tag else None

    async def work(client: LoomOSClient, one: str) -> ModelDetail:
        return await client.models.edit(one, description=description, tags=tags)

    _print(call_on("model", model, work), output)


@app.command()
def delete(model: Model) -> None:
    """Delete a version that nobody serves and no alias points at."""
    forget("model", model, lambda client, one: client.models.delete(one))


@app.command()
def deploy(
    model: Model,
    endpoint: Annotated[str, typer.Option(help="Name of the endpoint.")],
    min_replicas: Annotated[int, typer.Option("--min", help="Fewest servers.")] = 1,
    max_replicas: Annotated[int | None, typer.Option("--max", help="Most servers.")] = None,
    output: Output = None,
) -> None:
    """Serve a version, and wait until it can answer. A folder is uploaded first."""
    scaling = {"min_instances": min_replicas, "max_instances": max_replicas or min_replicas}

    async def work(client: LoomOSClient, one: str) -> EndpointDetail:
        return await client.deploy_model(one, endpoint, scaling)

    from loomos.cli.endpoints import print_endpoint

    print_endpoint(call_on("model", model, work), output)


@app.command()
def infer(
    model: Annotated[str, typer.Argument(help="Endpoint, or a model that one serves.")],
    text: Annotated[str, typer.Argument(help="What to ask.")],
    chat: Annotated[bool, typer.Option(help="As a turn of a conversation.")] = True,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    user: Annotated[str | None, typer.Option(help="Sticky key.")] = None,
    output: Output = None,
) -> None:
    """Ask a model in service."""
    options = {"max_tokens": max_tokens, "temperature": temperature, "user": user}
    given = {key: value for key, value in options.items() if value is not None}

    async def work(client: LoomOSClient, one: str) -> InferenceAnswer:
        return await client.inference(one, text, 600, chat=chat, **given)

    answer = call_on("endpoint", model, work)
    show(answer, output, lambda: print(answer.output["text"]))


@app.command()
def mirror(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    to: Annotated[str, typer.Option(help="MLflow's tracking URI.")],
) -> None:
    """Let an MLflow registry show a model's versions and aliases."""
    from loomos.registry.mlflow_mirror import mirror as mirror_to
    from loomos.settings import load_settings

    async def work(client: LoomOSClient) -> list[ModelDetail]:
        newest = await client.models.get(name)
        return [await client.models.get(f"{name}@{version}") for version in newest.versions]

    done = mirror_to(call(work), load_settings().storage.url, to)
    print(f"{done.created} versions created, {done.aliases} aliases changed")


def _print(model: ModelDetail, output: Output) -> None:
    from loomos.quantities import format_bytes

    verdict = model.verification

    def table() -> None:
        print_facts(
            [
                ("model", model.name),
                ("version", model.version),
                (
                    "aliases",
                    ", ".join(
                        alias for alias, v in sorted(model.aliases.items()) if v == model.version
                    ),
                ),
                ("other versions", ", ".join(v for v in model.versions if v != model.version)),
                ("size", format_bytes(model.size_bytes)),
                ("weights", model.weights_sha256),
                ("signed", "yes" if model.is_signed else "no; it will not be loaded"),
                (
                    "verified",
                    f"{verdict.verdict} by {verdict.verification_id}" if verdict else "no",
                ),
                ("job", model.lineage.get("job_id")),
                ("base", model.lineage.get("base_version")),
                ("description", model.notes.description),
                ("tags", ", ".join(f"{k}={v}" for k, v in sorted(model.notes.tags.items()))),
                ("files", f"{len(model.files)}: " + ", ".join(sorted(model.files))),
            ]
        )

    show(model, output, table)
