"""Where things are in the store. One concept, one path, made here only.

    jobs/<job>/checkpoints/g<generation>/fence.json          which older checkpoints count
    jobs/<job>/checkpoints/g<generation>/s<step>/manifest.json   written last: it exists or not
    jobs/<job>/checkpoints/g<generation>/s<step>/<shard>
    jobs/<job>/retired/g<generation>/s<step>.json        manifest of a checkpoint since deleted
    jobs/<job>/gangs/g<generation>.json                      rendezvous endpoint of a gang
    jobs/<job>/state                                         what a trial's function saved
    jobs/<job>/metrics/g<generation>/r<rank>/<first step>.jsonl
    jobs/<job>/logs/g<generation>/n<node rank>/<sequence>.jsonl
    jobs/<job>/events/g<generation>/<sequence>.jsonl
    jobs/<job>/inputs/<sha256>.json                          which blobs a run reads
    keys/<kind>/<digest>/<revision>.json                     what an idempotency key stands for
    blobs/<sha256>                                           content-addressed inputs
    uploads/<sha256>/<owner>.json                            whose upload a listing of blobs is
    upload-uses/<sha256>                                     as old as the last use of an upload
    environments/<sha256>                                    the blob is the package list of a node
    models/<name>/<version>/...                              published versions; manifest.json last
    attestations/<name>/<version>/...                        what LoomOS signed about a version
    aliases/<name>/<revision>.json                           which version `stable` is, since when
    model-notes/<name>/<version>/<revision>.json             description and tags of a version
    endpoints/<name>/routes/<generation>.json                who serves what share of the traffic
    living-endpoints/<name>                                  there as long as the endpoint exists
    closed-endpoints/<name>.json                             last row of an endpoint that is gone
    outcomes/<endpoint>/<hour>-<server>/<sequence>.jsonl     how each request went
    samples/<endpoint>/<hour>-<server>/<sequence>.jsonl      requests kept to learn from
    servers/<server>.json                                    what a serving process says of itself
    verifications/<digest>/...                               shards and reports, by what made them
    continual/<schedule>/state/<revision>.json               watermarks and decisions
    continual/<schedule>/data/<period>.jsonl                 what an update learnt from
    retention/since                                          when runs began to note what they read
    verdicts/<name>/<version>/<revision>.json                what Prism said of a version
    health/<place>/supervisor                                written to see whether the store works

Numbers are zero-padded, so that key order is number order.
"""

from __future__ import annotations

import hashlib
import re

HEALTH_PLACES = 64
"""Folders in which the supervisor of an embedded stack sees whether its store works."""


def health_key(place: int) -> str:
    """Object that the supervisor writes, reads and lists in one of `HEALTH_PLACES` folders."""
    return f"health/{place:02d}/supervisor"


def job_prefix(job_id: str) -> str:
    """Everything of a job."""
    return f"jobs/{job_id}/"


def checkpoints_prefix(job_id: str) -> str:
    """All checkpoints of a job."""
    return f"jobs/{job_id}/checkpoints/"


def generation_prefix(job_id: str, generation: int) -> str:
    """Checkpoints written by one generation."""
    return f"{checkpoints_prefix(job_id)}g{generation:06d}/"


def fence_key(job_id: str, generation: int) -> str:
    """The object that makes a generation the current one."""
    return f"{generation_prefix(job_id, generation)}fence.json"


def checkpoint_prefix(job_id: str, generation: int, step: int) -> str:
    """One checkpoint."""
    return f"{generation_prefix(job_id, generation)}s{step:010d}/"


def retired_prefix(job_id: str) -> str:
    """Manifests of deleted checkpoints of a job."""
    return f"jobs/{job_id}/retired/"


def retired_key(job_id: str, generation: int, step: int) -> str:
    """Where a checkpoint's manifest goes before the checkpoint is deleted."""
    return f"{retired_prefix(job_id)}g{generation:06d}/s{step:010d}.json"


def parse_retired(key: str) -> tuple[int, int] | None:
    """(generation, step) of a retired manifest's key; None for any other key."""
    match = _RETIRED.search(key)
    return (int(match[1]), int(match[2])) if match else None


def attestation_key(name: str, version: str, file: str) -> str:
    """Something that LoomOS signed about a model version."""
    return f"attestations/{name}/{version}/{file}"


_RETIRED = re.compile(r"retired/g(\d{6,})/s(\d{10,})\.json$")
_CHECKPOINT = re.compile(r"g(\d{6,})/s(\d{10,})/manifest\.json$")
_FENCE = re.compile(r"g(\d{6,})/fence\.json$")


def parse_checkpoint_manifest(key: str) -> tuple[int, int] | None:
    """(generation, step) of a checkpoint manifest's key; None for any other key."""
    match = _CHECKPOINT.search(key)
    return (int(match[1]), int(match[2])) if match else None


def parse_fence(key: str) -> int | None:
    """Generation of a fence's key; None for any other key."""
    match = _FENCE.search(key)
    return int(match[1]) if match else None


def gang_key(job_id: str, generation: int) -> str:
    """Where the first node of a gang says how to reach it."""
    return f"jobs/{job_id}/gangs/g{generation:06d}.json"


def metrics_prefix(job_id: str) -> str:
    """All metric chunks of a job."""
    return f"jobs/{job_id}/metrics/"


def trial_state_key(job_id: str) -> str:
    """What the function of a trial has saved."""
    return f"jobs/{job_id}/state"


