"""A witness over real HTTP: what it cosigns, what it refuses, what it keeps."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from loomos.loomdb import LoomDB, NewEvent
from loomos.loomdb.bundles import ProofBundle
from loomos.loomdb.checkpoints import Checkpoint
from loomos.loomdb.errors import QuorumMissing
from loomos.loomdb.merkle import EMPTY_ROOT, Tree, leaf_hash
from loomos.loomdb.notes import KeyType, Note, Signature, SignerKey, verify_note
from loomos.loomdb.policies import Group, Member, Policy
from loomos.loomdb.witness.app import create_app
from loomos.loomdb.witness.request import encode_request
from loomos.loomdb.witness.store import Witness
from loomos.loomdb.witnessing import Cosigners, newest_cosigned

LOG = SignerKey.generate("example.org/log")
STRANGER = SignerKey.generate("example.org/stranger")


class Running:
    """A witness behind a real server."""

    def __init__(self, folder: Path, kind: KeyType) -> None:
        self.key = SignerKey.generate(f"witness.example/{folder.name}", kind)
        self.evidence = folder / "evidence"
        self.witness = Witness(folder / "w.db", [self.key], [LOG.verifier], self.evidence)
        self.url = ""

    @property
    def member(self) -> Member:
        return Member(self.key.verifier, self.url)

    async def post(self, body: bytes) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.post(f"{self.url}/add-checkpoint", content=body)


@asynccontextmanager
async def running(folder: Path, kind: KeyType) -> AsyncIterator[Running]:
    found = Running(folder, kind)
    listener = socket.create_server(("127.0.0.1", 0))
    found.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(create_app(found.witness), log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield found
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "one", KeyType.COSIGNATURE_ED25519) as found:
        yield found


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "two", KeyType.COSIGNATURE_MLDSA44) as found:
        yield found


def grown(entries: list[str], key: SignerKey = LOG) -> Note:
    tree, _ = Tree().append([leaf_hash(e.encode()) for e in entries])
    return Checkpoint(key.name, tree.size, tree.root()).sign(key)


A = [leaf_hash(e) for e in (b"a", b"b", b"c", b"d")]


async def test_a_witness_cosigns_what_grows(one: Running, two: Running) -> None:
    for witness in (one, two):
        first, second = grown(["a", "b"]), grown(["a", "b", "c"])
        answer = await witness.post(encode_request(0, (), first))
        assert answer.status_code == 200, answer.text
        signature = Signature.parse(answer.text.rstrip("\n"))
        assert answer.text == signature.line()
        ((key, timestamp),) = verify_note(Note(first.text, (signature,)), [witness.key.verifier])
        assert key == witness.key.verifier
        assert timestamp is not None and timestamp > 1_700_000_000
        assert (await witness.post(encode_request(2, (A[2],), second))).status_code == 200
        assert (await witness.post(encode_request(3, (), second))).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(encode_request(0, (), grown(["a"], STRANGER)), 404, id="unknown log"),
        pytest.param(
            encode_request(0, (), Checkpoint(LOG.name, 1, A[0]).sign(STRANGER)),
            403,
            id="not signed by the log",
        ),
        pytest.param(encode_request(5, (), grown(["a"])), 400, id="old size too large"),
        pytest.param(encode_request(1, (), grown(["a"])), 409, id="old size unknown"),
        pytest.param(encode_request(0, (A[0],), grown(["a"])), 422, id="a proof from nothing"),
        pytest.param(b"old 01\n\n" + grown(["a"]).encode().encode(), 400, id="leading zero"),
        pytest.param(b"new 0\n\n" + grown(["a"]).encode().encode(), 400, id="no old size"),
        pytest.param(b"old 0\nAAAA\n\n" + grown(["a"]).encode().encode(), 400, id="short hash"),
        pytest.param(b"old 0\n\nno note", 400, id="no checkpoint"),
        pytest.param(b"\xff\xfe", 400, id="not text"),
        pytest.param(b"x" * 300_000, 400, id="too large"),
        pytest.param(
            encode_request(0, (), Checkpoint(LOG.name, 0, bytes(32)).sign(LOG)),
            409,
            id="an empty log with a root",
        ),
    ],
)
async def test_the_prescribed_status_codes(one: Running, body: bytes, status: int) -> None:
    assert (await one.post(body)).status_code == status
    async with httpx.AsyncClient(trust_env=False) as http:
        assert await newest_cosigned(LOG.name, one.member, [LOG.verifier], http) is None


async def test_an_empty_log_may_be_cosigned_first(one: Running) -> None:
    empty = Checkpoint(LOG.name, 0, EMPTY_ROOT).sign(LOG)
    assert (await one.post(encode_request(0, (), empty))).status_code == 200
    assert (await one.post(encode_request(0, (), grown(["a"])))).status_code == 200


async def test_a_stale_size_is_told_the_newest(one: Running) -> None:
    assert (await one.post(encode_request(0, (), grown(["a", "b"])))).status_code == 200
    answer = await one.post(encode_request(0, (), grown(["a", "b", "c"])))
    assert (answer.status_code, answer.text) == (409, "2\n")
    assert answer.headers["content-type"] == "text/x.tlog.size"


async def test_a_fork_is_never_cosigned_and_leaves_evidence(one: Running, two: Running) -> None:
    """The log shows one history to the first witness and another to the second."""
    for witness, mine, other in ((one, "b", "x"), (two, "x", "b")):
        assert (await witness.post(encode_request(0, (), grown(["a", mine])))).status_code == 200
        same_size = await witness.post(encode_request(2, (), grown(["a", other])))
        assert same_size.status_code == 409
        longer = grown(["a", other, "c"])
        for proof in ((A[2],), (), (A[0], A[1], A[2])):
            assert (await witness.post(encode_request(2, proof, longer))).status_code == 422
        async with httpx.AsyncClient(trust_env=False) as http:
            newest = await newest_cosigned(LOG.name, witness.member, [LOG.verifier], http)
        assert newest == Checkpoint.parse_text(grown(["a", mine]).text)
        files = list(witness.evidence.iterdir())
        assert len(files) == 2
        text = "".join(path.read_text() for path in files)
        assert grown(["a", mine]).encode() in text
        assert grown(["a", other]).encode() in text


async def test_fifty_at_once_never_roll_back(one: Running) -> None:
    entries = [f"e{n}" for n in range(60)]
    await one.post(encode_request(0, (), grown(entries[:1])))
    sizes = list(range(2, 52))
    answers = await asyncio.gather(
        *(one.post(encode_request(1, proof_from_1(entries[:n]), grown(entries[:n]))) for n in sizes)
    )
    codes = [a.status_code for a in answers]
    assert codes.count(200) == 1
    assert codes.count(409) == 49
    winner = sizes[codes.index(200)]
    async with httpx.AsyncClient(trust_env=False) as http:
        newest = await newest_cosigned(LOG.name, one.member, [LOG.verifier], http)
    assert newest is not None and newest.size == winner


def proof_from_1(entries: list[str]) -> tuple[bytes, ...]:
    from loomos.loomdb.merkle import consistency_spans
    from tests.unit.test_merkle import prove

    leaves = [leaf_hash(e.encode()) for e in entries]
    return tuple(prove(consistency_spans(1, len(leaves)), leaves))


async def test_a_ledger_is_cosigned_and_proven_with_a_quorum(
    one: Running, two: Running, tmp_path: Path
) -> None:
    policy = Policy(
        (Member(LOG.verifier),),
        {"one": one.member, "two": two.member},
        {"both": Group(2, ("one", "two"))},
        "both",
    )
    async with (
        LoomDB(f"sqlite:///{tmp_path / 'loom.db'}", log_key=LOG) as db,
        httpx.AsyncClient(trust_env=False) as http,
    ):
        cosigners = Cosigners(db.ledger, policy, http)
        for size in (3, 300, 1000):
            count = size - await db.size()
            await db.append("s", [NewEvent(event_type="tick") for _ in range(count)])
            await db.ledger.sign()
            assert await cosigners.cosign() == {}
        bundle = await db.ledger.prove(500, policy)
        entry = (await db.event_at(500)).entry.encode()
        parsed = ProofBundle.parse(bundle.encode())
        assert parsed.verify(entry, policy).size == 1000
        without = ProofBundle(
            parsed.index,
            parsed.proof,
            Note(parsed.checkpoint.text, parsed.checkpoint.signatures[:1]),
        )
        with pytest.raises(QuorumMissing):
            without.verify(entry, policy)
        report = await db.audit(policy)
        assert report.ok


async def test_a_log_that_went_back_is_told_by_its_witness(one: Running, tmp_path: Path) -> None:
    policy = Policy((Member(LOG.verifier),), {"one": one.member}, {}, "one")
    async with httpx.AsyncClient(trust_env=False) as http:
        async with LoomDB(f"sqlite:///{tmp_path / 'loom.db'}", log_key=LOG) as db:
            await db.append("s", [NewEvent(event_type="tick") for _ in range(9)])
            await db.ledger.sign()
            assert await Cosigners(db.ledger, policy, http).cosign() == {}
        async with LoomDB(f"sqlite:///{tmp_path / 'older.db'}", log_key=LOG) as db:
            await db.append("s", [NewEvent(event_type="tick") for _ in range(4)])
            await db.ledger.sign()
            failures = await Cosigners(db.ledger, policy, http).cosign()
            assert "one has cosigned 9 entries, the log has 4" in failures["one"]
            await db.append("s", [NewEvent(event_type="tick") for _ in range(8)])
            await db.ledger.sign()
            failures = await Cosigners(db.ledger, policy, http).cosign()
            assert "refuses" in failures["one"]
            newest = await newest_cosigned(LOG.name, one.member, [LOG.verifier], http)
            assert newest is not None
            report = await db.audit(policy, [newest])
            assert [f.where for f in report.findings] == ["history"]
    assert len(list(one.evidence.iterdir())) == 1
