"""Recording what happened to a job, and signing what it published.

Every event's id is made of job and key, so an activity that is retried after a crash at any line
records nothing twice. The process that runs these does not sequence the ledger; it hands over.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import Any

from temporalio import activity

from activities.failures import final_when_repeated, in_thread
from loomos.errors import InvalidInput
from loomos.jobs.facts import AttestModel, Fact, RecordCheckpoints, RecordFacts, SignVersion
from loomos.jobs.message import Empty
from loomos.loomdb import AuditContext, Event, LoomDB, NewEvent, Service
from loomos.loomdb.events import check_data
from loomos.provenance import attestation
from loomos.provenance.dsse import read_key
from loomos.provenance.lineage import stream_of
from loomos.registry import Registry
from loomos.settings import Settings
from loomos.storage import Store, open_store
from loomos.storage.layout import (
    attestation_key,
    blob_key,
    checkpoints_prefix,
    model_prefix,
    parse_checkpoint_manifest,
    parse_retired,
    retired_prefix,
)

CONTROL = Service(name="control")
MOST_FACTS = 10_000
ELSEWHERE = "data_sha256"
"""Instead of an event's data, the digest of the blob that holds it."""


class LedgerActivities:
    """Activities of the control worker that write to the ledger."""

    def __init__(self, settings: Settings, db: LoomDB) -> None:
        """Raises `InvalidInput` without a key: better now than when a model is finished."""
        self._settings, self._db = settings, db
        key_file = settings.loomdb.attestation_key_file
        if key_file is None:
            raise InvalidInput(
                "the control worker needs loomdb.attestation_key_file "
                "(LOOMOS_LOOMDB__ATTESTATION_KEY_FILE) to sign what is published: a PEM of a "
                "P-256 key"
            )
        self._key = read_key(key_file)

    @activity.defn
    async def record_facts(self, request: RecordFacts) -> Empty:
        """Append facts to the job's stream."""
        activity.heartbeat()
        store = open_store(self._settings.storage)
        for fact in request.facts:
            who = AuditContext(user_id=fact.person) if fact.person else CONTROL
            fitting = await asyncio.to_thread(_fitting, store, fact)
            event = _new_event(request.job_id, fitting)
            await self._db.append(request.stream or stream_of(request.job_id), [event], who)
        return Empty()

    @activity.defn
    async def record_checkpoints(self, request: RecordCheckpoints) -> Empty:
        """Append a fact for each checkpoint that was committed and is not known yet."""
        await self._record_checkpoints(request.job_id)
        return Empty()

    async def _record_checkpoints(self, job_id: str) -> None:
        known = await self._db.query_events(
            event_type="checkpoint_committed",
            stream=stream_of(job_id),
            limit=MOST_FACTS,
            newest_first=True,
        )
        seen = {(e.data["generation"], e.data["step"]) for e in known}
        store = open_store(self._settings.storage)
        facts = await in_thread(lambda say: _new_checkpoints(store, job_id, seen))
        new = [_new_event(job_id, fact) for fact in facts]
        if new:
            await self._db.append(stream_of(job_id), new, CONTROL)

    @activity.defn
    async def attest_model(self, request: AttestModel) -> Empty:
        """Sign statement and model, write the ML-BOM, and append that the model was published."""
        await self._record_checkpoints(request.job_id)
        stream = stream_of(request.job_id)
        facts = await self._db.query_events(stream=stream, limit=MOST_FACTS)
        store = open_store(self._settings.storage)
        with final_when_repeated(f"{request.model.name}@{request.model.version} is not signed"):
            fact = await in_thread(
                lambda say: _attest(
                    store, request, facts, self._settings.loomdb.origin(), self._key
                )
            )
        await self._db.append(stream, [_new_event(request.job_id, fact)], CONTROL)
        return Empty()

    @activity.defn
    async def sign_version(self, request: SignVersion) -> Empty:
        """Sign a version that is a draft, so that it exists; one that exists stays as it is."""
        store = open_store(self._settings.storage)
        with final_when_repeated(f"{request.version} is not signed"):
            await in_thread(lambda say: _sign(store, request.version, self._key))
        return Empty()


def _new_event(job_id: str, fact: Fact) -> NewEvent:
    return NewEvent(event_type=fact.event_type, data=fact.data, event_id=f"{job_id}/{fact.key}")


