"""`loomos auth`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loomos.cli.output import call

if TYPE_CHECKING:
    from loomos.client.http import LoomOSClient

app = typer.Typer(help="Tokens.", no_args_is_help=True)


class Scope(StrEnum):
    """What a token allows; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@app.command()
def login(
    endpoint: Annotated[str, typer.Option(help="URL of the gateway.")],
    token: Annotated[str | None, typer.Option(help="Token; asked for if not given.")] = None,
) -> None:
    """Store a gateway's address and a token, once the gateway has accepted it."""
    from loomos.cli.config import write
    from loomos.client.http import LoomOSClient

    given = token or typer.prompt("Token", hide_input=True)

    async def check() -> None:
        async with LoomOSClient(endpoint, given) as client:
            await client.list_jobs(limit=1)

    import asyncio

    asyncio.run(check())
    write({"cluster.endpoint": endpoint, "auth.token": given})
    print(f"logged in to {endpoint}")


@app.command("set-token")
def set_token(token: Annotated[str, typer.Argument(help="Bearer token.")]) -> None:
    """Store a token."""
    from loomos.cli.config import write

    write({"auth.token": token})


@app.command("create-token")
def create_token(
    subject: Annotated[str, typer.Argument(help="Who the token is for.")],
    scope: Annotated[Scope, typer.Option(help="What it allows.")] = Scope.SUBMIT,
    lifetime: Annotated[str, typer.Option(help="Such as 24h or 720h.")] = "24h",
    key_file: Annotated[Path | None, typer.Option(help="Signing key of the gateway.")] = None,
) -> None:
    """Mint a token with the gateway's signing key."""
    from loomos.errors import InvalidInput
    from loomos.quantities import parse_duration
    from loomos.security.tokens import mint, read_key
    from loomos.settings import load_settings

    path = key_file or load_settings().auth.signing_key_file
    if path is None:
        raise InvalidInput("no signing key; give --key-file or set auth.signing_key_file")
    try:
        duration = parse_duration(lifetime)
    except ValueError as error:
        raise InvalidInput(f"--lifetime: {error}") from None
    print(mint(read_key(path), subject, [scope.value], duration))


@app.command()
def check() -> None:
    """Ask the gateway whether it accepts the stored token."""

    async def work(client: LoomOSClient) -> str:
        await client.list_jobs(limit=1)
        return client.endpoint

    print(f"{call(work)} accepts the token")
