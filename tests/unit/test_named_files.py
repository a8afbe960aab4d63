"""Which files documents name, which may be named, and what becomes of the rest."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from api import named_files
from api.context import Gateway
from loomos.errors import InvalidData, InvalidInput
from loomos.jobs.continual import ContinualJob
from loomos.jobs.uploads import UploadedFile, UploadListing
from loomos.local_files import Reach, data_files
from loomos.manifest import Experiment, NamedPath, TrainingJob, named_paths
from loomos.manifest import Verification as VerificationSpec
from loomos.prism.suites import load_suite
from loomos.settings import Settings
from loomos.storage import Store
from loomos.storage._local import LocalStore
from loomos.storage.layout import blob_key, upload_key
from loomos.storage.uploads import list_uploads, make_upload, read_listing
from loomos.training.resolve import resolve
from tests.gangs import tiny_spec


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder that may be read, and secrets beside it, below it and behind links."""
    root = tmp_path / "project"
    (root / "data").mkdir(parents=True)
    (root / "data" / "a.txt").write_text("a line\n")
    (tmp_path / "secret.txt").write_text("hidden\n")
    (root / ".env").write_text("KEY=1\n")
    (root / "secrets").mkdir()
    (root / "secrets" / "token").write_text("t")
    return root


def reach(root: Path) -> Reach:
    return Reach(roots=(root.resolve(),), closed=((root / "secrets").resolve(),))


def test_below_an_allowed_folder_files_may_be_named(project: Path) -> None:
    assert reach(project).open(str(project / "data"), "f") == (project / "data").resolve()


@pytest.mark.parametrize(
    "path",
    ["../secret.txt", "secret", ".env", "secrets/token", "secrets", "/", "/etc/passwd", "data/.."],
)
def test_what_is_outside_hidden_or_closed_may_not(project: Path, path: str) -> None:
    (project / "secret").symlink_to(project.parent / "secret.txt")
    if path == "data/..":  # the root itself, by a detour
        assert reach(project).open(str(project / path), "f") == project.resolve()
        return
    with pytest.raises(InvalidData, match=r"data\.roots"):
        reach(project).open(str(project / path), "f")


def test_whether_there_is_such_a_file_is_not_said(project: Path) -> None:
    words = []
    for name in ("secret.txt", "nothing.txt"):
        with pytest.raises(InvalidData) as caught:
            reach(project).open(str(project.parent / name), "f")
        words.append(str(caught.value).replace(name, "X"))
    assert words[0] == words[1]


def test_relative_paths_mean_nothing_to_a_worker(project: Path) -> None:
    with pytest.raises(InvalidData, match=r"training_dataset: 'data' is relative"):
        reach(project).open("data", "training_dataset")


@pytest.mark.parametrize("path", ["/a\0b", "/" + "x/" * 5000, "/circle"])
def test_what_is_no_path_is_refused_in_words(
    project: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "circle").symlink_to(project / "circle")
    text = str(project / "circle") if path == "/circle" else path
    with pytest.raises(InvalidData, match="training_dataset"):
        reach(project).open(text, "training_dataset")


def test_a_link_in_an_allowed_folder_does_not_lead_out(project: Path, tmp_path: Path) -> None:
    (project / "data" / "b.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InvalidData, match=r"b\.txt is hidden, or a link out"):
        list(data_files(project / "data", None, [], reach(project)))
    found = data_files(project / "data", None, ["b.txt"], reach(project))
    assert [file.name for file in found] == ["a.txt"]


def test_keys_and_the_stacks_state_are_closed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "state").mkdir()
    (project / "keys").mkdir()
    monkeypatch.setenv("LOOMOS_STATE_DIR", str(project / "state"))
    monkeypatch.setenv("LOOMOS_CONFIG", str(project / "none.yaml"))
    settings = Settings.model_validate(
        {
            "data": {"roots": [str(project)]},
            "auth": {"signing_key_file": str(project / "keys" / "signing.key")},
        }
    )
    found = Reach.of(settings)
    assert found.allows(project / "data" / "a.txt")
    assert not found.allows(project / "state" / "temporal.db")
    assert not found.allows(project / "keys" / "signing.key")