def trials_prefix(experiment_id: str) -> str:
    """Everything of an experiment's trials; their ids are its own, `-t` and a number."""
    return f"jobs/{experiment_id}-t"


def logs_prefix(job_id: str) -> str:
    """All log chunks of a job."""
    return f"jobs/{job_id}/logs/"


def events_prefix(job_id: str) -> str:
    """All event chunks of a job."""
    return f"jobs/{job_id}/events/"


def chunk_key(prefix: str, generation: int, writer: str, sequence: int) -> str:
    """One append-only chunk below `prefix`; `writer` tells apart writers of one generation."""
    return f"{prefix}g{generation:06d}/{writer}/{sequence:010d}.jsonl"


def blob_key(sha256: str) -> str:
    """A content-addressed input."""
    return f"blobs/{sha256}"


JOBS_PREFIX = "jobs/"
BLOBS_PREFIX = "blobs/"
MODELS_PREFIX = "models/"
UPLOADS_PREFIX = "uploads/"
UPLOAD_USES_PREFIX = "upload-uses/"
VERIFICATIONS_PREFIX = "verifications/"
CONTINUAL_PREFIX = "continual/"
SHARDS_PREFIX = "verifications/shards/"
RETENTION_SINCE = "retention/since"
"""From when on runs have noted which blobs they read."""
ENVIRONMENTS_PREFIX = "environments/"
"""Digests of package lists that nodes have said they have; the lists are blobs."""


def uploads_prefix(sha256: str) -> str:
    """Who has uploaded the files of a listing."""
    return f"{UPLOADS_PREFIX}{sha256}/"


def upload_key(sha256: str, owner: str) -> str:
    """The upload of one person."""
    return f"{uploads_prefix(sha256)}{hashlib.sha256(owner.encode()).hexdigest()[:32]}.json"


def upload_use_key(sha256: str) -> str:
    """Written whenever an upload is used; beside its records, so that none comes back by it."""
    return f"{UPLOAD_USES_PREFIX}{sha256}"


def inputs_prefix(job_id: str) -> str:
    """What the runs of a job read of the store, beside what is the job's own."""
    return f"jobs/{job_id}/inputs/"


def keys_prefix(kind: str, digest: str) -> str:
    """Revisions of what an idempotency key stands for."""
    return f"keys/{kind}/{digest}/"


def plan_key(job_id: str) -> str:
    """Facts about a run that are computed once, such as its number of steps."""
    return f"jobs/{job_id}/plan.json"


def model_prefix(name: str, version: str) -> str:
    """One published model version."""
    return f"models/{name}/{version}/"


def tokenizer_key(job_id: str) -> str:
    """The tokenizer trained for a job."""
    return f"jobs/{job_id}/tokenizer.json"


def aliases_prefix(name: str) -> str:
    """Revisions of a model's aliases."""
    return f"aliases/{name}/"


def model_notes_prefix(name: str, version: str) -> str:
    """Revisions of what people wrote about a version."""
    return f"model-notes/{name}/{version}/"


ENDPOINTS_PREFIX = "endpoints/"
LIVING_ENDPOINTS_PREFIX = "living-endpoints/"
"""An empty object per endpoint that exists, listed by servers several times a second. Folders of
those that are gone may stay, empty, for as long as an S3 server likes."""
OUTCOMES_PREFIX = "outcomes/"
SAMPLES_PREFIX = "samples/"
SERVERS_PREFIX = "servers/"


def living_endpoint_key(endpoint: str) -> str:
    """What says that an endpoint exists."""
    return f"{LIVING_ENDPOINTS_PREFIX}{endpoint}"


def closed_endpoint_key(endpoint: str) -> str:
    """The last row of an endpoint that is gone; one of the same name goes on counting from it."""
    return f"closed-endpoints/{endpoint}.json"


def endpoint_prefix(endpoint: str) -> str:
    """What there is of an endpoint as long as it exists."""
    return f"{ENDPOINTS_PREFIX}{endpoint}/"


def routes_prefix(endpoint: str) -> str:
    """Revisions of an endpoint's route row."""
    return f"{endpoint_prefix(endpoint)}routes/"


def outcomes_prefix(endpoint: str) -> str:
    """Outcomes of an endpoint's requests, a folder per hour and serving process."""
    return f"{OUTCOMES_PREFIX}{endpoint}/"


def samples_prefix(endpoint: str) -> str:
    """Requests and answers kept to learn from, a folder per hour and serving process."""
    return f"{SAMPLES_PREFIX}{endpoint}/"


def server_key(server_id: str) -> str:
    """What a serving process says of itself."""
    return f"{SERVERS_PREFIX}{server_id}.json"


def verification_prefix(digest: str) -> str:
    """What a verification with this plan has made."""
    return f"verifications/{digest}/"


def verdicts_prefix(name: str, version: str) -> str:
    """Revisions of what Prism said of a version."""
    return f"verdicts/{name}/{version}/"


def continual_state_prefix(name: str) -> str:
    """Revisions of what a schedule remembers."""
    return f"continual/{name}/state/"


def continual_data_key(name: str, digest: str) -> str:
    """What an update learns from."""
    return f"continual/{name}/data/{digest}.jsonl"


def leadership_prefix(group: str) -> str:
    """What the leaders of a group have written, each under its term."""
    return f"leadership/{group}/"
