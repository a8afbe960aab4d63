"""Which gateway a command talks to, and that nobody else is sent a token."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from loomos.security.proof import prove, read_stack_key
from tests.listeners import listening
from tests.stack import LOOMOS, a_stack_at


async def loomos(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LOOMOS_")}
    process = await asyncio.create_subprocess_exec(
        *LOOMOS,
        *arguments,
        cwd=cwd,
        env=clean | {"LOOMOS_CONFIG": str(cwd / "home" / "config.yaml")} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_stranger_at_the_port_of_the_gateway_is_not_sent_the_token(tmp_path: Path) -> None:
    page = json.dumps({"jobs": [], "next_cursor": None, "proof": "0" * 64}).encode()
    async with listening(lambda _: (200, page)) as stranger:
        folder = a_stack_at(tmp_path / ".loomos", stranger.url)
        code, output = await loomos("jobs", "list", cwd=tmp_path)
        assert (code, len(output.splitlines())) == (2, 1), output
        assert "is not this stack's gateway, so no token was sent" in output
        assert stranger.requests
        token = folder.token_file.read_bytes()
        assert not any(token in r or b"authorization" in r.lower() for r in stranger.requests)


async def test_the_token_of_a_stack_is_not_sent_to_another_gateway(tmp_path: Path) -> None:
    async with listening(lambda _: (200, b"{}")) as other:
        folder = a_stack_at(tmp_path / ".loomos", "http://127.0.0.1:9")
        code = f"""
import asyncio
from loomos.client.http import LoomOSClient

async def main():
    async with LoomOSClient({other.url!r}) as client:
        await client.request("GET", "/jobs")

asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, cwd=tmp_path, env=dict(os.environ)
        )
        assert await process.wait() == 0
        assert len(other.requests) == 1
        assert folder.token_file.read_bytes() not in other.requests[0]


async def test_commands_find_a_stack_from_another_folder(tmp_path: Path) -> None:
    page = {"jobs": [], "next_cursor": None}

    def gateway(request: str) -> tuple[int, bytes]:
        if "challenge=" not in request:
            return 200, json.dumps(page).encode()
        challenge = request.partition("challenge=")[2].split()[0]
        key = read_stack_key(folder.stack_key_file) or ""
        return 200, json.dumps({"proof": prove(key, one.address, challenge)}).encode()

    other = tmp_path / "other"
    other.mkdir()
    async with listening(gateway) as one:
        folder = a_stack_at(tmp_path / "proj" / ".loomos", one.url)
        register = f"from loomos.contexts import *; register_stack(Path({str(folder.root)!r}))"
        home = str(other / "home" / "config.yaml")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", register, env=os.environ | {"LOOMOS_CONFIG": home}
        )
        assert await process.wait() == 0
        assert (await loomos("jobs", "list", cwd=other))[0] == 0
        assert folder.token_file.read_bytes() in one.requests[-1]
        code, output = await loomos("jobs", "list", "--context=nope", cwd=other)
        assert (code, output) == (2, "error: no context 'nope'; known: proj\n")
        code, output = await loomos("context", "list", cwd=other)
        assert code == 0 and "proj" in output and "stopped" in output
        assert (await loomos("context", "delete", "proj", cwd=other))[0] == 0
        asked = len(one.requests)
        code, output = await loomos("jobs", "list", cwd=other, LOOMOS_CLUSTER__RETRIES="0")
        assert code == 2 and len(one.requests) == asked
