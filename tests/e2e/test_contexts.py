"""Which gateway a command talks to, and that nobody else is sent a token."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from loomos.stack.state import StackState, StateDir
from tests.listeners import listening
from tests.stack import LOOMOS


def stack_at(root: Path, gateway: str) -> StateDir:
    """A folder that looks like a stack's, whose gateway is said to be there."""
    folder = StateDir(root)
    folder.prepare()
    port = int(gateway.rpartition(":")[2])
    ports = {"gateway": port, "temporal": 1, "temporal-ui": 2, "s3": 3}
    folder.write(
        StackState(supervisor_pid=1, nodes=1, ports=ports, settings=folder.settings(ports))
    )
    return folder


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
        folder = stack_at(tmp_path / ".loomos", stranger.url)
        code, output = await loomos("jobs", "list", cwd=tmp_path)
        assert (code, len(output.splitlines())) == (2, 1), output
        assert "is not this stack's gateway, so no token was sent" in output
        assert stranger.requests
        token = folder.token_file.read_bytes()
        assert not any(token in r or b"authorization" in r.lower() for r in stranger.requests)


async def test_the_token_of_a_stack_is_not_sent_to_another_gateway(tmp_path: Path) -> None:
    async with listening(lambda _: (200, b"{}")) as other:
        folder = stack_at(tmp_path / ".loomos", "http://127.0.0.1:9")
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