def _fitting(store: Store, fact: Fact) -> Fact:
    """The fact as the ledger can hold it: what is too large or no JSON is a blob of the store."""
    try:
        check_data(fact.data)
    except InvalidInput as error:
        content = json.dumps(fact.data, sort_keys=True).encode()
        digest = hashlib.sha256(content).hexdigest()
        store.put_if_absent(blob_key(digest), content)
        data = {ELSEWHERE: digest, "reason": str(error)[:500], "size_bytes": len(content)}
        return fact.model_copy(update={"data": data})
    return fact


def _whole(store: Store, event: Event) -> Event:
    """An event with its data, wherever that is."""
    digest = event.data.get(ELSEWHERE)
    if digest is None:
        return event
    return replace(event, data=json.loads(store.get(blob_key(digest))))


def _sign(store: Store, version: str, key: Any) -> None:
    """Sign a draft and make it exist."""
    name, _, number = version.partition("@")
    prefix = model_prefix(name, number)
    registry = Registry(store)
    content = registry.unsigned(prefix)
    signature = attestation.model_signature(name, json.loads(content)["files"], key)
    store.put_if_absent(
        attestation_key(name, number, attestation.SIGNATURE_FILE), json.dumps(signature).encode()
    )
    registry.commit(prefix, content)


def _new_checkpoints(store: Store, job_id: str, seen: set[tuple[int, int]]) -> list[Fact]:
    """Facts of the checkpoints that exist or have been retired, but those seen."""
    found: dict[tuple[int, int], str] = {}
    for prefix, parse in (
        (checkpoints_prefix(job_id), parse_checkpoint_manifest),
        (retired_prefix(job_id), parse_retired),
    ):
        for item in store.objects(prefix):
            ref = parse(item.key)
            if ref is not None and ref not in seen:
                found[ref] = item.key
    return [_checkpoint_fact(store.get(found[ref]), *ref) for ref in sorted(found)]


def _checkpoint_fact(manifest: bytes, generation: int, step: int) -> Fact:
    digest = hashlib.sha256(manifest).hexdigest()
    shards = json.loads(manifest)["shards"]
    return Fact(
        event_type="checkpoint_committed",
        key=f"checkpoint/g{generation}/s{step}/{digest[:12]}",
        data={
            "generation": generation,
            "manifest_sha256": digest,
            "shards": len(shards),
            "size_bytes": sum(shard["size_bytes"] for shard in shards),
            "step": step,
        },
    )


def _attest(store: Store, request: AttestModel, facts: list[Event], origin: str, key: Any) -> Fact:
    """Store what is signed, if nobody has; the version exists from then on. Says what is stored."""
    model, registry = request.model, Registry(store)
    content = registry.unsigned(model.key_prefix)
    manifest = json.loads(content)
    facts = [_whole(store, event) for event in facts]
    submitted = next(f for f in reversed(facts) if f.event_type == "job_submitted")
    spec = submitted.data["spec"]
    statement = attestation.provenance_statement(manifest, facts, origin)
    signature = attestation.model_signature(model.name, manifest["files"], key)
    bom = attestation.bill_of_materials(
        manifest, spec, _environment(store, facts), _made_at(statement)
    )
    made = {
        attestation.STATEMENT_FILE: attestation.encode_signed(statement, key),
        attestation.SIGNATURE_FILE: json.dumps(signature).encode(),
        attestation.BOM_FILE: json.dumps(bom, indent=1).encode(),
    }
    digests: dict[str, str] = {}
    for name, encoded in made.items():
        where = attestation_key(model.name, model.version, name)
        store.put_if_absent(where, encoded)
        # Signatures are random: an earlier try may have stored another one.
        digests[name] = hashlib.sha256(store.get(where)).hexdigest()
    registry.commit(model.key_prefix, content)
    digest = hashlib.sha256(content).hexdigest()
    return Fact(
        event_type="model_published",
        key=f"published/{model.name}@{model.version}/{digest[:12]}",
        data={
            "attestations": digests,
            "checkpoint": {
                "generation": manifest["lineage"]["generation"],
                "step": manifest["lineage"]["step"],
            },
            "manifest_sha256": digest,
            "name": model.name,
            "size_bytes": model.size_bytes,
            "version": model.version,
            "weights_sha256": model.weights_sha256,
        },
    )


def _made_at(statement: dict[str, Any]) -> str:
    return str(statement["predicate"]["runDetails"]["metadata"]["finishedOn"])


def _environment(store: Store, facts: list[Event]) -> dict[str, Any] | None:
    """Packages of the node that trained first."""
    for fact in facts:
        for node in fact.data.get("nodes", []):
            digest = node.get("environment_sha256")
            if digest and store.exists(blob_key(digest)):
                found: dict[str, Any] = json.loads(store.get(blob_key(digest)))
                return found
    return None
