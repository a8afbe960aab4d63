"""Events and the ledger through the gateway and the command line."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from loomos.client.http import LoomOSClient
from loomos.errors import NotFound
from loomos.jobs.states import JobState
from loomos.loomdb.bundles import ProofBundle
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.keys import read_policy
from loomos.loomdb.merkle import verify_consistency
from loomos.loomdb.notes import Note
from loomos.security.tokens import mint, read_key
from tests.stack import Stack, manifest, tiny_job


@pytest.fixture(scope="module")
async def recorded(stack: Stack) -> AsyncIterator[str]:
    """A job whose facts are under a checkpoint."""
    document = tiny_job("told")
    document["spec"]["model"]["config"]["hidden_size"] = 63
    async with stack.client() as client:
        job_id = (await client.submit_job_from_manifest(manifest(document))).job_id
        await stack.until(client, job_id, JobState.FAILED)
        size = (await client.ledger.status()).size
        await stack.eventually(client.ledger.status, lambda s: s.signed_size >= size)
    yield job_id


async def test_an_event_is_proven_through_the_gateway(
    recorded: str, stack: Stack, client: LoomOSClient
) -> None:
    events = (await client.ledger.events(stream=f"job:{recorded}")).events
    assert events[0].event_type == "job_submitted"
    position = events[0].position
    policy = read_policy(stack.folder.policy_file)
    bundle = ProofBundle.parse(await client.ledger.proof(position))
    checkpoint = bundle.verify(await client.ledger.entry(position), policy)
    status = await client.ledger.status()
    assert status.is_sequenced
    assert status.origin == checkpoint.origin
    newest = policy.verify(Note.parse(await client.ledger.checkpoint()))
    proof = await client.ledger.consistency(1, newest.size)
    first = await client.ledger.proof(0)
    assert Checkpoint.parse_text(ProofBundle.parse(first).checkpoint.text).size >= 1
    from loomos.loomdb.merkle import leaf_hash

    verify_consistency(
        1,
        newest.size,
        [base64.b64decode(value) for value in proof.hashes],
        leaf_hash(await client.ledger.entry(0)),
        newest.root,
    )
    with pytest.raises(NotFound):
        await client.ledger.proof(10**9)
    with pytest.raises(NotFound):
        await client.ledger.entry(10**9)


async def test_pages_of_events_join_without_gap(recorded: str, client: LoomOSClient) -> None:
    positions: list[int] = []
    after: int | None = -1
    while after is not None:
        page = await client.ledger.events(after=after, limit=7)
        positions += [e.position for e in page.events]
        after = page.next_after
    assert positions == list(range(len(positions)))
    newest = await client.ledger.events(limit=3, newest_first=True)
    assert newest.events[0].position >= positions[-1]


async def test_persons_are_for_administrators(
    recorded: str, stack: Stack, client: LoomOSClient
) -> None:
    key = read_key(stack.folder.signing_key_file)
    token = mint(key, "reader", ["read"], timedelta(minutes=5))
    endpoint = stack.state.settings["cluster"]["endpoint"]
    async with LoomOSClient(endpoint, token) as reader:
        seen = (await reader.ledger.events(stream=f"job:{recorded}")).events[0]
        assert seen.by is None
        assert "labels" in seen.data
    assert (await client.ledger.events(stream=f"job:{recorded}")).events[0].by


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/events?limit=0", 422, "limit"),
        ("/events?after=-2", 422, "after"),
        ("/events?start_time=yesterday", 422, "start_time"),
        ("/events?stream=no%20spaces", 400, "stream"),
        ("/ledger/entries/-1", 422, "position"),
        ("/ledger/entries/x", 422, "position"),
        ("/ledger/consistency?old=0&new=1", 400, "nothing is proven from 0"),
        ("/ledger/consistency?old=2&new=1", 400, "the older first"),
        ("/provenance/none/such", 404, "NAME@VERSION"),
        ("/provenance/..%2Fx/y", 400, "the path holds"),
        ("/provenance/none/such/files/model.sig", 404, ""),
    ],
)
async def test_wrong_requests_are_problems(
    stack: Stack, recorded: str, path: str, status: int, named: str
) -> None:
    token = stack.folder.token_file.read_text()
    endpoint = stack.state.settings["cluster"]["endpoint"]
    async with httpx.AsyncClient(
        base_url=endpoint, headers={"Authorization": f"Bearer {token}"}
    ) as http:
        answer = await http.get(f"/api/v1{path}")
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.text


async def test_the_command_line_proves_verifies_audits_and_exports(
    recorded: str, stack: Stack, tmp_path: Path
) -> None:
    assert "sequenced" in stack.loomos("ledger", "status").stdout
    listed = json.loads(
        stack.loomos("events", "list", "--stream", f"job:{recorded}", "-o", "json").stdout
    )
    position = listed[0]["position"]
    assert recorded in stack.loomos("events", "list", "--limit", "1000").stdout
    stack.loomos("ledger", "prove", str(position), "-d", str(tmp_path))
    proof = tmp_path / f"{position}.tlog-proof"
    assert "verified: entry" in stack.loomos("ledger", "verify", str(proof)).stdout
    vkey = stack.folder.policy_file.read_text().split()[1]
    assert "verified" in stack.loomos("ledger", "verify", str(proof), "--key", vkey).stdout
    entry = tmp_path / f"{position}.json"
    entry.write_bytes(entry.read_bytes().replace(b"told", b"sold"))
    refused = stack.loomos("ledger", "verify", str(proof), check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "is not in the tree" in refused.stderr and refused.stderr.count("\n") == 1
    audited = json.loads(stack.loomos("ledger", "audit", "-o", "json").stdout)
    assert audited["ok"] and audited["signed_size"] > position
    folder = tmp_path / "log"
    stack.loomos("ledger", "export", str(folder))
    assert "intact" in stack.loomos("ledger", "audit", str(folder)).stdout
    (tile,) = (
        path
        for path in (folder / "tile" / "entries").rglob("*")
        if path.is_file() and f"{position // 256:03d}" in (path.name, path.parent.stem)
    )
    tile.write_bytes(tile.read_bytes().replace(b"told", b"sold"))
    found = stack.loomos("ledger", "audit", str(folder), check=False)
    assert found.returncode == 1
    assert f"entry {position} differs" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["ledger", "verify", "none.tlog-proof"], "cannot be read"),
        (["ledger", "prove", "99999999"], "no event at position"),
        (["ledger", "audit", "none"], "holds no checkpoint"),
        (["ledger", "audit", "--url", "sqlite:////none/such.db"], "no database at /none/such.db"),
        (["ledger", "audit", "--url", "mysql://x"], "sqlite:///PATH"),
        (["ledger", "keygen", "two words", "k"], "no spaces"),
        (["ledger", "audit", "--policy", "none"], "policy none cannot be read"),
        (["provenance", "show", "nameless"], "not MODEL@VERSION"),
        (["provenance", "show", "none@such"], "no model none@such"),
        (["provenance", "verify", "none"], "holds no lineage.json"),
        (["events", "list", "--stream", "a b"], "stream"),
    ],
)
def test_wrong_commands_are_exit_2_and_one_line(
    stack: Stack, arguments: list[str], why: str
) -> None:
    done = stack.loomos(*arguments, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_are_made_for_their_owner_only(stack: Stack, tmp_path: Path) -> None:
    for kind in ("log", "witness", "witness-mldsa44"):
        path = tmp_path / kind
        vkey = stack.loomos("ledger", "keygen", "a.example/k", str(path), "--kind", kind).stdout
        assert vkey.startswith("a.example/k+")
        assert path.stat().st_mode & 0o077 == 0
    again = stack.loomos("ledger", "keygen", "a.example/k", str(tmp_path / "log"), check=False)
    assert again.returncode == 2
    assert "there already" in again.stderr