def test_without_settings_nothing_may_be_named() -> None:
    assert not Reach().allows(Path("/etc/hostname"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data": {"training_dataset": "/etc"}}, "data.training_dataset"),
        ({"data": {"validation_dataset": "/etc/passwd"}}, "data.validation_dataset"),
        ({"data": {"training_dataset": "file:///etc/passwd"}}, "data.training_dataset"),
        ({"model": {"base_model": "/root", "tokenizer": "byte", "config": {}}}, "model.base_model"),
        ({"model": {"tokenizer": "/root"}}, "model.tokenizer"),
    ],
)
def test_a_worker_reads_nothing_else_for_a_training(
    changes: dict[str, dict[str, str]], field: str, project: Path, tmp_path: Path
) -> None:
    spec = tiny_spec(data={"training_dataset": str(project / "data"), "include": ["*.txt"]})
    content = spec.model_dump(mode="json", exclude_unset=True)
    for name, value in changes.items():
        content[name] |= value
    storage = Settings.model_validate({"storage": {"url": f"file://{tmp_path}/store"}}).storage
    with pytest.raises(InvalidData, match=field):
        resolve(type(spec).model_validate(content), storage, lambda _: None, reach(project))


def test_a_worker_reads_no_other_suite(project: Path) -> None:
    assert load_suite("quality", reach(project)).prompts
    with pytest.raises(InvalidData, match=r"suites: '/etc/passwd'"):
        load_suite("/etc/passwd", reach(project))


def test_paths_are_found_in_every_kind_of_document() -> None:
    training = tiny_spec().model_dump(mode="json", exclude_unset=True)
    training["data"]["validation_dataset"] = "v"
    training["verify"] = {"suites": [{"suite": "quality"}, {"suite": "./mine.jsonl"}]}
    job = {"metadata": {"name": "x"}, "spec": training}
    assert {(n.where, n.kind) for n in named_paths(TrainingJob, job)} == {
        ("spec.model.base_model", "model"),
        ("spec.model.tokenizer", "model"),
        ("spec.data.training_dataset", "data"),
        ("spec.data.validation_dataset", "data"),
        ("spec.verify.suites.0.suite", "suite"),
        ("spec.verify.suites.1.suite", "suite"),
    }
    search = {"spec": {"objective": {"training": training}}}
    assert "spec.objective.training.data.training_dataset" in {
        n.where for n in named_paths(Experiment, search)
    }
    schedule = {"spec": {"collect": {"files": ["a", "b"]}, "replay": {"file": "c"}}}
    assert {(n.where, n.kind) for n in named_paths(ContinualJob, schedule)} == {
        ("spec.collect.files.0", "growing"),
        ("spec.collect.files.1", "growing"),
        ("spec.replay.file", "file"),
    }
    suites = {"suites": [{"suite": "a.jsonl"}]}
    assert [n.value for n in named_paths(VerificationSpec, suites)] == ["a.jsonl"]


