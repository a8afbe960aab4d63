"""One contract, every store."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loomos.errors import InvalidInput, NotFound
from loomos.settings import StorageSettings
from loomos.storage import Store, file_sha256, open_store, open_uri
from loomos.storage.chunks import ChunkWriter, read_chunks
from tests.stack import Stack


@pytest.fixture(params=[pytest.param("s3", marks=pytest.mark.stack), "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(StorageSettings(url=f"file://{tmp_path}/store"))
        return
    stack: Stack = request.getfixturevalue("stack")
    yield open_uri(f"s3://loomos/tests/{uuid.uuid4().hex}", stack.storage)


def test_what_was_put_is_got(store: Store) -> None:
    store.put("a/b", b"one")
    store.put("a/b", b"two")
    assert store.get("a/b") == b"two"
    assert b"".join(store.stream("a/b")) == b"two"
    assert (store.exists("a/b"), store.exists("a")) == (True, False)


def test_what_is_not_there_is_not_found(store: Store, tmp_path: Path) -> None:
    for call in (store.get, store.stream, lambda k: store.get_file(k, tmp_path / "x")):
        with pytest.raises(NotFound, match="no object 'nothing'"):
            call("nothing")
    assert not (tmp_path / "x").exists()


def test_of_many_who_put_if_absent_one_wins(store: Store) -> None:
    def put(number: int) -> bool:
        return store.put_if_absent("fence", str(number).encode())

    with ThreadPoolExecutor(8) as pool:
        won = [n for n, ok in enumerate(pool.map(put, range(8))) if ok]
    assert len(won) == 1
    assert store.get("fence") == str(won[0]).encode()
    assert store.put_if_absent("fence", store.get("fence")), "the same content is no conflict"


def test_listings_are_in_key_order_and_go_on_after_a_key(store: Store) -> None:
    keys = [f"p/{n:03d}" for n in range(25)]
    for key in reversed(keys):
        store.put(key, b"x" * (1 + len(key)))
    store.put("q", b"")
    assert [item.key for item in store.objects("p/")] == keys
    assert [item.key for item in store.objects("p/", after="p/019")] == keys[20:]
    assert next(store.objects("p/")).size_bytes == 6
    assert list(store.objects("nothing/")) == []


def test_children_are_names_one_level_down(store: Store) -> None:
    for key in ("m/a/1", "m/a/2", "m/b/1", "m/c"):
        store.put(key, b"")
    assert store.children("m/") == ["a/", "b/", "c"]
    assert store.children("nothing/") == []
    assert store.children("m/", after="a~") == ["b/", "c"]
    assert store.children("m/", after="b/") == ["c"]
    assert store.children("m/", after="c") == []


def test_a_local_folder_goes_with_its_last_object_and_comes_again(tmp_path: Path) -> None:
    """S3 has no folders, and a server may keep empty ones."""
    store = open_store(StorageSettings(url=f"file://{tmp_path}/store"))

    def work(number: int) -> None:
        for turn in range(10):
            store.put_if_absent(f"f/g/{number}", b"x")
            store.put(f"f/g/h/{number}-{turn}", b"x")
            store.delete([f"f/g/{number}", f"f/g/h/{number}-{turn}"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.children("f/") == []


def test_deleting_is_thorough_and_repeatable(store: Store) -> None:
    store.put("d/1", b"")
    for _ in range(2):
        store.delete(["d/1", "d/2"])
    assert list(store.objects("d/")) == []


def test_a_large_file_travels_in_parts(store: Store, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    block = hashlib.sha256(b"seed").digest() * 32768
    with source.open("wb") as file:
        for number in range(130):
            file.write(bytes([number]) + block)
    store.put_file("large", source)
    store.get_file("large", target)
    assert target.read_bytes() == source.read_bytes()
    store.copy("large", "copies/large")
    store.delete(["large"])
    store.get_file("copies/large", target)
    assert file_sha256(target) == file_sha256(source)


def test_a_copy_of_nothing_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="no object 'nothing'"):
        store.copy("nothing", "something")
    assert not store.exists("something")


def test_chunks_are_read_in_order_and_from_a_cursor(store: Store) -> None:
    writer = ChunkWriter(store, "log/", generation=2, writer="n0")
    for number in range(3):
        writer.append({"n": number})
        writer.flush()
    writer.flush()
    early = ChunkWriter(store, "log/", generation=1, writer="n0")
    early.append({"n": "earlier"})
    early.flush()
    chunks = list(read_chunks(store, "log/"))
    assert [r["n"] for c in chunks for r in c.records] == ["earlier", 0, 1, 2]
    assert [r["n"] for c in read_chunks(store, "log/", chunks[1].key) for r in c.records] == [1, 2]


def test_another_kind_of_url_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"storage\.url 'ftp://x' is not usable"):
        open_store(StorageSettings(url="ftp://x"))
