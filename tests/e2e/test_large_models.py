"""Models larger than one part of an upload: nobody on their way holds them in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loomos.client.http import LoomOSClient
from loomos.storage import file_sha256
from loomos.training.resolve import pin_version
from tests.stack import Stack

SIZE = 200 * 1024 * 1024
"""Of the weights: more than three parts of an S3 upload."""
MOST_GROWTH = 100 * 1024 * 1024

UPLOAD = """
import asyncio, resource, sys
from loomos import LoomOSClient

async def main() -> None:
    async with LoomOSClient() as client:
        await client.models.list()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        made = await client.models.upload(sys.argv[1], "large")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(made.version, (after - before) * 1024)

asyncio.run(main())
"""


def watch_memory(pid: int) -> Callable[[], int]:
    """Start to watch a process; the function says by how many bytes it grew at most since."""
    status = Path(f"/proc/{pid}/status")

    def value(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024

    Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the highest mark
    before = value("VmRSS")
    return lambda: value("VmHWM") - before


@pytest.mark.slow
async def test_a_model_of_several_parts_goes_through_in_bounded_memory(
    stack: Stack, client: LoomOSClient, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"
    with weights.open("wb") as file:
        for number in range(0, SIZE, 10 * 1024 * 1024):
            file.seek(number)
            file.write(str(number).encode())
        file.truncate(SIZE)
    members = ("gateway", "control")
    grown = {name: watch_memory(stack.pid(name)) for name in members}
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, str(folder)],
        env=stack.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    version, client_grew = done.stdout.split()
    assert int(client_grew) < MOST_GROWTH
    for name in members:
        assert grown[name]() < MOST_GROWTH, name
    # The version has the bytes, and a job that starts from it has them without a detour.
    store, prefix = stack.store(), f"models/large/{version}/"
    store.get_file(f"{prefix}model.safetensors", tmp_path / "back")
    digest = file_sha256(tmp_path / "back")
    assert digest == file_sha256(weights)
    store.delete([f"blobs/{digest}"])
    mine = watch_memory(os.getpid())
    pin_version(f"model:large@{version}", "model.base_model", store)
    assert mine() < MOST_GROWTH
    store.get_file(f"blobs/{digest}", tmp_path / "again")
    assert file_sha256(tmp_path / "again") == digest
    await client.models.delete(f"large@{version}")
    store.delete([f"blobs/{digest}"])
