"""Data that people bring along: found beside the document, sent once, named by digest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loomos.client import uploads
from loomos.client.http import LoomOSClient
from loomos.client.models import Submitted
from loomos.errors import InvalidInput, InvalidManifest, NotFound
from loomos.jobs.states import JobState
from loomos.jobs.uploads import UploadAnswer, UploadRequest
from loomos.jobs.verification import VerificationJob
from loomos.manifest import JobManifest, TrainingJob
from loomos.storage.layout import blob_key
from loomos.storage.uploads import fetch_uploaded, read_listing
from tests.stack import Stack, tiny_job


@pytest.fixture
def sent(client: LoomOSClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Digests of the blobs that the client sends."""
    digests: list[str] = []
    put = client.data._put

    async def noted(digest: str, content: bytes) -> None:
        digests.append(digest)
        await put(digest, content)

    monkeypatch.setattr(client.data, "_put", noted)
    yield digests


def project(tmp_path: Path, **data: Any) -> Path:
    """A manifest whose data lie beside it."""
    (tmp_path / "corpus" / "deep").mkdir(parents=True)
    for name in ("a.txt", "deep/b.txt", "c.log"):
        (tmp_path / "corpus" / name).write_text(f"{tmp_path} {name}\n" * 400)
    document = tiny_job("beside", max_steps=2, batch_size=2, sequence_length=64)
    document["spec"]["data"] = {"training_dataset": "corpus", **data}
    document["spec"]["resources"] = {"nodes": 1, "ranks_per_node": 1}
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(document))
    return path


async def test_data_beside_the_manifest_are_sent_once_and_trained_on(
    stack: Stack, client: LoomOSClient, tmp_path: Path, sent: list[str]
) -> None:
    manifest = project(tmp_path)
    submitted = await client.submit_job(manifest)
    listing_and_texts = 3  # c.log is no data
    assert len(sent) == len(set(sent)) == listing_and_texts
    sent.clear()
    await client.submit_job(manifest)
    assert sent == []
    job = await stack.until(client, submitted.job_id, JobState.COMPLETED, JobState.FAILED)
    assert job.state == JobState.COMPLETED, job.message
    reference = job.spec["data"]["training_dataset"]
    (record,) = [u for u in (await client.data.list()).uploads if u.reference == reference]
    assert (record.name, record.files) == ("corpus", 2)
    assert record.size_bytes == sum(
        (tmp_path / "corpus" / name).stat().st_size for name in ("a.txt", "deep/b.txt")
    )
    listing = read_listing(stack.store(), record.sha256)
    for file in listing.files:
        fetch_uploaded(stack.store(), file, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "corpus" / file.path).read_bytes()
    await client.data.delete(reference)
    with pytest.raises(NotFound, match="loomos data list"):
        await client.data.delete(reference)


async def test_globs_of_the_manifest_say_what_is_sent(
    client: LoomOSClient, tmp_path: Path, sent: list[str]
) -> None:
    manifest = JobManifest.from_file(project(tmp_path, include=["*.log", "b.*"], exclude=["a*"]))
    body = await client.data.carried(
        TrainingJob, manifest.job.model_dump(mode="json", exclude_unset=True), manifest.folder
    )
    assert len(sent) == 3
    assert body["spec"]["data"]["training_dataset"].startswith("upload:")
    assert body["spec"]["data"]["include"] == ["*.log", "b.*"]


async def test_a_long_file_travels_in_parts_and_goes_on_where_it_was_cut(
    stack: Stack,
    client: LoomOSClient,
    tmp_path: Path,
    sent: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uploads, "PART_BYTES", 1000)
    (tmp_path / "long.txt").write_bytes(os.urandom(10_500))
    record = await client.data.upload(tmp_path / "long.txt")
    (file,) = read_listing(stack.store(), record.sha256).files
    assert len(file.parts) == 11 and file.size_bytes == 10_500
    assert set(sent) == {*file.parts, record.sha256}
    lost = file.parts[3:5]
    stack.store().delete([blob_key(part) for part in lost])
    sent.clear()
    assert (await client.data.upload(tmp_path / "long.txt")).sha256 == record.sha256
    assert sorted(sent) == sorted(lost)
    fetch_uploaded(stack.store(), file, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "long.txt").read_bytes()


async def test_suites_and_old_samples_are_sent_too(client: LoomOSClient, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"suite": "mine"}\n')
    document = {
        "apiVersion": "loomos.ai/v1",
        "kind": "VerificationSuite",
        "metadata": {"name": "x"},
        "model": "x@stable",
        "spec": {"suites": [{"suite": "mine.jsonl"}, {"suite": "quality"}]},
    }
    body = await client.data.carried(VerificationJob, document, tmp_path)
    names = [suite["suite"] for suite in body["spec"]["suites"]]
    assert names[0].startswith("upload:") and names[1] == "quality"
    assert document["spec"]["suites"][0]["suite"] == "mine.jsonl"  # type: ignore[index]
    document["spec"] = {"suites": [{"suite": "./nowhere.jsonl"}]}
    with pytest.raises(InvalidManifest, match=r"spec\.suites\.0\.suite: './nowhere\.jsonl' is not"):
        await client.data.carried(VerificationJob, document, tmp_path)


@pytest.mark.parametrize("place", ["/", "/etc", "../..", "corpus", "SECRETS", "SYMLINK"])
async def test_who_holds_a_token_cannot_name_files_of_the_workers(
    stack: Stack, client: LoomOSClient, tmp_path: Path, place: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc")
    names = {"SECRETS": str(stack.folder.token_file), "SYMLINK": str(link)}
    document = tiny_job("reads-all")
    document["spec"]["data"] = {"training_dataset": names.get(place, place), "include": ["*"]}
    with pytest.raises(InvalidInput, match=r"spec\.data\.training_dataset") as caught:
        await client.call("POST", "/jobs", Submitted, json=document)
    assert caught.value.errors[0].path == "spec.data.training_dataset"


async def test_an_upload_that_is_not_there_is_refused_with_its_field(client: LoomOSClient) -> None:
    document = tiny_job("no-such")
    document["spec"]["data"]["training_dataset"] = f"upload:{'0' * 64}"
    with pytest.raises(InvalidInput, match="there is no upload 000000000000"):
        await client.call("POST", "/jobs", Submitted, json=document)
    request = UploadRequest(sha256="0" * 64, name="x")
    answer = await client.call("POST", "/uploads", UploadAnswer, json=request.model_dump())
    assert answer.missing == ["0" * 64]


def test_the_command_line_uploads_from_any_folder(stack: Stack, tmp_path: Path) -> None:
    manifest = project(tmp_path)
    job = stack.loomos("jobs", "submit", "-f", str(manifest), "-o", "json").stdout
    assert "beside-" in job
    assert '"name": "corpus"' in stack.loomos("data", "list", "-o", "json").stdout
