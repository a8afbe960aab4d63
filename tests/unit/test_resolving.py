"""Pinning inputs: what cannot get better is said at once, with file and row."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import errors

from loomos.errors import InvalidData, InvalidModel
from loomos.manifest import TrainingSpec
from loomos.settings import StorageSettings
from loomos.storage._local import LocalStore
from loomos.training import resolve as resolving
from loomos.training.data import DocumentFile
from loomos.training.resolve import resolve


@pytest.fixture
def settings(tmp_path: Path) -> StorageSettings:
    return StorageSettings(url=f"file://{tmp_path}/store")


def spec(data: Path, **model: Any) -> TrainingSpec:
    return TrainingSpec.model_validate(
        {
            "model": {
                "base_model": "init:llama",
                "tokenizer": "byte",
                "fine_tuning_config": {"max_steps": 1},
                **model,
            },
            "data": {"training_dataset": str(data)},
        }
    )


def test_a_file_name_that_is_not_utf_8_is_refused_by_name(
    tmp_path: Path, settings: StorageSettings
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "fine.txt").write_text("text")
    Path(os.fsdecode(os.fsencode(data) + b"/b\xffd.txt")).write_text("text")
    with pytest.raises(InvalidData, match=r"b'b\\xffd.txt' is not UTF-8; rename the file"):
        resolve(spec(data), settings, lambda doing: None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "\\ud800"}', r"has half a character \(U\+D800\) at place 1"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
        ('{"text": ' + "9" * 5000 + "}", "a number that cannot be read"),
        ('{"messages": [{"role": "user", "content": "a\\udfff"}]}', "half a character"),
        ('{"prompt": "a", "completion": "\\udbff"}', "field 'completion', has half a character"),
        ('{"text": 1', "is not JSON"),
        ('{"' + "k" * 9000 + '": 1}', "set data.text_field"),
    ],
)
def test_a_row_that_no_tokenizer_takes_is_refused_with_file_and_line(
    tmp_path: Path, line: str, words: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    rows = DocumentFile(path, "rows.jsonl", "auto", "text")
    assert rows.read(0).parts == [("fine", True)]
    with pytest.raises(InvalidData, match=words) as refused:
        rows.read(1)
    message = str(refused.value)
    assert message.startswith("rows.jsonl line 2")
    assert len(message.encode()) < 1000


def test_a_parquet_value_that_cannot_be_read_is_refused_with_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    ends, content = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, content])
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), path)
    with pytest.raises(InvalidData, match=r"rows.parquet row 1 has a value that cannot be read"):
        DocumentFile(path, "rows.parquet", "auto", "text").read(0)


# --- the hub --------------------------------------------------------------------------------------


def ask(data: Path, settings: StorageSettings) -> tuple[str, list[str]]:
    (data / "a.txt").write_text("text")
    said: list[str] = []
    with pytest.raises(InvalidModel) as refused:
        resolve(spec(data, base_model="someone/model", tokenizer="byte"), settings, said.append)
    return str(refused.value), said


def test_a_hub_that_nobody_reaches_is_asked_a_few_times_and_named(
    tmp_path: Path, settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "model_info", away.model_info)
    monkeypatch.setattr(resolving, "HUB_WAIT_S", 0.0)
    monkeypatch.setattr(resolving, "HUB_TRIES", 3)
    message, said = ask(tmp_path, settings)
    assert "model.base_model 'someone/model'" in message
    assert "did not answer 3 times (ConnectError)" in message
    assert "set HF_ENDPOINT" in message and "s3://BUCKET/PREFIX" in message
    assert [words for words in said if "try 3 of 3" in words]


def test_a_hub_that_may_not_be_asked_is_not(
    tmp_path: Path, settings: StorageSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **more: Any) -> Any:
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "model_info", offline)
    message, said = ask(tmp_path, settings)
    assert "HF_HUB_OFFLINE forbids" in message
    assert not [words for words in said if "try" in words]


def test_a_model_that_the_hub_has_not_is_said_at_once(
    tmp_path: Path, settings: StorageSettings
) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InvalidModel, match="does not give it: HFValidationError"):
        resolve(spec(tmp_path, base_model="a/b/c/d"), settings, lambda doing: None)


# --- buckets --------------------------------------------------------------------------------------


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LocalStore]:
    """Stores in folders, as buckets of the same names; `loomos` is that of LoomOS itself."""

    def opened(url: str, settings: StorageSettings | None = None) -> LocalStore:
        bucket = url.removeprefix("s3://").partition("?")[0]
        store = LocalStore(tmp_path / bucket)
        store.url = f"s3://{bucket}"
        return store

    monkeypatch.setattr(resolving, "open_uri", opened)
    monkeypatch.setattr(resolving, "open_store", lambda settings: opened(settings.url))
    return opened


OWN = StorageSettings(url="s3://loomos")


def test_of_a_model_in_a_bucket_only_its_files_are_copied(
    tmp_path: Path, buckets: Callable[[str], LocalStore]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    for name in ("config.json", "model.safetensors", "notes.bin", "old/config.json"):
        buckets("s3://data").put(f"team/m/{name}", name.encode())
    buckets("s3://data").put("team/m2/config.json", b"another")
    found = resolve(
        spec(tmp_path / "a.txt", base_model="s3://data/team/m"), OWN, lambda doing: None
    )
    files = json.loads(buckets("s3://loomos").get(found.model.uri))["files"]
    assert [file["name"] for file in files] == ["config.json", "model.safetensors"]
    assert found.model.size_bytes == len("config.json" + "model.safetensors")


def test_a_bucket_without_a_model_is_not_copied(
    tmp_path: Path, buckets: Callable[[str], LocalStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    buckets("s3://data").put("team/weights.json", b"x")
    wrong = spec(tmp_path / "a.txt", base_model="s3://data/team")
    with pytest.raises(InvalidModel, match=r"model.base_model 's3://data/team' has no config.json"):
        resolve(wrong, OWN, lambda doing: None)
    buckets("s3://data").put("team/config.json", b"x")
    monkeypatch.setattr(resolving, "MOST_MODEL_BYTES", 1)
    with pytest.raises(InvalidModel, match="has 2 B, and a model may have 1 B"):
        resolve(wrong, OWN, lambda doing: None)


def test_what_the_disk_has_no_room_for_is_refused_and_not_tried_again(
    tmp_path: Path, buckets: Callable[[str], LocalStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("text")
    buckets("s3://data").put("team/config.json", b"x")
    buckets("s3://data").put("rows/a.txt", b"text")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    with pytest.raises(InvalidModel, match="disk has no room"):
        resolve(spec(tmp_path / "a.txt", base_model="s3://data/team"), OWN, lambda doing: None)
    rows = spec(tmp_path).model_dump(mode="json", exclude_unset=True)
    rows["data"]["training_dataset"] = "s3://data/rows"
    with pytest.raises(InvalidData, match=r"data.training_dataset: a.txt .* disk has no room"):
        resolve(TrainingSpec.model_validate(rows), OWN, lambda doing: None)


@pytest.mark.parametrize("place", ["loomos/x", "loomos/", "loomos//x", "loomos?a/samples/chat/"])
def test_nobody_trains_on_what_the_store_of_loomos_holds(
    tmp_path: Path, buckets: Callable[[str], LocalStore], place: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    for key in ("samples/chat/x.jsonl", "x/config.json", "config.json"):
        buckets("s3://loomos").put(key, b'{"text": "of others"}')
    model = spec(tmp_path / "a.txt", base_model=f"s3://{place}")
    with pytest.raises(InvalidData, match=r"model.base_model: .* in the store of LoomOS itself"):
        resolve(model, OWN, lambda doing: None)
    data = TrainingSpec.model_validate(
        {
            **spec(tmp_path).model_dump(mode="json", exclude_unset=True),
            "data": {"training_dataset": f"s3://{place}samples"},
        }
    )
    with pytest.raises(InvalidData, match=r"training_dataset: .* in the store of LoomOS itself"):
        resolve(data, OWN, lambda doing: None)


def test_what_continual_learning_put_into_the_store_is_trained_on(
    tmp_path: Path, buckets: Callable[[str], LocalStore]
) -> None:
    key = f"continual/nightly/data/{'0' * 64}.jsonl"
    buckets("s3://loomos").put(key, b'{"text": "a line"}\n')
    rows = spec(tmp_path).model_dump(mode="json", exclude_unset=True)
    rows["data"]["training_dataset"] = f"s3://loomos/{key}"
    found = resolve(TrainingSpec.model_validate(rows), OWN, lambda doing: None)
    index = json.loads(buckets("s3://loomos").get(found.training.uri))
    assert [file["uri"] for file in index["files"]] == [f"s3://loomos/{key}"]
