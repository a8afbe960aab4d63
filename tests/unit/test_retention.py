"""What is garbage and what is not, on a store in a folder, with lives that the tests decide."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loomos.jobs.retention import Sweepable, SweepRequest, Swept
from loomos.jobs.training import ResolvedInputs
from loomos.jobs.uploads import UploadedFile, UploadListing
from loomos.manifest import TrainingSpec
from loomos.retention.local import disk_bytes, mark_used, rotate, sweep_folder
from loomos.retention.references import referenced_keys, write_references
from loomos.retention.sweeps import Life, Sweeper
from loomos.retention.usage import UsageCounter, usage_by_class
from loomos.serving.outcomes import READ_UP_TO
from loomos.settings import RetentionSettings, StorageSettings
from loomos.storage._local import LocalStore
from loomos.storage.layout import blob_key, upload_key, upload_use_key
from loomos.storage.uploads import list_uploads, make_upload, touch_upload
from loomos.training.resolve import resolve
from tests.gangs import tiny_spec
from workers.gpu import clear_leftovers, tidy

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
RULES = RetentionSettings()


class Lives:
    """Runs as a test has them."""

    def __init__(self, **runs: Life) -> None:
        self.runs = {name.replace("_", "-"): life for name, life in runs.items()}
        self.asked: list[str] = []
        self.verifying = self.unmarked_runs = 0
        self.rollouts: set[str] = set()
        self.cursors: list[dict[str, str]] = []

    async def of(self, run_id: str) -> Life | None:
        self.asked.append(run_id)
        return self.runs.get(run_id)

    async def verifications(self) -> int:
        return self.verifying

    async def rollout(self, endpoint: str) -> bool:
        return endpoint in self.rollouts

    async def unread(self, endpoint: str) -> list[dict[str, str]]:
        return self.cursors

    async def unmarked(self) -> int:
        return self.unmarked_runs


def completed(ago: timedelta) -> Life:
    return Life(lives=False, completed=True, ended_at=NOW - ago)


def failed(ago: timedelta) -> Life:
    return Life(lives=False, ended_at=NOW - ago)


LIVES = Life(lives=True)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def put(store: LocalStore, key: str, data: bytes = b"x" * 100, age: timedelta = 60 * DAY) -> str:
    """An object of this age."""
    store.put(key, data)
    then = (NOW - age).timestamp()
    os.utime(store.root / key, (then, then))
    return key


def job(store: LocalStore, job_id: str, age: timedelta = 60 * DAY) -> None:
    base = f"jobs/{job_id}"
    for key in (
        f"{base}/checkpoints/g000001/fence.json",
        f"{base}/checkpoints/g000001/s0000000010/a.distcp",
        f"{base}/checkpoints/g000001/s0000000010/manifest.json",
        f"{base}/logs/g000001/n0000/0000000000.jsonl",
        f"{base}/retired/g000001/s0000000005.json",
    ):
        put(store, key, age=age)


def keys(store: LocalStore, prefix: str = "") -> set[str]:
    return {item.key for item in store.objects(prefix)}


async def swept(store: LocalStore, lives: Lives, what: Sweepable, **request: bool) -> Swept:
    sweeper = Sweeper(store, RULES, lives)
    return await sweeper.sweep(SweepRequest(what=what, **request))  # type: ignore[arg-type]


async def test_checkpoints_of_ended_jobs_go_and_their_manifests_stay(store: LocalStore) -> None:
    job(store, "old")
    lives = Lives(old=completed(2 * DAY))
    before = keys(store)
    told = await swept(store, lives, Sweepable.CHECKPOINTS, dry_run=True)
    assert (told.objects, told.size_bytes, told.next) == (2, 200, None)
    assert keys(store) == before
    assert await swept(store, lives, Sweepable.CHECKPOINTS) == told
    assert keys(store) == {
        "jobs/old/checkpoints/g000001/fence.json",
        "jobs/old/logs/g000001/n0000/0000000000.jsonl",
        "jobs/old/retired/g000001/s0000000005.json",
        "jobs/old/retired/g000001/s0000000010.json",
    }
    assert await swept(store, lives, Sweepable.CHECKPOINTS) == Swept()


@pytest.mark.parametrize(
    ("life", "goes"),
    [
        (LIVES, False),  # a paused job lives
        (completed(timedelta(minutes=30)), False),
        (completed(timedelta(hours=2)), True),
        (failed(timedelta(hours=25)), False),
        (failed(8 * DAY), True),
        (None, True),  # Temporal has forgotten it; its newest object is 60 days old
    ],
)
async def test_how_a_job_ended_says_how_long_its_checkpoints_stay(
    store: LocalStore, life: Life | None, goes: bool
) -> None:
    job(store, "it")
    lives = Lives(**({"it": life} if life else {}))
    assert bool((await swept(store, lives, Sweepable.CHECKPOINTS)).objects) is goes


async def test_a_job_that_temporal_has_forgotten_is_as_old_as_its_newest_object(
    store: LocalStore,
) -> None:
    job(store, "it")
    put(store, "jobs/it/logs/g000001/n0000/0000000001.jsonl", age=DAY)
    assert (await swept(store, Lives(), Sweepable.CHECKPOINTS)).objects == 0


async def test_trials_live_as_long_as_their_experiment(store: LocalStore) -> None:
    put(store, "jobs/tune-1-t3/state")
    job(store, "tune-1-t4-r1")
    lives = Lives(tune_1=LIVES)
    assert (await swept(store, lives, Sweepable.CHECKPOINTS)).objects == 0
    assert (await swept(store, lives, Sweepable.RECORDS)).objects == 0
    lives = Lives(tune_1=completed(2 * DAY))
    assert (await swept(store, lives, Sweepable.CHECKPOINTS)).objects == 3
    # A trial with a page of its own has ended long ago, its experiment goes on.
    job(store, "tune-1-t5")
    lives = Lives(tune_1=LIVES, tune_1_t5=completed(2 * DAY))
    assert (await swept(store, lives, Sweepable.CHECKPOINTS)).objects == 0


async def test_a_job_that_is_started_again_meanwhile_keeps_everything(store: LocalStore) -> None:
    job(store, "it")

    class Again(Lives):
        async def of(self, run_id: str) -> Life | None:
            await super().of(run_id)
            return LIVES if len(self.asked) > 1 else failed(60 * DAY)

    before = keys(store)
    assert (await swept(store, Again(), Sweepable.RECORDS)).objects == 0
    assert keys(store) == before


async def test_records_go_at_last_and_generations_go_on_counting(store: LocalStore) -> None:
    job(store, "it")
    await swept(store, Lives(it=failed(29 * DAY)), Sweepable.RECORDS)
    assert len(keys(store)) == 5
    await swept(store, Lives(it=failed(31 * DAY)), Sweepable.RECORDS)
    assert keys(store) == {
        "jobs/it/checkpoints/g000001/fence.json",
        "jobs/it/retired/g000001/s0000000005.json",
        "jobs/it/retired/g000001/s0000000010.json",
    }


async def test_many_jobs_are_gone_through_in_parts(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loomos.retention.sweeps.JOBS_AT_ONCE", 2)
    for number in range(5):
        put(store, f"jobs/t{number}/state")
    after, parts, objects = "", 0, 0
    while True:
        done = await Sweeper(store, RULES, Lives()).sweep(
            SweepRequest(what=Sweepable.CHECKPOINTS, after=after)
        )
        parts, objects = parts + 1, objects + done.objects
        if done.next is None:
            break
        after = done.next
    assert (parts, objects, keys(store)) == (3, 5, set())


async def test_answers_stay_while_a_verification_goes_on_and_reports_always(
    store: LocalStore,
) -> None:
    put(store, "verifications/shards/a.jsonl")
    put(store, "verifications/shards/b.jsonl", age=DAY)
    report = put(store, "verifications/abc/evidence.json")
    lives = Lives()
    lives.verifying = 1
    assert "verification goes on" in (await swept(store, lives, Sweepable.ANSWERS)).held
    lives.verifying = 0
    assert (await swept(store, lives, Sweepable.ANSWERS)).objects == 1
    assert keys(store) == {report, "verifications/shards/b.jsonl"}


async def test_outcomes_and_samples_wait_for_those_who_read_them(store: LocalStore) -> None:
    hour, folders = "2026010112-s1/", ("outcomes/chat/g000000", "samples/chat/g000000")
    old = [put(store, f"{folder}/{hour}0000000000.jsonl") for folder in folders]
    unread = put(store, f"{folders[1]}/{hour}0000000001.jsonl")
    route = put(store, "endpoints/chat/routes/0000000001.json")
    lives = Lives()
    lives.rollouts = {"chat"}
    lives.cursors = [{hour: old[1]}, {READ_UP_TO: hour[:10]}]
    held = await swept(store, lives, Sweepable.OUTCOMES)
    assert (held.objects, held.held) == (1, "chat is in a rollout")
    assert keys(store) == {old[0], unread, route}
    lives.rollouts = set()
    await swept(store, lives, Sweepable.OUTCOMES)
    assert keys(store) == {unread, route}
    lives.cursors = [{}]  # a new schedule has read nothing yet
    assert (await swept(store, lives, Sweepable.OUTCOMES)).objects == 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def test_blobs_go_when_no_run_version_upload_or_node_names_them(
    store: LocalStore, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("some text\n")
    spec = tiny_spec(data={"training_dataset": str(corpus), "include": ["*.txt"]})
    inputs = resolve(spec, StorageSettings(url=store.url), lambda _: None)
    assert write_references(store, "run", spec, inputs) == []
    needed = {inputs.training.uri, blob_key(digest(b"some text\n"))}
    part = put(store, blob_key(digest(b"p")), b"p")
    listing = UploadListing(
        is_folder=False, files=[UploadedFile(path="p", sha256=digest(b"p"), size_bytes=1)]
    )
    store.put(blob_key(listing.sha256), listing.encode())
    assert make_upload(store, listing.sha256, "p", "ann").upload is not None
    environment = put(store, blob_key("e" * 64))
    store.put(f"environments/{'e' * 64}", b"{}")
    suite = put(store, blob_key("5" * 64))
    store.put("verifications/x/plan.json", json.dumps({"suites": [{"sha256": "5" * 64}]}).encode())
    kept = needed | {part, blob_key(listing.sha256), environment, suite}
    garbage = put(store, blob_key("0" * 64))
    young = put(store, blob_key("1" * 64), age=DAY)
    for key in kept:
        os.utime(store.root / key, (0, 0))
    assert referenced_keys(store) >= kept
    lives = Lives()
    lives.unmarked_runs = 2
    assert (await swept(store, lives, Sweepable.BLOBS)).held == "2 runs of an earlier version go on"
    lives.unmarked_runs = 0
    assert (await swept(store, lives, Sweepable.BLOBS, dry_run=True)).objects == 1
    assert (await swept(store, lives, Sweepable.BLOBS)).size_bytes == 100
    assert keys(store, "blobs/") == kept | {young} and garbage not in keys(store)
    # The run's records go; what it read stays, for a published version comes of it.
    lineage = {"lineage": {"inputs": inputs.model_dump(mode="json")}}
    store.put("models/m/1/manifest.json", json.dumps(lineage).encode())
    os.utime(store.root / next(iter(keys(store, "jobs/run/"))), (0, 0))
    await swept(store, lives, Sweepable.RECORDS)
    assert keys(store, "jobs/") == set()
    assert (await swept(store, lives, Sweepable.BLOBS)).objects == 0
    store.delete(["models/m/1/manifest.json", upload_key(listing.sha256, "ann")])
    assert (await swept(store, lives, Sweepable.BLOBS)).objects == 4
    assert keys(store, "blobs/") == {environment, suite, young}


def test_a_run_notices_what_was_taken_from_it(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    spec = tiny_spec(data={"training_dataset": str(tmp_path / "a.txt")})
    inputs: ResolvedInputs = resolve(spec, StorageSettings(url=store.url), lambda _: None)
    lost = blob_key(digest(b"some text\n"))
    store.delete([lost])
    assert write_references(store, "run", spec, inputs) == [lost]


async def test_uploads_end_when_no_document_names_them(store: LocalStore) -> None:
    listing = UploadListing(
        is_folder=False, files=[UploadedFile(path="p", sha256=digest(b"p"), size_bytes=1)]
    )
    store.put(blob_key(digest(b"p")), b"p")
    store.put(blob_key(listing.sha256), listing.encode())
    record = make_upload(store, listing.sha256, "p", "ann").upload
    assert record is not None
    assert (await swept(store, Lives(), Sweepable.UPLOADS)).objects == 0
    old = record.model_copy(update={"uploaded_at": NOW - 31 * DAY})
    put(store, upload_key(listing.sha256, "ann"), old.model_dump_json().encode())
    touch_upload(store, listing.sha256)
    assert (await swept(store, Lives(), Sweepable.UPLOADS)).objects == 0
    (listed,) = list_uploads(store, "ann")
    assert listed.uploaded_at > NOW - DAY
    put(store, upload_use_key(listing.sha256))
    assert (await swept(store, Lives(), Sweepable.UPLOADS)).objects == 1
    assert not store.exists(upload_use_key(listing.sha256))
    touch_upload(store, listing.sha256)  # by a document that was read before
    assert list_uploads(store, "ann") == []


async def test_what_schedules_remember_stays_and_data_of_versions_too(store: LocalStore) -> None:
    state = put(store, "continual/n/state/0000000001.json")
    used = put(store, f"continual/n/data/{'a' * 64}.jsonl")
    put(store, f"continual/n/data/{'b' * 64}.jsonl")
    index = {
        "source": "x",
        "files": [
            {"name": "a", "uri": f"{store.url}/{used}", "sha256": "a" * 64, "size_bytes": 1,
             "documents": 1}
        ],
    }  # fmt: skip
    content = json.dumps(index).encode()
    store.put(blob_key(digest(content)), content)
    training = {"uri": blob_key(digest(content)), "sha256": digest(content)}
    lineage = {"lineage": {"inputs": {"training": training}}}
    store.put("models/m/1/manifest.json", json.dumps(lineage).encode())
    assert (await swept(store, Lives(), Sweepable.DATA)).objects == 1
    assert keys(store, "continual/") == {state, used}


def test_usage_is_told_by_class(store: LocalStore) -> None:
    job(store, "a")
    put(store, "models/m/1/w.safetensors", b"x" * 1000)
    put(store, "verifications/shards/a.jsonl")
    found = {used.what: (used.objects, used.size_bytes) for used in usage_by_class(store).classes}
    assert found == {
        "models": (1, 1000),
        "job checkpoints": (3, 300),
        "job logs": (1, 100),
        "job retired": (1, 100),
        "answers": (1, 100),
    }


async def test_many_who_ask_count_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "models/m/1/w")
    counted: list[str] = []
    objects = store.objects
    monkeypatch.setattr(store, "objects", lambda prefix: counted.append(prefix) or objects(prefix))
    counter = UsageCounter(store)
    found = await asyncio.gather(*(counter.get() for _ in range(50)))
    assert counted == [""] and {usage.classes[0].what for usage in found} == {"models"}


# --- on machines ---


def test_what_was_used_lately_stays_in_a_cache(tmp_path: Path) -> None:
    for name in ("old", "used", "kept"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"x" * 10)
        for path in (tmp_path / name / "deep" / "file", tmp_path / name / "deep", tmp_path / name):
            os.utime(path, (0, 0))
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    mark_used(tmp_path / "used")
    assert sweep_folder(tmp_path, 3600, keep=[tmp_path / "kept"]) == (1, 10)
    assert {path.name for path in tmp_path.iterdir()} == {"used", "kept", "link"}
    assert sweep_folder(tmp_path / "nowhere", 0) == (0, 0)


def test_a_log_is_rotated_under_its_writer(tmp_path: Path) -> None:
    log = tmp_path / "member.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(6):
            writer.write(b"%d" % number * 100)
            rotate(log, 100, kept=2)
        writer.write(b"end")
    assert log.read_bytes() == b"end"
    assert (tmp_path / "member.log.1").read_bytes() == b"5" * 100
    assert (tmp_path / "member.log.2").read_bytes() == b"4" * 100
    assert len(list(tmp_path.iterdir())) == 3
    assert not rotate(log, 100, kept=2)


def test_a_node_clears_what_died_work_has_left(tmp_path: Path) -> None:
    for name in ("attempts/g1-x", "checkpoints/j/save-1", "export-y", "trials/z", "inputs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(b"x")
    clear_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"inputs"}


def test_an_idle_node_tidies_what_is_old(tmp_path: Path) -> None:
    def make(name: str, age_s: float) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 5000)
        then = time.time() - age_s
        for each in (path, path.parent):
            os.utime(each, (then, then))
        return path

    old = [make("checkpoints/j/save", 7200), make("export-1/w", 7200), make("inputs/a", 8 * 86400)]
    new = [make("checkpoints/k/save", 60), make("export-2/w", 60), make("inputs/b", 86400)]
    assert disk_bytes(tmp_path) >= 6 * 5000
    tidy(tmp_path, RULES)
    assert [path.exists() for path in (*old, *new)] == [False] * 3 + [True] * 3


def test_specs_of_every_kind_of_training_say_what_they_read(store: LocalStore) -> None:
    spec = TrainingSpec.model_validate({"algorithm": "ppo", "environment": "CartPole-v1"})
    inputs = resolve(spec, StorageSettings(url=store.url), lambda _: None)
    assert write_references(store, "run", spec, inputs) == []
    assert len(keys(store, "jobs/run/inputs/")) == 1