def listing(*paths: str) -> bytes:
    files = [UploadedFile(path=path, sha256="0" * 64, size_bytes=1) for path in paths]
    return UploadListing(is_folder=True, files=files).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listing("a", "a"), "twice"),
        (listing("a", "a/b"), "lies below what is a file"),
        (listing("a", "a-b", "a/b/c"), "lies below what is a file"),
        (listing("a/" * 64 + "b"), "more than 64 parts; make it flatter"),
        (
            UploadListing(
                is_folder=False,
                files=[
                    UploadedFile(path="a", sha256="0" * 64, size_bytes=1, parts=["0" * 64] * 1001)
                ],
            ).encode(),
            "has 1,001 parts, and may have 1,000 with its 1 B",
        ),
        (listing("a/../../b"), "no path below"),
        (listing("x" * 300), "no path below"),
        (b"no listing", "is no listing"),
        (b"[" * 100_000, "is no listing"),
        (b"x" * (48 * 1024 * 1024 + 1), "at most 48.0 MiB"),
    ],
)
def test_a_listing_that_could_do_harm_is_refused(
    content: bytes, message: str, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    store.put(blob_key(digest), content)
    with pytest.raises(InvalidInput, match=message):
        read_listing(store, digest)


def test_deep_paths_are_told_apart_in_little_memory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    content = listing(*(f"{n}/" + "a/" * 62 + "x" for n in range(2000)))
    digest = hashlib.sha256(content).hexdigest()
    store.put(blob_key(digest), content)
    tracemalloc.start()
    try:
        assert len(read_listing(store, digest).files) == 2000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15 * len(content)  # all folders above all files would be 40 times as much


def test_an_upload_that_a_document_names_often_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def refuse(store: Store, digest: str) -> None:
        read.append(digest)
        raise InvalidInput("no such upload")

    monkeypatch.setattr(named_files, "read_listing", refuse)
    named = [
        NamedPath(field=(str(n),), value=f"upload:{'0' * 64}", kind="data", beside={})
        for n in range(9)
    ]
    parts = cast(Gateway, SimpleNamespace(store=LocalStore(tmp_path), reach=Reach()))
    found = named_files._errors(named, parts)
    assert [error.path for error in found] == [str(n) for n in range(9)]
    assert read == ["0" * 64]


def test_the_list_of_uploads_leaves_out_what_is_forgotten_meanwhile(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    content = listing("a")
    store.put(blob_key("0" * 64), b"x")
    digest = hashlib.sha256(content).hexdigest()
    store.put(blob_key(digest), content)
    for owner in ("ann", "bob"):
        assert make_upload(store, digest, "x", owner).upload
    every = list(store.objects("uploads/"))
    store.delete([upload_key(digest, "ann")])
    store.objects = lambda prefix, after="": iter(every)  # type: ignore[method-assign]
    assert [record.owner for record in list_uploads(store, None)] == ["bob"]
    assert list_uploads(store, "ann") == []


def test_an_upload_may_have_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    content = listing("a", "b")
    digest = hashlib.sha256(content).hexdigest()
    store.put(blob_key(digest), content)
    assert make_upload(store, digest, "x", "ann", 2).missing == ["0" * 64]
    with pytest.raises(InvalidInput, match=r"data\.max_upload_bytes"):
        make_upload(store, digest, "x", "ann", 1)
    store.put(blob_key("0" * 64), b"more than one")
    with pytest.raises(InvalidInput, match="'a' has 13 bytes, and its upload lists 1; list what"):
        make_upload(store, digest, "x", "ann", 2)
    store.put(blob_key("0" * 64), b"1")
    upload = make_upload(store, digest, "x", "ann", 2).upload
    assert upload is not None and upload.size_bytes == 2


def test_a_store_in_a_folder_gives_no_more_than_what_continual_learning_made(
    tmp_path: Path,
) -> None:
    store = LocalStore(tmp_path / "store")
    key = f"continual/nightly/data/{'0' * 64}.jsonl"
    store.put(key, b'{"text": "x"}\n')
    store.put("jobs/other/logs/x.jsonl", b'{"text": "x"}\n')
    settings = Settings.model_validate({"storage": {"url": store.url}}).storage
    spec = tiny_spec(data={"training_dataset": f"{store.root}/{key}"})
    assert resolve(spec, settings, lambda _: None, Reach()).training.size_bytes
    other = tiny_spec(data={"training_dataset": f"{store.root}/jobs/other/logs"})
    with pytest.raises(InvalidData, match=r"data\.roots"):
        resolve(other, settings, lambda _: None, Reach())
