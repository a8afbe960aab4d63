"""Pinned inputs on a machine that several processes share."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from loomos.jobs.training import Reference
from loomos.settings import StorageSettings
from loomos.storage import open_store
from loomos.storage.layout import blob_key
from loomos.training.inputs import InputCache

FILES = 40
READERS = 8


def test_many_fetch_the_same_folder_at_the_same_time(tmp_path: Path) -> None:
    settings = StorageSettings(url=f"file://{tmp_path}/store")
    store = open_store(settings)
    files = []
    for number in range(FILES):
        content = f"weights {number}".encode()
        sha256 = hashlib.sha256(content).hexdigest()
        store.put(blob_key(sha256), content)
        files.append({"name": f"part/{number}.bin", "sha256": sha256})
    listing = json.dumps({"files": files}).encode()
    store.put("listing", listing)
    reference = Reference(uri="listing", sha256=hashlib.sha256(listing).hexdigest())
    begin = Barrier(READERS)

    def read(_: int) -> list[str]:
        cache = InputCache(open_store(settings), settings, tmp_path / "inputs")
        begin.wait()
        folder = cache.folder(reference)
        return [(folder / file["name"]).read_text() for file in files]

    with ThreadPoolExecutor(READERS) as readers:
        found = list(readers.map(read, range(READERS)))
    assert found == [[f"weights {number}" for number in range(FILES)]] * READERS
    assert len(list((tmp_path / "inputs").rglob("*.bin"))) == FILES
    assert not list((tmp_path / "inputs").rglob(".*"))
