"""A version exists once it is signed, and not before; the ledger takes every fact, or refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.failures import TRIES, final_when_repeated
from activities.ledger import LedgerActivities
from loomos.errors import InvalidInput, NotFound
from loomos.jobs.facts import Fact, RecordFacts, SignVersion
from loomos.loomdb import LoomDB
from loomos.loomdb.events import LARGEST_ENTRY_BYTES, check_data
from loomos.provenance.dsse import make_key, read_key
from loomos.registry import Registry, verified_files
from loomos.settings import LoomDBSettings, Settings, StorageSettings
from loomos.storage import Store, open_store
from loomos.storage.layout import blob_key
from loomos.training.export import upload_version


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    key = tmp_path / "key.pem"
    key.write_text(make_key())
    return Settings(
        storage=StorageSettings(url=f"file://{tmp_path}/store"),
        loomdb=LoomDBSettings(url=f"sqlite:///{tmp_path}/loom.db", attestation_key_file=key),
    )


@pytest.fixture
def store(settings: Settings) -> Store:
    return open_store(settings.storage)


def draft(store: Store, folder: Path) -> str:
    root = folder / "model"
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text("{}")
    (root / "model.safetensors").write_bytes(b"weights")
    made = upload_version(store, root, name="m", source="job-1", lineage={"job_id": "job-1"})
    return f"{made.name}@{made.version}"


async def test_a_version_exists_for_nobody_until_it_is_signed(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    version = draft(store, tmp_path)
    registry = Registry(store)
    for reference in (version, "m"):
        with pytest.raises(NotFound):
            registry.manifest(reference)
    assert registry.versions("m") == []
    async with LoomDB(settings.loomdb.url) as db:
        activities = LedgerActivities(settings, db)
        for _ in range(2):  # a retry finds it done
            await ActivityEnvironment().run(activities.sign_version, SignVersion(version=version))
    manifest = registry.manifest("m")
    assert f"m@{manifest.version}" == version
    key_file = settings.loomdb.attestation_key_file
    assert key_file is not None
    verified_files(store, manifest, read_key(key_file).public_key())
    assert draft(store, tmp_path) == version  # published again, it stays signed
    assert registry.versions("m") == [manifest.version]


def test_an_upload_whose_signing_fails_is_no_version(store: Store) -> None:
    registry = Registry(store)
    content = {"config.json": b"{}", "model.safetensors": b"w"}
    files = {}
    for name, data in content.items():
        digest = hashlib.sha256(data).hexdigest()
        store.put_if_absent(blob_key(digest), data)
        files[name] = {"sha256": digest, "size_bytes": len(data)}
    from loomos.jobs.serving import FileFacts

    facts = {name: FileFacts.model_validate(fact) for name, fact in files.items()}

    def broken(manifest: object) -> None:
        raise OSError("the key is gone")

    with pytest.raises(OSError, match="the key is gone"):
        registry.write("m", facts, {}, broken)
    assert registry.versions("m") == []
    assert registry.write("m", facts, {}).version == registry.versions("m")[0]


async def test_a_fact_that_an_entry_cannot_hold_is_kept_by_reference(
    settings: Settings, store: Store
) -> None:
    large = {"nodes": [{"node_id": f"n{i}", "code_sha256": "a" * 64} for i in range(2000)]}
    odd = {"value": float("nan"), "count": 2**60}
    with pytest.raises(InvalidInput, match="more than 65535"):
        check_data(large)
    with pytest.raises(InvalidInput, match="not JSON"):
        check_data(odd)
    facts = [
        Fact(event_type="lease_granted", key=key, data=data)
        for key, data in (("large", large), ("odd", odd), ("small", {"a": 1}))
    ]
    async with LoomDB(settings.loomdb.url) as db:
        activities = LedgerActivities(settings, db)
        request = RecordFacts(job_id="job-1", facts=facts)
        for _ in range(2):
            await ActivityEnvironment().run(activities.record_facts, request)
        events = await db.query_events(stream="job:job-1")
    assert len(events) == 3
    assert all(len(event.entry.encode()) <= LARGEST_ENTRY_BYTES for event in events)
    by_reference, strange, small = (event.data for event in events)
    assert json.loads(store.get(blob_key(by_reference["data_sha256"]))) == large
    assert "not JSON" in strange["reason"]
    assert small == {"a": 1}


def test_an_error_that_comes_again_and_again_is_final() -> None:
    environment = ActivityEnvironment()

    def fail(attempt: int, error: Exception) -> BaseException:
        environment.info = environment.info.__class__(
            **{**environment.info.__dict__, "attempt": attempt}
        )

        def work() -> None:
            with final_when_repeated("m@1 is not signed"):
                raise error

        with pytest.raises(Exception) as raised:
            environment.run(work)
        return raised.value

    assert isinstance(fail(1, KeyError("x")), KeyError)
    assert isinstance(fail(TRIES, OSError("away")), OSError)
    assert isinstance(fail(TRIES, InvalidInput("no")), InvalidInput)
    final = fail(TRIES, ValueError("no such field \ud800"))
    assert isinstance(final, ApplicationError)
    assert final.non_retryable and final.type == "InvalidInput"
    assert final.message.startswith("m@1 is not signed: ValueError: no such field")
